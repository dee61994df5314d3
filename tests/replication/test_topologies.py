"""MirrorSync over Sentinel and Cluster: masters that die, lose writes, or hand over their slot."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from revocation_service.errors import StoreUnavailable
from revocation_service.settings import MirrorSettings
from tests.redis_processes import SERVICE_NAME, Cluster, SentinelSet, cluster, eventually, sentinel
from tests.replication.links import links_to
from tests.replication.syncing import Syncing, beside, syncing
from tests.scale import scaled
from tests.slot_moves import slot_move
from tests.store.conftest import Writers, missing

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD: Final = "secret"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicated() -> AsyncIterator[SentinelSet]:
    """A Sentinel set of one master, two replicas and three sentinels."""
    async with sentinel(password=PASSWORD) as topology:
        yield topology


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """A cluster of three masters with one replica each."""
    async with cluster(password=PASSWORD) as topology:
        yield topology


async def test_a_heartbeat_counts_only_if_a_majority_of_the_sentinels_names_the_master(replicated: SentinelSet) -> None:
    """With one of three sentinels down a worker goes on; with two down it trusts no read and acknowledges no write."""
    async with links_to(replicated.sentinels) as links:
        url = f"redis+sentinel://:{PASSWORD}@{','.join(link.address for link in links)}/{SERVICE_NAME}"
        async with syncing(url, MirrorSettings(max_staleness_seconds=2), private=True) as worker:
            await worker.in_sync()
            links[0].take_down()
            await worker.in_sync()
            assert worker.sync.believes()
            await worker.revoke("v1")
            links[1].take_down()
            await worker.until(lambda: not worker.sync.believes(), "that nothing is believed")
            assert worker.sync.reason() == "no_heartbeat"
            with pytest.raises(StoreUnavailable):
                await worker.revoke("v2")
            assert await (await replicated.master()).command("PING")
            links[1].bring_up()
            await worker.in_sync()
            await worker.revoke("v3")


async def test_a_failover_that_loses_writes_is_made_good(replicated: SentinelSet) -> None:
    """After a failover to a replica that lacks the last writes, exactly those are restored, and logged again."""
    async with syncing(replicated.url, wait_replicas=0) as worker:
        values, late = [f"v{number}" for number in range(100)], [f"late {number}" for number in range(100)]
        await worker.in_sync()
        await worker.revoke_all(values)
        master = await replicated.master()
        others = [node for node in replicated.nodes if node is not master]
        for node in others:
            await eventually(lambda node=node: node.command("EXISTS", worker.key("v99")), "replicated")  # type: ignore[misc]
            await node.command("CONFIG", "SET", "masterauth", "wrong")  # the replicas cannot reconnect to the master
        await master.command("CLIENT", "KILL", "TYPE", "replica")
        await worker.revoke_all(late)
        master.kill()
        new = await replicated.new_master(after=master)
        await worker.in_redis([*values, *late])
        await worker.in_sync()
        assert worker.counted("restored_total") == len(late)
        logged = await worker.logged(new)
        assert sorted(logged) == sorted([*values, *late])
        for node in others:
            await node.command("CONFIG", "SET", "masterauth", PASSWORD)
        await master.start()


async def test_a_killed_master_of_a_cluster_is_replaced(clustered: Cluster) -> None:
    """After a failover all revocations are in Redis, and the worker and a newcomer get in sync with the new master."""
    async with syncing(clustered.url) as worker:
        values = [f"v{number}" for number in range(100)]
        await worker.in_sync()
        await worker.revoke_all(values)
        killed = await clustered.kill_master_of(worker.log)
        await clustered.new_master_of(worker.log, after=killed)
        await worker.in_redis(values)
        await worker.in_sync()
        async with beside(worker) as other:
            await other.in_sync()
            assert other.holds(values)
            await other.revoke("later")
        await worker.until(lambda: worker.held("later"), "what came later")
        await killed.start()


async def test_a_scan_of_a_slot_that_moves_proves_nothing(clustered: Cluster) -> None:
    """A newcomer is not complete while records move to another master; after the move it gets all of them."""
    async with syncing(clustered.url, private=True, wait_replicas=0) as worker:
        values = [f"v{number}" for number in range(20)]
        await worker.in_sync()
        await worker.revoke_all(values)
        move = await slot_move(clustered, worker.log)
        await move.begin()
        await move.carry(*map(worker.key, values[:10]))
        async with beside(worker, private=True) as newcomer:
            await newcomer.until(lambda: newcomer.counted("mirror_scans_total", reason="start") > 1, "a second scan")
            assert newcomer.sync.state.epoch == worker.sync.state.epoch
            assert not newcomer.sync.state.complete
            await move.finish()
            await newcomer.in_sync()
            assert newcomer.holds(values)


async def test_a_slot_that_moves_under_load_loses_nothing(clustered: Cluster) -> None:
    """Writes fail while a slot moves. After all moves, Redis and the mirrors hold every acknowledged revocation."""
    async with contextlib.AsyncExitStack() as stack:
        worker = await stack.enter_async_context(syncing(clustered.url, wait_replicas=0))
        await worker.in_sync()
        workers: list[Syncing] = [worker]
        async with Writers(worker.opened, 2).running() as writers:
            for _ in range(scaled(2, 20)):
                await writers.more(100)
                move = await slot_move(clustered, worker.log)
                await move.begin()
                refused = writers.refused
                await worker.until(lambda refused=refused: writers.refused > refused, "writes refused")  # type: ignore[misc]
                workers.append(await stack.enter_async_context(beside(worker)))
                await move.finish()
                await writers.more(30)
        for each in workers:
            await each.in_sync()
            assert [value for value in writers.values if not each.held(value)] == []
        assert await missing(worker.opened, writers.values) == []
