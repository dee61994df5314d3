"""Fixtures: one real Redis for all tests of the client, and the two worlds in which the behaviour suite runs."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_client import RevocationClient
from tests.client.worlds import MemoryWorld, World, real_world
from tests.redis_processes import Process, standalone


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis() -> AsyncIterator[Process]:
    """A real Redis server, shared by all tests of the client."""
    async with standalone() as server:
        yield server


@pytest.fixture(params=["service", "stand-in"])
async def world(request: pytest.FixtureRequest, redis: Process) -> AsyncIterator[World]:
    """A real service with nothing revoked, or the stand-in. Every test of the suite runs with both."""
    if request.param == "stand-in":
        yield MemoryWorld()
        return
    async with real_world(redis) as real:
        yield real


@pytest.fixture
async def client(world: World) -> AsyncIterator[RevocationClient]:
    """A started client of the world."""
    async with world.client() as started:
        yield started
