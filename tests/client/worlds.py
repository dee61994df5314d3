"""The two worlds in which the behaviour suite runs: a real service behind a TCP proxy, and the stand-in.

Each makes clients, and can simulate an outage and latency.
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
    """The interface of both worlds."""

    def client(self, **options: Any) -> RevocationClient:
        """Return a client that is not started yet."""

    def outage(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Make the service unreachable inside the block."""

    def latency(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Delay every answer by this many seconds inside the block."""


class RealWorld:
    """A real service with its own key prefix in a real Redis. Clients reach it through a TCP proxy."""

    def __init__(self, target_port: int) -> None:
        self._line = SlowProxy(target_port)
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"http://{HOST}:{self._line.port}"

    def client(self, **options: Any) -> RevocationClient:
        """Return a client with the API key of `ops`. By default it has no mirror, and asks the service each time."""
        given: dict[str, Any] = {"api_key": KEYS["ops"], "mirror": False} | options
        return RevocationClient(self.url, **given)

    async def open(self) -> None:
        """Accept connections."""
        self._listener = await asyncio.start_server(self._line.serve, HOST, self._line.port)

    async def cut(self) -> None:
        """Cut all connections, and accept no new ones."""
        if self._listener is not None:
            self._listener.close()
            await self._line.aclose()
            await self._listener.wait_closed()
        self._listener = None

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Keep the proxy closed inside the block."""
        await self.cut()
        try:
            yield
        finally:
            await self.open()

    @contextlib.contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Delay everything that the service sends inside the block."""
        self._line.delay_seconds = seconds
        try:
            yield
        finally:
            self._line.delay_seconds = 0.0


class MemoryWorld:
    """Stand-ins. Outages and latency apply to the one that was made last."""

    def __init__(self) -> None:
        self._client = InMemoryRevocationClient()

    def client(self, **options: Any) -> RevocationClient:
        """Return a new stand-in."""
        self._client = InMemoryRevocationClient(**{"mirror": False} | options)
        return self._client

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Simulate an outage as an application's test does."""
        with self._client.outage():
            yield

    @contextlib.contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Simulate latency as an application's test does."""
        self._client.service.latency_seconds = seconds
        try:
            yield
        finally:
            self._client.service.latency_seconds = 0.0


@contextlib.asynccontextmanager
async def real_world(redis: Process) -> AsyncIterator[RealWorld]:
    """Start a service over this Redis, and yield its world."""
    async with serving(redis, API_KEYS=API_KEYS) as service:
        world = RealWorld(service.port)
        await world.open()
        try:
            yield world
        finally:
            await world.cut()
