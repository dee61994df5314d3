"""Fixtures of the tests that call the service over HTTP: one real Redis, and services under fresh key prefixes."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_service.http.serving import KEEPALIVE_SECONDS
from tests.api.serving import Service, Start, serving
from tests.redis_processes import Process, standalone

__all__ = ["redis", "start"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis() -> AsyncIterator[Process]:
    """The server."""
    async with standalone() as server:
        yield server


@pytest.fixture
async def start(redis: Process) -> AsyncIterator[Start]:
    """Starts services that end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(host: str = "127.0.0.1", server: Process = redis, **given: str) -> Service:
            return await stack.enter_async_context(serving(server, host, KEEPALIVE_SECONDS, **given))

        yield start
