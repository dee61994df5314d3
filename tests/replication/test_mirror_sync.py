"""MirrorSync on a real Redis: it follows what others write, and reports when its mirror may be incomplete."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from revocation_client.claims import CLAIMS
from revocation_client.revocation import Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.settings import MirrorSettings
from revocation_service.store.exchanges import Exchanges
from revocation_service.store.scripts import BEAT, MERGE
from revocation_service.store.store import Put
from tests.redis_processes import Process, eventually, standalone
from tests.replication.syncing import Syncing, beside, syncing
from tests.scale import scaled
from tests.store.conftest import Proxy, Writers, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESCANS: Final = MirrorSettings(rescan_seconds=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server, shared by the tests that neither stop it nor empty it."""
    async with standalone() as process:
        yield process


async def test_it_has_what_was_there_and_what_comes(server: Process) -> None:
    """A mirror gets revocations of every claim, with cutoff and end, written before or after its worker began."""
    async with syncing(server.url, private=True) as worker, beside(worker) as other:
        await worker.in_sync()
        await other.in_sync()
        for claim in CLAIMS:
            value, lives = "" if claim == "all" else "v", 600 if claim == "jti" else None
            await other.sync.write(Put(claim, value, expires_in=lives, cutoff_is_now=claim != "jti"))
        await worker.until(lambda: worker.held("", "all"), "the last of them")
        async with beside(worker) as late:
            await late.in_sync()
            assert len(late.sync.mirror) == len(CLAIMS)
            for claim in CLAIMS:
                record = await other.opened.found("" if claim == "all" else "v", claim)
                assert record is not None
                assert record.expires_at is not None
                for each in (worker, late):
                    held = each.held(record.value, claim)
                    assert held is not None
                    assert held.expires_at is not None
                    assert held.issued_before == record.issued_before
                    assert 0 <= held.expires_at - record.expires_at < 1


async def test_listeners_hear_of_each_change_once_and_in_order(server: Process) -> None:
    """A listener hears of each revocation once, in order, whether its own worker or another one wrote it."""
    async with syncing(server.url, private=True) as worker, beside(worker) as other:
        await worker.in_sync()
        await other.in_sync()
        told: list[Revocation] = []
        unsubscribe = worker.sync.subscribe(told.extend)
        values = [f"v{number}" for number in range(40)]
        for own, value in enumerate(values):
            await (worker if own % 2 else other).revoke(value)
            await worker.until(lambda value=value: worker.held(value), "the last one")  # type: ignore[misc]
        assert [each.value for each in told] == values
        unsubscribe()
        await other.revoke("later")
        await worker.until(lambda: worker.held("later"), "one more")
        assert len(told) == len(values)


async def test_a_write_is_in_the_mirror_when_it_returns(server: Process) -> None:
    """A write is in the mirror even if the worker is not in sync; before the first heartbeat it is refused instead."""
    async with open_store(server.url) as opened:
        sync = MirrorSync(opened.store, MirrorSettings(), opened.metrics)
        with pytest.raises(StoreUnavailable):
            await sync.write(Put("jti", "too early", expires_in=600))
        assert await opened.found("too early") is None
        await sync.start()
        try:
            await sync.heard.wait()
            await sync.write(Put("jti", "mine", expires_in=600))
            assert sync.mirror.held("jti", "mine", sync.now())
            assert sync.staleness() == float("inf")
        finally:
            await sync.aclose()


async def test_a_write_that_outlives_the_last_heartbeat_is_not_acknowledged(server: Process) -> None:
    """A write is refused if the last proof that this Redis is the master has become too old when the reply comes."""
    async with Proxy(server.port).running() as proxy, syncing(proxy.url, private=True) as worker:
        await worker.in_sync()
        written: list[bytes] = []

        async def too_late(request: bytes) -> bytes:
            if MERGE.sha.encode() in request and not written:
                written.append(request)
                worker.clocks.suspend(60)
            return b"" if written and BEAT.sha.encode() in request else request

        proxy.request = too_late
        with pytest.raises(StoreUnavailable):
            await worker.revoke("v1")
        assert written


async def test_a_write_that_redis_lost_before_its_reply_is_written_again() -> None:
    """A write is repeated if a heartbeat shows another epoch before its reply comes, as Redis may have lost it."""
    async with (
        standalone() as process,
        Proxy(process.port).running() as proxy,
        syncing(proxy.url, private=True) as worker,
    ):
        await worker.in_sync()
        await worker.revoke("so that Redis knows the script")
        epoch, written, revoking, requests = worker.sync.state.epoch, asyncio.Event(), list[Any](), list[bytes]()

        async def request_hook(request: bytes) -> bytes:
            if MERGE.sha.encode() in request and b'"restore":false' in request:
                requests.append(request)
            if BEAT.sha.encode() in request and not revoking:
                revoking.append(asyncio.create_task(worker.revoke("v1")))
                await written.wait()
                await process.command("FLUSHALL")
            return request

        async def reply_hook(reply: bytes) -> bytes:
            if b"$7\r\nrevoked\r\n" in reply and not written.is_set():
                written.set()
                await worker.until(lambda: worker.sync.state.epoch != epoch, "another epoch")
            return reply

        proxy.request, proxy.reply = request_hook, reply_hook
        await worker.until(lambda: revoking, "a heartbeat")
        await revoking[0]
        assert len(requests) == 2
        assert await worker.opened.found("v1")


async def test_no_write_slips_between_the_scan_and_the_log() -> None:
    """Workers that begin at random moments under load, with connections cut, end up with every revocation."""
    async with standalone(config=["appendfsync everysec"]) as process, contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(open_store(process.url))
        workers: list[Syncing] = []
        async with Writers(opened).running() as writers:
            await writers.more(scaled(500, 5000))
            for _ in range(scaled(5, 40)):
                late = syncing(process.url, private=True, key_prefix=opened.settings.key_prefix)
                workers.append(await stack.enter_async_context(late))
                await writers.more(random.randrange(1, 200))
                if random.random() < 0.5:
                    await process.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await writers.more(200)
        for worker in workers:
            await worker.in_sync()
            assert [value for value in writers.values if not worker.held(value)] == []


# Entries, members and claims of later versions, and damaged ones


@pytest.mark.parametrize("end", ["NaN", "Infinity", "1" * 400, '"soon"', "[]"])
async def test_an_unreadable_entry_stops_nothing(server: Process, end: str) -> None:
    """An unreadable log entry is skipped and makes the mirror incomplete; the entries after it are read."""
    async with syncing(server.url, private=True) as worker:
        await worker.in_sync()
        change = f'{{"claim":"jti","value":"odd","expires_at":{end}}}'
        await server.command("XADD", worker.log, "*", "n", "nonce", "r", change)
        await worker.opened.revoke("after it")
        await worker.until(lambda: worker.held("after it"), "what came after it")
        assert not worker.held("odd")
        assert not worker.complete()


async def test_an_entry_without_known_fields_stops_nothing(server: Process) -> None:
    """Entries with fields of a later version, or with bytes that are not text, do not stop a worker from reading on."""
    async with syncing(server.url, private=True) as worker, server.client(decode_responses=False) as client:
        await worker.in_sync()
        entries: list[Any] = [{b"later": b"1"}, {b"n": b"\xff"}, {b"r": b"\xff\xfe"}, {b"n": b"n", b"r": b"[1]"}]
        for fields in entries:
            await client.xadd(worker.log, fields)
        await worker.opened.revoke("after it")
        await worker.until(lambda: worker.held("after it"), "what came after it")
        await worker.in_sync()


async def test_an_unknown_member_makes_the_mirror_incomplete(server: Process) -> None:
    """A revocation with an unknown member is added without it, which is safer, and makes the mirror incomplete."""
    async with syncing(server.url, private=True) as worker:
        await worker.in_sync()
        assert worker.complete()
        change = '{"claim":"jti","value":"later","revoked_at":1,"expires_at":1e10,"unless":"admin"}'
        await server.command("XADD", worker.log, "*", "n", "nonce", "r", change)
        await worker.until(lambda: worker.held("later"), "what is known of it")
        assert not worker.complete()
        assert not worker.sync.mirror_decides()


async def test_an_unknown_claim_makes_the_mirror_incomplete(server: Process) -> None:
    """An unknown claim, in the log or in a record, makes the mirror incomplete until a scan finds none."""
    async with syncing(server.url, RESCANS, private=True) as worker:
        await worker.in_sync()
        change = '{"claim":"device_id","value":"d-1","revoked_at":1,"expires_at":1e10,"issued_before":1}'
        await server.command("XADD", worker.log, "*", "n", "nonce", "r", change)
        await worker.until(lambda: not worker.complete(), "a mirror that counts as incomplete")
        await worker.until(worker.complete, "a scan that found all claims known")
        key = worker.key("d-1", "sub").replace(":sub:", ":device_id:")
        await server.command("SET", key, "{}", "EX", 600)
        await worker.until(lambda: not worker.complete(), "a scan that found the record")
        await server.command("DEL", key)
        await worker.until(worker.complete, "a scan that found all claims known")


# Foreign writers


async def test_foreign_records_are_found_and_left_as_they_are(server: Process) -> None:
    """Every mirror gets the foreign records that a rescan finds, and is then incomplete; Redis keeps them unchanged."""
    async with syncing(server.url, RESCANS, private=True) as worker, beside(worker) as other:
        await worker.in_sync()
        await other.in_sync()
        assert worker.complete()
        await server.command("SETEX", worker.key("theirs"), 600, "1")
        for each in (worker, other):
            await each.until(lambda each=each: each.held("theirs"), "what a rescan found")  # type: ignore[misc]
            await each.until(lambda each=each: not each.complete(), "incomplete")  # type: ignore[misc]
        scans = worker.counted("mirror_scans_total", reason="rescan")
        await worker.until(lambda: worker.counted("mirror_scans_total", reason="rescan") >= scans + 2, "two rescans")
        assert await server.command("GET", worker.key("theirs")) == "1"
        assert not worker.complete()
        await server.command("DEL", worker.key("theirs"))
        for each in (worker, other):
            await each.until(each.complete, "that a rescan found none")


async def test_a_rescan_that_finds_nothing_lost_restores_nothing(server: Process) -> None:
    """If Redis lost nothing, a rescan adds nothing to the change log, and neither logs nor counts a restore."""
    async with syncing(server.url, RESCANS, private=True) as worker:
        await worker.in_sync()
        values = [f"v{number}" for number in range(20)]
        with capture_logs() as logs:
            await worker.revoke_all(values)
            await worker.sync.write(Put("sub", "alice", cutoff_is_now=True))
            scans = worker.counted("mirror_scans_total", reason="rescan")
            await worker.until(lambda: worker.counted("mirror_scans_total", reason="rescan") > scans + 1, "rescans")
        assert "store_restored" not in [entry["event"] for entry in logs]
        assert worker.counted("restored_total") == 0
        assert await worker.logged(server) == [*values, "alice"]


async def test_a_rescan_that_ends_early_reports_nothing(server: Process) -> None:
    """A rescan that is cut short does not report "no foreign record found", as mirrors would then count as complete."""
    async with Proxy(server.port).running() as proxy, syncing(proxy.url, RESCANS, private=True) as worker:
        await server.command("SETEX", worker.key("theirs"), 600, "1")
        await worker.in_sync()
        interrupted: list[bool] = []

        async def losing_the_log(request: bytes) -> bytes:
            if b"SCAN" in request and worker.sync.state.cursor and not interrupted:
                interrupted.append(True)
                await server.command("DEL", worker.log)
                await server.command("XADD", worker.log, "*", "n", "another")
                await worker.until(lambda: not worker.sync.state.scanning, "a scan that does not count")
            return request

        proxy.request = losing_the_log
        rescans = worker.counted("mirror_scans_total", reason="rescan")
        # the first rescan is interrupted, and the second has reported when the third begins
        await worker.until(lambda: worker.counted("mirror_scans_total", reason="rescan") > rescans + 2, "rescans")
        async with server.client() as client:
            entries: Any = await client.xrange(worker.log)
        assert interrupted
        assert {fields["f"] for _, fields in entries if "f" in fields} == {"1"}
        await server.command("DEL", worker.key("theirs"))


async def test_a_read_that_meets_a_foreign_record_makes_the_mirror_incomplete(server: Process) -> None:
    """A read that meets a foreign record makes the mirror incomplete at once, until a scan finds none."""
    async with syncing(server.url, RESCANS, private=True) as worker:
        await worker.in_sync()
        assert worker.complete()
        await server.command("SET", worker.key("theirs"), "1", "PX", 300)
        assert await worker.opened.found("theirs") is not None
        assert not worker.complete()
        await worker.until(worker.complete, "a scan that found none")


async def test_a_foreign_record_met_during_a_scan_keeps_the_mirror_incomplete(server: Process) -> None:
    """If a foreign record is met during a scan, the mirror stays incomplete, since SCAN may have missed it."""
    async with Proxy(server.port).running() as proxy, syncing(proxy.url, private=True) as worker:
        met: list[Revocation | None] = []

        async def behind_the_scan(request: bytes) -> bytes:
            if b":absent" in request and not met:  # the last command of a scan
                await server.command("SETEX", worker.key("theirs"), 600, "1")
                met.append(await worker.opened.found("theirs"))
            return request

        proxy.request = behind_the_scan
        await worker.in_sync()
        assert met
        assert not worker.complete()
        await server.command("DEL", worker.key("theirs"))


async def test_a_foreign_record_met_during_a_rescan_of_another_worker_keeps_the_mirror_incomplete(
    server: Process,
) -> None:
    """A foreign record that is met during another worker's rescan makes the mirror incomplete until the next report."""
    async with (
        syncing(server.url, private=True) as worker,
        open_store(server.url, key_prefix=worker.opened.settings.key_prefix) as other,
    ):
        await worker.in_sync()
        rescanning = Exchanges(other.store, pending_seconds=5, grace_seconds=0)
        await server.command("SETEX", worker.key("theirs"), 600, "1")
        assert await worker.opened.found("theirs")
        await rescanning.append([], foreign_found=False)
        await worker.in_sync()
        assert not worker.complete()
        await rescanning.append([], foreign_found=False)
        await worker.until(worker.complete, "the report of a rescan that began later")
        await server.command("DEL", worker.key("theirs"))


async def test_with_foreign_writers_announced_the_mirror_never_decides(server: Process) -> None:
    """With REVOCATION_FOREIGN_WRITERS the mirror never decides, because the log lacks what foreign writers write."""
    async with syncing(server.url, MirrorSettings(foreign_writers=True), private=True) as worker:
        await worker.in_sync()
        assert worker.sync.believes()
        assert not worker.complete()
        assert not worker.sync.mirror_decides()


# Writes that Redis refuses


async def test_a_full_redis_is_said_and_read_all_the_same() -> None:
    """While Redis is full, `writes_refused` is set, but heartbeats still count, and reads are trusted."""
    async with standalone() as process, syncing(process.url, private=True) as worker:
        await worker.in_sync()
        with capture_logs() as logs:
            await process.command("CONFIG", "SET", "maxmemory", "1")
            await worker.until(lambda: worker.sync.writes_refused, "that it is said")
            await worker.in_sync()
            assert worker.sync.believes()
            with pytest.raises(StoreUnavailable):
                await worker.revoke("refused")
            await process.command("CONFIG", "SET", "maxmemory", "0")
            await worker.until(lambda: not worker.sync.writes_refused, "that it is over")
            await worker.revoke("accepted")
        told = [entry for entry in logs if entry["event"].startswith("writes_")]
        assert [(each["event"], each.get("reason")) for each in told] == [
            ("writes_refused", "OOM"),
            ("writes_accepted", None),
        ]


@pytest.mark.parametrize("fields", [("theirs", "1"), ("n", b"\xff\xfe"), ("n", "a.b")])
async def test_an_entry_of_another_application_at_the_end_of_the_log_does_no_harm(
    server: Process, fields: tuple[str, str | bytes]
) -> None:
    """If the log ends with a foreign entry, workers that began before or after it are in sync and keep their cursor."""
    async with syncing(server.url, private=True) as worker:
        await worker.in_sync()
        await server.command("XADD", worker.log, "*", *fields)
        async with beside(worker) as late:
            for each in (worker, late):
                await each.in_sync()
                await each.in_sync()
                assert each.counted("mirror_scans_total", reason="lost") == 0


async def test_a_log_key_of_another_type_is_said(server: Process) -> None:
    """While the log key has another type, `writes_refused` is set; afterwards the worker recovers by itself."""
    async with syncing(server.url, private=True) as worker:
        await worker.in_sync()
        with capture_logs() as logs:
            await server.command("SET", worker.log, "not a stream")
            await worker.until(lambda: worker.sync.writes_refused, "that it is said")
            with pytest.raises(StoreUnavailable):
                await worker.revoke("refused")
            await server.command("DEL", worker.log)
            await worker.until(lambda: not worker.sync.writes_refused, "that it is over")
        assert {"event": "writes_refused", "reason": "WRONGTYPE", "log_level": "error"} in logs
        await worker.in_sync()
        await worker.revoke("accepted")


# Beginning and end


async def test_it_waits_for_a_redis_that_is_not_there_at_first() -> None:
    """A worker that starts without Redis trusts nothing and gives the reason; once Redis is up, it gets in sync."""
    async with standalone() as process:
        await process.stop()
        async with syncing(process.url) as worker:
            await worker.until(lambda: worker.opened.failures("heartbeat"), "a heartbeat that failed")
            assert worker.sync.reason() == "no_heartbeat"
            assert not worker.sync.believes()
            assert worker.sync.staleness() == float("inf")
            await process.start()
            await worker.in_sync()
            assert worker.sync.reason() is None


async def test_it_ends_what_it_began() -> None:
    """A MirrorSync that is closed at any moment leaves no task and no connection behind."""
    async with standalone() as process:
        before = asyncio.all_tasks()
        for number in range(6):
            async with syncing(process.url, private=True) as worker:
                for _ in range(number * 20):
                    await asyncio.sleep(0)
                if number == 5:
                    await worker.in_sync()
            assert asyncio.all_tasks() == before

        async def none_left() -> bool:
            return int((await process.info("clients"))["connected_clients"]) == 1

        await eventually(none_left, "no connection but the one that asks")
