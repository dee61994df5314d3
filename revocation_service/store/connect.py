"""How Redis is reached: the only place that knows standalone, Sentinel and Cluster, chosen by the URL's scheme.

The three differ in one thing, who owns a key. Everything else is the same: commands for one key leave on one
connection, in one round trip, and are tried again, with jitter, until the caller's deadline.
"""

import asyncio
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from hiredis import pack_command
from redis.asyncio import Connection, ConnectionPool, Redis, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError as RedisConnectionError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
    TryAgainError,
)

from revocation_service.errors import SettingsError, StoreUnavailable
from revocation_service.settings import StoreSettings

ATTEMPT_SECONDS: Final = 0.5
"""How long one exchange with a server may take, its connection included; the bound on every one of them."""

SENTINEL_TIMEOUT_SECONDS: Final = 0.25
CONNECTIONS_PER_NODE: Final = 64
REFRESH_PAUSE_SECONDS: Final = 0.05

_SEVERAL_HOSTS: Final = re.compile(r"([^@]*@)?([^/?@]+)(.*)")

Command = tuple[str | bytes | int | float, ...]

_PASSING: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    TryAgainError,
    ReadOnlyError,
    OSError,
    TimeoutError,
)
"""Failures that may be over at the next attempt: a restart, a failover, a slot on the move."""

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""All that the library may raise; `RedisClusterException` is no `RedisError`."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file of ours, known to the server by its SHA-1."""

    source: str
    sha: str

    @classmethod
    def load(cls, name: str) -> "Script":
        """The script in `lua/<name>.lua`."""
        source = files("revocation_service.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
        return cls(source, sha1(source.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], *arguments: str | bytes) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


GET: Final = Script.load("get")
PUT: Final = Script.load("put")
_LOAD_SCRIPTS: Final[tuple[Command, ...]] = tuple(("SCRIPT", "LOAD", script.source) for script in (GET, PUT))


_pack: Callable[[Command], bytes] = cast(Any, pack_command)  # its stub says a tuple of one


class Node:
    """One master: its connections, bounded in number."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.connection_pool
        self.replicas_online: int | None = None
        """How many replicas it last said it has; None until it was asked."""
        self._permits = asyncio.Semaphore(min(CONNECTIONS_PER_NODE, self._pool.max_connections))

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to `commands`, sent on one connection in one round trip; a refused one's reply is its error.

        A server that does not know our scripts (it is new, or was restarted) is told them, once for all the commands.
        Replies are as the protocol has them (RESP2): bytes, integers, None, and lists of these.
        Raises any of FAILURES, TimeoutError after ATTEMPT_SECONDS.
        """
        async with self._permits, asyncio.timeout(ATTEMPT_SECONDS):
            replies = await self._send(commands)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                replies = (await self._send([*_LOAD_SCRIPTS, *commands]))[len(_LOAD_SCRIPTS) :]
            return replies

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """One exchange on one connection; a connection with replies still to come is never used again."""
        connection = await self._pool.get_connection()
        try:
            await connection.send_packed_command([_pack(command) for command in commands])
            replies = [await _reply(connection) for _ in commands]
            master = self.master_address
            if master is not None and master != (connection.host, connection.port):
                raise RedisConnectionError("the connection led to a former master")
            return replies
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    @property
    def master_address(self) -> tuple[str, int] | None:
        """Where the sentinels last said that the master is; None where there are none."""
        address: tuple[str, int] | None = getattr(self._pool, "master_address", None)
        return address

    async def ask_for_master(self) -> tuple[str, int] | None:
        """Where the sentinels say now that it is; connections that lead elsewhere are dropped."""
        if self.master_address is not None:
            await self._pool.get_master_address()
        return self.master_address

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as refused:
        return refused


def info_fields(reply: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


@dataclass(slots=True)
class _Route:
    """Where the next attempt goes, and what must be sent ahead of it; no node: to the key's owner."""

    node: Node | None = None
    ahead: tuple[Command, ...] = ()


class Connections(ABC):
    """The masters of one deployment of Redis."""

    @abstractmethod
    def owner(self, key: str) -> Node:
        """The master that holds `key`, as far as is known.

        Raises StoreUnavailable where that is not known yet.
        """

    @abstractmethod
    async def masters(self) -> Sequence[Node]:
        """Every master, each with a part of the keys."""

    @abstractmethod
    def known_masters(self) -> Collection[Node]:
        """Those of which it is known just now."""

    async def ready(self, until: float) -> None:  # noqa: B027 - most need nothing
        """Wait for what is needed to find a key's owner, at first; at most until the loop's clock says `until`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close every connection."""

    @abstractmethod
    def by_slot(self, keys: list[str]) -> Collection[list[str]]:
        """The keys in groups that may share a command."""

    def parts(self, keys: Sequence[str]) -> tuple[Mapping[Node, Sequence[str]], Sequence[str]]:
        """The keys by the master that holds them, and those that none holds: a slot of a cluster may be nobody's."""
        parts: dict[Node, list[str]] = {}
        orphans: list[str] = []
        for key in keys:
            try:
                parts.setdefault(self.owner(key), []).append(key)
            except StoreUnavailable:
                orphans.append(key)
        return parts, orphans

    @abstractmethod
    def at(self, host: str, port: int) -> Node:
        """The node at an address that a redirection named.

        Raises StoreUnavailable where there should be no redirections.
        """

    @abstractmethod
    def suspect(self) -> None:
        """Something answered oddly; whoever keeps a map of the deployment looks again, soon."""

    async def run(self, key: str, commands: Sequence[Command], until: float) -> list[Any]:
        """The replies of the master that owns `key` to `commands`, all on one connection.

        What fails in passing is tried again until the loop's clock says `until`; so the commands must be idempotent.
        Raises StoreUnavailable.
        """
        route = _Route()
        failure: Exception | None = None
        try:
            async with asyncio.timeout_at(until):
                # the clock is asked too: below Python 3.12 `wait_for`, in the library, may swallow the cancellation
                while asyncio.get_running_loop().time() < until:
                    try:
                        node = route.node or self.owner(key)
                        replies = (await node.run([*route.ahead, *commands]))[len(route.ahead) :]
                    except (*FAILURES, StoreUnavailable) as error:
                        failure = error
                    else:
                        failure = next((reply for reply in replies if isinstance(reply, Exception)), None)
                        if failure is None:
                            return replies
                    route = await self._next_route(failure)
        except TimeoutError:
            pass
        raise StoreUnavailable("Redis did not answer within the deadline") from failure

    async def _next_route(self, failure: Exception) -> _Route:
        if isinstance(failure, MovedError):
            self.suspect()
            return _Route(self.at(failure.host, failure.port))
        if isinstance(failure, AskError):
            return _Route(self.at(failure.host, failure.port), (("ASKING",),))
        if not isinstance(failure, (*_PASSING, StoreUnavailable)):
            raise StoreUnavailable("Redis refused the command") from failure
        self.suspect()
        await asyncio.sleep(random.uniform(0.01, 0.06))  # noqa: S311 - jitter, not a secret
        return _Route()


class SingleMaster(Connections):
    """One master holds every key: a standalone server, or whichever server Sentinel names."""

    def __init__(self, client: Any, sentinel: Any = None) -> None:
        self._node = Node(client)
        self._sentinel = sentinel

    def owner(self, key: str) -> Node:
        return self._node

    def parts(self, keys: Sequence[str]) -> tuple[Mapping[Node, Sequence[str]], Sequence[str]]:
        return {self._node: keys}, ()

    def at(self, host: str, port: int) -> Node:
        raise StoreUnavailable("Redis is a cluster, and REVOCATION_REDIS_URL does not begin with redis+cluster://")

    def by_slot(self, keys: list[str]) -> Collection[list[str]]:
        return [keys]

    def suspect(self) -> None:
        """There is no map: a new connection asks for the master by itself."""

    async def masters(self) -> Sequence[Node]:
        return [self._node]

    def known_masters(self) -> Collection[Node]:
        return [self._node]

    async def aclose(self) -> None:
        await self._node.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()


class Cluster(Connections):
    """Each master holds some of the 16,384 slots; a map says which, and is drawn anew when it proves wrong."""

    def __init__(self, addresses: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        self._options = options
        self._seeds = list(addresses)
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: dict[int, tuple[str, int]] = {}
        self._refreshing: asyncio.Task[None] | None = None

    def by_slot(self, keys: list[str]) -> Collection[list[str]]:
        groups: dict[int, list[str]] = {}
        for key in keys:
            groups.setdefault(key_slot(key.encode()), []).append(key)
        return groups.values()

    def owner(self, key: str) -> Node:
        address = self._slots.get(key_slot(key.encode()))
        if address is None:
            self.suspect()
            raise StoreUnavailable("no master of the cluster is known for that key yet")
        return self.at(*address)

    def at(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            node = self._nodes[host, port] = Node(_client({**self._options, "host": host, "port": port}))
        return node

    async def ready(self, until: float) -> None:
        if self._slots:
            return
        async with asyncio.timeout_at(until):
            while not self._slots:
                await self.masters()

    async def masters(self) -> Sequence[Node]:
        if not self._slots:
            self.suspect()
            await asyncio.shield(self._refreshing or asyncio.sleep(0))
        return self.known_masters()

    def known_masters(self) -> list[Node]:
        return [self.at(*address) for address in sorted(set(self._slots.values()))]

    def suspect(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="cluster-map")

    async def _refresh(self) -> None:
        """Ask one node after another, in no fixed order, until one draws the map."""
        known = list({*self._seeds, *self._slots.values(), *self._nodes})
        random.shuffle(known)
        for address in known:
            with suppress(*FAILURES):
                drawn = _slot_map(await self.at(*address).run([("CLUSTER", "SLOTS")]), address[0])
                if drawn:
                    self._slots = drawn
                    break
        await asyncio.sleep(REFRESH_PAUSE_SECONDS)

    async def aclose(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await self._refreshing
        await asyncio.gather(*(node.aclose() for node in self._nodes.values()))


def _slot_map(replies: list[Any], asked: str) -> dict[int, tuple[str, int]]:
    """Slot to master, from the reply to CLUSTER SLOTS; a node that does not know its own host has the one asked."""
    (ranges,) = replies
    if isinstance(ranges, Exception):
        return {}
    drawn: dict[int, tuple[str, int]] = {}
    for first, last, master, *_replicas in ranges:
        address = (master[0].decode() if master[0] else asked, int(master[1]))
        drawn.update(dict.fromkeys(range(first, last + 1), address))
    return drawn


def connect(settings: StoreSettings) -> Connections:
    """The deployment that the URL names, not contacted yet.

    Raises SettingsError where the URL cannot be read.
    """
    scheme, _, rest = settings.url.partition("://")
    kind = scheme.partition("+")[2]
    if not kind:
        return SingleMaster(_client(_options(settings.url, settings)))
    secure = "rediss" if scheme.startswith("rediss") else "redis"
    credentials, addresses, tail = _parts(rest)
    path, _, query_text = tail.removeprefix("/").partition("?")
    query = dict(parse_qsl(query_text))
    sentinel_password = query.pop("sentinel_password", None)
    sentinel_username = query.pop("sentinel_username", None)
    options = _options(f"{secure}://{credentials}localhost?{urlencode(query)}", settings)
    if kind == "cluster":
        if path not in {"", "0"}:
            raise SettingsError("REVOCATION_REDIS_URL: a cluster has one database, 0, and nothing else behind a /")
        return Cluster(addresses, options)
    if not path or "/" in path:
        raise SettingsError(
            "REVOCATION_REDIS_URL: redis+sentinel:// needs the service's name, as in …:26379/mymaster or /mymaster?db=1"
        )
    return _sentinel(addresses, path, options, sentinel_username, sentinel_password)


def _sentinel(
    addresses: Sequence[tuple[str, int]],
    service: str,
    options: dict[str, Any],
    username: str | None,
    password: str | None,
) -> SingleMaster:
    secure = issubclass(options.pop("connection_class"), SSLConnection)
    options.pop("host", None)
    own = {
        "socket_timeout": SENTINEL_TIMEOUT_SECONDS,
        "socket_connect_timeout": SENTINEL_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "username": username,
        "password": password,
    }
    if secure:
        own |= {"ssl": True} | {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinel: Any = _Sentinel(addresses, sentinel_kwargs=own)
    client = sentinel.master_for(service, connection_pool_class=_SentinelPool, ssl=secure, **options)
    return SingleMaster(client, sentinel)


class _Sentinel(Sentinel):
    """The library's, asked by one connection at a time: it sorts its list of sentinels while it walks through it, and
    two walks at once lose one of them for good.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()

    async def discover_master(self, service_name: str) -> Any:
        """The address of the master, by the first sentinel that knows one."""
        async with self._asking:
            return await super().discover_master(service_name)


def _parts(rest: str) -> tuple[str, list[tuple[str, int]], str]:
    """`user:password@`, the addresses, and the path and query, of a URL with several hosts."""
    found = _SEVERAL_HOSTS.fullmatch(rest)
    if not found:
        raise SettingsError("REVOCATION_REDIS_URL: a Sentinel or Cluster URL lists host:port,host:port after //")
    credentials, hosts, tail = found.groups(default="")
    return credentials, [_address(host) for host in hosts.split(",")], tail


def _address(text: str) -> tuple[str, int]:
    try:
        parsed = urlsplit(f"//{text}")
        host, port = parsed.hostname, parsed.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise SettingsError("REVOCATION_REDIS_URL: every server of a Sentinel or Cluster URL is host:port")
    return unquote(host), port


def _options(url: str, settings: StoreSettings) -> dict[str, Any]:
    try:
        options: dict[str, Any] = {"connection_class": Connection, **parse_url(url)}
        if options["connection_class"] is not UnixDomainSocketConnection:
            int(urlsplit(url).path.strip("/") or 0)  # the library takes what is no number for database 0
    except ValueError:
        raise SettingsError(
            "REVOCATION_REDIS_URL cannot be read: check its port, its database and its options"
        ) from None
    if settings.password is not None:
        options["password"] = settings.password
    options |= {
        "socket_timeout": None,  # `Node.run` bounds the whole exchange
        "socket_connect_timeout": ATTEMPT_SECONDS,
        "retry": Retry(NoBackoff(), 0),  # attempts are counted in one place: `Connections.run`
        "protocol": 2,
        "decode_responses": False,
    }
    if options["connection_class"] is UnixDomainSocketConnection:
        options.pop("host", None)
    _pool(options)  # so that a wrong option is told at the start, for Sentinel and Cluster too
    return options


def _client(options: dict[str, Any]) -> Any:
    return Redis.from_pool(_pool(options))


def _pool(options: dict[str, Any]) -> Any:
    try:
        pool = _Pool(**options)
        pool.make_connection()  # not connected, and not kept: it alone knows which options there are
    except (TypeError, ValueError, RedisError):
        raise SettingsError("REVOCATION_REDIS_URL has an option that the Redis client does not know") from None
    except OSError:
        raise SettingsError("REVOCATION_REDIS_URL names TLS files that cannot be read, or are none") from None
    return pool


class _OneTlsContext:
    """What a pool needs so that its connections share a TLS context: making one takes tens of milliseconds, in which
    nothing else runs, and after a failover every connection is made anew.
    """

    _tls: Any = None

    def make_connection(self) -> Any:
        """A new connection, not connected yet."""
        connection: Any = super().make_connection()  # type: ignore[misc]
        if isinstance(connection, SSLConnection):
            self._tls = self._tls or connection.ssl_context
            self._tls.get()
            connection.ssl_context = self._tls
        return connection


class _Pool(_OneTlsContext, ConnectionPool):
    pass


class _SentinelPool(_OneTlsContext, SentinelConnectionPool):
    pass
