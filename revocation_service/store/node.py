"""One master and the connections to it: commands in, replies out. It knows no key."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, cast

from hiredis import pack_command
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

ATTEMPT_SECONDS: Final = 0.5
"""How long one exchange with a server may take, its connection included; the bound on every one of them."""

CONNECTIONS_PER_NODE: Final = 16

Command = tuple[str | bytes | int | float, ...]

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
HIT: Final = Script.load("hit")

LOAD_SCRIPTS: Final[tuple[Command, ...]] = tuple(("SCRIPT", "LOAD", script.source) for script in (GET, PUT, HIT))

_pack: Callable[[Command], bytes] = cast(Any, pack_command)  # its stub says a tuple of one


class Node:
    """One master: its connections, bounded in number.

    The library makes them; they are kept here, because its own pool costs a sixth of all that a lone check does.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connections: list[Any] = []
        self._idle: list[Any] = []
        self.replicas_online: int | None = None
        """How many replicas it last said it has; None until it was asked."""
        self._permits = asyncio.Semaphore(min(CONNECTIONS_PER_NODE, self._pool.max_connections))

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to `commands`, sent on one connection in one round trip; a refused one's reply is its error.

        A server that does not know our scripts (it is new, or was restarted) is told them, once for all the commands.
        Replies are as the protocol has them (RESP2): bytes, integers, None, and lists of these.
        Raises any of FAILURES; after ATTEMPT_SECONDS, TimeoutError.
        """
        async with self._permits, asyncio.timeout(ATTEMPT_SECONDS):
            try:
                return await self._send(commands)
            except NoScriptError:
                return (await self._send([*LOAD_SCRIPTS, *commands]))[len(LOAD_SCRIPTS) :]

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """One exchange on one connection; a connection with replies still to come is never used again.

        Raises NoScriptError at once: a WAIT behind the script would have nothing to wait for, and wait in full.
        """
        connection = self._idle.pop() if self._idle else self._another()
        try:
            await self._connect(connection)
            return await self._exchange(connection, commands)
        finally:
            self._idle.append(connection)

    def _another(self) -> Any:
        connection = self._pool.make_connection()
        self._connections.append(connection)
        return connection

    async def _connect(self, connection: Any) -> None:
        """Connect what is not, or was ended by the server, holds what nobody asked for, or leads elsewhere.

        Raises any of FAILURES.
        """
        if connection.is_connected and (self._led_elsewhere(connection) or await connection.can_read()):
            await connection.disconnect(nowait=True)
        if not connection.is_connected:
            await _connect_anew(connection)

    async def _exchange(self, connection: Any, commands: Sequence[Command]) -> list[Any]:
        try:
            await connection.send_packed_command([_pack(command) for command in commands])
            replies = [await _reply(connection) for _ in commands]
            if self._led_elsewhere(connection):
                raise RedisConnectionError("the connection led to a former master")
            return replies
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def _led_elsewhere(self, connection: Any) -> bool:
        """Whether the sentinels have named another master since it was connected."""
        master = self.master_address
        return master is not None and master != (connection.host, connection.port)

    @asynccontextmanager
    async def line(self) -> AsyncIterator["Line"]:
        """A connection beside all others, for what takes several exchanges with one and the same server.

        Raises any of FAILURES.
        """
        connection = self._pool.make_connection()
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await _connect_anew(connection)
            yield Line(connection, self._exchange)
        finally:
            await connection.disconnect(nowait=True)

    @property
    def address(self) -> tuple[object, ...]:
        """Where it is, as far as is known."""
        options = self._pool.connection_kwargs
        return self.master_address or (options.get("host"), options.get("port"), options.get("path"))

    @property
    def master_address(self) -> tuple[str, int] | None:
        """Where the sentinels last said that the master is; None where there are none."""
        address: tuple[str, int] | None = getattr(self._pool, "master_address", None)
        return address

    async def ask_for_master(self) -> tuple[str, int] | None:
        """Where the sentinels agree that it is, with no failover under way; no connection elsewhere is used again.

        Raises RedisConnectionError where they do not agree.
        """
        if self.master_address is None:
            return None
        agreed: tuple[str, int] | None = await self._pool.sentinel_manager.agreed_master(self._pool.service_name)
        if agreed is None:
            raise RedisConnectionError("the sentinels do not agree on a master, or are about to have another")
        if agreed != self.master_address:
            await self._pool.get_master_address()
        return agreed

    async def aclose(self) -> None:
        """Close its connections; what fails at that is closed too."""
        await asyncio.gather(*(connection.disconnect() for connection in self._connections), return_exceptions=True)


class Line:
    """One connection to one server, for as long as it holds: once broken it stays so, and no other takes its place."""

    def __init__(self, connection: Any, exchange: Callable[[Any, Sequence[Command]], Awaitable[list[Any]]]) -> None:
        self._connection = connection
        self._exchange = exchange

    async def run(self, commands: Sequence[Command], seconds: float = ATTEMPT_SECONDS) -> list[Any]:
        """The replies to `commands`, as `Node.run` gives them; a script must be loaded already.

        Raises any of FAILURES; after `seconds`, TimeoutError.
        """
        if not self._connection.is_connected:  # the library would connect again
            raise RedisConnectionError("the connection is gone")
        async with asyncio.timeout(seconds):
            return await self._exchange(self._connection, commands)


async def _connect_anew(connection: Any) -> None:
    """Connect; what it says unasked, or its end, would be taken for a reply.

    Raises any of FAILURES.
    """
    await connection.connect()
    if await connection.can_read():
        await connection.disconnect(nowait=True)
        raise RedisConnectionError("what answers is no Redis, or ended the connection")


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except NoScriptError:
        raise
    except ResponseError as refused:
        return refused


def epoch_seconds(seconds: bytes | int, microseconds: bytes | int) -> float:
    """A server's clock, from the two numbers of TIME."""
    return int(seconds) + int(microseconds) / 1e6


def info_fields(reply: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def replicas_online(info: Mapping[str, str]) -> int:
    """How many replicas have the data and follow, by INFO replication; one that is still loading does not count.

    Such a one may be called online already; it has confirmed nothing yet.
    """
    replicas = [value for name, value in info.items() if name.startswith("slave")]
    return sum(",state=online," in replica and ",offset=0," not in replica for replica in replicas)
