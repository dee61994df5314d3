"""Measure replication: many workers on one Redis, a restore of everything, and a revocation in one round trip."""

import asyncio
import math
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from redis.asyncio import Redis

from bench.parts import AUTH, fill, redis, service
from revocation_client.revocation import Revocation
from revocation_client.schema import dumps
from revocation_service.metrics import Metrics
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.settings import Limits, MirrorSettings, StoreSettings
from revocation_service.store.records import change_form
from revocation_service.store.store import Put, Store
from revocation_service.store.topology import topology

REVOCATIONS_A_SECOND = 5
RECENT = 1_000
"""The number of revocations made just before Redis loses everything."""


def percentile(values: list[float], share: float) -> float:
    """Return a percentile (`share` from 0 to 1) of values in seconds, in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000


async def _cpu_seconds(client: Redis) -> float:
    info = await client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


@asynccontextmanager
async def _worker(url: str) -> AsyncIterator[MirrorSync]:
    async with _writer(url) as store:
        sync = MirrorSync(store, MirrorSettings(), Metrics())
        await sync.start()
        try:
            yield sync
        finally:
            await sync.aclose()


async def _until(done: Callable[[], Awaitable[bool]]) -> float:
    """Wait until `done` returns true. Return the seconds that it took."""
    began = time.perf_counter()
    while not await done():
        await asyncio.sleep(0.02)
    return time.perf_counter() - began


async def scale(seconds: float, workers: int) -> None:
    """Measure workers that send heartbeats and follow the log: Redis' CPU, and the lag of a revocation."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(redis())
        client = await stack.enter_async_context(Redis.from_url(url))
        syncs = [await stack.enter_async_context(_worker(url)) for _ in range(workers)]

        async def synced() -> bool:
            return all(sync.reason() is None for sync in syncs)

        await _until(synced)
        sent: dict[str, float] = {}
        lags: list[float] = []

        def note(news: list[Revocation]) -> None:
            lags.extend(time.perf_counter() - sent[each.value] for each in news)

        for sync in syncs:
            sync.subscribe(note)
        writer = await stack.enter_async_context(_writer(url))
        idle = await _share(client, seconds)
        before, began = await _cpu_seconds(client), time.perf_counter()
        for _ in range(int(seconds * REVOCATIONS_A_SECOND)):
            value = secrets.token_hex(8)
            sent[value] = time.perf_counter()
            await writer.put(Put("jti", value, expires_in=3600))
            await asyncio.sleep(1 / REVOCATIONS_A_SECOND)
        busy = (await _cpu_seconds(client) - before) / (time.perf_counter() - began)
    print(
        f"  {workers:>3} workers: {idle:6.2%} of a core of Redis at rest, {busy:6.2%} with {REVOCATIONS_A_SECOND}"
        f" revocations/s; lag p50 {percentile(lags, 0.5):.1f} ms, p99 {percentile(lags, 0.99):.1f} ms"
    )


@asynccontextmanager
async def _writer(url: str) -> AsyncIterator[Store]:
    settings = StoreSettings(url=url)
    store = Store(topology(settings), settings, Limits(), Metrics())
    try:
        yield store
    finally:
        await store.aclose()


async def _share(client: Redis, seconds: float) -> float:
    before, began = await _cpu_seconds(client), time.perf_counter()
    await asyncio.sleep(seconds)
    return (await _cpu_seconds(client) - before) / (time.perf_counter() - began)


async def heartbeats_in_the_log(seconds: float, workers: int) -> None:
    """Measure the first version's heartbeat: each worker appends one to the log every second, and all read it."""
    async with redis() as url, Redis.from_url(url, max_connections=2 * workers + 2) as client:

        async def beat() -> None:
            while True:
                await client.xadd("log", {"n": secrets.token_hex(8), "h": "1"}, maxlen=100_000, approximate=True)
                await asyncio.sleep(1)

        async def follow() -> None:
            cursor = "0-1"
            while True:
                async with client.pipeline(transaction=False) as pipeline:
                    pipeline.xread({"log": cursor}, count=500, block=1_000)
                    pipeline.xrange("log", cursor, cursor)
                    (read, _own) = await pipeline.execute()
                cursor = read[0][1][-1][0].decode() if read else cursor

        tasks = [asyncio.create_task(work()) for _ in range(workers) for work in (beat, follow)]
        await asyncio.sleep(1)
        share = await _share(client, seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    print(f"  {workers:>3} workers: {share:6.2%} of a core at rest with the first version's heartbeat")


async def restore(stored: int) -> None:
    """Measure a restore: Redis loses everything, and a worker that holds it writes it back while it answers checks."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(redis())
        await fill(url, "old", stored)
        client = await stack.enter_async_context(Redis.from_url(url))
        http = await _service(stack, url)
        recent = [f"recent-{number}" for number in range(RECENT)]
        for first in range(0, RECENT, 20):
            await asyncio.gather(*(_revoke(http, value) for value in recent[first : first + 20]))
        keys = [f"token_blacklist:{value}" for value in recent]
        latencies: list[float] = []
        checking = asyncio.create_task(_keep_checking(http, stored, latencies))
        await client.flushall()
        began = time.perf_counter()
        newcomer = asyncio.create_task(_newcomer(url, stored))

        async def recent_back() -> bool:
            return int(await client.exists(*keys)) == RECENT

        async def all_back() -> bool:
            return int(await client.dbsize()) >= stored + RECENT

        soon = await _until(recent_back)
        await _until(all_back)
        took = time.perf_counter() - began
        checking.cancel()
        await asyncio.wait({checking})
        wrong, answers_all = await newcomer
    print(
        f"  {stored:,} records: the {RECENT:,} newest back in {soon:.2f} s, all in {took:.1f} s, {stored / took:,.0f}/s"
    )
    print(
        f"  /check of the worker that knows: p50 {percentile(latencies, 0.5):.1f} ms,"
        f" p99 {percentile(latencies, 0.99):.1f} ms"
    )
    print(f'  a newcomer says "not revoked" of {wrong} of them, and answers everything after {answers_all:.1f} s')


async def _service(stack: AsyncExitStack, url: str) -> aiohttp.ClientSession:
    port = await stack.enter_async_context(service(url))
    http = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=AUTH))

    async def synced() -> bool:
        async with http.get("/readyz") as answer:
            return bool((await answer.json())["components"]["mirror"]["status"] == "synced")

    await _until(synced)
    return http


async def _revoke(http: aiohttp.ClientSession, value: str) -> None:
    async with http.post("/revoke", json={"jti": value, "expires_in": 3600}) as answer:
        answer.raise_for_status()


async def _keep_checking(http: aiohttp.ClientSession, stored: int, latencies: list[float]) -> None:
    number = 0
    while True:
        number += 7919
        began = time.perf_counter()
        async with http.get("/check", params={"jti": f"old-{number % stored}"}) as answer:
            body = await answer.json()
            assert body["revoked"], body
        latencies.append(time.perf_counter() - began)
        await asyncio.sleep(0.005)


async def _newcomer(url: str, stored: int) -> tuple[int, float]:
    """Start another worker. Return its count of wrong "not revoked", and the seconds until it answered everything."""
    async with AsyncExitStack() as stack:
        began, wrong = time.perf_counter(), 0
        port = await stack.enter_async_context(service(url))
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=AUTH))
        checks = [{"jti": f"old-{number}"} for number in range(0, stored, math.ceil(stored / 500))]
        checks.append({"jti": "unknown"})
        while True:
            async with http.post("/check/batch", json={"checks": checks}) as answer:
                results = (await answer.json()).get("results", [])
            wrong += sum(result.get("revoked") is False for result in results[:-1])
            if results and all("revoked" in result for result in results):
                return wrong, time.perf_counter() - began
            await asyncio.sleep(0.05)


async def revoking(rounds: int, number: int) -> None:
    """Measure a revocation in one round trip, and one with a second round trip for the log entry, as formerly."""
    async with redis() as url, _writer(url) as store:
        entry = dumps(change_form(Revocation("jti", "x" * 32, 1795451574.0, 1795447974.0)))

        async def second(_put: Put) -> None:
            async with store.exchange("append") as client:
                await client.xadd(store.keyspace.change_log, {"n": "0" * 16, "r": entry})

        async def one(put: Put) -> None:
            await store.put(put)

        async def two(put: Put) -> None:
            await store.put(put)
            await second(put)

        for callers in (1, 32):
            rates: dict[str, list[float]] = {"one": [], "two": []}
            for _ in range(rounds):
                for name, way in (("one", one), ("two", two)):
                    rates[name].append(await _rate(way, callers, number))
            once, twice = (statistics.median(rates[name]) for name in ("one", "two"))
            print(
                f"  {callers:>2} at once: {once:,.0f}/s in one round trip, {twice:,.0f}/s in two: {once / twice:.2f} x"
            )


async def _rate(way: Callable[[Put], Awaitable[None]], callers: int, number: int) -> float:
    async def caller() -> None:
        for _ in range(number // callers):
            await way(Put("jti", secrets.token_hex(16), expires_in=3600))

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return number / (time.perf_counter() - began)
