"""How Redis is reached: the one place where a URL becomes a deployment, standalone, Sentinel or Cluster.

redis-py carries the bytes; how often to try, and for how long, is decided in `node.py` and `masters.py`.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio import ConnectionPool, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from revocation_client.names import Names
from revocation_service.errors import SettingsError
from revocation_service.settings import StoreSettings
from revocation_service.store.masters import Cluster, Connections, SingleMaster
from revocation_service.store.node import ATTEMPT_SECONDS
from revocation_service.store.sockets import (
    PlainConnection,
    PlainMasterConnection,
    TlsConnection,
    TlsMasterConnection,
)

SENTINEL_TIMEOUT_SECONDS: Final = 0.25

_SEVERAL_HOSTS: Final = re.compile(r"([^@]*@)?([^/?@]+)(.*)")


class _WrongUrl(Exception):
    """What is wrong with the URL, as the line goes on after the name of its setting."""


_UNKNOWN_OPTION: Final = " has an option that the Redis client does not know"


def connect(settings: StoreSettings) -> Connections:
    """The deployment that the URL names, not contacted yet.

    Raises SettingsError where the URL cannot be read.
    """
    try:
        return _deployment(settings)
    except _WrongUrl as wrong:
        raise SettingsError(f"{settings.url_variable}{wrong}") from None


def _deployment(settings: StoreSettings) -> Connections:
    scheme, _, rest = settings.url.partition("://")
    kind = scheme.partition("+")[2]
    if not kind:
        return SingleMaster(_pool(_options(settings.url, settings)))
    secure = "rediss" if scheme.startswith("rediss") else "redis"
    credentials, addresses, tail = _parts(rest)
    path, _, query_text = tail.removeprefix("/").partition("?")
    query = dict(parse_qsl(query_text))
    sentinel_password = query.pop("sentinel_password", None)
    sentinel_username = query.pop("sentinel_username", None)
    options = _options(f"{secure}://{credentials}localhost?{urlencode(query)}", settings)
    if kind == "cluster":
        if path not in {"", "0"}:
            raise _WrongUrl(": a cluster has one database, 0, and nothing else behind a /")
        return Cluster(addresses, lambda host, port: _pool({**options, "host": host, "port": port}))
    if not path or "/" in path:
        raise _WrongUrl(": redis+sentinel:// needs the service's name, as in …:26379/mymaster or /mymaster?db=1")
    return _sentinel(addresses, path, options, sentinel_username, sentinel_password)


def _sentinel(
    addresses: Sequence[tuple[str, int]],
    service: str,
    options: dict[str, Any],
    username: str | None,
    password: str | None,
) -> SingleMaster:
    secure = options.pop("connection_class") is TlsConnection
    options.pop("host", None)
    own = {
        "socket_timeout": SENTINEL_TIMEOUT_SECONDS,
        "socket_connect_timeout": SENTINEL_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,  # no CLIENT SETINFO, which Redis before 7.2 does not know
        "username": username,
        "password": password,
    }
    if secure:
        own |= {"ssl": True} | {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinel: Any = _Sentinel(addresses, options["names"], sentinel_kwargs=own)
    master = TlsMasterConnection if secure else PlainMasterConnection
    pool = _SentinelPool(service, sentinel, connection_class=master, **options)  # type: ignore[no-untyped-call]
    return SingleMaster(pool, sentinel)


class _Sentinel(Sentinel):
    """The library's, asked by one connection at a time: it sorts its list of sentinels while it walks through it, and
    two walks at once lose one of them for good.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], names: Names, **options: Any) -> None:
        super().__init__(addresses, **options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()
        for each in self.sentinels:
            pool = each.connection_pool
            pool.connection_class = _ours(pool.connection_class)
            pool.connection_kwargs["names"] = names

    async def discover_master(self, service_name: str) -> Any:
        """The address of the master, by the first sentinel that knows one."""
        async with self._asking:
            try:
                return await super().discover_master(service_name)
            except BaseException:
                self.sentinels.append(self.sentinels.pop(0))  # or whoever hangs at its head ends every walk
                raise

    async def agreed_master(self, service_name: str) -> tuple[str, int] | None:
        """The address of the master, if most sentinels answer, and all of those say the same and know of no failover.

        One that leads a failover says so before it promotes a replica; the old master may live, and know nothing yet.
        """
        answers = await asyncio.gather(*(each.sentinel_masters() for each in self.sentinels), return_exceptions=True)
        states = [answer.get(service_name) for answer in answers if isinstance(answer, dict)]
        named = {(state["ip"], state["port"]) if state and state["flags"] == "master" else None for state in states}
        most_answer = 2 * len(states) > len(self.sentinels)
        return named.pop() if most_answer and len(named) == 1 else None


def _parts(rest: str) -> tuple[str, list[tuple[str, int]], str]:
    """`user:password@`, the addresses, and the path and query, of a URL with several hosts."""
    found = _SEVERAL_HOSTS.fullmatch(rest)
    if not found:
        raise _WrongUrl(": a Sentinel or Cluster URL lists host:port,host:port after //")
    credentials, hosts, tail = found.groups(default="")
    return credentials, [_address(host) for host in hosts.split(",")], tail


def _address(text: str) -> tuple[str, int]:
    try:
        parsed = urlsplit(f"//{text}")
        host, port = parsed.hostname, parsed.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise _WrongUrl(": every server of a Sentinel or Cluster URL is host:port")
    return unquote(host), port


def _options(url: str, settings: StoreSettings) -> dict[str, Any]:
    try:
        options: dict[str, Any] = {"connection_class": None, **parse_url(url)}
        local = options["connection_class"] is UnixDomainSocketConnection
        if not local:
            int(urlsplit(url).path.strip("/") or 0)  # the library takes what is no number for database 0
    except ValueError:
        raise _WrongUrl(" cannot be read: check its port, its database and its options") from None
    if dict(parse_qsl(urlsplit(url).query)).keys() & {"connection_class", "names"}:  # what is set here, below
        raise _WrongUrl(_UNKNOWN_OPTION)
    if settings.password is not None:
        options["password"] = settings.password
    options |= {
        "socket_timeout": None,  # `Node.run` bounds the whole exchange
        "socket_connect_timeout": ATTEMPT_SECONDS,
        "retry": Retry(NoBackoff(), 0),  # who tries again, and for how long, is decided above: `Connections.run`
        "protocol": 2,
        "driver_info": None,  # no CLIENT SETINFO, which Redis before 7.2 does not know
        "decode_responses": False,
    }
    if local:
        options.pop("host", None)
    else:
        options |= {"connection_class": _ours(options["connection_class"]), "names": Names()}
    _pool(options)  # so that a wrong option is told at the start, for Sentinel and Cluster too
    return options


def _ours(library: Any) -> type[PlainConnection] | type[TlsConnection]:
    """Our connection in the place of the library's; None is its usual one."""
    return TlsConnection if library is SSLConnection else PlainConnection


def _pool(options: dict[str, Any]) -> Any:
    try:
        pool = _Pool(**options)
        pool.make_connection()  # not connected, and not kept: it alone knows which options there are
    except (TypeError, ValueError, RedisError):
        raise _WrongUrl(_UNKNOWN_OPTION) from None
    except OSError:
        raise _WrongUrl(" names TLS files that cannot be read, or are none") from None
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
