"""Answers about Redis' name are lost: when they come again, a question that hangs keeps no one waiting.

The system's resolver holds each such question for five seconds or more, in a thread that cannot be taken back.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from revocation_service.errors import StoreUnavailable
from revocation_service.store.redis import DEADLINE_SECONDS
from tests.redis_processes import HOST, Process, sentinel, standalone
from tests.resolver import NAME, Resolver
from tests.store.conftest import open_store

ATTEMPTS = 12
"""More than an event loop has threads to look names up in, on this machine and on most."""


@pytest.fixture
async def redis() -> AsyncIterator[Process]:
    """One that may be killed."""
    async with standalone() as server:
        yield server


async def test_redis_is_found_again_while_questions_from_its_absence_still_hang(
    redis: Process, resolver: Resolver
) -> None:
    """The first read after its return is answered within the deadline, and the first revocation."""
    async with open_store(f"redis://{NAME}:{redis.port}/0") as opened:
        await opened.revoke("before")
        redis.kill()
        resolver.silent = True
        for _ in range(2):
            outcomes = await asyncio.gather(*(opened.revoke(f"{n}") for n in range(ATTEMPTS)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        resolver.silent = False
        await redis.start()
        async with asyncio.timeout(2 * DEADLINE_SECONDS):
            assert await opened.found("before")
            await opened.revoke("after")
        assert await opened.found("after")


async def test_sentinels_are_found_while_questions_about_them_still_hang(resolver: Resolver) -> None:
    """The first revocation after the silence is acknowledged; before, nobody knew where to ask for the master."""
    async with sentinel() as replicated, open_store(replicated.url.replace(HOST, NAME)) as opened:
        resolver.silent = True
        outcomes = await asyncio.gather(*(opened.revoke(f"{n}") for n in range(ATTEMPTS)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        resolver.silent = False
        async with asyncio.timeout(2 * DEADLINE_SECONDS):
            await opened.revoke("after")
        assert await opened.found("after")


async def test_a_sentinel_is_found_though_the_first_answer_is_lost(resolver: Resolver) -> None:
    """Its short time is enough to ask again."""
    async with sentinel() as replicated, open_store(replicated.url.replace(HOST, NAME)) as opened:
        resolver.lost = 1
        await opened.revoke("at once")
        assert opened.failures("put") == 0
