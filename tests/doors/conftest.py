"""One real Redis for all tests of the doors, and services with every door open."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_service.http.serving import KEEPALIVE_SECONDS
from tests.api.serving import Service, Start, serving
from tests.doors.forward_auth import GATEWAY
from tests.doors.world import DOORS
from tests.redis_processes import Process, standalone


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis() -> AsyncIterator[Process]:
    """The server."""
    async with standalone() as server:
        yield server


@pytest.fixture
async def start(redis: Process) -> AsyncIterator[Start]:
    """Starts services that end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(server: Process = redis, **given: str) -> Service:
            return await stack.enter_async_context(serving(server, "127.0.0.1", KEEPALIVE_SECONDS, **given))

        yield start


@pytest.fixture
async def service(start: Start) -> Service:
    """A service with all doors open."""
    return await start(**DOORS)


@pytest.fixture
async def door(service: Service) -> Service:
    """A service whose usual headers are those of a gateway."""
    service.headers = dict(GATEWAY)
    return service
