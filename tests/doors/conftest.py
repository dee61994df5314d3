"""One real Redis for all tests of the doors, and services with every door open."""

import pytest

from tests.api.fixtures import redis, start, start_without_redis
from tests.api.serving import Service, Start
from tests.doors.forward_auth import GATEWAY
from tests.doors.world import DOORS

__all__ = ["redis", "start", "start_without_redis"]


@pytest.fixture
async def service(start: Start) -> Service:
    """A service with all doors open."""
    return await start(**DOORS)


@pytest.fixture
async def door(service: Service) -> Service:
    """A service whose usual headers are those of a gateway."""
    service.headers = dict(GATEWAY)
    return service
