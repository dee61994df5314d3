"""The worlds of the outage matrix: a Redis, two instances of the service, and an application that follows the first."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.redis_processes import Process, SentinelSet, eventually, sentinel, standalone
from tests.system.mirrors import Application, Line, application, key_of, line_to, nth, pieces, token_of
from tests.system.service_process import Answer, ServiceProcess, ask, ending

STALE_SECONDS: Final = 3.0
"""`max_staleness_seconds` of the application and of the service. A mirror in sync is up to 2 s old at times."""

BACK_SECONDS: Final = 180.0
"""A timeout for waits that only must not hang: a follower may pause for 5 s twice, and the machine may be busy."""

ANSWER_SECONDS: Final = 1.5
AT_ONCE: Final = 20
SENTINEL_PASSWORD: Final = "secret"

UNKNOWN: Final = {"jti": "never-revoked", "sub": "somebody", "iat": 1}


@dataclass
class World:
    """The processes of one world, and the revocations acknowledged in it."""

    redis: Process | SentinelSet
    one: ServiceProcess
    """The instance that the application follows."""
    other: ServiceProcess
    to_redis: Line | None
    """The line between the first instance and Redis; None under Sentinel."""
    to_one: Line
    """The line between the application and the first instance."""
    app: Application
    http: aiohttp.ClientSession
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def server(self) -> Process:
        """The only Redis server. A world with Sentinel has none."""
        assert isinstance(self.redis, Process)
        return self.redis

    async def revoke(self, service: ServiceProcess, named: dict[str, Any]) -> Answer | None:
        """Try once to revoke. Return None if there is no answer."""
        body = named | ({"expires_in": 3600} if "jti" in named else {})
        return await asked(self.http, "POST", f"{service.url}/revoke", body)

    async def stored(self, named: list[dict[str, Any]]) -> int:
        """Return how many of these are in Redis."""
        node = self.redis if isinstance(self.redis, Process) else await self.redis.master()
        async with node.client() as client:
            return int(await client.exists(*map(key_of, named)))


async def asked(http: aiohttp.ClientSession, method: str, url: str, body: Any = None) -> Answer | None:
    try:
        return await ask(http, method, url, body)
    except (aiohttp.ClientError, TimeoutError):
        return None


@contextlib.asynccontextmanager
async def world_in(directory: pathlib.Path, *, replicated: bool) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        if replicated:
            redis: Process | SentinelSet = await stack.enter_async_context(sentinel(password=SENTINEL_PASSWORD))
            to_redis, urls = None, [redis.url, redis.url]
        else:
            redis = await stack.enter_async_context(standalone())
            to_redis = await stack.enter_async_context(line_to(redis.port))
            urls = [f"redis://127.0.0.1:{to_redis.port}/0", redis.url]
        settings = {
            "REVOCATION_MAX_STALENESS_SECONDS": str(STALE_SECONDS),
            "REVOCATION_DRAIN_SECONDS": "0",
            "REVOCATION_WAIT_REPLICAS": "0",
            "REVOCATION_LOG_LEVEL": "warning",
        }
        one, other = (
            ServiceProcess(directory / name, settings | {"REVOCATION_REDIS_URL": url})
            for name, url in zip(("one", "other"), urls, strict=True)
        )
        await stack.enter_async_context(ending(one, other))
        await asyncio.gather(one.start(), other.start())
        to_one = await stack.enter_async_context(line_to(one.port))
        app = await stack.enter_async_context(application(f"http://127.0.0.1:{to_one.port}", STALE_SECONDS))
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        yield World(redis, one, other, to_redis, to_one, app, http)


async def make_known(world: World, numbers: range) -> None:
    """Revoke these through both instances, and wait until the application and both instances hold them."""
    named = [nth(number) for number in numbers]
    for some, service in ((named[::2], world.one), (named[1::2], world.other)):
        for few in pieces(some, AT_ONCE):
            await asyncio.gather(*(_revoke_until_taken(world, service, one) for one in few))

    async def known() -> bool:
        said = [await world.app.ask(token_of(one)) for one in named]
        return all(one.revoked and one.source == "mirror" for one in said)

    await eventually(known, "all of them in the mirror of the application", BACK_SECONDS)
    for service in (world.one, world.other):

        async def fed(service: ServiceProcess = service) -> bool:
            return await _entries(world, service) >= len(world.seen) + len(named)

        await eventually(fed, "all of them in the mirror of an instance", BACK_SECONDS)
    world.seen += named


async def _revoke_until_taken(world: World, service: ServiceProcess, named: dict[str, Any]) -> None:
    async def taken() -> bool:
        answer = await world.revoke(service, named)
        return answer is not None and answer.status == 200

    await eventually(taken, "a revocation before it begins", BACK_SECONDS)


async def _entries(world: World, service: ServiceProcess) -> float:
    text = (await ask(world.http, "GET", f"{service.url}/metrics")).body
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("revocation_mirror_entries "))


async def in_step(world: World) -> bool:
    """Return whether the application answers from its mirror, and both instances are ready and synced."""
    said = await world.app.ask(UNKNOWN)
    ready = [await asked(world.http, "GET", f"{each.url}/readyz") for each in (world.one, world.other)]
    return said.source == "mirror" and all(
        one is not None and one.status == 200 and one.body["components"]["mirror"]["status"] == "synced"
        for one in ready
    )
