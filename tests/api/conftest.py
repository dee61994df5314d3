"""One real Redis for all tests of the HTTP side; each service has keys of its own under a fresh prefix."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from revocation_service.http.serving import KEEPALIVE_SECONDS
from tests.api.hostile import CONFIGURATIONS, Target, spawned
from tests.api.serving import API_KEYS, Service, Start, serving
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

        async def start(host: str = "127.0.0.1", server: Process = redis, **given: str) -> Service:
            return await stack.enter_async_context(serving(server, host, KEEPALIVE_SECONDS, **given))

        yield start


@pytest.fixture
async def service(start: Start) -> Service:
    """A service with the four API keys of `KEYS`, and no signing keys."""
    return await start(API_KEYS=API_KEYS)


@pytest.fixture(scope="session", params=CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def running(
    redis: Process, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """One service process for all hostile tests of a configuration."""
    with spawned(redis, tmp_path_factory.mktemp("serve") / "output", request.param) as target:
        yield target


@pytest.fixture
def target(running: Target) -> Iterator[Target]:
    """A service that after the test still lives, and has printed nothing that was sent."""
    yield running
    running.assert_well()
    running.assert_silent()
