"""Under Sentinel, a worker that is cut off together with a former master stops trusting that master."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Final

import pytest

from revocation_client.expiry_clock import uptime
from revocation_service.errors import StoreUnavailable
from revocation_service.settings import MirrorSettings
from revocation_service.tasks import begin, end
from tests.redis_processes import HOST, eventually
from tests.replication.islands import Islands, follows, islands
from tests.replication.syncing import Syncing, syncing

pytestmark = pytest.mark.asyncio

SETTINGS: Final = MirrorSettings(max_staleness_seconds=3)


class Islander:
    """A worker on the island, and a record of what it trusts and acknowledges there."""

    def __init__(self, worker: Syncing) -> None:
        self.worker = worker
        self.acknowledged: list[str] = []
        self.acknowledged_at = self.believed_at = self.decided_at = 0.0
        """When the worker last acknowledged a revocation, trusted reads of Redis, and let the mirror decide."""

    async def believes_nothing(self) -> None:
        """Wait until well past the staleness limit, then assert that the worker trusts neither Redis nor its mirror."""
        sync, limit = self.worker.sync, SETTINGS.max_staleness_seconds
        await self.worker.until(lambda: sync.staleness() > limit + 2, "more than the staleness limit")
        assert (sync.believes(), sync.mirror_decides(), sync.reason()) == (False, False, "no_heartbeat")

    async def run(self) -> None:
        """Revoke tokens, and note what the worker trusts, until cancelled."""
        for number in itertools.count():
            now, value = uptime(), f"island {number}"
            if self.worker.sync.believes():
                self.believed_at = now
            if self.worker.sync.mirror_decides():
                self.decided_at = now
            with contextlib.suppress(StoreUnavailable):
                await self.worker.revoke(value)
                self.acknowledged.append(value)
                self.acknowledged_at = now
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("with_replica", [False, True], ids=["alone", "with a replica"])
async def test_a_former_master_is_believed_for_the_staleness_limit_at_most(with_replica: bool) -> None:
    """With any REVOCATION_WAIT_REPLICAS, a worker on the island stops saying "not revoked" and acknowledging. One on
    the mainland goes on with the new master. Afterwards both hold everything that either acknowledged.
    """
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(islands())
        master, replica, _ = world.nodes
        pairs = [await _pair(stack, world, wait_replicas) for wait_replicas in (0, 1)]
        separated_at = uptime()
        world.separate(master, *([replica] if with_replica else []))
        async with _running(islander for islander, _ in pairs):
            if with_replica:
                await replica.command("REPLICAOF", HOST, master.port)
                await eventually(lambda: follows(replica), "a replica that stays with the former master")
            await world.replaced(master)
            for islander, mainlander in pairs:
                await mainlander.in_sync()
                await mainlander.revoke("meanwhile")
                assert mainlander.sync.believes()
                await islander.believes_nothing()
            assert (await master.info("replication"))["role"] == "master"
        for islander, _ in pairs:
            last = max(islander.believed_at, islander.decided_at, islander.acknowledged_at)
            assert last - separated_at <= SETTINGS.max_staleness_seconds
        assert pairs[0][0].acknowledged, "it asks for no replicas, so it goes on until the staleness limit"
        assert bool(pairs[1][0].acknowledged) == with_replica
        world.join()
        for islander, mainlander in pairs:
            everything = ["before", "meanwhile", *islander.acknowledged]
            await islander.worker.in_sync()
            await mainlander.in_redis(everything)
            for each in (islander.worker, mainlander):
                await each.until(lambda each=each, values=everything: each.holds(values), "everything")  # type: ignore[misc]
                await each.in_sync()
                assert each.sync.reason() is None


async def _pair(stack: contextlib.AsyncExitStack, world: Islands, wait_replicas: int) -> tuple[Islander, Syncing]:
    """Return two workers of one deployment, one on the island and one on the mainland, both in sync."""
    island = await stack.enter_async_context(syncing(world.island_url, SETTINGS, wait_replicas=wait_replicas))
    prefix = island.opened.settings.key_prefix
    main = syncing(world.mainland_url, SETTINGS, key_prefix=prefix, wait_replicas=wait_replicas)
    mainland = await stack.enter_async_context(main)
    await island.in_sync()
    await mainland.in_sync()
    await mainland.revoke("before")
    await island.until(lambda: island.held("before"), "what the other one revoked")
    return Islander(island), mainland


@contextlib.asynccontextmanager
async def _running(islanders: Iterable[Islander]) -> AsyncIterator[None]:
    tasks = begin("islander", *(islander.run() for islander in islanders))
    try:
        yield
    finally:
        await end(tasks)
