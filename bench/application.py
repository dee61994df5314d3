"""Measure what a check costs an application: through the client, and with an in-process blacklist that asks Redis."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from redis.asyncio import Redis

from bench.load import Load
from bench.parts import API_KEY, AUTH
from revocation_client import RevocationClient

Call = Callable[[int], Awaitable[object]]


async def calls(call: Call, *, concurrent: int, seconds: float) -> Load:
    """Run `concurrent` tasks for `seconds`, each of which makes one call after another. Return the measured load."""
    numbers = itertools.count()
    latencies: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    until = began + seconds

    async def one_after_another() -> None:
        now = time.perf_counter()
        while now < until:
            await call(next(numbers))
            before, now = now, time.perf_counter()
            latencies.append(now - before)

    await asyncio.gather(*(one_after_another() for _ in range(concurrent)))
    return Load(len(latencies), time.perf_counter() - began, latencies, time.process_time() - cpu)


@asynccontextmanager
async def ways(service: int, redis_url: str, asked: int) -> AsyncIterator[dict[str, Call]]:
    """Yield the ways to check whether `bench-<n>` is revoked, each with an open client."""
    url = f"http://127.0.0.1:{service}"
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(RevocationClient(url, api_key=API_KEY, mirror=False))
        redis = await stack.enter_async_context(Redis.from_url(redis_url))
        session = await stack.enter_async_context(aiohttp.ClientSession(url, headers=AUTH))

        async def through_the_client(number: int) -> object:
            return await client.is_revoked({"jti": f"bench-{number * 7919 % asked}", "sub": "alice", "iat": 1795447974})

        async def in_process(number: int) -> object:
            return await redis.exists(f"token_blacklist:bench-{number * 7919 % asked}")

        async def bare_request(number: int) -> object:
            async with session.get(f"/check?jti=bench-{number * 7919 % asked}") as answer:
                return await answer.read()

        yield {
            "client": through_the_client,
            "in-process": in_process,
            "request": bare_request,
        }
