"""Fixtures: one real Redis for all tests in this directory, and services with every optional endpoint open."""

import pytest

from tests.api.fixtures import redis, start, start_without_redis
from tests.api.serving import Service, Start
from tests.doors.forward_auth import GATEWAY
from tests.doors.world import DOORS

__all__ = ["redis", "start", "start_without_redis"]


@pytest.fixture
async def service(start: Start) -> Service:
    """A service with every optional endpoint open."""
    return await start(**DOORS)


@pytest.fixture
async def door(service: Service) -> Service:
    """The same service, called with the API key of a gateway by default."""
    service.headers = dict(GATEWAY)
    return service
