"""The topologies that other tests build on come up, and fail over when their master is killed."""

import functools

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

from tests.redis_processes import (
    Process,
    TlsUnsupportedError,
    cluster,
    eventually,
    sentinel,
    standalone,
    tls_front,
    tls_supported,
)


async def test_standalone_keeps_acknowledged_writes_over_sigkill() -> None:
    """A server that was killed and started again has what it acknowledged, on the same port and socket."""
    async with standalone(password="secret", unix_socket=True) as server:
        await server.command("SET", "key", "value")
        server.kill()
        assert not server.alive
        await server.restart()
        async with Redis.from_url(server.url) as over_tcp, Redis.from_url(server.unix_url) as over_socket:
            assert await over_tcp.get("key") == await over_socket.get("key") == b"value"


async def test_standalone_config_survives_a_restart() -> None:
    """Lines given to config() are in force at once and after a restart."""
    async with standalone(config=["maxmemory 50mb"]) as server:
        assert (await server.info("memory"))["maxmemory"] == 50 * 2**20
        await server.config("maxmemory 60mb")
        assert (await server.info("memory"))["maxmemory"] == 60 * 2**20
        await server.restart()
        assert (await server.info("memory"))["maxmemory"] == 60 * 2**20


async def test_a_frozen_server_does_not_answer_until_it_is_thawed() -> None:
    """freeze() leaves the connection open and silent; thaw() brings the answer."""
    async with standalone() as server, server.client(socket_timeout=0.1) as client:
        await client.set("key", "value")
        server.freeze()
        with pytest.raises(RedisError):
            await client.get("key")
        server.thaw()
        assert await server.command("GET", "key") == "value"


async def test_nothing_is_left_when_the_test_fails() -> None:
    """When an exception leaves the context, the process has ended and its directory is removed."""
    seen: list[Process] = []

    async def failing() -> None:
        async with standalone() as server:
            seen.append(server)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    assert not seen[0].alive
    assert not seen[0].directory.exists()


async def test_tls_front_is_trusted_by_its_own_authority_only() -> None:
    """A client with the test's CA reaches the server through TLS; one without is refused."""
    async with standalone(password="secret") as server, tls_front(server) as front:
        async with Redis.from_url(front.url, ssl_ca_certs=str(front.certificates.ca)) as trusting:
            assert await trusting.set("key", "value")
        async with Redis.from_url(front.url) as distrusting:
            with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
                await distrusting.get("key")
        assert await server.command("GET", "key") == "value"


async def test_native_tls_is_used_or_plainly_refused() -> None:
    """standalone(tls=True) serves TLS where the binary can, and raises TlsUnsupportedError where it cannot."""
    if not tls_supported():
        with pytest.raises(TlsUnsupportedError):
            async with standalone(tls=True):
                pass
        return
    async with standalone(tls=True) as server:
        assert server.certificates is not None
        async with Redis.from_url(server.url, ssl_ca_certs=str(server.certificates.ca)) as client:
            assert await client.set("key", "value")


async def test_sentinel_moves_the_master() -> None:
    """When the master is killed, a replica with its last write is promoted. The old master, restarted, follows it."""
    async with sentinel(password="secret") as topology:
        first = await topology.master()
        async with first.client() as client:
            await client.set("key", "value")
            assert await client.wait(2, 1000) == 2
        killed = await topology.kill_master()
        assert killed is first
        promoted = await topology.new_master(after=killed)
        assert await promoted.command("GET", "key") == "value"
        assert await promoted.command("SET", "key", "new")
        await killed.start()
        await eventually(functools.partial(_follows, killed, promoted), "the old master as a replica")


async def test_cluster_moves_the_masters_slots() -> None:
    """When a key's master is killed, its replica takes over the key, and another master keeps serving its own keys."""
    async with cluster(password="secret") as topology:
        first, other = await topology.master_of("{a}key"), await topology.master_of("{b}key")
        assert first is not other
        async with first.client() as client:
            await client.set("{a}key", "value")
            assert await client.wait(1, 1000) == 1
        killed = await topology.kill_master_of("{a}key")
        assert killed is first
        assert await other.command("SET", "{b}key", "other")
        promoted = await topology.new_master_of("{a}key", after=killed)
        async with RedisCluster.from_url(promoted.url, decode_responses=True) as clustered:
            assert await clustered.mget_nonatomic("{a}key", "{b}key") == ["value", "other"]


async def _follows(process: Process, master: Process) -> bool:
    found = await process.info("replication")
    return found["role"] == "slave" and bool(found["master_port"] == master.port)
