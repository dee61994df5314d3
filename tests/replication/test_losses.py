"""The workers write back what Redis loses. Redis is a real process; the workers run inside the test."""

import contextlib
import shutil
from typing import Final

import pytest
from structlog.testing import capture_logs

from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import RECENT_SECONDS
from revocation_service.settings import MirrorSettings
from revocation_service.store.store import Put
from tests.redis_processes import eventually, standalone
from tests.replication.syncing import Syncing, beside, owing, syncing
from tests.scale import scaled

pytestmark = pytest.mark.asyncio

RESCANS: Final = MirrorSettings(rescan_seconds=1)
NO_RESCAN: Final = MirrorSettings(rescan_seconds=86_400)
"""No rescan, even if a test moves the clock ahead: it would restore old revocations as soon as they are lost."""


async def _with_some(worker: Syncing, count: int) -> list[str]:
    values = [f"v{number}" for number in range(count)]
    await worker.in_sync()
    await worker.opened.revoke_all(values)
    await worker.sync.write(Put("sub", "alice", cutoff_is_now=True))
    await worker.until(lambda: worker.holds(values), "all in the mirror")
    return values


async def test_an_emptied_redis_gets_everything_back() -> None:
    """After FLUSHALL all tokens and cutoffs are back in Redis and its change log; an event and a metric report it."""
    async with standalone() as process, syncing(process.url) as worker:
        values = await _with_some(worker, scaled(300, 20_000))
        cutoff = worker.held("alice", "sub")
        assert cutoff is not None
        with capture_logs() as logs:
            await process.command("FLUSHALL")
            await worker.in_redis(values)
            await worker.until(lambda: "store_restored" in [entry["event"] for entry in logs], "the log event")
        alice = await worker.opened.found("alice", "sub")
        assert alice is not None
        assert (alice.issued_before, alice.expires_at) == (cutoff.issued_before, cutoff.expires_at)
        assert sorted(await worker.logged(process)) == sorted([*values, "alice"])
        assert worker.counted("restored_total") == len(values) + 1
        assert worker.complete()
        await worker.in_sync()


async def test_what_was_revoked_lately_comes_back_first() -> None:
    """Revocations of the last 90 s are restored before all others, the newest first."""
    async with standalone() as process, syncing(process.url, NO_RESCAN, private=True) as worker:
        old = await _with_some(worker, scaled(700, 20_000))
        worker.clocks.suspend(RECENT_SECONDS + 1)
        await worker.in_sync()
        recent = ["first", "second", "third"]
        await worker.revoke_all(recent)
        await process.command("FLUSHALL")
        await worker.in_redis([*old, *recent])
        logged = await worker.logged(process)
        assert logged[:3] == ["third", "second", "first"]
        assert sorted(logged[3:]) == sorted([*old, "alice"])


async def test_the_worker_that_holds_all_goes_on_while_it_restores() -> None:
    """A worker that was in sync when Redis was emptied trusts Redis and its mirror throughout the restore."""
    async with standalone() as process, syncing(process.url) as worker:
        values = await _with_some(worker, 200)
        reasons = set()
        await process.command("FLUSHALL")
        epoch = worker.sync.state.epoch

        def restored() -> bool:
            reasons.add(worker.sync.reason())
            return worker.sync.state.epoch != epoch and worker.sync.state.restored_epoch == worker.sync.state.epoch

        await worker.until(restored, "the end of the restore")
        assert reasons == {None}
        await worker.in_redis(values)


async def test_what_others_revoke_after_a_loss_is_heard_before_the_scan() -> None:
    """A complete worker follows the new log before it scans; else its subscribers would rely on an old proof."""
    async with standalone() as process, syncing(process.url) as worker, beside(worker) as other:
        await worker.in_sync()
        await other.in_sync()
        epoch = worker.sync.state.epoch
        async with owing(worker):
            await process.command("FLUSHALL")
            for each in (worker, other):
                await each.until(lambda each=each: each.sync.state.epoch != epoch, "the new epoch")  # type: ignore[misc]
            await other.revoke("after the loss")
            await worker.until(lambda: worker.held("after the loss"), "another's revocation")
            assert worker.counted("mirror_scans_total", reason="lost") == 0


async def test_a_deleted_record_is_found_by_the_rescan() -> None:
    """A rescan writes deleted records back, and logs them again."""
    async with standalone() as process, syncing(process.url, RESCANS, private=True) as worker:
        await _with_some(worker, 3)
        await process.command("DEL", worker.key("v1"), worker.key("alice", "sub"))
        await worker.in_redis(["v1"])
        await worker.until(lambda: worker.counted("restored_total") == 2, "both")
        assert await worker.opened.found("alice", "sub")
        assert (await worker.logged(process)).count("v1") == 2


async def test_a_redis_without_its_files_gets_everything_back() -> None:
    """After Redis restarts without its files, all revocations are written back, and more can be made."""
    async with standalone() as process, syncing(process.url) as worker:
        values = await _with_some(worker, scaled(300, 20_000))
        process.kill()
        shutil.rmtree(process.directory / "appendonlydir")
        await process.start()
        await worker.in_redis(values)
        await worker.in_sync()
        await worker.revoke("after it")
        assert worker.holds([*values, "after it"])


async def test_a_redis_with_its_files_is_given_nothing_back() -> None:
    """While Redis is down, a mirror keeps its revocations; after a restart that lost nothing, nothing is restored."""
    async with standalone() as process, syncing(process.url) as worker:
        values = await _with_some(worker, 100)
        process.kill()
        await worker.stale()
        assert worker.holds(values)
        await process.start()
        await worker.in_sync()
        assert worker.counted("restored_total") == 0
        assert sorted(await worker.logged(process)) == sorted([*values, "alice"])


async def test_workers_that_restore_at_once_log_each_loss_once() -> None:
    """When three workers restore at once, each revocation is logged once, and all learn what only one of them held."""
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        first = await stack.enter_async_context(syncing(process.url))
        others = [await stack.enter_async_context(beside(first)) for _ in range(2)]
        values = await _with_some(first, scaled(1500, 20_000))
        for other in others:
            await other.until(lambda other=other: other.holds(values), "all in the mirror")  # type: ignore[misc]
            await other.in_sync()
        others[0].sync.add([Revocation("jti", "known to one", first.sync.now() + 600, None)], "log")
        await process.command("FLUSHALL")
        await first.in_redis([*values, "known to one"])
        for each in (first, *others):
            await each.until(lambda each=each: each.held("known to one"), "what only one knew")  # type: ignore[misc]
            await each.in_sync()

        async def no_turn_taken() -> bool:
            return not await process.command("EXISTS", first.opened.store.keyspace.restore_lease)

        await eventually(no_turn_taken, "the end of all restores")
        assert sorted(await first.logged(process)) == sorted([*values, "alice", "known to one"])
        counted = sum(each.counted("restored_total") for each in (first, *others))
        assert 0 < counted <= len(values) + 2  # fewer if a reply was lost


async def test_what_redis_has_for_less_is_given_back() -> None:
    """A record with an earlier end or cutoff than in the mirror gets the later one, and keeps its reason and actor."""
    async with standalone() as process, syncing(process.url, RESCANS, private=True) as worker:
        await worker.in_sync()
        now = worker.sync.now()
        await worker.sync.write(Put("jti", "v1", expires_in=600, reason="stolen", revoked_by="ops"))
        await worker.sync.write(Put("sub", "alice", issued_before=now, reason="left", revoked_by="ops"))
        more = [Revocation("jti", "v1", now + 5000, None), Revocation("sub", "alice", now + 5000, None, now + 30)]
        worker.sync.add(more, "scan")
        await worker.until(lambda: worker.counted("restored_total") == 2, "both")
        token, subject = await worker.opened.found("v1"), await worker.opened.found("alice", "sub")
        assert token is not None
        assert subject is not None
        assert token.expires_at is not None
        assert 0 <= token.expires_at - (now + 5000) < 1
        assert subject.issued_before == now + 30
        assert (token.reason, token.revoked_by) == ("stolen", "ops")
        assert (subject.reason, subject.revoked_by) == ("left", "ops")
