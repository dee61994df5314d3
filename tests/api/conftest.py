"""Fixtures for the tests of the HTTP API. All services share one Redis, each under a fresh key prefix by default."""

from collections.abc import Iterator

import pytest

from tests.api.fixtures import redis, start, start_without_redis
from tests.api.hostile import CONFIGURATIONS, Target, spawned
from tests.api.serving import API_KEYS, Service, Start
from tests.redis_processes import Process

__all__ = ["redis", "start", "start_without_redis"]


@pytest.fixture
async def service(start: Start) -> Service:
    """A service with the four API keys of `KEYS`, and no signing keys."""
    return await start(API_KEYS=API_KEYS)


@pytest.fixture(scope="session", params=CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def running(
    redis: Process, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """A service process, shared by all hostile tests of one configuration."""
    with spawned(redis, tmp_path_factory.mktemp("serve") / "output", request.param) as target:
        yield target


@pytest.fixture
def target(running: Target) -> Iterator[Target]:
    """A service process. After the test it must still respond, and must have printed none of the test's secrets."""
    yield running
    running.assert_well()
    running.assert_silent()
