"""Fixtures: one real Redis for all tests of the documentation, and services that each use a fresh key prefix."""

import pathlib
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.api.serving import Service, serving
from tests.docs.shell import KEY, give_curl_the_key
from tests.redis_processes import Process, eventually, standalone


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis() -> AsyncIterator[Process]:
    """A Redis server for the whole session."""
    async with standalone() as server:
        yield server


@pytest_asyncio.fixture
async def service(redis: Process, tmp_path: pathlib.Path) -> AsyncIterator[Service]:
    """A service that is in sync. It accepts one admin key, which curl reads from a file in the home `tmp_path`."""
    give_curl_the_key(tmp_path)
    async with serving(redis, API_KEYS=f"ops={KEY}:admin") as running:

        async def in_sync() -> bool:
            return bool((await running.get("/readyz")).json["components"]["mirror"]["status"] == "synced")

        await eventually(in_sync, "a mirror in sync")
        yield running
