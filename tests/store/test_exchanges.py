"""The exchanges of the replication protocol, with a real Redis: heartbeat, log, scan, restore, leases."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_client.claims import CLAIMS
from revocation_client.revocation import Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.store.cursor import Cursor
from revocation_service.store.exchanges import READ_MAX_ENTRIES, READ_TIMEOUT_SECONDS, Exchanges
from revocation_service.store.store import Put
from tests.redis_processes import Process, standalone
from tests.scale import BUSY_SECONDS
from tests.store.conftest import Opened, end_of, logged_values, missing, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

GLOB = "a*[b]?^\\:"
"""A key prefix with characters that are special in SCAN patterns."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server for all tests of this module."""
    async with standalone() as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def opened(server: Process) -> AsyncIterator[Opened]:
    """A store on an empty server, with a key prefix that must be escaped in SCAN patterns."""
    await server.command("FLUSHALL")
    async with open_store(server.url, key_prefix=GLOB) as store:
        yield store


def exchanges_of(opened: Opened) -> Exchanges:
    """Return the exchanges of a new worker."""
    return Exchanges(opened.store, pending_seconds=5, grace_seconds=3)


async def end_of_log(exchanges: Exchanges) -> Cursor:
    """Send a heartbeat, and return the cursor of the log's last entry."""
    end = (await exchanges.beat(None, None, must_write=False)).end
    assert end is not None
    return end


async def scanned(exchanges: Exchanges) -> tuple[list[Revocation], bool]:
    """Return all records, and whether unknown claims were met."""
    found: list[Revocation] = []

    def take(some: list[Revocation]) -> bool:
        found.extend(some)
        return True

    unknown = await exchanges.scan(take)
    return found, unknown


async def test_a_heartbeat_tells_epoch_log_and_clock(opened: Opened) -> None:
    """The first heartbeat begins an epoch, which is pending. Later ones find the same epoch and the cursor's entry."""
    exchanges = exchanges_of(opened)
    first = await exchanges.beat(None, None, must_write=False)
    assert first.pending == {first.epoch}
    assert first.end is not None
    assert (first.there, first.refused, first.named) == (False, "", True)
    assert first.now == pytest.approx(time.time(), abs=2)
    await opened.revoke("a")
    again = await exchanges.beat("another epoch", first.end, must_write=True)
    assert (again.epoch, again.there) == (first.epoch, True)
    assert again.pending == {first.epoch, "another epoch"}
    assert again.end is not None
    assert again.end != first.end
    assert again.end.reaches(first.end)
    other_history = first.end._replace(nonce="another")
    assert not (await exchanges.beat(None, other_history, must_write=False)).there


async def test_a_read_returns_what_is_behind_the_cursor(opened: Opened) -> None:
    """A read returns the next entries in order, READ_MAX_ENTRIES at most, and whether the cursor's entry is there."""
    exchanges = exchanges_of(opened)
    begun = await end_of_log(exchanges)
    assert await exchanges.read(begun) == ([], True)
    records = [await opened.record(Put(claim, claim, expires_in=900)) for claim in CLAIMS]
    entries, there = await exchanges.read(begun)
    assert there
    expected = [record._replace(reason=None, revoked_by=None) for record in records]
    assert [entry.change for entry in entries] == expected
    assert all(entry.understood for entry in entries)
    assert entries[-1].cursor == await end_of_log(exchanges)
    await opened.revoke_all([f"v{number}" for number in range(READ_MAX_ENTRIES + 1)])
    entries, there = await exchanges.read(entries[-1].cursor)
    assert (len(entries), there) == (READ_MAX_ENTRIES, True)


async def test_a_read_notices_a_cursor_that_is_gone(server: Process, opened: Opened) -> None:
    """A read reports that the cursor's entry was trimmed, or that its id belongs to an entry of another history."""
    exchanges = exchanges_of(opened)
    begun = await end_of_log(exchanges)
    await opened.revoke_all(["a", "b"])
    assert not (await exchanges.read(begun._replace(nonce="another")))[1]
    await server.command("XTRIM", opened.store.keyspace.change_log, "MAXLEN", 1)
    entries, there = await exchanges.read(begun)
    assert (len(entries), there) == (1, False)


async def test_a_scan_finds_the_records_under_its_prefix(server: Process, opened: Opened) -> None:
    """A scan finds all records, foreign ones too, and none under a prefix that the unescaped pattern would match."""
    await opened.revoke_all([f"v{number}" for number in range(600)])
    records = [await opened.record(Put(claim, "é:", expires_in=900)) for claim in CLAIMS]
    await server.command("SET", opened.store.keyspace.key("jti", "foreign"), "1")
    await exchanges_of(opened).beat(None, None, must_write=True)
    async with open_store(server.url, key_prefix="axb?^\\:") as other:
        await other.revoke("other")
    found, unknown = await scanned(exchanges_of(opened))
    assert not unknown
    assert len(found) == 600 + len(records) + 1
    by_key = {(record.claim, record.value): record for record in found}
    assert by_key["jti", "foreign"] == Revocation("jti", "foreign", None, None)
    for record in records:
        assert by_key[record.claim, record.value] == record


async def test_a_scan_says_that_it_met_a_claim_of_a_later_version(server: Process, opened: Opened) -> None:
    """A scan reports that it met a record of a claim that this version does not know."""
    await server.command("SET", f"{GLOB}token_cutoff:device:a", "1", "EX", 60)
    assert await scanned(exchanges_of(opened)) == ([], True)


async def test_a_scan_ends_when_its_caller_says_so(opened: Opened) -> None:
    """A scan reads no further batch once `take` returns False, because a new epoch must not wait for it."""
    await opened.revoke_all([f"v{number}" for number in range(600)])
    batches: list[int] = []

    def take(some: list[Revocation]) -> bool:
        batches.append(len(some))
        return False

    await exchanges_of(opened).scan(take)
    assert len(batches) == 1
    assert batches[0] < 600


@pytest.mark.parametrize("turns", range(5))
async def test_a_scan_that_is_cancelled_twice_gives_its_connection_back(opened: Opened, turns: int) -> None:
    """A scan gives its connection back, even if a second cancellation arrives while it handles the first."""
    await opened.revoke("a")
    begun = asyncio.Event()

    def take(_some: list[Revocation]) -> bool:
        begun.set()
        return True

    scan = asyncio.create_task(exchanges_of(opened).scan(take))
    await begun.wait()
    scan.cancel()
    for _turn in range(turns):
        await asyncio.sleep(0)
    scan.cancel()
    await asyncio.wait([scan])
    del scan
    gc.collect()  # redis-py warns of a connection that is not given back, and a warning fails the test


async def test_a_restore_writes_back_what_redis_lacks(server: Process, opened: Opened) -> None:
    """After a loss, a restore brings the records back with their ends and cutoffs. A second one logs nothing."""
    exchanges = exchanges_of(opened)
    held = [await opened.record(Put("jti", f"v{number}", expires_in=900)) for number in range(10)]
    held.append(await opened.record(Put("sub", "alice", issued_before=time.time() - 5)))
    await server.command("DEL", *(opened.store.keyspace.key("jti", f"v{number}") for number in range(3)))
    assert [record.value for record in await exchanges.missing(held[:-1])] == ["v0", "v1", "v2"]
    await server.command("FLUSHALL")
    assert len(await exchanges.missing(held[:-1])) == 10
    assert await exchanges.restore(held) == len(held)
    assert await exchanges.restore(held) == 0
    assert await exchanges.missing(held[:-1]) == []
    assert await logged_values([server], opened.store.keyspace.change_log) == [record.value for record in held]
    assert not await missing(opened, [record.value for record in held[:-1]])
    for record in held:
        found = await opened.found(record.value, record.claim)
        assert found is not None
        assert (end_of(found), found.issued_before) == (record.expires_at, record.issued_before)


async def test_a_shorter_life_is_missing_too(opened: Opened) -> None:
    """A record that ends earlier in Redis than in the mirror counts as missing, and a restore lengthens it."""
    exchanges = exchanges_of(opened)
    record = await opened.record(Put("jti", "a", expires_in=100))
    later = record._replace(expires_at=end_of(record) + 500)
    assert await exchanges.missing([record]) == []
    assert await exchanges.missing([later]) == [later]
    assert await exchanges.restore([later]) == 1
    assert await opened.found("a") == later


async def test_what_a_rescan_appends_reaches_every_reader(opened: Opened) -> None:
    """A reader of the log gets the changes that a rescan appended, then whether it found foreign records."""
    exchanges = exchanges_of(opened)
    begun = await end_of_log(exchanges)
    changes = [Revocation("jti", f"v{number}", time.time() + 60, 5.0) for number in range(3)]
    await exchanges.append([*changes, Revocation("jti", "foreign", None, None)], foreign_found=True)
    entries, _ = await exchanges.read(begun)
    assert [entry.change for entry in entries[:-1]] == [*changes, Revocation("jti", "foreign", None, None)]
    assert [entry.foreign_found for entry in entries] == [None] * 4 + [True]


async def test_one_worker_at_a_time_has_the_turn(server: Process, opened: Opened) -> None:
    """Only the holder can renew or release its lease. Another worker gets it after the release, and leases expire."""
    one, other = exchanges_of(opened), exchanges_of(opened)
    assert await one.take_turn()
    assert not await other.take_turn()
    assert await one.take_turn()
    await other.release_turn()
    assert not await other.take_turn()
    assert 0 < await server.command("PTTL", opened.store.keyspace.restore_lease) <= 5000
    await one.release_turn()
    assert await other.take_turn()
    assert await one.take_rescan(300)
    assert not await other.take_rescan(300)
    assert not await one.take_rescan(300)
    assert 0 < await server.command("TTL", opened.store.keyspace.rescan_lease) <= 300


async def test_a_full_redis_takes_the_mark_of_a_pending_restore() -> None:
    """A Redis that was emptied while full takes the mark, so a new worker learns that a restore is pending."""
    async with standalone() as process, open_store(process.url) as full:
        one, newcomer = exchanges_of(full), exchanges_of(full)
        epoch = (await one.beat(None, None, must_write=False)).epoch
        await process.command("CONFIG", "SET", "maxmemory", "1")
        await process.command("FLUSHALL")
        for _ in range(2):
            told = await one.beat(epoch, None, must_write=True)
            assert told.refused.endswith("used memory > 'maxmemory'.")
            assert epoch in told.pending
            assert epoch in (await newcomer.beat(None, None, must_write=False)).pending


@pytest.mark.parametrize("command", ["SET", "RPUSH"])
async def test_a_key_without_an_expiry_is_no_lease(server: Process, opened: Opened, command: str) -> None:
    """A lease key without an expiry, which another application wrote, is taken over, or it would block for good."""
    one, other = exchanges_of(opened), exchanges_of(opened)
    for lease, take in (
        (opened.store.keyspace.restore_lease, one.take_turn),
        (opened.store.keyspace.rescan_lease, lambda: one.take_rescan(300)),
    ):
        await server.command(command, lease, "theirs")
        assert await take()
    assert not await other.take_turn()
    assert not await other.take_rescan(300)
    await one.release_turn()
    assert await other.take_turn()


async def test_a_redis_that_hangs_ends_every_exchange(server: Process, opened: Opened) -> None:
    """If Redis hangs, heartbeat, read, scan, restore and lease raise StoreUnavailable in time; a later scan works."""
    exchanges = exchanges_of(opened)
    cursor = await end_of_log(exchanges)
    record = await opened.record(Put("jti", "a", expires_in=900))
    server.freeze()
    try:
        for exchange in (
            exchanges.beat(None, cursor, must_write=False),
            exchanges.read(cursor),
            exchanges.scan(lambda _: True),
            exchanges.restore([record]),
            exchanges.take_turn(),
        ):
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await exchange
            assert time.monotonic() - begun < READ_TIMEOUT_SECONDS + BUSY_SECONDS
    finally:
        server.thaw()
    assert await scanned(exchanges) == ([record], False)
