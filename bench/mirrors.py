"""Measure a check from memory, the memory that a mirror takes, and how soon a revocation is in it."""

import asyncio
import gc
import itertools
import os
import pathlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from redis.asyncio import Redis

from bench.parts import API_KEY, AUTH
from bench.stalls import own_stall, stall_of
from revocation_client import RevocationClient

Claims = dict[str, object]
BLOCK = 100


def memory_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def claims_of(number: int) -> Claims:
    """Return the claims of a token that is not revoked."""
    return {"jti": f"asked-{number}", "sid": f"session-{number}", "sub": "alice", "iat": 1795447974, "exp": 1795448874}


Way = Callable[[list[Claims]], Awaitable[float]]
"""A function that checks the tokens one after another, and returns the seconds that it took."""


def awaited(call: Callable[[Claims], Awaitable[object]]) -> Way:
    """Return a way that awaits `call` for each token."""

    async def ask(asked: list[Claims]) -> float:
        began = time.perf_counter()
        for claims in asked:
            await call(claims)
        return time.perf_counter() - began

    return ask


def at_once(call: Callable[[Claims], object]) -> Way:
    """Return a way that makes the call for each token without awaiting."""

    async def ask(asked: list[Claims]) -> float:
        began = time.perf_counter()
        for claims in asked:
            call(claims)
        return time.perf_counter() - began

    return ask


def in_dict(entries: int) -> Way:
    """Return a way that only looks up each `jti` in a dict of `entries` strings."""
    held = dict.fromkeys(f"held-{number}" for number in range(entries))

    async def ask(asked: list[Claims]) -> float:
        keys = [claims["jti"] for claims in asked]
        began = time.perf_counter()
        for key in keys:
            key in held  # noqa: B015 - that is what is measured
        return time.perf_counter() - began

    return ask


def verified() -> Way:
    """Return what an application does before a check: PyJWT verifies the token's signature and `exp`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key()
    token = jwt.encode(claims_of(0) | {"exp": time.time() + 3600}, key, "RS256")

    async def ask(asked: list[Claims]) -> float:
        began = time.perf_counter()
        for _ in asked:
            jwt.decode(token, public, ["RS256"])
        return time.perf_counter() - began

    return ask


def in_process(client: Redis) -> Way:
    """Return a way that checks as an in-process blacklist does."""

    async def check(claims: Claims) -> bool:
        return bool(await client.exists(f"token_blacklist:{claims['jti']}"))

    return awaited(check)


async def p50s(ways: dict[str, Way], calls: int) -> dict[str, float]:
    """Return the median seconds a check of each way. The ways take turns, and no token is checked twice.

    Only the second block of a turn counts. The first one also pays for what the way before evicted from the CPU caches.
    """
    blocks: dict[str, list[float]] = {name: [] for name in ways}
    numbers = itertools.count()
    for _ in range(0, calls, BLOCK):
        for name, ask in ways.items():
            for _turn in range(2):
                seconds = await ask([claims_of(number) for number in itertools.islice(numbers, BLOCK)])
            blocks[name].append(seconds / BLOCK)
    return {name: statistics.median(each) for name, each in blocks.items()}


async def until_synced(service: int) -> float:
    """Wait until the service's mirror is synced. Return the seconds that it took."""
    began = time.perf_counter()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{service}") as session:
        while time.perf_counter() < began + 300:
            async with session.get("/readyz") as answer:
                components = (await answer.json(content_type=None))["components"]
                if components["mirror"]["status"] == "synced":
                    return time.perf_counter() - began
            await asyncio.sleep(0.05)
    raise TimeoutError("the service's mirror was not in step within 300 s")


@dataclass(frozen=True)
class Loaded:
    """A client whose mirror has loaded a snapshot, and the cost of loading."""

    client: RevocationClient
    seconds: float
    stalled_seconds: float
    service_stalled_seconds: float
    bytes_an_entry: float


@asynccontextmanager
async def loaded(service: int, entries: int) -> AsyncIterator[Loaded]:
    """Load the service's snapshot into the mirror of a new client, and measure it."""
    async with AsyncExitStack() as stack:
        client = RevocationClient(f"http://127.0.0.1:{service}", api_key=API_KEY)
        gc.collect()
        async with stall_of(service) as theirs:
            before, began = memory_bytes(), time.perf_counter()
            async with own_stall() as ours:
                await stack.enter_async_context(client)
                await client.mirror_ready(120)
                seconds = time.perf_counter() - began
        gc.collect()
        taken = (memory_bytes() - before) / entries
        yield Loaded(client, seconds, ours.longest_seconds, theirs.longest_seconds, taken)


async def log_out(client: RevocationClient, number: int) -> None:
    """Revoke `number` sessions and `number` subjects, so that a check must look up more than the `jti`."""
    for each in range(number):
        await client.revoke_session(f"gone-{each}")
        await client.revoke_subject(f"gone-{each}")


@asynccontextmanager
async def followers(service: int, number: int) -> AsyncIterator[list[RevocationClient]]:
    """Yield `number` clients of one service, each with a mirror that is ready."""
    async with AsyncExitStack() as stack:
        clients = [RevocationClient(f"http://127.0.0.1:{service}", api_key=API_KEY) for _ in range(number)]
        for client in clients:
            await stack.enter_async_context(client)
        await asyncio.gather(*(client.mirror_ready(120) for client in clients))
        yield clients


async def lags(service: int, clients: list[RevocationClient], revocations: int) -> list[float]:
    """Return, for each revocation and mirror, the seconds from the acknowledgement until the mirror held it."""
    found: list[float] = []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{service}", headers=AUTH) as session:
        for number in range(revocations):
            claims: Claims = {"jti": f"lag-{number}", "iat": 1795447974}
            async with session.post("/revoke", json={"jti": claims["jti"], "expires_in": 600}) as answer:
                answer.raise_for_status()
                await answer.read()
            acknowledged, waiting = time.perf_counter(), clients
            while waiting:
                still = [client for client in waiting if not client.is_revoked_now(claims)]
                found += [time.perf_counter() - acknowledged] * (len(waiting) - len(still))
                waiting = still
                await asyncio.sleep(0)
    return found
