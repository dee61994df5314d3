"""The master is found for each topology, and again after a failover, within a bounded time."""

import asyncio
import contextlib
import functools
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from revocation_service.errors import SettingsError, StoreUnavailable
from revocation_service.settings import CLUSTER_PREFIX, StoreSettings
from revocation_service.store.redis_url import MAX_CONNECTIONS
from revocation_service.store.topology import (
    ASK_SECONDS,
    FIND_MASTER,
    Topology,
    cluster_key_prefix,
    topology,
)
from tests.redis_processes import (
    HOST,
    SERVICE_NAME,
    WAIT_SECONDS,
    Cluster,
    Process,
    SentinelSet,
    TlsFront,
    cluster,
    eventually,
    free_port,
    make_certificates,
    sentinel,
    tls_front,
)
from tests.scale import BUSY_SECONDS
from tests.store.conftest import ESCAPED, PASSWORD, Proxy, unavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_SECONDS = 1.0
SLACK_SECONDS = 0.3 + BUSY_SECONDS
"""The time by which an operation may exceed its deadline on a busy machine."""


@contextlib.asynccontextmanager
async def opened(url: str, *, password: str | None = None, key_prefix: str = "") -> AsyncIterator[Topology]:
    """Open the topology of a URL; at the end close it, and assert that it leaves no task."""
    made = topology(StoreSettings(url, password=password, key_prefix=key_prefix))
    try:
        yield made
    finally:
        await made.aclose()
        assert not searches()


def searches() -> list[asyncio.Task[Any]]:
    """Return the running tasks that look for a master."""
    return [task for task in asyncio.all_tasks() if task.get_name() == FIND_MASTER]


async def port_of(made: Topology) -> int:
    """Return the port that the master itself reports."""
    async with made.operation(DEADLINE_SECONDS) as master:
        info: dict[str, Any] = await master.info("server")
    return int(info["tcp_port"])


async def ping(made: Topology) -> None:
    """Send one PING to the master, without a retry."""
    async with made.operation(DEADLINE_SECONDS) as master:
        assert await untyped(master).ping()


async def ping_ten_times(made: Topology) -> None:
    """Send ten concurrent PINGs to the master, with retries."""
    pings = (made.retried(lambda master: untyped(master).ping(), WAIT_SECONDS) for _ in range(10))
    assert all(await asyncio.gather(*pings))


def untyped(client: Redis) -> Any:
    """Return the client without redis-py's types, which cannot tell its sync results from its async ones."""
    return client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched() -> AsyncIterator[SentinelSet]:
    """A master, two replicas and three sentinels."""
    async with sentinel(password="secret") as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """Three masters with a replica each."""
    async with cluster() as made:
        yield made


# URLs


async def test_every_form_of_url_reaches_the_server(guarded: Process) -> None:
    """TCP and unix URLs reach the server, with an escaped password in the URL. A password setting overrides it."""
    for url in (
        f"redis://:{ESCAPED}@{guarded.address}/0",
        f"redis://svc:{ESCAPED}@localhost:{guarded.port}",
        f"unix://:{ESCAPED}@{guarded.socket_path}",
        f"unix://svc:{ESCAPED}@{guarded.socket_path}?db=2",
    ):
        async with opened(url) as made:
            assert await port_of(made) == guarded.port, url
            assert await made.majority_names(await made.master())
    for url in (f"redis://{guarded.address}", f"redis://svc:wrong@{guarded.address}", f"unix://{guarded.socket_path}"):
        async with opened(url, password=PASSWORD) as made:
            assert await port_of(made) == guarded.port, url


async def test_a_wrong_password_is_an_unavailable_store(guarded: Process) -> None:
    """A wrong or missing password is StoreUnavailable, not a settings error: it may be corrected at the server."""
    for url in (f"redis://:wrong@{guarded.address}", f"redis://{guarded.address}", f"unix://{guarded.socket_path}"):
        async with opened(url) as made:
            with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
                await ping(made)


async def test_options_of_an_application_change_no_promise(guarded: Process) -> None:
    """Decoding, timeouts, encoding and protocol in the URL are ignored. A small pool only makes operations wait."""
    options = "decode_responses=True&socket_timeout=30&timeout=30&max_connections=2&protocol=3&encoding=utf-16"
    async with opened(f"redis://:{ESCAPED}@{guarded.address}/0?{options}") as made:
        await asyncio.gather(*(ping(made) for _ in range(30)))
        async with made.operation(DEADLINE_SECONDS) as master:
            assert await master.set("kéy", "välue", ex=60)
            assert await master.get("kéy") == "välue".encode()
        guarded.freeze()
        try:
            with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
                await ping(made)
        finally:
            guarded.thaw()


BAD_URLS = [
    "redis://localhost:port/0",
    "redis://localhost:99999/0",
    "redis://a:1,b:2/0",
    "redis://[::1/0",
    "redis://localhost/first",
    "redis://localhost?db=first",
    "redis://localhost?socket_timeout=soon",
    "redis://localhost?max_connections=-1",
    "redis://localhost?no_such_option=1",
    "redis://localhost?names=1",
    "redis://localhost?connection_class=1",
    "redis://:p?w@localhost",
    "unix:///run/redis.sock?no_such_option=1",
    "rediss://localhost?ssl_cert_reqs=perhaps",
    "rediss://localhost?ssl_ca_certs=/no/such/file",
    "rediss://localhost?ssl_no_such_option=1",
    "redis+sentinel://localhost:26379",
    "redis+sentinel://localhost:26379/",
    "redis+sentinel://localhost:26379/?db=1",
    "redis+sentinel://localhost:26379/main/1",
    "redis+sentinel://localhost/main",
    "redis+sentinel://localhost:26379,other/main",
    "redis+sentinel://localhost:port/main",
    "redis+sentinel:///main",
    "redis+sentinel://a:1/main?no_such_option=1",
    "redis+sentinel://a:1,/main",
    "redis+cluster://localhost",
    "redis+cluster://a:1,b",
    "redis+cluster://a:1,b:99999",
    "redis+cluster:///",
    "redis+cluster://a:1/1",
    "redis+cluster://a:1/main",
    "redis+cluster://a:1?no_such_option=1",
    "redis+cluster://a:1?names=1",
    "rediss+cluster://a:1?ssl_ca_certs=/no/such/file",
    "redis+cluster://:p?w@a:1",
    "redis://localhost?queue_class=1",
    "redis://localhost?retry=1",
    "redis+unknown://a:1/main",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_wrong_url_is_a_settings_error(url: str) -> None:
    """The error for a wrong URL names the setting, is one line, and contains neither the URL nor a password."""
    with pytest.raises(SettingsError) as error:
        topology(StoreSettings(url, url_variable="SOME_VARIABLE"))
    assert error.value.detail.startswith("SOME_VARIABLE")
    assert "\n" not in error.value.detail
    assert "p?w" not in error.value.detail
    assert url not in error.value.detail


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "redis:localhost", "redis://", "sentinel://a:1/m"]
)
async def test_a_url_has_a_known_scheme_and_a_server(url: str) -> None:
    """A URL without a known scheme or without a server is refused, and the error lists the schemes."""
    with pytest.raises(SettingsError, match=r"^SOME_VARIABLE must begin with redis://, rediss://, unix://"):
        topology(StoreSettings(url, url_variable="SOME_VARIABLE"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://[::1]:6379/2",
        "rediss://user:p%40w@redis.internal:6380/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://a:26379,b:26379,[::1]:26379/main?db=3&sentinel_username=u&sentinel_password=p%26w",
        "rediss+sentinel://:p%40w@a:26379/main",
        "redis+cluster://a:1,b:2",
        "redis+cluster://u:p%2Fw@a:1/0?socket_keepalive=yes",
        "rediss+cluster://a:1?ssl_check_hostname=false",
    ],
)
async def test_a_url_is_read_without_a_connection(url: str) -> None:
    """Every form of URL is accepted without contacting a server."""
    async with opened(url):
        pass


@pytest.mark.parametrize(
    ("prefix", "expected"), [("", CLUSTER_PREFIX), ("{a}", "{a}"), ("x{a}:", "x{a}:"), ("a}{b}", "a}{b}")]
)
async def test_a_cluster_prefix_has_a_hash_tag(prefix: str, expected: str) -> None:
    """The default key prefix on a cluster has a hash tag. A prefix that is set with one is used unchanged."""
    assert cluster_key_prefix(prefix, "SOME_VARIABLE") == expected
    async with opened("redis+cluster://a:1", key_prefix=prefix) as made:
        assert made.key_prefix == expected


@pytest.mark.parametrize("prefix", ["a:", "{}", "{}{a}", "{a", "a}", "}{"])
async def test_a_cluster_prefix_without_a_hash_tag_is_a_settings_error(prefix: str) -> None:
    """A prefix without a hash tag is refused: Redis would spread the keys over the masters. `{}` is no tag."""
    with pytest.raises(SettingsError, match=r"^SOME_VARIABLE needs a hash tag.*all keys must be on one master"):
        topology(StoreSettings("redis+cluster://a:1", key_prefix=prefix, prefix_variable="SOME_VARIABLE"))


async def test_no_server_is_an_unavailable_store() -> None:
    """Without a server, an operation raises StoreUnavailable within the deadline, for every topology."""
    port = free_port()
    for url in (
        f"redis://{HOST}:{port}",
        "unix:///no/such/socket",
        f"redis+sentinel://{HOST}:{port}/main",
        f"redis+cluster://{HOST}:{port}",
    ):
        async with opened(url) as made:
            with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
                await ping(made)


# TLS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(guarded: Process) -> AsyncIterator[TlsFront]:
    """The guarded server behind TLS."""
    async with tls_front(guarded) as made:
        yield made


async def test_tls_is_verified_unless_the_url_says_otherwise(front: TlsFront, tmp_path: pathlib.Path) -> None:
    """The server's certificate must be from the named authority, unless `ssl_cert_reqs=none` turns verification off."""
    url = f"rediss://:{ESCAPED}@{HOST}:{front.port}/0"
    for options in (f"?ssl_ca_certs={front.certificates.ca}", "?ssl_cert_reqs=none&ssl_check_hostname=false"):
        async with opened(url + options) as made:
            await ping(made)
    for options in ("", f"?ssl_ca_certs={make_certificates(tmp_path).ca}"):
        async with opened(url + options) as made:
            with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
                await ping(made)


async def test_connections_share_a_tls_context(front: TlsFront) -> None:
    """Connections share one TLS context, because creating one blocks the event loop for tens of milliseconds."""
    async with opened(f"rediss://:{ESCAPED}@{HOST}:{front.port}/0?ssl_ca_certs={front.certificates.ca}") as made:
        pool: Any = (await made.master()).connection_pool
        connections = [await pool.get_connection() for _ in range(5)]
        assert len({id(each.ssl_context.get()) for each in connections}) == 1
        for each in connections:
            await pool.release(each)


# Standalone


async def test_a_server_that_comes_back_is_used_again(guarded: Process) -> None:
    """Operations fail while the server is frozen. They work after it is thawed, and after it closed all connections."""
    async with opened(f"redis://:{ESCAPED}@{guarded.address}") as made:
        await asyncio.gather(*(ping(made) for _ in range(10)))
        guarded.freeze()
        found = await asyncio.gather(*(ping(made) for _ in range(2 * MAX_CONNECTIONS)), return_exceptions=True)
        assert {type(each) for each in found} == {StoreUnavailable}
        guarded.thaw()
        await asyncio.gather(*(ping(made) for _ in range(10)))
        await guarded.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.gather(*(ping(made) for _ in range(10)))


async def test_pooled_connections_that_lead_nowhere_fail_together(guarded: Process) -> None:
    """After a firewall silently dropped all connections, one operation fails, and the next ten succeed."""
    async with (
        Proxy(guarded.port).running() as proxy,
        opened(f"redis://:{ESCAPED}@{proxy.address}") as made,
    ):
        await asyncio.gather(*(ping(made) for _ in range(10)))
        assert proxy.connections > 5
        proxy.forget()
        with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
            await ping(made)
        await asyncio.gather(*(ping(made) for _ in range(10)))


async def test_unread_data_on_a_connection_is_no_reply(guarded: Process) -> None:
    """Unsolicited data from a server is not taken for the reply to the next command."""
    async with Proxy(guarded.port).running() as proxy, opened(f"redis://:{ESCAPED}@{proxy.address}") as made:
        as_it_is = proxy.reply

        async def with_more(piece: bytes) -> bytes:
            return piece + b"$5\r\nwrong\r\n"

        await ping(made)
        proxy.reply = with_more
        with contextlib.suppress(StoreUnavailable):
            await ping(made)
        proxy.reply = as_it_is
        async with made.operation(DEADLINE_SECONDS) as master:
            assert await untyped(master).echo("right") == b"right"


async def test_a_refused_command_keeps_the_connections(guarded: Process) -> None:
    """An error reply from Redis raises StoreUnavailable, and the connection stays open."""
    async with opened(f"redis://:{ESCAPED}@{guarded.address}") as made:
        numbers = []

        async def refused() -> None:
            async with made.operation(DEADLINE_SECONDS) as master:
                numbers.append(await untyped(master).client_id())
                await untyped(master).execute_command("NO-SUCH-COMMAND")

        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="refused") as error:
                await refused()
            assert isinstance(error.value.__cause__, ResponseError)
        assert len(set(numbers)) == 1


async def test_an_operation_ends_at_its_deadline(guarded: Process) -> None:
    """One deadline bounds an operation of any number of commands: redis-py must not swallow the cancellation."""

    async def without_end() -> None:
        async with made.operation(0.2) as master:
            while not hopeless.is_set():
                await untyped(master).ping()

    async with opened(f"redis://:{ESCAPED}@{guarded.address}") as made:
        hopeless = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(5, hopeless.set)
        for _ in range(5):
            with unavailable(0.2 + SLACK_SECONDS):
                await without_end()
        timer.cancel()
        await ping(made)


async def test_a_cancelled_caller_ends_no_search(guarded: Process) -> None:
    """If one of several callers that share a search for the master is cancelled, the others still get the master."""
    async with opened(f"redis://:{ESCAPED}@{guarded.address}") as made:
        callers = [asyncio.create_task(made.master()) for _ in range(3)]
        await asyncio.sleep(0)
        callers[0].cancel()
        found = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1] is found[2]


async def test_a_cluster_behind_a_plain_url_says_what_is_wrong(clustered: Cluster) -> None:
    """If a cluster's node redirects a client that has a redis:// URL, the error names the scheme to use."""
    owner = await clustered.master_of("a")
    other = next(node for node in clustered.nodes[:3] if node is not owner)
    async with opened(other.url) as made:
        with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
            async with made.operation(DEADLINE_SECONDS) as master:
                await master.get("a")


# Sentinel


async def test_sentinels_name_the_master(watched: SentinelSet) -> None:
    """The client connects to the master that a majority of the sentinels names, and to the URL's database."""
    async with opened(f"{watched.url}?db=1") as made:
        assert await port_of(made) == (await watched.master()).port
        assert await made.majority_names(await made.master())
        async with made.operation(DEADLINE_SECONDS) as master:
            info: dict[str, Any] = await master.client_info()
        assert str(info["db"]) == "1"


async def test_an_unknown_service_is_an_unavailable_store(watched: SentinelSet) -> None:
    """If the sentinels do not know the service's name, a search for the master raises StoreUnavailable."""
    async with opened(watched.url.replace(SERVICE_NAME, "other")) as made:
        with unavailable(ASK_SECONDS + SLACK_SECONDS):
            await made.master()


async def test_a_majority_is_one_of_the_configured_sentinels(watched: SentinelSet) -> None:
    """Two of three configured sentinels are a majority. One is not if the others hang, but it can name the master."""
    first, second, _ = watched.sentinels
    async with opened(watched.url) as made:
        master = await made.master()
        first.freeze()
        try:
            assert await made.majority_names(master)
            assert await made.is_undisputed(master)
            second.freeze()
            began = time.monotonic()
            assert not await made.majority_names(master)
            assert not await made.is_undisputed(master)
            made.forget(master)
            assert await made.master() is master
            assert time.monotonic() - began < 2 * ASK_SECONDS + SLACK_SECONDS
        finally:
            first.thaw()
            second.thaw()
        await eventually(lambda: made.majority_names(master), "a majority")


async def test_sentinels_that_are_gone_are_no_majority(watched: SentinelSet) -> None:
    """Configured sentinels that are down still count: one of two is no majority, two of three are."""
    live = watched.sentinels[0].address
    gone = [f"{HOST}:{free_port()}" for _ in range(2)]
    login = watched.url.partition("//")[2].partition("@")[0]
    async with opened(f"redis+sentinel://{login}@{live},{gone[0]}/{SERVICE_NAME}") as made:
        assert not await made.majority_names(await made.master()), "one of two is no majority"
    async with opened(
        f"redis+sentinel://{login}@{live},{watched.sentinels[1].address},{gone[0]}/{SERVICE_NAME}"
    ) as made:
        assert await made.majority_names(await made.master())


async def test_a_failover_of_sentinel_leads_to_the_new_master(watched: SentinelSet) -> None:
    """When the master is killed, operations fail, then work with the new master; no majority names the former one."""
    async with opened(watched.url) as made:
        former = await made.master()
        killed = await watched.kill_master()
        with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
            await ping(made)
        promoted = await watched.new_master(killed)

        async def on_the_new_one() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await port_of(made) == promoted.port
            return False

        await eventually(on_the_new_one, "the new master")
        master = await made.master()
        assert master is not former
        made.forget(former)
        with pytest.raises(StopIteration):  # returned without waiting: forgetting a former master starts no search
            made.master().send(None)
        assert not await made.majority_names(former)
        assert not await made.is_undisputed(former)
        await eventually(lambda: made.majority_names(master), "a majority")
        await killed.start()


async def test_a_master_is_disputed_before_its_successor_is_promoted(watched: SentinelSet) -> None:
    """A master is disputed as soon as a sentinel begins a failover, although it may still take writes for seconds."""
    for node in watched.nodes:
        await eventually(functools.partial(_in_place, node), "two replicas that follow")
    async with opened(watched.url) as made:
        former = await watched.master()
        master = await made.master()
        assert await port_of(made) == former.port
        await eventually(lambda: made.is_undisputed(master), "sentinels that agree")

        async def begun() -> bool:
            return bool(await watched.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE_NAME) == "OK")

        await eventually(begun, "a failover")
        assert not await made.is_undisputed(master)
        await watched.new_master(former)


async def _in_place(node: Process) -> bool:
    state = await node.info("replication")
    expected = ("connected_slaves", 2) if state["role"] == "master" else ("master_link_status", "up")
    return expected in state.items()


async def test_sentinels_may_have_their_own_password(watched: SentinelSet) -> None:
    """`sentinel_password` is for the sentinels alone; with it, `password` is for Redis alone."""
    for each in watched.sentinels:
        await each.command("ACL", "SETUSER", "default", "resetpass", f">{PASSWORD}")
    try:
        async with opened(f"{watched.url}?sentinel_password={ESCAPED}") as made:
            assert await made.majority_names(await made.master())
            await ping(made)
        async with opened(watched.url) as made:
            with unavailable(ASK_SECONDS + SLACK_SECONDS):
                await made.master()
    finally:
        for each in watched.sentinels:
            each.password = PASSWORD
            await each.command("ACL", "SETUSER", "default", "nopass")
            each.password = None


# Cluster


async def test_the_owner_of_the_prefix_s_slot_is_the_master(clustered: Cluster) -> None:
    """For each hash tag, any node of the cluster leads to the master that owns its slot."""
    for prefix in ("", "{a}", "x{b}:", "{c}"):
        owner = await clustered.master_of(prefix or CLUSTER_PREFIX)
        for node in clustered.nodes[:4]:
            async with opened(f"redis+cluster://{node.address}", key_prefix=prefix) as made:
                assert await port_of(made) == owner.port
                assert await made.majority_names(await made.master())


async def test_a_cluster_is_found_by_nodes_that_the_url_does_not_name(clustered: Cluster) -> None:
    """If the only node in the URL hangs, the master is found by asking the nodes that had the slot before."""
    owner = await clustered.master_of(CLUSTER_PREFIX)
    named = next(node for node in clustered.nodes[:3] if node is not owner)
    async with opened(f"redis+cluster://{named.address}") as made:
        master = await made.master()
        named.freeze()
        try:
            began = time.monotonic()
            made.forget(master)
            assert await port_of(made) == owner.port
            assert time.monotonic() - began < ASK_SECONDS + SLACK_SECONDS
        finally:
            named.thaw()


async def test_a_failover_of_a_cluster_leads_to_the_new_owner(clustered: Cluster) -> None:
    """If the slot's owner is killed, its promoted replica is found. After the owner takes over again, it is found."""

    async def moved_to(node: Process) -> bool:
        with contextlib.suppress(StoreUnavailable):
            async with made.operation(DEADLINE_SECONDS) as master:
                await master.set(f"{CLUSTER_PREFIX}x", "1", ex=60)
            return await port_of(made) == node.port
        return False

    async with opened(clustered.url) as made:
        await made.master()
        killed = await clustered.kill_master_of(CLUSTER_PREFIX)
        with unavailable(DEADLINE_SECONDS + SLACK_SECONDS):
            await ping(made)
        promoted = await clustered.new_master_of(CLUSTER_PREFIX, killed)
        await eventually(lambda: moved_to(promoted), "the promoted owner")
        await killed.start()

        async def taken_over() -> bool:
            if await clustered.master_of(CLUSTER_PREFIX) is killed:
                return True
            await killed.command("CLUSTER", "FAILOVER")
            return False

        await eventually(taken_over, "the first owner as owner again")
        await eventually(lambda: moved_to(killed), "the first owner, by MOVED")


async def test_operations_during_a_change_of_master_end_in_time(clustered: Cluster) -> None:
    """If connections are closed under operations in flight, each ends with an answer or with StoreUnavailable."""
    async with opened(clustered.url) as made:
        for _ in range(5):
            master = await made.master()
            under_way = [asyncio.create_task(ping(made)) for _ in range(3 * MAX_CONNECTIONS)]
            await asyncio.sleep(0)
            made.forget(master)
            await made.master()
            await master.aclose()
            found = await asyncio.gather(*under_way, return_exceptions=True)
            assert {type(each) for each in found} <= {type(None), StoreUnavailable}


async def test_closing_during_a_search_leaves_nothing() -> None:
    """`aclose` waits for a running search, and the callers of that search get StoreUnavailable."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        for url in (f"redis+sentinel://{HOST}:{port}/main", f"redis+cluster://{HOST}:{port}"):
            async with opened(url) as made:
                caller = asyncio.create_task(made.master())
                await asyncio.sleep(0)
                assert searches()
                await made.aclose()
                assert not searches()
                with unavailable(ASK_SECONDS + SLACK_SECONDS):
                    await caller


async def test_closing_leaves_no_connection(guarded: Process, watched: SentinelSet, clustered: Cluster) -> None:
    """A closed topology leaves no connection at the masters, the sentinels and the nodes that it asked for a master."""
    names = "client_name=topology"
    urls = {
        f"redis://:{ESCAPED}@{guarded.address}?{names}": [guarded],
        f"unix://:{ESCAPED}@{guarded.socket_path}?{names}": [guarded],
        f"{watched.url}?{names}": [*watched.nodes, *watched.sentinels],
        f"{clustered.url}?{names}": clustered.nodes,
    }
    for url, servers in urls.items():
        async with opened(url) as made:
            await ping_ten_times(made)
            made.forget(await made.master())
            await ping_ten_times(made)
            assert await connected(servers) > 0

        async def all_gone(servers: list[Process] = servers) -> bool:
            return await connected(servers) == 0

        await eventually(all_gone, f"no connection of {url}")


async def connected(servers: list[Process]) -> int:
    """Return how many connections with the client name `topology` the servers have."""
    lists = [await server.command("CLIENT", "LIST") for server in servers]
    return sum(str(each).count("name=topology") + str(each).count("'name': 'topology'") for each in lists)
