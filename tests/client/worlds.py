"""Where a client lives in the behaviour suite: with a real service behind a line that can be cut, or with the stand-in.

Both offer the same: clients, an outage, and latency.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from revocation_client import RevocationClient
from revocation_client.testing import InMemoryRevocationClient
from tests.api.serving import API_KEYS, KEYS, serving
from tests.redis_processes import HOST, Process
from tests.system.slow_proxy import SlowProxy


class World(Protocol):
    """What the suite needs of it."""

    def client(self, **options: Any) -> RevocationClient:
        """A client that is not started yet."""

    def outage(self) -> contextlib.AbstractAsyncContextManager[None]:
        """The service is away for the time of the block."""

    def latency(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Every answer takes so much longer for the time of the block."""


class RealWorld:
    """A service with keys of its own in a real Redis, over HTTP through a TCP line."""

    def __init__(self, target_port: int) -> None:
        self._line = SlowProxy(target_port)
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where the line begins."""
        return f"http://{HOST}:{self._line.port}"

    def client(self, **options: Any) -> RevocationClient:
        """A client with the key of ops, that asks the service each time."""
        given: dict[str, Any] = {"api_key": KEYS["ops"], "mirror": False} | options
        return RevocationClient(self.url, **given)

    async def open(self) -> None:
        """Let connections in."""
        self._listener = await asyncio.start_server(self._line.serve, HOST, self._line.port)

    async def cut(self) -> None:
        """Cut all connections, and let none in."""
        if self._listener is not None:
            self._listener.close()
            await self._line.aclose()
            await self._listener.wait_closed()
        self._listener = None

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """The line is cut."""
        await self.cut()
        try:
            yield
        finally:
            await self.open()

    @contextlib.contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """The line is slow."""
        self._line.delay_seconds = seconds
        try:
            yield
        finally:
            self._line.delay_seconds = 0.0


class MemoryWorld:
    """Stand-ins; the last one made is the one that is cut off or slow."""

    def __init__(self) -> None:
        self._client = InMemoryRevocationClient()

    def client(self, **options: Any) -> RevocationClient:
        """A stand-in of its own."""
        self._client = InMemoryRevocationClient(**{"mirror": False} | options)
        return self._client

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """As an application's test writes it."""
        with self._client.outage():
            yield

    @contextlib.contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """As an application's test writes it."""
        self._client.service.latency_seconds = seconds
        try:
            yield
        finally:
            self._client.service.latency_seconds = 0.0


@contextlib.asynccontextmanager
async def real_world(redis: Process) -> AsyncIterator[RealWorld]:
    """A fresh one, over this Redis."""
    async with serving(redis, API_KEYS=API_KEYS) as service:
        world = RealWorld(service.port)
        await world.open()
        try:
            yield world
        finally:
            await world.cut()
