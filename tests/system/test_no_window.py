"""Mirrors that disconnect and reconnect under a constant load of revocations miss none, and deny none for too long.

Two instances run on one Redis that already holds many revocations. The mirrors belong to clients in this process.
"""

import asyncio
import contextlib
import itertools
import pathlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp

from revocation_client import RevocationClient
from tests.redis_processes import HOST, Process, eventually, standalone
from tests.scale import CAMPAIGN, scaled
from tests.system.mirrors import (
    KEY,
    Ledger,
    Line,
    Watch,
    all_revoked,
    caller,
    line_to,
    pieces,
    stored,
    two_instances,
    watching,
)
from tests.system.service_process import ServiceProcess

REVOCATIONS = scaled(3_000, 40_000)
BEFORE = scaled(6_000, 50_000)
"""The number of older revocations: so many that new ones come while a snapshot is being sent."""

MIRRORS = scaled(5, 10)
STALE_SECONDS = 3.0
END_SECONDS = 120.0
LIFE_SECONDS = 3_600
AWAY_SECONDS = (0.0, 0.8)
LONG_AWAY_SECONDS = (0.9 * STALE_SECONDS, 1.3 * STALE_SECONDS)
"""Pauses around `STALE_SECONDS`: after some, a mirror is too old to answer alone; after others, only nearly."""

Record = Callable[[str, object], None]


@dataclass
class Field:
    """Redis, two instances, and the revocations acknowledged by them."""

    redis: Process
    services: list[ServiceProcess]
    http: aiohttp.ClientSession
    ledger: Ledger = field(default_factory=Ledger)

    def client(self, port: int) -> RevocationClient:
        """Return a client with a mirror of the instance at this port."""
        return RevocationClient(f"http://{HOST}:{port}", api_key=KEY, max_staleness_seconds=STALE_SECONDS)


@contextlib.asynccontextmanager
async def _field(directory: pathlib.Path) -> AsyncIterator[Field]:
    async with standalone() as redis:
        await _fill(redis)
        async with two_instances(directory, redis) as services, caller() as http:
            yield Field(redis, services, http)


async def _fill(redis: Process) -> None:
    """Store records as if earlier instances had left them. They have no log entries, as if the log had been trimmed."""
    async with redis.client() as client:
        seconds, _ = await client.time()
        record = f'{{"revoked_at":{seconds},"expires_at":{seconds + LIFE_SECONDS}}}'
        for some in pieces(range(BEFORE)):
            async with client.pipeline(transaction=False) as pipeline:
                for number in some:
                    pipeline.set(f"token_blacklist:before-{number}", record, exat=seconds + LIFE_SECONDS)
                await pipeline.execute()


async def _records(redis: Process) -> int:
    """Return the number of records in Redis."""
    async with redis.client() as client:
        return sum([1 async for _ in client.scan_iter(match="token_[bc]*", count=1_000)])


async def _all_is_equal(ground: Field, watches: list[Watch]) -> None:
    """Check that each mirror and Redis hold exactly all revocations, and that `/check/batch` knows the new ones."""
    for watch in watches:
        await eventually(watch.knows_all, "a mirror that knows all", END_SECONDS)
        assert watch.missing() == []
        assert [n for n in range(BEFORE) if watch.client.is_revoked_now({"jti": f"before-{n}"}) is not True] == []
        status = watch.client.mirror_status
        assert status is not None
        assert status.entries == BEFORE + REVOCATIONS
    assert await _records(ground.redis) == BEFORE + REVOCATIONS
    assert await stored(ground.redis, ground.ledger.named) == REVOCATIONS
    for service in ground.services:
        assert await all_revoked(ground.http, service, ground.ledger.named) == REVOCATIONS


async def test_connected_mirrors_are_never_believed_for_too_long(
    tmp_path: pathlib.Path, record_property: Record
) -> None:
    """No connected mirror says "not revoked" too long after a revocation, and in the end all agree."""
    async with _field(tmp_path) as ground, contextlib.AsyncExitStack() as stack:
        ports = itertools.cycle(service.port for service in ground.services)
        clients = [await stack.enter_async_context(ground.client(next(ports))) for _ in range(MIRRORS)]
        assert all([await client.mirror_ready(END_SECONDS) for client in clients])
        watches = [Watch(client, ground.ledger, STALE_SECONDS) for client in clients]
        async with watching(watches):
            await ground.ledger.fill(ground.http, ground.services, REVOCATIONS)
            for watch in watches:
                await eventually(watch.knows_all, "all of them", END_SECONDS)
        assert [line for watch in watches for line in watch.wrong] == []
        await _all_is_equal(ground, watches)
        record_property("slowest_seconds", round(max(watch.slowest for watch in watches), 4))


async def test_cut_mirrors_are_never_believed_for_too_long(tmp_path: pathlib.Path, record_property: Record) -> None:
    """No mirror that is cut, resumed, closed or started says "not revoked" for too long, and in the end all agree.

    A mirror that starts takes its snapshot while revocations go on.
    """
    async with _field(tmp_path) as ground, contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(line_to(service.port)) for service in ground.services]
        own = [await stack.enter_async_context(line_to(ground.services[n % 2].port)) for n in range(MIRRORS)]
        clients = [await stack.enter_async_context(ground.client(line.port)) for line in own]
        watches = [Watch(client, ground.ledger, STALE_SECONDS) for client in clients]
        gone: list[Watch] = []
        async with watching(watches):
            filling = asyncio.create_task(ground.ledger.fill(ground.http, ground.services, REVOCATIONS))
            troubles = [_cut(line, filling, LONG_AWAY_SECONDS if line is own[1] else AWAY_SECONDS) for line in own]
            troubles += [_restart(watch, filling) for watch in watches[::3]]
            troubles += [_come_and_go(ground, line, watches, gone, filling) for line in lines]
            await asyncio.gather(filling, *troubles)
            for watch in watches:
                await eventually(watch.knows_all, "all of them", END_SECONDS)
        assert [line for watch in watches + gone for line in watch.wrong] == []
        counted = [watch.client.counters for watch in watches]
        assert sum(one.streams for one in counted) > 2 * MIRRORS, "hardly anything was cut"
        assert sum(one.streams - one.snapshots for one in counted) > 0, "nothing was resumed"
        assert len(gone) > 4
        await _all_is_equal(ground, watches)
        record_property("streams", sum(one.streams for one in counted))
        record_property("resumed", sum(one.streams - one.snapshots for one in counted))
        record_property("came_and_went", len(gone))
        latest_no = max(watch.latest_no for watch in watches + gone)
        record_property("latest_no_seconds", round(latest_no, 3))
        record_property("silences", watches[1].silences)
        if CAMPAIGN:  # an everyday run is too short for this
            assert latest_no > STALE_SECONDS / 2, "none came near the bound"
            assert watches[1].silences > 0, "none went beyond it"


async def _cut(line: Line, filling: "asyncio.Task[None]", away_seconds: tuple[float, float]) -> None:
    """Cut the line again and again while the ledger is filled, sometimes only for a moment."""
    while not filling.done():
        await asyncio.wait({filling}, timeout=random.uniform(0.05, 1.0))
        if random.random() < 0.5:
            await line.drop()
        else:
            await line.cut()
            await asyncio.wait({filling}, timeout=random.uniform(*away_seconds))
            await line.mend()


async def _restart(watch: Watch, filling: "asyncio.Task[None]") -> None:
    while not filling.done():
        await asyncio.wait({filling}, timeout=random.uniform(0.2, 1.5))
        watch.closed = True
        await watch.client.aclose()
        await asyncio.wait({filling}, timeout=random.uniform(*AWAY_SECONDS))
        await watch.client.start()
        watch.closed = False


async def _come_and_go(
    ground: Field, line: Line, watches: list[Watch], gone: list[Watch], filling: "asyncio.Task[None]"
) -> None:
    """Start one client after another while the ledger is filled, and watch each until it is closed soon after."""
    while not filling.done():
        async with ground.client(line.port) as client:
            watch = Watch(client, ground.ledger, STALE_SECONDS)
            watches.append(watch)
            await asyncio.wait({filling}, timeout=random.uniform(0.05, 1.5))
            watches.remove(watch)
            gone.append(watch)
            watch.closed = True
