"""A clock that jumps or is wrong makes no mirror lose live revocations; after a jump the worker scans Redis."""

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from revocation_service.store.store import Put
from tests.redis_processes import Process, standalone
from tests.replication.syncing import Syncing, WorkerClocks, beside, syncing

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR_SECONDS: Final = 3600.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One Redis server for all tests of this module that do not start their own."""
    async with standalone() as process:
        yield process


def _scans(worker: Syncing) -> float:
    return worker.counted("mirror_scans_total", reason="lost")


@pytest.mark.parametrize("seconds", [HOUR_SECONDS, -HOUR_SECONDS])
async def test_a_wall_clock_that_jumps_and_returns_makes_nothing_forgotten(server: Process, seconds: float) -> None:
    """Each jump by an hour causes a scan. Revocations with half an hour left stay in the mirror; none is restored."""
    async with syncing(server.url, private=True) as worker, beside(worker) as other:
        await worker.in_sync()
        await other.in_sync()
        await worker.sync.write(Put("jti", "token", expires_in=HOUR_SECONDS / 2))
        for jumps, ahead in enumerate((seconds, 0.0), 1):
            with capture_logs() as logs:
                worker.clocks.wall_ahead = ahead
                await worker.until(lambda jumps=jumps: _scans(worker) == jumps, "a scan")  # type: ignore[misc]
                await other.sync.write(Put("jti", f"after jump {jumps}", expires_in=HOUR_SECONDS / 2))
                await worker.in_sync()
                worker.sync.mirror.expire(worker.sync.now())
            assert "clock_jumped" in [entry["event"] for entry in logs]
            assert worker.holds(["token", f"after jump {jumps}"])
        assert worker.counted("restored_total") == 0


async def test_a_jump_while_redis_is_away_makes_nothing_forgotten() -> None:
    """While Redis is down, a jump of the wall clock drops no live revocation, as the monotonic clock does not jump."""
    async with standalone() as process, syncing(process.url, private=True) as worker:
        await worker.in_sync()
        await worker.sync.write(Put("jti", "token", expires_in=HOUR_SECONDS / 2))
        process.kill()
        for ahead in (HOUR_SECONDS, 0.0):
            failed = worker.opened.failures("heartbeat")
            worker.clocks.wall_ahead = ahead
            await worker.until(lambda failed=failed: worker.opened.failures("heartbeat") > failed + 1, "heartbeats")  # type: ignore[misc]
            assert worker.holds(["token"])
        await process.start()
        await worker.in_sync()
        assert worker.holds(["token"])


async def test_between_a_jump_and_the_scan_the_mirror_does_not_decide(server: Process) -> None:
    """A jump may have dropped live records from the mirror, so until the scan only reads of Redis count."""
    async with syncing(server.url, private=True) as worker:
        await worker.in_sync()
        decided = []
        unsubscribe = worker.sync.subscribe(lambda _: decided.append(worker.sync.mirror_decides()))
        await server.command("SETEX", worker.key("only a scan finds this"), 600, "1")
        worker.clocks.wall_ahead = HOUR_SECONDS
        await worker.until(lambda: worker.held("only a scan finds this"), "the scan")
        assert decided == [False]
        assert worker.sync.believes()
        unsubscribe()


@pytest.mark.parametrize("ahead", [45.0, 600.0, -600.0])
async def test_the_offset_of_redis_clock_is_measured(server: Process, ahead: float) -> None:
    """The offset is Redis' clock minus the worker's clock. With any offset a mirror takes the live records of Redis."""
    async with syncing(server.url, clocks=WorkerClocks(wall_ahead=ahead), private=True) as worker:
        await worker.in_sync()
        assert abs(worker.sync.clock_offset + ahead) < 1
        assert abs(worker.counted("redis_clock_offset_seconds") + ahead) < 1
        await worker.opened.revoke("short", expires_in=30)
        await worker.until(lambda: worker.held("short"), "what the log says")
        async with beside(worker, clocks=WorkerClocks(wall_ahead=ahead)) as late:
            await late.in_sync()
            assert late.held("short")


async def test_a_suspended_machine_believes_nothing_at_first(server: Process) -> None:
    """The monotonic clock runs on during a suspend, so the worker's last proof is too old when the machine resumes."""
    async with syncing(server.url, private=True) as worker:
        await worker.in_sync()
        worker.clocks.suspend(20)
        assert worker.sync.staleness() > 19
        assert not worker.sync.believes()
        assert not worker.sync.mirror_decides()
        assert worker.sync.reason() == "no_heartbeat"
        await worker.in_sync()
        assert worker.sync.reason() is None
        assert _scans(worker) == 0
