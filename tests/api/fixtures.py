"""Fixtures of the tests that call the service over HTTP: one real Redis, and services under fresh key prefixes."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_service.http.serving import KEEPALIVE_SECONDS
from tests.api.serving import Service, Start, serving
from tests.redis_processes import Process, standalone

__all__ = ["redis", "start", "start_without_redis"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis() -> AsyncIterator[Process]:
    """A Redis server, shared by all tests of the session."""
    async with standalone() as server:
        yield server


@pytest.fixture
async def start(redis: Process) -> AsyncIterator[Start]:
    """A function that starts a service. The service stops at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(host: str = "127.0.0.1", server: Process = redis, **given: str) -> Service:
            return await stack.enter_async_context(serving(server, host, KEEPALIVE_SECONDS, **given))

        yield start


@pytest.fixture
async def start_without_redis(start: Start) -> Start:
    """A function that starts a service, then kills its Redis. The service never says "not revoked" from its mirror.

    It starts with Redis, because a service that starts without one first waits for it for five seconds.
    """

    async def start_without_redis(**given: str) -> Service:
        async with standalone() as server:
            return await start(server=server, MAX_STALENESS_SECONDS="0", **given)

    return start_without_redis
