"""One FastAPI upstream for all tests of the gateway that need a real one."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.gateway.serving import application


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def upstream_url() -> AsyncIterator[str]:
    """The URL of the upstream."""
    async with application() as url:
        yield url
