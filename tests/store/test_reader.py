"""The reader of a process: it knows all there is, how old that is, notices what was lost, and gives it back."""

import asyncio
import contextlib
import functools
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from revocation_client.model import CLAIM_NAMES, ClaimName, Claims, Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.reader import Reader
from revocation_service.settings import MirrorSettings
from revocation_service.store.changes import Changes
from revocation_service.store.redis import DEADLINE_SECONDS, Put
from tests.redis_processes import Cluster, Process, SentinelSet, cluster, eventually, sentinel, standalone
from tests.scale import scaled
from tests.slot_moves import slot_move
from tests.store.conftest import Opened, Proxy, Writers, missing, open_store, read_log

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTICED_SECONDS = 4.0
"""Within which a loss is noticed; the claim is two to three, the rest is for a busy machine."""

FRESH_SECONDS = 2.0


@dataclass
class Running:
    """A reader that runs over a store of its own."""

    opened: Opened
    changes: Changes
    reader: Reader

    @property
    def age(self) -> float:
        """How old its mirror is just now."""
        return self.reader.age(time.monotonic())

    def knows(self, value: str, claim: ClaimName = "jti") -> bool:
        """Whether the mirror has a live revocation of this."""
        return self.reader.mirror.held(claim, value, time.time()) is not None

    def counted(self, name: str, **labels: str) -> float:
        """The value of one of its metrics; 0 for what was never counted."""
        return self.opened.metrics.registry.get_sample_value(f"revocation_{name}", labels) or 0

    async def fresh(self, seconds: float = 30) -> None:
        """Wait until the mirror is synced and fresh."""
        await self.until(lambda: self.age < FRESH_SECONDS and self.reader.status.name == "synced", "fresh", seconds)

    async def caught_up(self) -> None:
        """Wait until it is proven that the mirror has all that was acknowledged by now."""
        now = time.monotonic()
        await self.until(lambda: time.monotonic() - self.age > now, "a heartbeat that was begun after this")

    async def until(self, check: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait until something is so."""
        await eventually(functools.partial(_said, check), what, seconds)

    async def in_redis(self, values: list[str], seconds: float = 30) -> None:
        """Wait until Redis has all of these."""
        await eventually(functools.partial(self._none_missing, values), "all of them in Redis", seconds)

    async def _none_missing(self, values: list[str]) -> bool:
        try:
            return not await missing(self.opened, values)
        except (StoreUnavailable, AssertionError):
            return False


def is_complete(running: Running) -> bool:
    """Whether the reader says that all who revoke say so in the log."""
    return running.reader.complete


async def _said(check: Callable[[], bool]) -> bool:
    return check()


@contextlib.asynccontextmanager
async def reading(
    url: str, settings: MirrorSettings | None = None, wall: Callable[[], float] = time.time, **store: Any
) -> AsyncIterator[Running]:
    """A reader over this URL, started; ended with the test, with all its tasks."""
    async with open_store(url, **store) as opened:
        changes = Changes(opened.store)
        reader = Reader(changes, settings or MirrorSettings(), opened.metrics, wall=wall)
        await reader.start()
        try:
            yield Running(opened, changes, reader)
        finally:
            async with asyncio.timeout(5):
                await reader.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server for the tests that do it no harm."""
    async with standalone() as process:
        yield process


async def test_it_knows_what_was_there_and_what_comes(server: Process) -> None:
    """Every claim's revocations, made before it began or later by others: with their cutoffs and ends, at once."""
    async with (
        reading(server.url) as running,
        open_store(server.url, key_prefix=running.opened.settings.key_prefix) as other,
    ):
        await running.fresh()
        for claim in CLAIM_NAMES:
            value = "" if claim == "all" else "later"
            await other.store.put(
                Put(claim, value, expires_in=600 if claim == "jti" else None, cutoff_is_now=claim != "jti")
            )
        await running.until(lambda: running.knows("", "all"), "the last of them", 2)
        async with reading(server.url, key_prefix=other.settings.key_prefix) as late:
            await late.fresh()
            for claim in CLAIM_NAMES:
                value = "" if claim == "all" else "later"
                record = await other.found(value, claim)
                assert record is not None
                for each in (running, late):
                    held = each.reader.mirror.held(claim, value, time.time())
                    assert held is not None
                    assert held.issued_before == record.issued_before
                    assert held.expires_at is not None
                    assert record.expires_at is not None
                    assert 0 <= held.expires_at - record.expires_at < 1
            assert late.reader.complete
            assert len(late.reader.mirror) == len(CLAIM_NAMES)


async def test_the_lag_is_milliseconds(server: Process, record_property: Callable[[str, object], None]) -> None:
    """From the acknowledgement to another process's mirror: the median below 5 ms, on a machine that is busy."""
    lags = []
    async with (
        reading(server.url) as running,
        open_store(server.url, key_prefix=running.opened.settings.key_prefix) as other,
    ):
        await running.fresh()
        for number in range(scaled(300, 5000)):
            await other.revoke(f"v{number}")
            acknowledged = time.monotonic()
            while not running.knows(f"v{number}"):
                await asyncio.sleep(0)
            lags.append(time.monotonic() - acknowledged)
    lags.sort()
    record_property("lag_p50_ms", round(lags[len(lags) // 2] * 1000, 3))
    record_property("lag_p99_ms", round(lags[int(len(lags) * 0.99)] * 1000, 3))
    assert lags[-1] < 1


async def test_listeners_are_told_all_in_order_with_cursors(server: Process) -> None:
    """A listener hears every change once it listens, each with a cursor behind which nothing is missing."""
    async with reading(server.url) as running:
        await running.fresh()
        told: list[tuple[str, list[Revocation]]] = []
        unsubscribe = running.reader.subscribe(lambda cursor, some: told.append((cursor, some)))
        for number in range(50):
            await running.opened.revoke(f"v{number}")
        await running.until(lambda: running.knows("v49"), "the last", 2)
        assert [each.value for _, some in told for each in some] == [f"v{number}" for number in range(50)]
        log = {
            entry.change["value"]: entry for entry in await read_log([server], running.opened.store.keyspace.change_log)
        }
        for cursor, some in told:
            last = log[some[-1].value]
            entry_id = tuple(map(int, cursor.partition(".")[0].split("-")))
            assert entry_id >= tuple(map(int, last.id.split("-")))
        unsubscribe()
        await running.opened.revoke("afterwards")
        await running.until(lambda: running.knows("afterwards"), "one more", 2)
        assert "afterwards" not in [each.value for _, some in told for each in some]


async def test_what_the_process_wrote_itself_it_knows_before_the_log_says_so(server: Process) -> None:
    """`add_own` is in the mirror when it returns, synced or not, and is told once: not again when the log says so."""
    async with open_store(server.url) as opened:
        changes = Changes(opened.store)
        reader = Reader(changes, MirrorSettings(), opened.metrics)
        told: list[str] = []
        reader.subscribe(lambda _cursor, some: told.extend(each.value for each in some))
        record = await opened.record(Put("jti", "mine", expires_in=600))
        reader.add_own(record)
        assert reader.mirror.covering(Claims(jti="mine"), time.time())
        assert not reader.synced
        assert told == ["mine"]
        await reader.start()
        try:
            running = Running(opened, changes, reader)
            await running.fresh()
            reader.add_own(await opened.record(Put("jti", "mine too", expires_in=600)))
            await opened.revoke("another's")
            await running.until(lambda: running.knows("another's"), "what came after it", 2)
            assert sorted(told) == ["another's", "mine", "mine too"]
        finally:
            await reader.aclose()


class Wall:
    """A clock on the wall that can be set."""

    def __init__(self, ahead_seconds: float = 0) -> None:
        self.ahead_seconds = ahead_seconds

    def __call__(self) -> float:
        return time.time() + self.ahead_seconds


async def test_a_clock_that_is_ahead_leaves_out_nothing_that_lives(server: Process) -> None:
    """On a machine 45 s ahead, what has 30 s left, in log or store, is in the mirror, for others to judge."""
    async with reading(server.url, wall=Wall(45)) as running:
        await running.fresh()
        await running.opened.store.put(Put("jti", "short", expires_in=30))
        await running.until(lambda: running.knows("short"), "what the log says")
        async with reading(server.url, wall=Wall(45), key_prefix=running.opened.settings.key_prefix) as late:
            await late.fresh()
            assert late.knows("short")


async def test_a_suspended_machine_proves_nothing(server: Process) -> None:
    """When the wall's clock is suddenly 20 s further, the mirror is that much older, until heartbeats prove it anew."""
    wall = Wall()
    async with reading(server.url, wall=wall) as running:
        await running.fresh()
        wall.ahead_seconds = 20
        assert running.age > 19
        assert not running.reader.fresh
        await running.until(lambda: running.counted("mirror_rescans_total", reason="clock_jumped") == 1, "a new scan")
        await running.fresh()


async def test_what_a_wrong_clock_forgot_is_read_anew(server: Process) -> None:
    """A clock that is an hour ahead takes nothing in; when it is set right, all is scanned again at once."""
    wall = Wall(3600)
    async with reading(server.url, wall=wall) as running:
        await running.fresh()
        await running.opened.revoke("lives on")
        await running.caught_up()
        assert not running.knows("lives on")
        wall.ahead_seconds = 0
        await running.until(lambda: running.knows("lives on"), "what lives", NOTICED_SECONDS)
        await running.fresh()


@pytest.mark.parametrize("end", ["NaN", "Infinity", "1" * 400, '"soon"', "[]"])
async def test_an_entry_that_is_none_of_ours_stops_nobody(server: Process, end: str) -> None:
    """What others write into the log is left out, with a warning, and what comes after it is known."""
    async with reading(server.url) as running:
        await running.fresh()
        change = f'{{"claim":"jti","value":"odd","expires_at":{end}}}'
        with capture_logs() as logs:
            await server.command("XADD", running.opened.store.keyspace.change_log, "*", "n", "nonce", "r", change)
            await running.opened.revoke("after it")
            await running.until(lambda: running.knows("after it"), "what came after it", 2)
        assert [entry["event"] for entry in logs] == ["change_log_entry_unreadable"]
        assert not running.knows("odd")


async def test_a_member_that_this_version_does_not_know_makes_the_mirror_incomplete(server: Process) -> None:
    """The known part of the revocation is taken, because it is safer to revoke too much than too little."""
    async with reading(server.url) as running:
        await running.fresh()
        change = '{"claim":"jti","value":"later","expires_at":1e10,"unless":"admin"}'
        await server.command("XADD", running.opened.store.keyspace.change_log, "*", "n", "nonce", "r", change)
        await running.until(lambda: running.knows("later"), "the known part", 5)
        assert not running.reader.complete


async def test_a_claim_that_this_version_does_not_know_makes_the_mirror_incomplete(server: Process) -> None:
    """From the log, and from its record as long as a scan finds that: "not revoked" is then not the mirror's to say."""
    async with reading(server.url, MirrorSettings(rescan_seconds=0.2)) as running:
        await running.fresh()
        assert running.reader.fresh
        keyspace = running.opened.store.keyspace
        change = '{"claim":"device_id","value":"d-1","expires_at":1e10,"issued_before":1}'
        await server.command("XADD", keyspace.change_log, "*", "n", "nonce", "r", change)
        await running.until(lambda: not running.reader.complete, "a mirror that knows that it is incomplete", 5)
        await running.until(lambda: running.reader.fresh, "a scan that found everything known", 10)
        key = keyspace.key("sub", "d-1").replace(":sub:", ":device_id:")
        await server.command("SET", key, "{}", "EX", 600)
        await running.until(lambda: not running.reader.complete, "a scan that found the record", 10)
        await server.command("DEL", key)
        await running.until(lambda: running.reader.fresh, "a scan that found everything known", 10)


async def test_it_ends_what_it_began(server: Process) -> None:
    """Closed in the middle of its first scan, or later: no task of it is left, and no connection."""
    before = asyncio.all_tasks()
    for number in range(5):
        async with reading(server.url) as running:
            await asyncio.sleep(0.01 * number)
            if number > 3:
                await running.fresh()
        assert asyncio.all_tasks() == before

    async def none_left() -> bool:
        return int((await server.info("clients"))["connected_clients"]) == 1

    await eventually(none_left, "no connection but the one that asks", 5)


async def test_no_write_slips_between_the_scan_and_the_log() -> None:
    """Readers begin at random moments at full load: in the end each knows every acknowledged revocation."""
    async with standalone(config=["appendfsync everysec"]) as process, open_store(process.url) as opened:
        prefix = opened.settings.key_prefix
        async with Writers(opened).running() as writers, contextlib.AsyncExitStack() as stack:
            await writers.more(scaled(500, 5000))
            readers = []
            for _ in range(scaled(6, 40)):
                readers.append(await stack.enter_async_context(reading(process.url, key_prefix=prefix)))
                await writers.more(random.randrange(1, 200))
                if random.random() < 0.5:
                    await process.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await writers.more(200)
            values = [*writers.values]
            for running in readers:
                await running.caught_up()
                lost = [value for value in values if not running.knows(value)]
                assert not lost, f"{len(lost)} of {len(values)}, as {lost[:3]}"


async def _with_some(running: Running, count: int = 0) -> list[str]:
    values = [f"v{number}" for number in range(count or scaled(300, 20_000))]
    await running.fresh()
    await running.opened.revoke_all(values)
    await running.opened.store.put(Put("sub", "alice", cutoff_is_now=True))
    await running.until(lambda: all(map(running.knows, values)) and running.knows("alice", "sub"), "all in the mirror")
    return values


async def test_an_emptied_redis_is_filled_again() -> None:
    """FLUSHALL: noticed within seconds, all written back, cutoffs too, into the log too; said in log and metric."""
    async with standalone() as process, reading(process.url) as running:
        values = await _with_some(running)
        cutoff = running.reader.mirror.held("sub", "alice", time.time())
        assert cutoff is not None
        with capture_logs() as logs:
            begun = time.monotonic()
            await process.command("FLUSHALL")
            await running.in_redis(values, NOTICED_SECONDS + scaled(0, 20))
            assert time.monotonic() - begun < NOTICED_SECONDS + scaled(0, 20)
            await running.until(lambda: "store_refilled" in [entry["event"] for entry in logs], "the end of it")
        await running.until(lambda: running.reader.lost_data, "what /readyz says of it")
        alice = await running.opened.found("alice", "sub")
        assert alice is not None
        assert alice.issued_before == cutoff.issued_before
        assert abs((alice.expires_at or 0) - (cutoff.expires_at or 0)) < 0.01
        assert "mirror_stale" in [entry["event"] for entry in logs]
        refilled = len(values) + 1
        await running.until(lambda: running.counted("mirror_refilled_total") == refilled, "the count of all", 5)
        logged = {
            entry.change["value"] for entry in await read_log([process], running.opened.store.keyspace.change_log)
        }
        assert logged == {*values, "alice"}
        await running.fresh(5)


async def test_data_was_lost_until_a_scan_finds_all_of_it(server: Process) -> None:
    """One key deleted behind the service's back is written back by the next scan, and said until the one after it."""
    async with reading(server.url, MirrorSettings(rescan_seconds=1)) as running:
        await _with_some(running, 3)
        assert not running.reader.lost_data
        await server.command("DEL", running.opened.store.keyspace.key("jti", "v1"))
        await running.until(lambda: running.reader.lost_data, "a scan that missed it")
        await running.in_redis(["v1"])
        await running.until(lambda: not running.reader.lost_data, "a scan that found it")


async def test_a_redis_that_restarts_without_its_files_is_filled_again() -> None:
    """Killed, its files gone, started again: nothing is un-revoked, and a revocation meanwhile is kept."""
    async with standalone() as process, reading(process.url) as running:
        values = await _with_some(running)
        process.kill()
        shutil.rmtree(process.directory / "appendonlydir")
        await process.start()
        await running.in_redis(values, NOTICED_SECONDS + scaled(0, 20))
        await running.fresh(5)
        await running.opened.revoke("after it")
        await running.until(lambda: running.knows("after it"), "what came later", 2)


async def test_two_that_fill_at_once_log_each_loss_about_once() -> None:
    """Three processes hold the same; Redis is emptied: they take turns, and what one gave back no other gives again."""
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        first = await stack.enter_async_context(reading(process.url))
        prefix = first.opened.settings.key_prefix
        others = [await stack.enter_async_context(reading(process.url, key_prefix=prefix)) for _ in range(2)]
        values = await _with_some(first, scaled(1500, 20_000))
        for other in others:
            await other.until(lambda other=other: all(map(other.knows, values)), "all in the mirror")  # type: ignore[misc]
        others[0].reader.add_own(Revocation("jti", "known to one", time.time() + 600, None))
        await process.command("FLUSHALL")
        await first.in_redis([*values, "known to one"], 30)
        await first.until(lambda: first.knows("known to one"), "what only another knew")
        for each in (first, *others):
            await each.fresh()

        async def logged() -> list[Any]:
            entries = await read_log([process], first.opened.store.keyspace.change_log)
            return [entry.change["value"] for entry in entries]

        async def whole() -> bool:
            return {*values, "known to one"} <= {*await logged()}

        await eventually(whole, "all of them in the log", 10)
        assert len(await logged()) == len(values) + 2


async def test_what_redis_has_for_less_is_given_back() -> None:
    """An old copy with an earlier end and an earlier cutoff: the greater is written back at the next scan."""
    async with standalone() as process, reading(process.url) as running:
        await _with_some(running, 5)
        keyspace, now = running.opened.store.keyspace, time.time()
        running.reader.add_own(Revocation("jti", "v1", now + 5000, None))
        running.reader.add_own(Revocation("sub", "alice", now + 5000, None, now + 30))
        await process.command("DEL", keyspace.mark(0))
        await eventually(functools.partial(_ends_after, running.opened, now + 4000), "the later end", 5)
        alice = await running.opened.found("alice", "sub")
        assert alice is not None
        assert alice.issued_before == now + 30
        await running.until(lambda: running.counted("mirror_refilled_total") == 2, "the count of both", 5)


async def _ends_after(opened: Opened, end: float) -> bool:
    record = await opened.found("v1")
    return record is not None and (record.expires_at or 0) > end


async def test_a_redis_that_comes_back_with_its_data(server: Process) -> None:
    """Killed and started with its files: stale meanwhile, then fresh; nothing needs to be given back."""
    async with standalone() as process, reading(process.url) as running:
        values = await _with_some(running)
        process.kill()
        await running.until(lambda: running.reader.status.name == "stale", "stale", NOTICED_SECONDS)
        age = running.age
        await asyncio.sleep(0.1)
        assert running.age >= age + 0.1, "nothing proves it fresh"
        assert all(map(running.knows, values)), "an outage un-revokes nothing"
        await process.start()
        await running.fresh(5)
        assert running.counted("mirror_refilled_total") == 0
        assert server.alive


async def test_a_frozen_redis_blocks_nobody() -> None:
    """SIGSTOP: within seconds the mirror says how old it is; a revocation is refused in time; thawed, it is fresh."""
    async with standalone() as process, reading(process.url) as running:
        await _with_some(running, 20)
        process.freeze()
        try:
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await running.opened.revoke("meanwhile")
            assert time.monotonic() - begun < DEADLINE_SECONDS + 0.3
            await running.until(lambda: running.reader.status.name == "stale", "stale", NOTICED_SECONDS)
            assert running.age > time.monotonic() - begun - 1.5
        finally:
            process.thaw()
        await running.fresh(5)


async def test_a_connection_that_leads_nowhere_is_given_up(server: Process) -> None:
    """A firewall forgets every connection, and none is closed: the reader notices by itself, and connects anew."""
    async with Proxy(server.port).running() as proxy, reading(proxy.url) as running:
        await _with_some(running, 5)
        proxy.forget()
        begun = time.monotonic()
        await running.until(lambda: running.age > FRESH_SECONDS, "a missed heartbeat", 5)
        await running.fresh(6)
        assert time.monotonic() - begun < 2 * NOTICED_SECONDS
        async with open_store(server.url, key_prefix=running.opened.settings.key_prefix) as other:
            await other.revoke("later")
        await running.until(lambda: running.knows("later"), "what came later", 2)


async def test_connections_cut_again_and_again(server: Process) -> None:
    """Cut at random at full load: the cursor goes on where it was, and nothing is missed."""
    async with Proxy(server.port).running() as proxy, reading(proxy.url) as running:
        await running.fresh()
        async with (
            open_store(server.url, key_prefix=running.opened.settings.key_prefix) as other,
            Writers(other, 2).running() as writers,
        ):
            for _ in range(scaled(8, 100)):
                await writers.more(random.randrange(1, 100))
                proxy.cut()
            await writers.more(10)
        await running.caught_up()
        assert not [value for value in writers.values if not running.knows(value)]
        assert running.counted("mirror_refilled_total") == 0


async def test_a_master_made_a_replica() -> None:
    """Demoted to follow an empty server: stale, because nothing can be proven; promoted, it is given back all."""
    async with standalone() as process, standalone() as empty, reading(process.url) as running:
        values = await _with_some(running)
        await process.command("REPLICAOF", "127.0.0.1", empty.port)
        await running.until(lambda: running.age > 3, "old", 3 + NOTICED_SECONDS)
        assert running.reader.status.name == "stale"
        assert all(map(running.knows, values))
        await process.command("REPLICAOF", "NO", "ONE")
        await running.in_redis(values, 10)
        await running.fresh(5)


async def test_only_an_own_heartbeat_proves_anything(server: Process) -> None:
    """A reader that may not write goes on hearing others' changes and heartbeats, and grows old none the less."""
    await server.command("ACL", "SETUSER", "half", "on", ">half-a-password", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://half:half-a-password@")
    async with reading(url) as running:
        await running.fresh()
        async with reading(server.url, key_prefix=running.opened.settings.key_prefix) as other:
            await other.fresh()
            await server.command("ACL", "SETUSER", "half", "-xadd")
            await running.until(lambda: running.age > 2, "old", 5)
            await other.opened.revoke("from another")
            await running.until(lambda: running.knows("from another"), "another's revocation", 3)
            assert running.age > 2
            assert other.age < FRESH_SECONDS
            await server.command("ACL", "SETUSER", "half", "+xadd")
            await running.fresh(6)
    await server.command("ACL", "DELUSER", "half")


async def test_foreign_records_are_known_and_said(server: Process) -> None:
    """What an in-process blacklist wrote is found by a scan: known, `complete` is false, and it is warned of."""
    async with open_store(server.url) as opened:
        prefix, key = opened.settings.key_prefix, opened.store.keyspace.key("jti", "theirs")
        await server.command("SETEX", key, 600, "1")
        with capture_logs() as logs:
            async with reading(server.url, MirrorSettings(rescan_seconds=0.4), key_prefix=prefix) as running:
                await running.fresh()
                assert running.knows("theirs")
                assert not running.reader.complete
                await server.command("SETEX", key, 700, "1")
                await server.command("SETEX", opened.store.keyspace.key("jti", "another"), 600, "1")
                await running.until(lambda: running.knows("another"), "another at the next scan", 3)
                assert running.counted("mirror_refilled_total") == 0, "what is foreign is not written over"
        assert [entry["log_level"] for entry in logs if entry["event"] == "foreign_records_found"] == ["warning"]


async def test_a_check_that_meets_a_foreign_record_tells_at_once(server: Process) -> None:
    """Complete, until a read meets what no change log told of; complete again after a scan that finds none."""
    async with reading(server.url, MirrorSettings(rescan_seconds=1)) as running:
        await running.fresh()
        assert is_complete(running)
        key = running.opened.store.keyspace.key("jti", "theirs")
        await server.command("SET", key, "1", "PX", 300)
        assert await running.opened.found("theirs") is not None
        assert not is_complete(running)
        await running.until(lambda: is_complete(running), "complete again", 5)


async def test_the_setting_says_that_others_write(server: Process) -> None:
    """With foreign writers announced, nothing is ever complete."""
    async with reading(server.url, MirrorSettings(foreign_writers=True)) as running:
        await running.fresh()
        assert not running.reader.complete


async def test_a_redis_that_is_not_there_at_first() -> None:
    """Started before its Redis: connecting, not synced, of infinite age; soon synced once that is there."""
    async with standalone() as process:
        await process.stop()
        async with reading(process.url) as running:
            await running.until(lambda: running.reader.status.last_error is not None, "a first failure", 5)
            assert running.reader.status.name == "connecting"
            assert not running.reader.synced
            assert running.age == float("inf")
            await process.start()
            await running.fresh(4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicated() -> AsyncIterator[SentinelSet]:
    """One master, two replicas, three sentinels."""
    async with sentinel(password="secret") as topology:
        yield topology


async def test_a_heartbeat_that_no_replica_has_proves_nothing(replicated: SentinelSet) -> None:
    """Both replicas frozen: as on an isolated old master, the log is written and read, and the mirror grows old."""
    master = await replicated.master()
    others = [node for node in replicated.nodes if node is not master]
    async with reading(replicated.url) as running:
        await _with_some(running, 20)
        for node in others:
            node.freeze()
        try:
            before = await master.command("XLEN", running.opened.store.keyspace.change_log)
            await running.until(lambda: running.age > 2.5, "old", 6)
            assert await master.command("XLEN", running.opened.store.keyspace.change_log) > before
        finally:
            for node in others:
                node.thaw()
        await running.fresh(15)


async def test_an_old_copy_after_a_failover_is_completed(replicated: SentinelSet) -> None:
    """Replicas that lack the last writes take over: all that was acknowledged is in the new master again."""
    async with reading(replicated.url, wait_replicas=0) as running:
        values = await _with_some(running, 100)
        master = await replicated.master()
        others = [node for node in replicated.nodes if node is not master]
        for node in others:  # they lose their master, and cannot have it back
            await node.command("CONFIG", "SET", "masterauth", "wrong")
        await master.command("CLIENT", "KILL", "TYPE", "replica")
        late = [f"late {number}" for number in range(100)]
        await running.opened.revoke_all(late)
        await running.until(lambda: all(map(running.knows, late)), "the late ones in the mirror", 5)
        master.kill()
        await replicated.new_master(after=master)
        await running.in_redis([*values, *late], 20)
        await running.fresh(10)
        await running.until(lambda: running.counted("mirror_refilled_total") == len(late), "the count of the lost", 5)
        for node in others:
            await node.command("CONFIG", "SET", "masterauth", "secret")
        await master.start()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """Three masters, three replicas."""
    async with cluster(password="secret") as topology:
        yield topology


async def test_one_master_of_a_cluster_emptied(clustered: Cluster) -> None:
    """FLUSHALL on a master that has no part of the log: noticed by its mark, and given back what it lost."""
    async with reading(clustered.url, wait_replicas=0) as running:
        values = await _with_some(running)
        keyspace = running.opened.store.keyspace
        with_log = await clustered.master_of(keyspace.change_log)
        masters = [await clustered.master_of(keyspace.key("jti", value)) for value in values[:20]]
        victim = next(master for master in masters if master is not with_log)
        await victim.command("FLUSHALL")
        assert await missing(running.opened, values)
        await running.in_redis(values, NOTICED_SECONDS + 4)
        await running.fresh(5)


async def test_a_cluster_that_moves_its_slots(clustered: Cluster) -> None:
    """A slot changes hands, and nothing can be scanned: the mirror goes on from the log, and is proven fresh."""
    async with reading(clustered.url, wait_replicas=0) as running:
        values = await _with_some(running, 20)
        move = await slot_move(clustered, running.opened.store.keyspace.key("jti", values[0]))
        for node in move.masters:
            await node.command("ACL", "SETUSER", "default", "-scan")
        try:
            await move.begin()
            await move.finish()
            changed = functools.partial(running.counted, "mirror_rescans_total", reason="masters_changed")
            await running.until(lambda: changed() > 0, "that it was noticed")
            await running.caught_up()
            assert running.reader.fresh
            assert not running.reader.doubt.doubtful
        finally:
            for node in move.masters:
                await node.command("ACL", "SETUSER", "default", "+scan")
        await running.in_redis(values)


async def test_slots_that_move_under_load(clustered: Cluster) -> None:
    """The log's slot, and a record's, go to and fro at full speed: all that was acknowledged is in Redis all the time,
    and at the end in the mirror of who was there and of who came meanwhile.
    """
    async with contextlib.AsyncExitStack() as stack:
        there = await stack.enter_async_context(reading(clustered.url, wait_replicas=0))
        await there.fresh()
        keyspace = there.opened.store.keyspace
        came: list[Running] = []
        async with Writers(there.opened).running() as writers:
            await writers.more(100)
            record = writers.values[0]
            for _ in range(scaled(2, 20)):
                for key in (keyspace.change_log, keyspace.key("jti", record)):
                    move = await slot_move(clustered, key)
                    await move.begin()
                    await writers.more(30)
                    if not came:
                        newcomer = reading(clustered.url, wait_replicas=0, key_prefix=there.opened.settings.key_prefix)
                        came.append(await stack.enter_async_context(newcomer))
                    assert not await missing(there.opened, [record, *writers.values[-100:]])
                    await move.finish()
                    await writers.more(30)
        for each in (there, *came):
            await each.fresh()
            await each.caught_up()
            assert [value for value in writers.values if not each.knows(value)] == []
        assert not await missing(there.opened, writers.values)


async def test_a_master_of_a_cluster_killed(clustered: Cluster) -> None:
    """The master of the log dies: stale until its replica follows, then fresh, with all there was and what comes."""
    async with reading(clustered.url) as running:
        values = await _with_some(running)
        log = running.opened.store.keyspace.change_log
        killed = await clustered.kill_master_of(log)
        await running.until(lambda: running.reader.status.name == "stale", "stale", NOTICED_SECONDS)
        await clustered.new_master_of(log, after=killed)
        await running.fresh(15)
        await running.in_redis(values, 10)
        async with open_store(clustered.url, key_prefix=running.opened.settings.key_prefix) as other:
            await other.revoke("later")
        await running.until(lambda: running.knows("later"), "what came later", 3)
        await killed.start()
