"""Helpers for the store's tests: open a store over any URL, read its records and change log, and break connections."""

import asyncio
import contextlib
import itertools
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from redis.exceptions import MovedError

from revocation_client.claims import ClaimName
from revocation_client.revocation import Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.metrics import Metrics
from revocation_service.settings import Limits, StoreSettings
from revocation_service.store.store import Put, Store, Stored
from revocation_service.store.topology import topology
from tests.redis_processes import HOST, WAIT_SECONDS, Process, standalone

WEEK_SECONDS = 7 * 86_400

PASSWORD = "p@ss:w/rd%2F?#[é] +&="
ESCAPED = quote(PASSWORD, safe="")


@dataclass
class Opened:
    """A store under test, with the settings and the metrics that it was given."""

    store: Store
    settings: StoreSettings
    metrics: Metrics

    async def revoke(self, value: str, *, claim: ClaimName = "jti", expires_in: float = 600) -> Stored:
        """Revoke the value, with no optional fields. `expires_in` applies to a `jti` only."""
        return await self.store.put(Put(claim, value, expires_in=expires_in if claim == "jti" else None))

    async def revoke_all(self, values: Sequence[str]) -> None:
        """Revoke the values, 20 at a time: with more at once, a busy machine could miss the store's deadline."""
        for start in range(0, len(values), 20):
            await asyncio.gather(*map(self.revoke, values[start : start + 20]))

    async def record(self, put: Put) -> Revocation:
        """Put a revocation, and return its record."""
        stored = await self.store.put(put)
        assert stored.record is not None
        return stored.record

    async def found(self, value: str, claim: ClaimName = "jti") -> Revocation | None:
        """Return the stored record of the value, or None."""
        reading = await self.store.get([(claim, value)])
        return reading.found[0] if reading.found else None

    def counted(self, name: str) -> float:
        """Return the value of one of the store's metrics."""
        value = self.metrics.registry.get_sample_value(f"revocation_{name}")
        assert value is not None, name
        return value

    def failures(self, operation: str) -> float:
        """Return how many operations of this name failed."""
        return self.metrics.registry.get_sample_value("revocation_store_failures_total", {"operation": operation}) or 0


@contextlib.asynccontextmanager
async def open_store(
    url: str,
    *,
    limits: Limits | None = None,
    key_prefix: str | None = None,
    wall: Callable[[], float] = time.time,
    **settings: Any,
) -> AsyncIterator[Opened]:
    """Open a store over this URL, by default with a key prefix that no other test uses; close it at the end."""
    settings.setdefault("wait_replicas", int("+" in url.partition("://")[0]))
    tag = "{%s}:" if "+cluster" in url else "%s:"
    prefix = tag % secrets.token_hex(4) if key_prefix is None else key_prefix
    chosen = StoreSettings(url=url, key_prefix=prefix, **settings)
    metrics = Metrics()
    store = Store(topology(chosen), chosen, limits or Limits(), metrics, wall)
    try:
        yield Opened(store, chosen, metrics)
    finally:
        await store.aclose()


def end_of(record: Revocation | None) -> float:
    """Return when the record ends, in epoch seconds; infinity if it never does."""
    assert record is not None
    return math.inf if record.expires_at is None else record.expires_at


async def missing(opened: Opened, values: Sequence[str], claim: ClaimName = "jti") -> list[str]:
    """Return which of these values have no record."""
    found: set[str] = set()
    for start in range(0, len(values), 1000):
        reading = await opened.store.get([(claim, value) for value in values[start : start + 1000]])
        found |= {record.value for record in reading.found}
    return [value for value in values if value not in found]


@dataclass(frozen=True)
class Entry:
    """One entry of the change log."""

    id: str
    nonce: str
    change: dict[str, Any]


async def read_log(nodes: Sequence[Process], key: str) -> list[Entry]:
    """Return the revocations in the change log under this key, from the master that has it."""
    for node in nodes:
        async with node.client() as client:
            untyped: Any = client
            with contextlib.suppress(MovedError):
                entries = await untyped.xrange(key)
                return [Entry(each, fields["n"], json.loads(fields["r"])) for each, fields in entries if "r" in fields]
    raise AssertionError("none of the nodes has the slot of the change log")


async def logged_values(nodes: Sequence[Process], key: str) -> list[str]:
    """Return the values in the change log, in its order."""
    return [entry.change["value"] for entry in await read_log(nodes, key)]


Chunk = Callable[[bytes], Awaitable[bytes | None]]
"""Receives bytes in transit, and returns the bytes to pass on, or None to cut the connection."""


async def _as_it_is(piece: bytes) -> bytes | None:
    return piece


@dataclass
class Proxy:
    """A TCP proxy in front of a test server. A test can watch, hold back and cut the traffic in each direction."""

    port: int
    request: Chunk = _as_it_is
    reply: Chunk = _as_it_is
    address: str = ""
    connections: int = 0
    """Number of open connections."""
    most: int = 0
    """Largest number of connections that were open at once."""
    opened: int = 0
    """Number of connections opened so far."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)
    _forgotten: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Listen on loopback, until the end of the context."""
        listener = await asyncio.start_server(self._accepted, HOST, 0)
        self.address = f"{HOST}:{listener.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            listener.close()
            self.cut()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=WAIT_SECONDS)
            await listener.wait_closed()

    def forget(self) -> None:
        """Keep open connections open, but pass nothing on any more, like a firewall that lost its state."""
        self._forgotten |= self._ends

    def cut(self) -> None:
        """Close every connection at once, without sending what is still buffered."""
        for end in self._ends:
            end.transport.abort()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._ends |= ends
        self.connections += 1
        self.most = max(self.most, self.connections)
        self.opened += 1
        try:
            behind_reader, behind = await asyncio.open_connection(HOST, self.port)
            ends.add(behind)
            self._ends |= ends
            await asyncio.gather(
                self._pass(reader, behind, ends, "request"), self._pass(behind_reader, writer, ends, "reply")
            )
        except OSError:
            pass  # the server is down: the client sees its connection end
        finally:
            self.connections -= 1
            for end in ends:
                end.transport.abort()
            self._ends -= ends

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: set[asyncio.StreamWriter], way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                if writer in self._forgotten:
                    continue
                passed = await getattr(self, way)(piece)
                if passed is None:
                    break
                writer.write(passed)
                await writer.drain()
        for end in ends:
            end.transport.abort()


@dataclass
class Writers:
    """Several tasks that revoke values without a pause, and a list of what was acknowledged when."""

    opened: Opened
    count: int = 8
    acknowledged: list[tuple[float, str]] = field(default_factory=list)
    refused: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _name: str = field(default_factory=lambda: secrets.token_hex(4))
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def values(self) -> list[str]:
        """Every value whose revocation was acknowledged."""
        return [value for _at, value in self.acknowledged]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Writers"]:
        """Write until the end of the context."""
        tasks = [asyncio.create_task(self._write()) for _ in range(self.count)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def more(self, count: int, seconds: float = WAIT_SECONDS) -> None:
        """Wait until `count` more revocations are acknowledged."""
        goal = len(self.acknowledged) + count
        async with asyncio.timeout(seconds), self._progress:
            await self._progress.wait_for(lambda: len(self.acknowledged) >= goal)

    def longest_pause(self) -> float:
        """Return the longest time between two acknowledgements, in seconds."""
        times = [at for at, _value in self.acknowledged]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            value = f"{self._name}-{next(self._numbers)}"
            try:
                await self.opened.revoke(value)
            except StoreUnavailable:
                self.refused += 1
                await asyncio.sleep(0)
                continue
            self.acknowledged.append((loop.time(), value))
            async with self._progress:
                self._progress.notify_all()


@contextlib.contextmanager
def unavailable(seconds: float) -> Iterator[None]:
    """Assert that the body raises StoreUnavailable in less than `seconds`."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        yield
    assert time.monotonic() - began < seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[Process]:
    """A server with a unix socket, a user `svc`, and a password whose characters must be escaped in URLs."""
    async with standalone(unix_socket=True) as server:
        await server.command("ACL", "SETUSER", "svc", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        await server.command("CONFIG", "SET", "requirepass", PASSWORD)
        server.password = PASSWORD
        yield server
