"""How Redis is reached: what each URL means, what a wrong one says, and that commands follow a slot on the move."""

import asyncio
import contextlib
import functools
import itertools
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pytest
import pytest_asyncio

from revocation_service.errors import SettingsError, StoreUnavailable
from revocation_service.settings import StoreSettings, load
from revocation_service.store.connect import connect
from revocation_service.store.node import FAILURES
from revocation_service.store.redis import DEADLINE_SECONDS, Put
from tests.redis_processes import (
    HOST,
    SERVICE_NAME,
    Cluster,
    Process,
    SentinelSet,
    TlsFront,
    cluster,
    eventually,
    free_port,
    make_certificates,
    sentinel,
    standalone,
    tls_front,
)
from tests.slot_moves import SlotMove, slot_move
from tests.store.conftest import Opened, Proxy, missing, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "p@ss:w/rd%2F?#[é] +&="
ESCAPED = quote(PASSWORD, safe="")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[Process]:
    """A server whose password is full of what means something in a URL, with a second user, `svc`."""
    async with standalone(unix_socket=True) as server:
        await server.command("ACL", "SETUSER", "svc", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        await server.command("CONFIG", "SET", "requirepass", PASSWORD)
        server.password = PASSWORD
        yield server


async def works(opened: Opened) -> bool:
    """Whether a revocation can be put and found."""
    await opened.revoke("a")
    return await opened.found("a") is not None


def unavailable(seconds: float) -> contextlib.AbstractContextManager[object]:
    """StoreUnavailable, within so many seconds."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            yield
        assert time.monotonic() - begun < seconds

    return block()


async def test_a_password_may_hold_anything(guarded: Process) -> None:
    """Percent-escapes in the user's name and in the password are undone, over TCP and the socket; so is a query's."""
    socket = guarded.socket_path
    for url in (
        f"redis://:{ESCAPED}@{guarded.address}/0",
        f"redis://svc:{ESCAPED}@{guarded.address}",
        f"redis://svc:{ESCAPED}@localhost:{guarded.port}/0",
        f"unix://:{ESCAPED}@{socket}",
        f"unix://svc:{ESCAPED}@{socket}?db=0",
    ):
        async with open_store(url) as opened:
            assert await works(opened), url


async def test_the_password_may_be_set_apart(guarded: Process) -> None:
    """REVOCATION_REDIS_PASSWORD is taken as it stands, needs no escapes, and wins over the URL's."""
    for url in (
        f"redis://{guarded.address}/0",
        f"redis://svc:@{guarded.address}/0",
        f"redis://svc:wrong@{guarded.address}/0",
        f"unix://{guarded.socket_path}",
    ):
        async with open_store(url, password=PASSWORD) as opened:
            assert await works(opened), url


async def is_away(url: str) -> None:
    """Every operation is StoreUnavailable within the deadline, counted and told."""
    async with open_store(url) as opened:

        async def refused(operation: Awaitable[object]) -> None:
            with unavailable(DEADLINE_SECONDS + 0.2):
                await operation

        await asyncio.gather(*map(refused, (opened.revoke("a"), opened.found("a"), opened.store.ping())))
        assert [opened.failures(name) for name in ("put", "get", "ping")] == [1, 1, 1]
        assert opened.counted("store_up") == 0


async def test_a_wrong_password_is_a_store_that_is_away(guarded: Process) -> None:
    """It is StoreUnavailable within the deadline, like any other; it may be mended at the server."""
    await asyncio.gather(
        is_away(f"redis://:wrong@{guarded.address}/0"),
        is_away(f"redis://{guarded.address}/0"),
        is_away(f"unix://svc:wrong@{guarded.socket_path}"),
    )


async def test_the_database_is_the_one_named(guarded: Process) -> None:
    """The path of a redis:// URL, and `db` in any, choose the database."""
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


async def test_options_of_an_application_do_no_harm(guarded: Process) -> None:
    """What an application's URL may carry (decoding, timeouts, few connections) changes nothing of what is promised."""
    options = "decode_responses=True&socket_timeout=30&socket_connect_timeout=30&max_connections=2&protocol=3"
    async with open_store(f"redis://:{ESCAPED}@{guarded.address}/0?{options}&health_check_interval=10") as opened:
        values = [f"v{number}" for number in range(30)]
        await opened.revoke_all(values)
        assert not await missing(opened, values)
        guarded.freeze()
        try:
            with unavailable(DEADLINE_SECONDS + 0.2):
                await opened.found("v1")
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
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_url_that_cannot_be_read_stops_the_start(url: str) -> None:
    """One line names the variable; it holds neither the URL nor a password in it."""
    settings = load({"REVOCATION_REDIS_URL": url}).settings.store
    with pytest.raises(SettingsError) as error:
        connect(settings)
    assert error.value.detail.startswith("REVOCATION_REDIS_URL")
    assert "\n" not in error.value.detail
    assert "p?w" not in error.value.detail
    assert url not in error.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://localhost",
        "redis://[::1]:6379/2",
        "rediss://user:p%40w@redis.internal:6380/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://a:26379,b:26379,[::1]:26379/main?db=3&sentinel_username=u&sentinel_password=p%26w",
        "rediss+sentinel://:p%40w@a:26379/main",
        "redis+cluster://a:1,b:2",
        "redis+cluster://a:1/0?socket_keepalive=yes",
        "redis+cluster://u:p%2Fw@a:1,b:2/",
        "rediss+cluster://a:1?ssl_check_hostname=false",
    ],
)
async def test_a_url_is_read_without_a_connection(url: str) -> None:
    """Every form of URL is accepted before anything is asked of a server."""
    await connect(StoreSettings(url)).aclose()


async def test_nobody_listens() -> None:
    """Without a server all operations are StoreUnavailable within the deadline, for every kind of URL."""
    port = free_port()
    await asyncio.gather(
        is_away(f"redis://{HOST}:{port}/0"),
        is_away("unix:///no/such/socket"),
        is_away(f"redis+sentinel://{HOST}:{port}/main"),
        is_away(f"redis+cluster://{HOST}:{port}"),
    )


async def test_a_server_that_comes_back_is_used_within_a_second(guarded: Process) -> None:
    """Stopped and started, frozen and thawed: the store answers within a second, with nothing restarted."""
    async with open_store(guarded.url.replace(PASSWORD, ESCAPED)) as opened:
        await opened.revoke_all([f"v{number}" for number in range(40)])
        guarded.password = PASSWORD
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
    """Where the server ended every idle connection, as its `timeout` makes it do, the very next attempts succeed."""
    async with standalone() as server, open_store(server.url) as opened:
        values = [f"v{number}" for number in range(30)]
        await opened.revoke_all(values)
        for _ in range(3):
            await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await asyncio.gather(*(_said(opened, f"{number}") for number in range(10))) == list("0123456789")
        assert not await missing(opened, values)


async def test_what_is_said_unasked_is_nobodys_reply() -> None:
    """Neither behind a reply, on a connection that is kept, nor behind the last reply while one is made."""
    async with standalone() as server, Proxy(server.port).running() as proxy, open_store(proxy.url) as opened:
        as_it_is = proxy.reply

        async def with_more(piece: bytes) -> bytes:
            return piece + b"$5\r\nwrong\r\n"

        assert await _said(opened, "a") == "a"
        proxy.reply = with_more
        assert await _said(opened, "b") == "b"
        proxy.reply = as_it_is
        assert await _said(opened, "c") == "c"
        async with open_store(f"redis://{proxy.address}/1") as again:  # making a connection sends SELECT 1
            proxy.reply = with_more
            with pytest.raises(StoreUnavailable):
                await _said(again, "d")
            with pytest.raises(FAILURES):
                async with again.store.connections.owner("any").line():
                    pass
            proxy.reply = as_it_is
            assert await _said(again, "e") == "e"


async def _said(opened: Opened, text: str) -> str:
    """What Redis says when it is asked, once, to say this."""
    (reply,) = await opened.store.ask_once(opened.store.keyspace.change_log, ("ECHO", text))
    return str(reply.decode())


async def test_connections_that_lead_nowhere_cost_no_second_of_service() -> None:
    """Where a firewall forgot every pooled connection, silently, reads and writes are back within a second."""
    async with (
        standalone() as server,
        Proxy(server.port).running() as proxy,
        open_store(proxy.url) as opened,
    ):
        await asyncio.gather(*(opened.revoke(f"v{number}") for number in range(30)))
        assert proxy.connections > 5
        proxy.forget()
        begun = time.monotonic()
        while not await _answers(opened):
            assert time.monotonic() - begun < 5
        assert time.monotonic() - begun < 1.5


async def test_a_cluster_reached_by_a_plain_url_says_what_is_wrong(clustered: Cluster) -> None:
    """A cluster's node under redis:// is StoreUnavailable with the way out in the message, as soon as it redirects."""
    async with open_store(clustered.nodes[0].url) as opened:
        ends = await asyncio.gather(*(opened.revoke(f"v{number}") for number in range(30)), return_exceptions=True)
    told = [str(end) for end in ends if isinstance(end, StoreUnavailable)]
    assert told
    assert all("redis+cluster://" in each for each in told)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """A cluster of three masters and three replicas."""
    async with cluster() as topology:
        yield topology


@dataclass(frozen=True)
class Migration:
    """A slot on its way from one master to another, and values of it."""

    opened: Opened
    slot_move: SlotMove
    values: Sequence[str]

    @property
    def source(self) -> Process:
        """The master that had the slot."""
        return self.slot_move.source

    @property
    def target(self) -> Process:
        """The master that is to have it."""
        return self.slot_move.target

    def key(self, value: str) -> str:
        """The key of a value."""
        return self.opened.store.keyspace.key("jti", value)

    async def move(self, *values: str) -> None:
        """The keys of some values go over."""
        await self.slot_move.carry(*map(self.key, values))

    async def finish(self) -> None:
        """The rest goes over, and the slot changes hands."""
        await self.slot_move.finish()


@pytest_asyncio.fixture(loop_scope="module")
async def migration(clustered: Cluster) -> AsyncIterator[Migration]:
    """Six revoked values of one slot, and three of it that are not; the store knows the cluster as it was."""
    async with open_store(clustered.url, wait_replicas=0) as opened:
        values = [f"{{moving}}{number}" for number in range(9)]
        await opened.revoke_all(values[:6])
        moving = Migration(opened, await slot_move(clustered, opened.store.keyspace.key("jti", values[0])), values)
        await moving.slot_move.begin()
        yield moving
        await moving.finish()
        for node in clustered.nodes:
            owned = functools.partial(_owns, node, moving.target, moving.slot_move.slot)
            await eventually(owned, "the slot in its new place")


async def _owns(node: Process, owner: Process, slot: int) -> bool:
    return any(
        first <= slot <= last and int(master[1]) == owner.port
        for first, last, master, *_replicas in await node.command("CLUSTER", "SLOTS")
    )


async def test_single_keys_of_a_slot_on_the_move(migration: Migration) -> None:
    """Keys that are still here, that have gone over, and that are nowhere are each answered: ASK is followed."""
    revoked, absent = migration.values[:6], migration.values[6:]
    await migration.move(*revoked[:3])
    for value in revoked:
        assert await migration.opened.found(value) is not None, value
    for value in absent:
        assert await migration.opened.found(value) is None, value


async def test_a_key_that_went_over_is_waited_for_beside_one_that_stayed(migration: Migration) -> None:
    """Asked together with a key that the same master still has: what it answers does not end the question."""
    gone, keyspace = migration.values[0], migration.opened.store.keyspace
    owner, numbers = migration.opened.store.connections.owner, map(str, itertools.count())
    stayed = next(one for one in numbers if owner(keyspace.key("jti", one)) is owner(migration.key(gone)))
    await migration.opened.revoke(stayed)
    await migration.move(gone)
    assert not await missing(migration.opened, [gone, stayed])


async def test_several_keys_of_a_slot_on_the_move(migration: Migration) -> None:
    """Asked together, though some are here and some there and no command can read both, all are answered, at once."""
    await migration.move(*migration.values[:3])
    for some in (migration.values, migration.values[2:4], migration.values[6:], migration.values[5:7]):
        begun = time.monotonic()
        reading = await migration.opened.store.get([("jti", value) for value in some])
        assert time.monotonic() - begun < DEADLINE_SECONDS / 2
        assert not reading.unread
        assert sorted(record.value for record in reading.found) == sorted(set(some) & set(migration.values[:6]))


async def test_writes_to_a_slot_on_the_move(migration: Migration) -> None:
    """Puts land where the key is, or will be: merged with what has gone over, and there after the move."""
    opened, values = migration.opened, migration.values
    first = await opened.found(values[0])
    await migration.move(values[0])
    for node in (migration.source, migration.target):
        await node.command("SCRIPT", "FLUSH")
    again = await opened.store.put(Put("jti", values[0], expires_in=9000, reason="again"))
    assert first is not None
    assert again.result == "already_revoked"
    assert again.record is not None
    assert (again.record.revoked_at, again.record.reason) == (first.revoked_at, first.reason)
    assert (await opened.revoke(values[5])).result == "already_revoked"
    assert (await opened.revoke(values[6])).result == "revoked"
    assert not await missing(opened, values[:7])
    await migration.finish()
    assert not await missing(opened, values[:7])
    assert await migration.target.command("EXISTS", *map(migration.key, values[:7])) == 7


async def test_a_slot_that_has_moved(migration: Migration) -> None:
    """After the move a store that knows the old map follows MOVED, for reads and writes, and draws its map again."""
    opened, values = migration.opened, migration.values
    await migration.finish()
    assert not await missing(opened, values[:6])
    assert (await opened.revoke(values[0])).result == "already_revoked"

    async def map_is_new() -> bool:
        return opened.store.connections.owner(migration.key(values[0])) is opened.store.connections.at(
            HOST, migration.target.port
        )

    await eventually(map_is_new, "a new map", seconds=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded_sentinels() -> AsyncIterator[SentinelSet]:
    """A Sentinel set whose sentinels ask for a password of their own."""
    async with sentinel(password="secret") as topology:
        for each in topology.sentinels:
            await each.command("ACL", "SETUSER", "default", "resetpass", f">{PASSWORD}")
            each.password = PASSWORD
        yield topology


async def test_sentinels_may_have_a_password_of_their_own(guarded_sentinels: SentinelSet) -> None:
    """`sentinel_password` in the query is for the sentinels alone, and the database is chosen there too."""
    topology = guarded_sentinels
    addresses = ",".join(each.address for each in topology.sentinels)
    url = f"redis+sentinel://:secret@{addresses}/{SERVICE_NAME}?sentinel_password={ESCAPED}"
    async with open_store(url) as opened:
        assert await works(opened)
    async with open_store(f"{url}&db=2") as opened:
        await opened.revoke("a")
        async with (await topology.master()).client(db=2) as client:
            assert await client.exists(opened.store.keyspace.key("jti", "a"))
    async with open_store(f"redis+sentinel://:secret@{addresses}/{SERVICE_NAME}") as opened:
        with unavailable(DEADLINE_SECONDS + 0.2):
            await opened.revoke("a")
    async with open_store(url.replace(SERVICE_NAME, "another")) as opened:
        with unavailable(DEADLINE_SECONDS + 0.2):
            await opened.revoke("a")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(guarded: Process) -> AsyncIterator[TlsFront]:
    """The server with the difficult password, through TLS."""
    async with tls_front(guarded) as made:
        yield made


async def test_tls_is_verified_unless_told_otherwise(front: TlsFront, tmp_path: pathlib.Path) -> None:
    """Only the authority that is named is trusted; with `ssl_cert_reqs=none` nothing is verified, on purpose."""
    url = f"rediss://:{ESCAPED}@{HOST}:{front.port}/0"
    stranger = make_certificates(tmp_path)
    async with open_store(f"{url}?ssl_ca_certs={front.certificates.ca}") as opened:
        assert await works(opened)
    async with open_store(f"{url}?ssl_cert_reqs=none&ssl_check_hostname=false") as opened:
        assert await works(opened)
    for options in ("", f"?ssl_ca_certs={stranger.ca}"):
        async with open_store(url + options) as opened:
            with unavailable(DEADLINE_SECONDS + 0.2):
                await opened.revoke("a")


async def test_many_tls_connections_at_once_hold_nothing_up(front: TlsFront) -> None:
    """Forty connections, made again at the same time as after a failover, leave the loop free to do other things."""
    url = f"rediss://:{ESCAPED}@{HOST}:{front.port}/0?ssl_ca_certs={front.certificates.ca}"
    async with open_store(url) as opened:
        await opened.revoke("warm")
        loop = asyncio.get_running_loop()
        longest, last = 0.0, loop.time()

        async def watch() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0)
                longest, last = max(longest, loop.time() - last), loop.time()

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(opened.revoke(f"v{number}") for number in range(40)), return_exceptions=True)
        watcher.cancel()
        assert longest < 0.25


async def test_sentinels_that_hang_do_not_hide_one_that_answers() -> None:
    """Two that accept and say nothing stand at the head of the list: the one behind them is found all the same."""

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
        with contextlib.suppress(StoreUnavailable):  # the first walk may end at those who hang
            await opened.revoke("first")
        for number in range(5):
            assert (await opened.revoke(f"v{number}")).result == "revoked"


async def test_a_redis_that_forbids_what_is_dangerous() -> None:
    """INFO is refused to such a user; writes are safe all the same, for the replicas confirm them."""
    async with sentinel() as real:
        for node in real.nodes:
            await node.command("ACL", "SETUSER", "modest", "on", ">pass", "~*", "&*", "+@all", "-@dangerous")
        addresses = ",".join(f"{HOST}:{one.port}" for one in real.sentinels)
        async with open_store(f"redis+sentinel://modest:pass@{addresses}/{SERVICE_NAME}") as opened:
            assert (await opened.revoke("a")).result == "revoked"
            assert await opened.found("a") is not None
            assert not opened.store.short_of_replicas
