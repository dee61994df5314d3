"""A logout that one process was told of is enforced by every other process, while the service restarts.

Process A logs out and process B, an application with a mirror of its own, is asked 200 ms after each acknowledgement.
Meanwhile the service restarts or loses an instance. The first version admitted 7 of 364 tokens.

Where a single instance restarts, it does so when both processes are connected again: what a process misses while it is
disconnected, and no instance answers, is the exception that docs/decisions/17 states.
"""

import asyncio
import contextlib
import itertools
import pathlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import aiohttp
import pytest

from revocation_client import RevocationClient, ServiceUnavailable
from tests.redis_processes import HOST, Process, eventually, standalone
from tests.scale import scaled
from tests.system.mirrors import KEY, application
from tests.system.service_process import ServiceProcess, ask, ending
from tests.system.slow_proxy import SlowProxy

LOGOUTS = scaled(334, 1_000)
"""At least, in each of the three tests."""

DISTURBANCES = scaled(3, 10)
USERS = scaled(10, 5)
ASKED_AFTER_SECONDS = scaled(200, 50) / 1000
"""Part of the claim: this is when the next request comes, not a wait for something."""

STALENESS_SECONDS = 5.0
PAUSE_SECONDS = (0.3, 1.2)
TRY_AGAIN_SECONDS = 0.05
"""Between two tries of a logout that nothing answered, and of a start."""


class Balancer:
    """A TCP balancer over several instances: a connection goes to one that takes it."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ways = [SlowProxy(port) for port in ports]
        self._ports = ports
        self.port = self._ways[0].port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        for way, port in random.sample([*zip(self._ways, self._ports, strict=True)], len(self._ports)):
            with contextlib.suppress(OSError):
                _, probe = await asyncio.open_connection(HOST, port)
                probe.close()
                await way.serve(reader, writer)
                return
        writer.transport.abort()

    async def aclose(self) -> None:
        """Cut all connections."""
        for way in self._ways:
            await way.aclose()


@contextlib.asynccontextmanager
async def balanced(*services: ServiceProcess) -> AsyncIterator[str]:
    """The URL under which these instances are one service."""
    balancer = Balancer([service.port for service in services])
    server = await asyncio.start_server(balancer.serve, HOST, balancer.port)
    try:
        yield f"http://{HOST}:{balancer.port}"
    finally:
        server.close()
        await balancer.aclose()
        await server.wait_closed()


def instance(directory: pathlib.Path, redis: Process) -> ServiceProcess:
    """Return a service over this Redis, not started yet."""
    told = {"REVOCATION_REDIS_URL": redis.url, "REVOCATION_API_KEYS": f"main-api={KEY}:admin"}
    return ServiceProcess(directory, told)


async def _admitted(url: str, disturb: Callable[[], Awaitable[None]]) -> list[str]:
    """Log out again and again at A until all disturbances are over; the tokens that B admitted afterwards."""
    numbers, admitted = itertools.count(), list[str]()
    acknowledged = 0
    async with (
        RevocationClient(url, api_key=KEY) as at_a,
        application(url, STALENESS_SECONDS, KEY) as at_b,
    ):
        assert await at_a.mirror_ready(STALENESS_SECONDS)
        disturbing = asyncio.ensure_future(disturb())

        async def user() -> None:
            nonlocal acknowledged
            while acknowledged < LOGOUTS or not disturbing.done():
                jti = f"token-{next(numbers)}"
                await _log_out(at_a, jti)
                acknowledged += 1
                await asyncio.sleep(ASKED_AFTER_SECONDS)
                said = await at_b.ask({"jti": jti, "sub": "alice"})
                if not (said.revoked and said.quickly and said.at_once is not False):
                    admitted.append(f"{jti}: {said}")

        await asyncio.gather(disturbing, *(user() for _ in range(USERS)))
    assert acknowledged >= LOGOUTS
    return admitted


async def _log_out(client: RevocationClient, jti: str) -> None:
    """Until it is acknowledged; one that raised promises nothing, and counts for nothing."""
    while True:
        try:
            await client.revoke_jti(jti, expires_in=3600)
        except ServiceUnavailable:
            await asyncio.sleep(TRY_AGAIN_SECONDS)
        else:
            return


async def _pause() -> None:
    await asyncio.sleep(random.uniform(*PAUSE_SECONDS))


async def followers(service: ServiceProcess, number: int) -> bool:
    """Whether so many subscribers follow the feed of an instance."""
    async with aiohttp.ClientSession() as session:
        metrics = (await ask(session, "GET", f"{service.url}/metrics")).body
    return f"revocation_feed_subscribers {number}.0" in metrics


async def test_no_logged_out_token_is_admitted_while_the_only_instance_restarts(tmp_path: pathlib.Path) -> None:
    """SIGTERM, the drain, a start: what was acknowledged until the end reached the other process by the feed."""
    async with standalone() as redis:
        service = instance(tmp_path, redis)

        async def restart() -> None:
            for _ in range(DISTURBANCES):
                await _pause()
                await eventually(lambda: followers(service, 2), "the connections of both processes")
                service.signal(signal.SIGTERM)
                assert await service.ended() == 0
                await service.start()

        async with ending(service):
            await service.start()
            assert await _admitted(service.url, restart) == []


async def _killed(service: ServiceProcess) -> None:
    service.kill()


async def _stopped(service: ServiceProcess) -> None:
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0


@pytest.mark.parametrize("end", [_killed, _stopped])
async def test_no_logged_out_token_is_admitted_while_two_instances_restart_in_turn(
    tmp_path: pathlib.Path, end: Callable[[ServiceProcess], Awaitable[None]]
) -> None:
    """SIGKILL, or SIGTERM, of one and then of the other, behind one address: the other knows its last logouts."""
    async with standalone() as redis:
        services = [instance(tmp_path / str(number), redis) for number in range(2)]

        async def restart() -> None:
            for _, service in zip(range(DISTURBANCES), itertools.cycle(services), strict=False):
                await _pause()
                await end(service)
                await _pause()
                await service.start()

        async with ending(*services), balanced(*services) as url:
            await asyncio.gather(*(service.start() for service in services))
            assert await _admitted(url, restart) == []
