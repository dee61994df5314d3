"""Read the URL of Redis, and make redis-py's clients from it. Opens no connection."""

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from revocation_service.errors import SettingsError
from revocation_service.settings import StoreSettings

CONNECT_SECONDS: Final = 0.5
"""Timeout of a connection attempt, and of the wait for a free connection."""

MAX_CONNECTIONS: Final = 32

SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
KNOWN_SCHEMES: Final = ", ".join(f"{scheme}://" for scheme in SCHEMES)

_SEVERAL_HOSTS: Final = re.compile(r"([^@]*@)?([^/?@]+)(.*)")
_OTHER_OPTIONS: Final = {"client_name", "decode_responses", "encoding", "encoding_errors", "password", "username"}
_UNKNOWN_OPTION: Final = " has an option that the Redis client does not know"

_FIXED: Final[dict[str, Any]] = {
    # Every use has a deadline of its own. With a socket timeout, redis-py sends through `asyncio.wait_for`, which on
    # Python 3.11 loses a cancellation that arrives as the send completes.
    "socket_timeout": None,
    "socket_connect_timeout": CONNECT_SECONDS,
    "timeout": CONNECT_SECONDS,
    "retry": Retry(NoBackoff(), 0),  # a retry asks for the master again first, which redis-py would not do
    "retry_on_timeout": False,
    "health_check_interval": 10,
    "protocol": 2,  # the pool refuses a connection with unread data; with protocol 3 it may not
    "driver_info": None,  # no CLIENT SETINFO: Redis before 7.2 does not know it, and ACLs may forbid it
    "decode_responses": False,
    "encoding": "utf-8",
}
"""Options that no URL changes."""

Address = tuple[str, int]


class _WrongUrl(Exception):
    """An error in the URL. Its text is the rest of a sentence that begins with the name of the setting."""


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """One deployment of Redis: its topology, where to ask for the master, and how to connect."""

    kind: Literal["standalone", "sentinel", "cluster"]
    options: dict[str, Any] = field(repr=False)
    """Arguments of redis-py's connection pool; for a standalone server they hold its address."""
    addresses: tuple[Address, ...] = ()
    """The sentinels, or some nodes of the cluster."""
    service: str = ""
    """The name that the sentinels know the master by."""
    sentinel_login: dict[str, Any] = field(default_factory=dict, repr=False)

    def client(self, address: Address | None) -> Redis:
        """Return a client with a pool of its own for the server at `address`; None means the standalone server."""
        return Redis.from_pool(_Pool(**self.options | _at(address)))

    def discovery_client(self, address: Address) -> Redis:
        """Return a client of a sentinel or of a cluster's node. Sentinels have credentials of their own."""
        sentinel = {"db": 0, **self.sentinel_login} if self.kind == "sentinel" else {}
        return Redis.from_pool(_Pool(**self.options | sentinel | _at(address) | {"max_connections": 2}))


def _at(address: Address | None) -> dict[str, Any]:
    return {} if address is None else {"host": address[0], "port": address[1]}


def read_url(settings: StoreSettings) -> RedisUrl:
    """Return the deployment that the settings' URL names. Raises SettingsError if the URL cannot be read."""
    try:
        return _read(settings.url, settings.password)
    except _WrongUrl as wrong:
        raise SettingsError(f"{settings.url_variable}{wrong}") from None


def _read(url: str, password: str | None) -> RedisUrl:
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest:
        raise _WrongUrl(f" must begin with {KNOWN_SCHEMES} or, for the service, embedded:, and name a server")
    secure, _, kind = scheme.partition("+")
    if not kind:
        return RedisUrl("standalone", _options(url, password))
    found = _SEVERAL_HOSTS.fullmatch(rest)
    if not found:
        raise _WrongUrl(": a Sentinel or Cluster URL lists host:port,host:port after //")
    login, hosts, tail = found.groups(default="")
    addresses = tuple(_address(host) for host in hosts.split(","))
    path, _, query_text = tail.removeprefix("/").partition("?")
    query = dict(parse_qsl(query_text))
    sentinel_login = {name: query.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    options = _options(f"{secure}://{login}localhost?{urlencode(query)}", password)
    if kind == "sentinel":
        if not path or "/" in path:
            raise _WrongUrl(": redis+sentinel:// needs the service's name, as in …:26379/mymaster or /mymaster?db=1")
        return RedisUrl("sentinel", options, addresses, path, sentinel_login)
    if path not in {"", "0"}:
        raise _WrongUrl(": a cluster has one database, 0, and nothing else behind a /")
    return RedisUrl("cluster", options, addresses)


def _address(text: str) -> Address:
    try:
        server = parse_url(f"redis://{text}")
        return server["host"], server["port"]
    except (KeyError, ValueError):
        raise _WrongUrl(": every server of a Sentinel or Cluster URL is host:port") from None


def _options(url: str, password: str | None) -> dict[str, Any]:
    try:
        options: dict[str, Any] = {"connection_class": Connection, **parse_url(url)}
        if options["connection_class"] is not UnixDomainSocketConnection:
            int(urlsplit(url).path.strip("/") or 0)  # redis-py reads a path that is no number as database 0
    except ValueError:
        raise _WrongUrl(" cannot be read: check its port, its database and its options") from None
    for name in dict(parse_qsl(urlsplit(url).query)):
        if name not in URL_QUERY_ARGUMENT_PARSERS and name not in _OTHER_OPTIONS and not name.startswith("ssl_"):
            raise _WrongUrl(_UNKNOWN_OPTION)
    options = {"max_connections": MAX_CONNECTIONS} | options | _FIXED
    options["connection_class"] = _PACKED[options["connection_class"]]
    if password is not None:
        options["password"] = password
    _probe(options)
    return options


def _probe(options: dict[str, Any]) -> None:
    """Check the options with a connection object, which opens no socket: only redis-py knows which options exist."""
    try:
        _Pool(**options).make_connection()
    except (TypeError, ValueError, RedisError):
        raise _WrongUrl(_UNKNOWN_OPTION) from None
    except OSError:
        raise _WrongUrl(" names TLS files that cannot be read, or are none") from None


class _Packed:
    """A connection that packs commands with hiredis, as sync redis-py does: packing takes most of a batch's time."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return a command as Redis reads it; its name may hold several words, such as CONFIG GET."""
        name, *rest = args
        return [pack_command((*name.split(), *rest))]


_PACKED: Final = {
    plain: type(plain.__name__, (_Packed, plain), {})
    for plain in (Connection, SSLConnection, UnixDomainSocketConnection)
}


class _Pool(BlockingConnectionPool):
    """A pool whose connections share a TLS context: making a context blocks the loop for tens of milliseconds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._shared_tls: Any = None

    def make_connection(self) -> Any:
        """Return a new connection, not connected yet. redis-py documents this method as one to override."""
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, SSLConnection):
            self._shared_tls = self._shared_tls or connection.ssl_context
            self._shared_tls.get()  # raises OSError for files that cannot be read
            connection.ssl_context = self._shared_tls
        return connection
