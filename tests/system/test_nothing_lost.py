"""Every acknowledged revocation stays revoked everywhere, although Redis is killed and emptied under load."""

import asyncio
import contextlib
import itertools
import pathlib
from collections.abc import Callable

import aiohttp

from revocation_client import RevocationClient
from tests.redis_processes import Process, eventually, standalone
from tests.scale import scaled
from tests.system.mirrors import (
    KEY,
    Ledger,
    Watch,
    all_revoked,
    caller,
    stored,
    two_instances,
    watching,
)
from tests.system.service_process import ServiceProcess, ask

REVOCATIONS = scaled(3_000, 100_000)
MIRRORS = scaled(4, 12)
STALE_SECONDS = 3.0
BACK_SECONDS = scaled(30, 180)

Record = Callable[[str, object], None]


async def test_nothing_that_was_acknowledged_is_lost(tmp_path: pathlib.Path, record_property: Record) -> None:
    """After Redis was killed and emptied under full load, Redis, all instances and all mirrors know every revocation.

    The mirrors learn of the revocations from the feed alone. None says "not revoked" for longer than it may.
    """
    async with (
        standalone() as redis,
        two_instances(tmp_path, redis) as services,
        caller() as http,
        contextlib.AsyncExitStack() as stack,
    ):
        ports = itertools.cycle(services)
        clients = [
            await stack.enter_async_context(
                RevocationClient(next(ports).url, api_key=KEY, max_staleness_seconds=STALE_SECONDS)
            )
            for _ in range(MIRRORS)
        ]
        assert all([await client.mirror_ready(BACK_SECONDS) for client in clients])
        ledger = Ledger()
        watches = [Watch(client, ledger, STALE_SECONDS) for client in clients]
        async with watching(watches):
            filling = asyncio.create_task(ledger.fill(http, services, REVOCATIONS))
            await asyncio.gather(filling, _harm(redis, ledger))
            await eventually(lambda: _all_there(redis, services, http, ledger), "all of them everywhere", BACK_SECONDS)
            for watch in watches:
                await eventually(watch.knows_all, "all of them in a mirror", BACK_SECONDS)
        assert len(ledger) == REVOCATIONS
        assert [line for watch in watches for line in watch.wrong] == []
        assert [watch.missing() for watch in watches] == [[]] * MIRRORS
        restored = [await _restored(http, service) for service in services]
        assert sum(restored) > 0
        record_property("restored", restored)
        record_property("repeated", ledger.tries)
        record_property("latest_no_seconds", round(max(watch.latest_no for watch in watches), 3))
        record_property("slowest_seconds", round(max(watch.slowest for watch in watches), 3))


async def _harm(redis: Process, ledger: Ledger) -> None:
    """Kill and restart Redis after a quarter and after three quarters of the revocations, and empty it after half."""
    await eventually(lambda: _reached(ledger, 1 / 4), "a quarter", BACK_SECONDS)
    await _kill(redis, ledger)
    await eventually(lambda: _reached(ledger, 2 / 4), "half", BACK_SECONDS)
    await redis.command("FLUSHALL")
    await eventually(lambda: _reached(ledger, 3 / 4), "three quarters", BACK_SECONDS)
    await _kill(redis, ledger)


async def _kill(redis: Process, ledger: Ledger) -> None:
    redis.kill()
    before = ledger.tries

    async def refused() -> bool:
        return ledger.tries > before

    await eventually(refused, "a refusal", BACK_SECONDS)
    await redis.start()


async def _reached(ledger: Ledger, part: float) -> bool:
    return len(ledger) >= REVOCATIONS * part


async def _all_there(
    redis: Process, services: list[ServiceProcess], http: aiohttp.ClientSession, ledger: Ledger
) -> bool:
    if await stored(redis, ledger.named) != REVOCATIONS:
        return False
    return [await all_revoked(http, service, ledger.named) for service in services] == [REVOCATIONS] * 2


async def _restored(http: aiohttp.ClientSession, service: ServiceProcess) -> float:
    text = str((await ask(http, "GET", f"{service.url}/metrics")).body)
    name = "revocation_restored_total "
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))
