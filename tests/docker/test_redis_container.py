"""Tests of the service on a Redis from testcontainers, as an application's integration tests would start it."""

import pathlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis
from testcontainers.community.redis import RedisContainer

from tests.system.service_process import ServiceProcess, ask, serving

pytestmark = pytest.mark.docker


@pytest.fixture
async def address(engine: None) -> AsyncIterator[str]:
    """The URL of a Redis in a container."""
    with RedisContainer("redis:8-alpine", password="of-the-container") as container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(6379)
        yield f"redis://:of-the-container@{host}:{port}/0"


@pytest.fixture
async def service(address: str, tmp_path: pathlib.Path) -> AsyncIterator[ServiceProcess]:
    """A process of `revocation-service serve` that uses this Redis."""
    async with serving(tmp_path, {"REVOCATION_REDIS_URL": address}) as served:
        yield served


async def test_a_revocation_is_kept_in_the_container_for_as_long_as_the_token_lives(
    address: str, service: ServiceProcess
) -> None:
    """A token is found revoked only after its revocation, and the TTL of its record is the token's lifetime."""
    async with aiohttp.ClientSession() as session, Redis.from_url(address) as redis:
        check = f"{service.url}/check?jti=in-a-container"
        assert (await ask(session, "GET", check)).body["revoked"] is False
        done = await ask(session, "POST", f"{service.url}/revoke", {"jti": "in-a-container", "expires_in": 600})
        assert (done.status, done.body["result"]) == (200, "revoked")
        assert (await ask(session, "GET", check)).body["revoked"] is True
        left = await redis.pttl("token_blacklist:in-a-container")
        assert 595_000 < left <= 601_000
        assert await redis.exists("token_blacklist:in-a-container") == 1


async def test_what_another_application_wrote_there_counts(address: str, service: ServiceProcess) -> None:
    """After another application writes `token_blacklist:foreign` to this Redis, `/check` answers "revoked"."""
    async with aiohttp.ClientSession() as session, Redis.from_url(address) as redis:
        untyped: Any = redis  # its own setex() is deprecated; the command is what such applications send
        await untyped.execute_command("SETEX", "token_blacklist:foreign", 600, "1")
        found = await ask(session, "POST", f"{service.url}/check", {"jti": "foreign"})
        assert found.body["revoked"] is True


async def test_preflight_names_what_the_container_lacks(service: ServiceProcess) -> None:
    """`/readyz` warns that a Redis container with default settings does not persist every write."""
    async with aiohttp.ClientSession() as session:
        ready = await ask(session, "GET", f"{service.url}/readyz")
        assert set(ready.body["components"]["store"]["warnings"]) & {"snapshots_only", "no_persistence"}
