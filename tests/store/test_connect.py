"""How the store behaves over each kind of connection, and when servers fail. See also `test_topology.py`."""

import asyncio
import contextlib
import functools
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable

import pytest
import pytest_asyncio

from revocation_service.errors import StoreUnavailable
from revocation_service.store.store import DEADLINE_SECONDS, Put
from tests.redis_processes import (
    HOST,
    SERVICE_NAME,
    Cluster,
    Process,
    cluster,
    eventually,
    free_port,
    make_certificates,
    sentinel,
    standalone,
    tls_front,
)
from tests.scale import BUSY_SECONDS
from tests.slot_moves import slot_move
from tests.store.conftest import ESCAPED, PASSWORD, Opened, Proxy, missing, open_store, unavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """A cluster of three masters and three replicas."""
    async with cluster() as topology:
        yield topology


async def is_away(url: str) -> None:
    """Assert that put and get raise StoreUnavailable within the deadline, and that the metrics show both failures."""
    async with open_store(url) as opened:

        async def refused(operation: Awaitable[object]) -> None:
            with unavailable(DEADLINE_SECONDS + 0.2):
                await operation

        await asyncio.gather(*map(refused, (opened.revoke("a"), opened.found("a"))))

        async def counted() -> bool:
            return [opened.failures(name) for name in ("put", "get")] == [1, 1]

        await eventually(counted, "a count of both, also where the caller gave up first", seconds=1)
        assert opened.counted("store_up") == 0


async def test_a_wrong_password_is_a_store_that_is_away(guarded: Process) -> None:
    """With a wrong or missing password, operations raise StoreUnavailable within the deadline."""
    await asyncio.gather(
        is_away(f"redis://:wrong@{guarded.address}/0"),
        is_away(f"redis://{guarded.address}/0"),
        is_away(f"unix://svc:wrong@{guarded.socket_path}"),
    )


async def test_the_database_is_the_one_named(guarded: Process) -> None:
    """The path of a redis:// URL, or the option `db` of any URL, selects the database."""
    for url, database in (
        (f"redis://:{ESCAPED}@{guarded.address}", 0),
        (f"redis://:{ESCAPED}@{guarded.address}/3", 3),
        (f"redis://:{ESCAPED}@{guarded.address}?db=4", 4),
        (f"unix://:{ESCAPED}@{guarded.socket_path}?db=5", 5),
    ):
        async with open_store(url) as opened:
            await opened.revoke("a")
            for each in range(6):
                async with guarded.client(db=each) as client:
                    there = await client.exists(opened.store.keyspace.key("jti", "a"))
                assert bool(there) is (each == database), (url, each)


async def test_no_server_is_a_store_that_is_away() -> None:
    """Without a server, operations raise StoreUnavailable within the deadline, for every topology."""
    port = free_port()
    await asyncio.gather(
        is_away(f"redis://{HOST}:{port}/0"),
        is_away("unix:///no/such/socket"),
        is_away(f"redis+sentinel://{HOST}:{port}/main"),
        is_away(f"redis+cluster://{HOST}:{port}"),
    )


async def test_a_server_that_comes_back_is_used_within_a_second(guarded: Process) -> None:
    """Once a frozen server is thawed, the store works again within a second."""
    async with open_store(guarded.url.replace(PASSWORD, ESCAPED)) as opened:
        await opened.revoke_all([f"v{number}" for number in range(40)])
        guarded.freeze()
        with unavailable(DEADLINE_SECONDS + 0.2):
            await opened.found("v1")
        guarded.thaw()
        await eventually(functools.partial(_answers, opened), "an answer", seconds=1)
        assert opened.counted("store_up") == 1


async def _answers(opened: Opened) -> bool:
    try:
        await opened.revoke("back")
        return await opened.found("back") is not None
    except StoreUnavailable:
        return False


async def test_a_connection_ended_while_idle_costs_no_attempt() -> None:
    """After the server closed every idle connection, as its `timeout` setting does, the next attempts succeed."""
    async with standalone() as server, open_store(server.url) as opened:
        values = [f"v{number}" for number in range(30)]
        await opened.revoke_all(values)
        for _ in range(3):
            await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.gather(*(_once(opened) for _ in range(10)))
        assert not await missing(opened, values)


async def _once(opened: Opened) -> None:
    """Send one command to the master, without a retry."""
    async with opened.store.exchange("test") as redis:
        await redis.time()


async def test_connections_that_lead_nowhere_cost_no_second_of_service() -> None:
    """After a firewall silently dropped every pooled connection, reads and writes work again within about a second."""
    async with (
        standalone() as server,
        Proxy(server.port).running() as proxy,
        open_store(proxy.url) as opened,
    ):
        await asyncio.gather(*(opened.revoke(f"v{number}") for number in range(30)))
        assert proxy.connections > 0
        proxy.forget()
        begun = time.monotonic()
        while not await _answers(opened):
            assert time.monotonic() - begun < 1.3 + BUSY_SECONDS


async def test_a_cluster_behind_a_plain_url_says_what_is_wrong(clustered: Cluster) -> None:
    """With the redis:// URL of a cluster's node, a put raises StoreUnavailable and the error names the right scheme."""
    owner = await clustered.master_of("a:token_revocations:log")
    other = next(node for node in clustered.nodes[:3] if node is not owner)
    async with open_store(other.url, key_prefix="a:") as opened:

        async def names_the_scheme() -> bool:  # on a busy machine the deadline may pass first
            with pytest.raises(StoreUnavailable) as refused:
                await opened.store.put(Put("jti", "{a:token_revocations:log}", expires_in=60))
            return "redis+cluster://" in str(refused.value)

        await eventually(names_the_scheme, "an error that names the scheme", seconds=5)


async def test_while_a_slot_is_moved_redis_counts_as_away(clustered: Cluster) -> None:
    """During a slot's move, operations on keys that its old master lacks raise StoreUnavailable; later they work."""
    async with open_store(clustered.url, wait_replicas=0) as opened:
        await opened.revoke_all(["gone", "stayed"])
        move = await slot_move(clustered, opened.store.keyspace.change_log)
        await move.begin()
        await move.carry(opened.store.keyspace.key("jti", "gone"))
        for operation in (opened.found("gone"), opened.found("absent"), opened.revoke("absent")):
            with unavailable(DEADLINE_SECONDS + 0.2):
                await operation
        assert opened.counted("store_up") == 0
        await move.finish()
        await eventually(functools.partial(_answers, opened), "an answer", seconds=5)
        assert not await missing(opened, ["gone", "stayed"])
        assert await opened.found("absent") is None
        for value in ("gone", "stayed"):
            assert await move.target.command("EXISTS", opened.store.keyspace.key("jti", value))


async def test_tls_is_verified_unless_told_otherwise(guarded: Process, tmp_path: pathlib.Path) -> None:
    """The server's certificate must be from the named authority, unless `ssl_cert_reqs=none` turns verification off."""
    async with tls_front(guarded) as front:
        url = f"rediss://:{ESCAPED}@{HOST}:{front.port}/0"
        for options in (f"?ssl_ca_certs={front.certificates.ca}", "?ssl_cert_reqs=none&ssl_check_hostname=false"):
            async with open_store(url + options) as opened:
                assert await _answers(opened)
        for options in ("", f"?ssl_ca_certs={make_certificates(tmp_path).ca}"):
            async with open_store(url + options) as opened:
                with unavailable(DEADLINE_SECONDS + 0.2):
                    await opened.revoke("a")


async def test_sentinels_that_hang_do_not_hide_one_that_answers() -> None:
    """Puts succeed even if the first two sentinels in the URL accept connections and never answer."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(await asyncio.start_server(say_nothing, HOST, 0)) for _ in range(2)]
        silent = [f"{HOST}:{server.sockets[0].getsockname()[1]}" for server in servers]
        real = await stack.enter_async_context(sentinel())
        good = f"{HOST}:{real.sentinels[0].port}"
        opened = await stack.enter_async_context(
            open_store(f"redis+sentinel://{','.join([*silent, good])}/{SERVICE_NAME}")
        )
        await opened.revoke("first")  # may need a second attempt: the search waits for the sentinels that hang
        for number in range(5):
            assert (await opened.revoke(f"v{number}")).result == "revoked"


async def test_a_user_who_may_not_use_info() -> None:
    """If an ACL forbids INFO, revocations still work, and the store does not report missing replicas."""
    async with sentinel() as real:
        for node in real.nodes:
            await node.command("ACL", "SETUSER", "modest", "on", ">pass", "~*", "&*", "+@all", "-@dangerous")
        addresses = ",".join(f"{HOST}:{one.port}" for one in real.sentinels)
        async with open_store(f"redis+sentinel://modest:pass@{addresses}/{SERVICE_NAME}") as opened:
            assert (await opened.revoke("a")).result == "revoked"
            assert await opened.found("a") is not None
            assert not opened.store.short_of_replicas
