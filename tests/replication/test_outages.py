"""When Redis hangs or connections break, a mirror reports its age, and recovers by itself."""

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_service.errors import StoreUnavailable
from revocation_service.settings import MirrorSettings
from tests.redis_processes import HOST, Process, standalone
from tests.replication.syncing import beside, syncing
from tests.scale import scaled
from tests.store.conftest import Proxy, Writers, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server, shared by the tests that neither stop it nor empty it."""
    async with standalone() as process:
        yield process


async def test_a_frozen_redis_lets_the_mirror_grow_old() -> None:
    """While Redis is frozen, writes fail, and soon the worker trusts neither reads nor its mirror; then it recovers."""
    async with standalone() as process, syncing(process.url, MirrorSettings(max_staleness_seconds=2)) as worker:
        await worker.in_sync()
        await worker.revoke("before")
        process.freeze()
        try:
            with pytest.raises(StoreUnavailable):
                await worker.revoke("meanwhile")
            await worker.until(lambda: not worker.sync.believes(), "that nothing is believed")
            assert worker.sync.reason() == "no_heartbeat"
            assert not worker.sync.mirror_decides()
            age = worker.sync.staleness()
            await worker.until(lambda: worker.sync.staleness() > age + 1, "a mirror that grows old")
            assert worker.counted("mirror_age_seconds") >= age
            assert worker.holds(["before"])
        finally:
            process.thaw()
        await worker.in_sync()
        assert worker.sync.reason() is None


async def test_connections_that_lead_nowhere_are_given_up(server: Process) -> None:
    """If a firewall silently drops all connections, the worker opens others, and hears of later revocations."""
    async with Proxy(server.port).running() as proxy, syncing(proxy.url, private=True) as worker:
        await worker.in_sync()
        opened = proxy.opened
        proxy.forget()
        await worker.in_sync()
        assert proxy.opened > opened
        async with open_store(server.url, key_prefix=worker.opened.settings.key_prefix) as other:
            await other.revoke("later")
        await worker.until(lambda: worker.held("later"), "what came later")


async def test_connections_cut_at_random_lose_nothing(server: Process) -> None:
    """A worker whose connections are cut resumes at its cursor: it misses nothing, and neither scans nor restores."""
    async with Proxy(server.port).running() as proxy, syncing(proxy.url, private=True) as worker:
        await worker.in_sync()
        async with (
            open_store(server.url, key_prefix=worker.opened.settings.key_prefix) as other,
            Writers(other, 2).running() as writers,
        ):
            for _ in range(scaled(8, 100)):
                await writers.more(random.randrange(1, 100))
                proxy.cut()
            await writers.more(10)
        await worker.in_sync()
        assert [value for value in writers.values if not worker.held(value)] == []
        assert worker.counted("mirror_scans_total", reason="lost") == 0
        assert worker.counted("restored_total") == 0


async def test_a_master_made_a_replica_proves_nothing() -> None:
    """A master that became a replica of an empty one proves nothing; promoted again, it gets all records back."""
    async with standalone() as process, standalone() as empty, syncing(process.url) as worker:
        values = [f"v{number}" for number in range(100)]
        await worker.in_sync()
        await worker.revoke_all(values)
        await process.command("REPLICAOF", HOST, empty.port)
        await worker.stale()
        with pytest.raises(StoreUnavailable):
            await worker.revoke("meanwhile")
        await process.command("REPLICAOF", "NO", "ONE")
        await worker.in_redis(values)
        await worker.in_sync()


async def test_a_worker_may_follow_a_redis_that_takes_no_writes(server: Process) -> None:
    """A worker whose ACL forbids writes still gets in sync, and hears of what another worker revokes."""
    await server.command("ACL", "SETUSER", "reader", "on", ">reads", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://reader:reads@")
    try:
        async with syncing(server.url, private=True) as writer, beside(writer) as other:
            await other.in_sync()
            await server.command("ACL", "SETUSER", "reader", "-@write")
            async with syncing(url, private=True, key_prefix=writer.opened.settings.key_prefix) as worker:
                await worker.in_sync()
                await writer.in_sync()
                await writer.revoke("from another")
                await worker.until(lambda: worker.held("from another"), "another's revocation")
                with pytest.raises(StoreUnavailable):
                    await worker.revoke("own")
                await worker.until(lambda: worker.sync.writes_refused, "that it is said")
    finally:
        await server.command("ACL", "DELUSER", "reader")
