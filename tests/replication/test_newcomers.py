"""When a worker that has just started is in sync, and when it must not say "not revoked" yet."""

import time
from typing import Final

import pytest
from structlog.testing import capture_logs

from revocation_service.replication.epoch import GRACE_SECONDS, WITNESS_SECONDS
from revocation_service.store.scripts import MERGE
from tests.redis_processes import Process, eventually, standalone
from tests.replication.syncing import Syncing, beside, syncing
from tests.store.conftest import Proxy, missing

pytestmark = pytest.mark.asyncio

ROUNDING_SECONDS: Final = 0.1
"""How much shorter the measured grace may be, because Redis counts it in whole milliseconds."""


async def _reasons(worker: Syncing) -> list[str]:
    """Return the reasons that a worker logs until it is in sync."""
    with capture_logs() as logs:
        await worker.in_sync()
        await worker.until(lambda: worker.sync.reason() is None, "no reason left")
    return [entry["reason"] for entry in logs if entry["event"] == "mirror_not_synced"]


async def test_on_a_redis_that_went_on_a_newcomer_does_not_wait() -> None:
    """A newcomer to a Redis that kept running does not wait, because nothing is pending there."""
    async with standalone() as process, syncing(process.url) as worker:
        await worker.in_sync()
        await worker.revoke("v1")
        async with beside(worker) as newcomer:
            assert "store_in_doubt" not in await _reasons(newcomer)
            assert newcomer.holds(["v1"])


async def test_on_a_restarted_redis_a_newcomer_waits_for_the_grace() -> None:
    """A newcomer to a restarted Redis waits for the grace, in which other workers can report what they hold."""
    async with standalone() as process:
        async with syncing(process.url) as former:
            await former.in_sync()
            await former.revoke("v1")
        await process.restart()
        began = time.monotonic()
        prefix = former.opened.settings.key_prefix
        async with syncing(process.url, settled=False, key_prefix=prefix) as newcomer:
            await newcomer.sync.heard.wait()
            assert newcomer.sync.reason() == "store_in_doubt"
            assert not newcomer.sync.believes()
            await newcomer.until(newcomer.sync.believes, "the end of the grace")
            assert time.monotonic() - began > GRACE_SECONDS - ROUNDING_SECONDS
            await newcomer.in_sync()
            assert newcomer.holds(["v1"])


async def test_a_worker_that_was_away_for_more_than_a_minute_waits_as_a_newcomer_does() -> None:
    """After more than a minute away a worker waits in a new epoch: others may hold what it never heard of."""
    async with standalone() as process, syncing(process.url) as worker:
        await worker.in_sync()
        await worker.revoke("v1")
        process.kill()
        await worker.until(lambda: worker.opened.failures("heartbeat"), "a heartbeat that failed")
        worker.clocks.suspend(WITNESS_SECONDS + 1)
        await process.start()
        await worker.until(lambda: worker.sync.reason() == "store_in_doubt", "that it waits")
        assert not worker.sync.believes()
        await worker.in_sync()
        assert worker.holds(["v1"])


async def test_with_a_private_redis_a_newcomer_does_not_wait() -> None:
    """A newcomer to a private Redis does not wait, because no other worker can have used that Redis."""
    async with standalone() as process:
        async with syncing(process.url, private=True) as former:
            await former.in_sync()
            await former.revoke("v1")
        await process.restart()
        async with syncing(process.url, private=True, key_prefix=former.opened.settings.key_prefix) as newcomer:
            assert "store_in_doubt" not in await _reasons(newcomer)
            assert newcomer.holds(["v1"])


async def test_a_newcomer_believes_nothing_while_another_worker_restores() -> None:
    """Even after the grace a newcomer trusts no read while the worker that holds everything cannot write it back."""
    async with standalone() as process, Proxy(process.port).running() as proxy, syncing(proxy.url) as holder:
        values = [f"v{number}" for number in range(500)]
        await holder.in_sync()
        await holder.revoke_all(values)

        async def without_merges(request: bytes) -> bytes | None:
            return None if MERGE.sha.encode() in request else request

        pass_on, proxy.request = proxy.request, without_merges
        await process.command("FLUSHALL")
        async with syncing(process.url, settled=False, key_prefix=holder.opened.settings.key_prefix) as newcomer:
            await eventually(lambda: _grace_is_over(process, newcomer), "the end of the grace")
            for _ in range(3):
                newcomer.sync.heard.clear()
                await newcomer.sync.heard.wait()
                assert newcomer.sync.reason() == "store_in_doubt"
                assert not newcomer.sync.believes()
                assert not newcomer.sync.feeds()
                assert holder.sync.believes()
            proxy.request = pass_on
            await newcomer.until(newcomer.sync.believes, "the end of the restore")
            assert await missing(newcomer.opened, values) == []
            await newcomer.in_sync()
            assert newcomer.holds(values)


async def _grace_is_over(process: Process, newcomer: Syncing) -> bool:
    fields = await process.command("HKEYS", newcomer.opened.store.keyspace.state)
    epoch = newcomer.sync.state.epoch
    return epoch is not None and f"pending:{epoch}" not in fields and any("pending:" in field for field in fields)
