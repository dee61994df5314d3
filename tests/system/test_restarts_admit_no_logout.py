"""A logout that was acknowledged to one process is enforced by another one, even while the service restarts.

Process A logs tokens out. Process B, an application with its own mirror, is asked 200 ms after each acknowledgement.
Meanwhile the service restarts or loses an instance. The first version admitted 7 of 364 tokens.

A single instance restarts only when both processes are connected again. What a process misses while it is disconnected
and no instance answers is the exception that docs/decisions/17 states.
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
"""The least number of logouts in each test."""

DISTURBANCES = scaled(3, 10)
USERS = scaled(10, 5)
ASKED_AFTER_SECONDS = scaled(200, 50) / 1000
"""When the next request with the token comes. This is part of the claim, and waits for no condition."""

STALENESS_SECONDS = 5.0
PAUSE_SECONDS = (0.3, 1.2)
TRY_AGAIN_SECONDS = 0.05
"""The pause before a failed logout is tried again."""


class Balancer:
    """A TCP balancer over several instances. Each connection goes to a random one that accepts it."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ways = [SlowProxy(port) for port in ports]
        self._ports = ports
        self.port = self._ways[0].port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
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
    """Run a balancer over these instances, and yield its URL."""
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
    """Log tokens out at A until all disturbances are over. Return those that B admitted after their logout."""
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
    """Retry the logout until it is acknowledged. A try that raises ServiceUnavailable promises nothing."""
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
    """Return whether `number` subscribers follow the feed of an instance."""
    async with aiohttp.ClientSession() as session:
        metrics = (await ask(session, "GET", f"{service.url}/metrics")).body
    return f"revocation_feed_subscribers {number}.0" in metrics


async def test_no_logged_out_token_is_admitted_while_the_only_instance_restarts(tmp_path: pathlib.Path) -> None:
    """No logged-out token is admitted while the only instance is stopped with SIGTERM and started, several times."""
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
    """No logged-out token is admitted while two instances behind one address are killed or stopped in turn."""
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
