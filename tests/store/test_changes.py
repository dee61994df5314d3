"""What a mirror needs of Redis, by itself: cursors that are not believed blindly, scans, signs of loss, refills."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_client.model import CLAIM_NAMES, ClaimName, Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.store.change_log import NOWHERE
from revocation_service.store.changes import Changes, CursorLost, Standing
from revocation_service.store.redis import Put
from tests.redis_processes import Cluster, Process, cluster, eventually, standalone
from tests.scale import scaled
from tests.slot_moves import slot_move
from tests.store.conftest import Opened, Proxy, open_store, read_log

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server for the tests that do it no harm."""
    async with standalone() as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """Three masters, three replicas."""
    async with cluster() as topology:
        yield topology


async def nothing() -> None:
    """What there is to do before a master is marked."""


async def scanned(changes: Changes) -> list[Revocation]:
    """All that a scan finds."""
    found: list[Revocation] = []

    async def take(some: list[Revocation]) -> None:
        found.extend(some)
        await asyncio.sleep(0)

    await changes.scan(take)
    return found


async def test_the_log_is_read_in_order_from_a_heartbeat(server: Process) -> None:
    """Behind a heartbeat's cursor stand what was revoked since, with its end and cutoff, and later heartbeats."""
    async with open_store(server.url) as opened:
        changes = Changes(opened.store)
        await opened.revoke("before")
        cursor = await changes.beat("me.1")
        records = [await opened.record(Put("jti", f"v{n}", expires_in=600)) for n in range(3)]
        records.append(await opened.record(Put("sub", "alice", cutoff_is_now=True)))
        await changes.beat("me.2")
        async with changes.tail(cursor) as tail:
            entries = await tail.next()
        found = [entry.revocation for entry in entries if entry.revocation]
        times = [(each.value, each.expires_at, each.issued_before) for each in found]
        assert times == [(each.value, each.expires_at, each.issued_before) for each in records]
        assert entries[-1].heartbeat == "me.2"
        async with changes.tail(entries[1].cursor) as tail:
            assert [entry.cursor for entry in await tail.next()] == [entry.cursor for entry in entries[2:]]


async def test_a_read_waits_for_news(server: Process) -> None:
    """Nothing new: it answers after its time; something new: at once."""
    async with open_store(server.url) as opened:
        changes = Changes(opened.store)
        async with changes.tail(await changes.beat("me.1")) as tail:
            assert await tail.next(0.05) == []
            waiting = asyncio.create_task(tail.next(5))
            begun = time.monotonic()
            await opened.revoke("a")
            assert [entry.revocation and entry.revocation.value for entry in await waiting] == ["a"]
            assert time.monotonic() - begun < 2


@pytest.mark.parametrize("loss", ["flushed", "trimmed", "another history", "deleted"])
async def test_a_cursor_whose_entry_is_gone_is_not_believed(loss: str) -> None:
    """The log emptied, trimmed beyond it, or another's entry under the same id: CursorLost, never a silent gap."""
    async with standalone() as process, open_store(process.url, change_log_max_entries=10) as opened:
        changes, log = Changes(opened.store), opened.store.keyspace.change_log
        cursor = await changes.beat("me.1")
        entry_id = cursor.partition(".")[0]
        async with changes.tail(cursor) as tail:
            waiting = asyncio.create_task(tail.next(2))
            await asyncio.sleep(0.05)
            if loss == "flushed":
                await process.command("FLUSHALL")
            elif loss == "trimmed":
                await process.command("XTRIM", log, "MAXLEN", 0)
            elif loss == "deleted":
                await process.command("XDEL", log, entry_id)
            else:
                await process.command("DEL", log)
                await process.command("XADD", log, entry_id, "n", secrets.token_hex(8), "h", "other.1")
            await process.command("XADD", log, "*", "n", "1", "h", "other.2")
            with pytest.raises(CursorLost):
                await waiting
        async with changes.tail(cursor) as tail:
            with pytest.raises(CursorLost):
                await tail.next(0)


async def test_a_reader_that_waits_ahead_of_a_new_log_is_told(server: Process) -> None:
    """After a loss new entries have smaller ids than the cursor: it hears of none, and is told so at its next read."""
    async with open_store(server.url) as opened:
        log = opened.store.keyspace.change_log
        await server.command("XADD", log, "99999999999999-0", "n", "00", "h", "me.1")
        async with Changes(opened.store).tail("99999999999999-0.00") as tail:
            assert await tail.next(0.02) == []
            await server.command("DEL", log)
            await opened.revoke("a")
            with pytest.raises(CursorLost):
                await tail.next(0.02)


async def test_an_entry_that_nobody_understands_stops_nothing(server: Process) -> None:
    """Junk in the log is passed over; what stands behind it is read."""
    async with open_store(server.url) as opened:
        changes, log = Changes(opened.store), opened.store.keyspace.change_log
        cursor = await changes.beat("me.1")
        for junk in (
            "{}",
            "[]",
            "nonsense",
            '{"claim":"what","value":"a","expires_at":1}',
            '{"claim":"jti","value":"a"}',
        ):
            await server.command("XADD", log, "*", "n", "1", "r", junk)
        await server.command("XADD", log, "*", "something", "else")
        await opened.revoke("a")
        async with changes.tail(cursor) as tail:
            found = [entry.revocation for entry in await tail.next()]
        assert [each.value for each in found if each] == ["a"]


async def _fill(opened: Opened, count: int) -> set[tuple[ClaimName, str]]:
    await opened.revoke_all([f"v{number}" for number in range(count)])
    for claim in CLAIM_NAMES[1:]:
        await opened.store.put(Put(claim, "" if claim == "all" else "é:*", cutoff_is_now=True))
    return {("jti", f"v{n}") for n in range(count)} | {(c, "" if c == "all" else "é:*") for c in CLAIM_NAMES[1:]}


@pytest.mark.parametrize("prefix", ["", "a*b[c]?\\:", "token_blacklist:"])
async def test_a_scan_finds_all_records_and_nothing_else(server: Process, prefix: str) -> None:
    """All of ours as `get` has them, foreign ones too; not what lies under another prefix, nor what is no record."""
    async with open_store(server.url, key_prefix=prefix) as opened, open_store(server.url, key_prefix="aXb") as other:
        expected = await _fill(opened, scaled(2500, 50_000))
        await other.revoke("not ours")
        await server.command("SET", f"{prefix}token_cutoff:what:ever", "1")
        await server.command("SET", f"{prefix}token_bag", "1")
        await server.command("SETEX", f"{prefix}token_blacklist:theirs", 600, "1")
        await server.command("LPUSH", f"{prefix}token_blacklist:a list", "1")
        found = {(each.claim, each.value): each for each in await scanned(Changes(opened.store))}
        assert found.keys() - {("jti", "theirs"), ("jti", "a list")} == expected
        assert found["jti", "theirs"].revoked_at is None
        assert found["jti", "a list"].expires_at is None
        for claim, value in [("jti", "v7"), ("sub", "é:*"), ("all", "")]:
            record = await opened.found(value, claim)  # type: ignore[arg-type]
            assert record is not None
            assert (found[claim, value].expires_at, found[claim, value].issued_before) == (  # type: ignore[index]
                record.expires_at,
                record.issued_before,
            )
    await server.command("FLUSHALL")


async def test_a_foreign_value_of_megabytes_is_found_and_never_transferred(server: Process) -> None:
    """A scan, a check and a revocation learn that the key exists; together they receive less than its value is long."""
    received = 0

    async def count(piece: bytes) -> bytes | None:
        nonlocal received
        received += len(piece)
        return piece

    async with Proxy(server.port, reply=count).running() as proxy, open_store(proxy.url) as opened:
        await server.command("SETEX", opened.store.keyspace.key("jti", "theirs"), 600, "x" * 8_000_000)
        found = await scanned(Changes(opened.store))
        assert [(each.value, each.revoked_at) for each in found] == [("theirs", None)]
        checked = await opened.found("theirs")
        assert checked is not None
        assert checked.revoked_at is None
        assert (await opened.revoke("theirs")).result == "already_revoked"
    assert received < 1_000_000
    await server.command("FLUSHALL")


async def test_an_acl_that_forbids_to_read_values_is_an_outage(server: Process) -> None:
    """No record is mistaken for a foreign one with an empty value, which would cover more tokens than it does."""
    await server.command("ACL", "SETUSER", "blind", "on", ">pw", "~*", "&*", "+@all", "-strlen")
    try:
        async with (
            open_store(server.url) as whole,
            open_store(f"redis://blind:pw@{server.address}/0", key_prefix=whole.settings.key_prefix) as blind,
        ):
            await whole.store.put(Put("sub", "alice", issued_before=1000))
            with pytest.raises(StoreUnavailable):
                await blind.found("alice", "sub")
            with pytest.raises(StoreUnavailable):
                await blind.store.put(Put("sub", "alice", issued_before=2000))
    finally:
        await server.command("ACL", "DELUSER", "blind")


async def test_a_scan_of_a_cluster_finds_all(clustered: Cluster) -> None:
    """The records of all masters are found."""
    async with open_store(clustered.url) as opened:
        expected = await _fill(opened, 500)
        found = {(each.claim, each.value) for each in await scanned(Changes(opened.store))}
        assert found == expected


async def test_a_scan_whose_connection_breaks_begins_again(server: Process) -> None:
    """Cut midway, it is not carried on with the cursor over another connection: all is seen from the beginning."""
    async with Proxy(server.port).running() as proxy, open_store(proxy.url) as opened:
        expected = await _fill(opened, 3000)
        seen: list[Revocation] = []
        cuts = [1000, 2500]

        async def take(some: list[Revocation]) -> None:
            seen.extend(some)
            if cuts and len(seen) >= cuts[0]:
                cuts.pop(0)
                proxy.cut()
            await asyncio.sleep(0)

        await Changes(opened.store).scan(take)
        assert not cuts
        assert {(each.claim, each.value) for each in seen[-len(expected) :]} == expected, "the last pass was whole"


async def test_a_scan_of_a_server_that_is_away_says_so() -> None:
    """StoreUnavailable, after a few attempts."""
    async with standalone() as process, open_store(process.url) as opened:
        process.kill()
        with pytest.raises(StoreUnavailable):
            await scanned(Changes(opened.store))


async def _changed(changes: Changes, before: Standing) -> bool:
    try:
        return await changes.standing() != before
    except StoreUnavailable:
        return False


async def test_the_standing_is_the_same_while_nothing_happens(clustered: Cluster, server: Process) -> None:
    """Asked again and again it is equal, and certain; writes change nothing."""
    for url in (clustered.url, server.url):
        async with open_store(url) as opened:
            changes = Changes(opened.store)
            first = await changes.begin(nothing)
            assert first.certain
            for number in range(5):
                await opened.revoke(f"v{number}")
                assert await changes.standing() == first


@pytest.mark.parametrize("loss", ["restart", "flush", "demotion and back"])
async def test_the_standing_tells_of_a_loss(loss: str) -> None:
    """A new process, an emptied one, or one that was a replica meanwhile: not what it was."""
    async with standalone() as process, open_store(process.url) as opened:
        changes = Changes(opened.store)
        first = await changes.begin(nothing)
        if loss == "restart":
            process.kill()
            await process.start()
        elif loss == "flush":
            await process.command("FLUSHALL")
        else:
            async with standalone() as other:
                await process.command("REPLICAOF", "127.0.0.1", other.port)
                await process.command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: _changed(changes, first), "another standing", 3)


async def test_a_server_that_hides_its_run_id_is_never_certain(server: Process) -> None:
    """INFO forbidden: the standing can be asked for, and proves nothing."""
    await server.command("ACL", "SETUSER", "shy", "on", ">shy-password", "~*", "&*", "+@all", "-info")
    async with open_store(server.url.replace("redis://", "redis://shy:shy-password@")) as opened:
        standing = await Changes(opened.store).standing()
        assert not standing.certain
    await server.command("ACL", "DELUSER", "shy")


async def test_what_lacks_is_written_back_once() -> None:
    """Offered twice: the second time nothing is written; what was not lost is neither written nor logged."""
    async with standalone() as process, open_store(process.url) as opened:
        refill, now = Changes(opened.store).refill, time.time()
        lost = [Revocation("jti", f"v{number}", now + 600, None) for number in range(450)]
        kept = await opened.record(Put("jti", "kept", expires_in=600))
        ended = Revocation("jti", "ended", now + 1, None)
        assert await refill.offer([*lost, kept, ended], now) == len(lost)
        assert await refill.offer([*lost, kept, ended], now) == 0
        logged = [entry.change["value"] for entry in await read_log([process], opened.store.keyspace.change_log)]
        assert sorted(logged) == sorted(["kept", *(each.value for each in lost)])
        assert await opened.found("kept") == kept
        assert await opened.found("ended") is None
        for each in lost[:3]:
            record = await opened.found(each.value)
            assert record is not None
            assert abs((record.expires_at or 0) - (each.expires_at or 0)) < 0.01


async def test_two_refills_at_once_do_no_harm(clustered: Cluster) -> None:
    """Without taking turns, over three masters: the greater of what both have is what is there."""
    async with open_store(clustered.url) as one, open_store(clustered.url, key_prefix=one.settings.key_prefix) as other:
        now = time.time()
        short = [Revocation("sub", f"v{n}", now + 600, None, now - 100) for n in range(300)]
        long = [Revocation("sub", f"v{n}", now + 900, None, now - 50) for n in range(300)]
        await asyncio.gather(Changes(one.store).refill.offer(short, now), Changes(other.store).refill.offer(long, now))
        for number in range(0, 300, 17):
            record = await one.found(f"v{number}", "sub")
            assert record is not None
            assert abs((record.expires_at or 0) - now - 900) < 0.01
            assert record.issued_before == now - 50


async def test_a_lease_makes_them_take_turns(server: Process) -> None:
    """The second begins when the first has ended; one that died holds up the others for its lease, and no longer."""
    async with open_store(server.url) as opened:
        one, other = Changes(opened.store).refill, Changes(opened.store).refill
        order: list[str] = []

        async def second() -> None:
            async with other.turn():
                order.append("second")

        async with one.turn():
            waiting = asyncio.create_task(second())
            await asyncio.sleep(0.5)
            order.append("first")
        await asyncio.wait_for(waiting, 5)
        assert order == ["first", "second"]
        await server.command("SET", opened.store.keyspace.refill_lease, "of the dead", "PX", 500)
        async with asyncio.timeout(5), one.turn():
            pass
        assert await server.command("EXISTS", opened.store.keyspace.refill_lease) == 0


async def test_every_key_of_the_mirror_has_an_expiry(server: Process) -> None:
    """The marks and the lease end by themselves, should nobody look any more."""
    async with open_store(server.url) as opened:
        changes = Changes(opened.store)
        await changes.begin(nothing)
        await changes.debts.announce(NOWHERE)
        async with changes.refill.turn():
            keyspace = opened.store.keyspace
            for key in (keyspace.mark(0), keyspace.refill_lease, keyspace.debts):
                assert await server.command("PTTL", key) > 0


async def test_a_scan_finds_what_moves_behind_its_back(clustered: Cluster) -> None:
    """A record goes over from a master that is scanned last to one that has been scanned: it is taken all the same."""
    async with open_store(clustered.url, wait_replicas=0) as opened:
        await opened.revoke_all([f"v{number}" for number in range(30)])
        keyspace = opened.store.keyspace
        masters = await opened.store.connections.masters()
        owners = {f"v{n}": opened.store.connections.owner(keyspace.key("jti", f"v{n}")) for n in range(30)}
        moved = next(value for value, owner in owners.items() if owner is masters[-1])
        first = next(value for value, owner in owners.items() if owner is masters[0])
        target = await clustered.master_of(keyspace.key("jti", first))
        move = await slot_move(clustered, keyspace.key("jti", moved), target)
        await move.begin()
        taken: set[str] = set()

        async def take(some: list[Revocation]) -> None:
            if not taken:
                await move.carry(keyspace.key("jti", moved))
                assert owners[some[0].value] is masters[0]
            taken.update(each.value for each in some)

        try:
            await Changes(opened.store).scan(take)
            assert taken >= {*owners}
        finally:
            await move.finish()
