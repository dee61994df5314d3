"""The service under pressure: many clients, few descriptors, a log that cannot be written, and memory over time."""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.redis_processes import HOST, WAIT_SECONDS, eventually, standalone
from tests.scale import BUSY_SECONDS, scaled
from tests.system.service_process import Answer, ServiceProcess, ask, ending, serving

CROWD = 2_000
IDLE = scaled(1_500, 4_000)
REQUESTS = scaled(3_600, 200_000)
CALLERS = 32
GROWTH_BYTES = 4 * 1024 * 1024
REVOCATION_BYTES = 250
"""The memory that the service uses for each revocation, until some minutes after it has expired."""

FEW_DESCRIPTORS = """
import resource
from revocation_service.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
main(["serve"])
"""
LOG_DISK_FULL = """
import os
from revocation_service.cli import main
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
main(["serve"])
"""
LOG_READER_GONE = """
import os
from revocation_service.cli import main
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
main(["serve"])
"""


@contextlib.asynccontextmanager
async def _running(directory: pathlib.Path, code: str) -> AsyncIterator[ServiceProcess]:
    service = ServiceProcess(directory, arguments=("-c", code))
    async with ending(service):
        await service.start()
        yield service


@contextlib.asynccontextmanager
async def _connections(service: ServiceProcess, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open `count` connections that send nothing, and yield their readers."""
    made = []
    try:
        for _ in range(0, count, 50):
            made += await asyncio.gather(*(asyncio.open_connection(HOST, service.port) for _ in range(50)))
        yield [reader for reader, _ in made]
    finally:
        for _, writer in made:
            writer.transport.abort()


async def test_a_crowd_that_comes_while_redis_restarts_is_answered(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """Each of 2,000 concurrent checks gets the right answer or 503 while Redis is killed and restarted."""
    async with standalone() as server, serving(tmp_path, {"REVOCATION_REDIS_URL": server.url}) as service:
        assert (await ask(http, "POST", f"{service.url}/revoke", {"jti": "a", "expires_in": 600})).status == 200

        async def check() -> Answer:
            return await ask(http, "GET", f"{service.url}/check?jti=a")

        crowd = [asyncio.create_task(check()) for _ in range(CROWD)]
        server.kill()
        await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)
        await server.start()
        answers = await asyncio.gather(*crowd)
        seen = Counter((answer.status, answer.code or answer.body["revoked"]) for answer in answers)
        assert set(seen) <= {(200, True), (503, "store_unavailable")}, seen
        away = [answer for answer in answers if answer.status == 503 or answer.body["source"] == "mirror"]
        assert away, "it was not shown that Redis was away"
        assert (await check()).body["revoked"] is True
        assert not service.events("internal_error", "library_message")


async def test_idle_connections_take_little_and_disturb_nobody(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """With many idle connections, a check is still answered in time, and each connection takes less than 30 kB."""
    async with serving(tmp_path) as service:
        before = service.memory_bytes()
        async with _connections(service, IDLE):
            for _ in range(20):
                assert (await ask(http, "GET", f"{service.url}/check?jti=a")).seconds < 0.3 + BUSY_SECONDS
            assert service.open_files() > IDLE
            assert (service.memory_bytes() - before) / IDLE < 30_000


async def test_without_descriptors_nobody_is_answered_wrong_and_it_passes(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """While idle connections use up all descriptors, connected clients are served. Afterwards new clients are too."""
    async with _running(tmp_path, FEW_DESCRIPTORS) as service:
        assert (await ask(http, "POST", f"{service.url}/revoke", {"jti": "a", "expires_in": 600})).status == 200
        async with _connections(service, 200) as strangers:
            turned_away = [asyncio.create_task(reader.read()) for reader in strangers]
            await asyncio.wait(turned_away, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS)
            assert any(task.done() for task in turned_away), "there were descriptors enough"
            for _ in range(20):
                assert (await ask(http, "GET", f"{service.url}/check?jti=a")).body["revoked"] is True
            for task in turned_away:
                task.cancel()
            await asyncio.gather(*turned_away, return_exceptions=True)

        async def served() -> bool:
            async with aiohttp.ClientSession() as newcomer:
                return (await ask(newcomer, "GET", f"{service.url}/check?jti=a")).status == 200

        await eventually(served, "a newcomer's answer")
        os.kill(await service.redis_pid(), signal.SIGKILL)
        await eventually(served, "a newcomer's answer after a restart of Redis")


@pytest.mark.parametrize("code", [LOG_DISK_FULL, LOG_READER_GONE], ids=["disk full", "reader gone"])
async def test_a_log_that_cannot_be_written_stops_no_revocation(
    code: str, tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """If log lines cannot be written, requests are still answered, and the shutdown is orderly."""
    async with _running(tmp_path, code) as service:
        assert (await ask(http, "POST", f"{service.url}/revoke", {"jti": "a", "expires_in": 600})).status == 200
        assert (await ask(http, "GET", f"{service.url}/check?jti=a")).body["revoked"] is True
        assert (await ask(http, "GET", f"{service.url}/nowhere")).status == 404
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        await service.nothing_left()


async def test_memory_stays_where_it_is(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """Valid and invalid requests with ever new values let the memory grow by little more than the revocations take."""
    async with serving(tmp_path, {"REVOCATION_LOG_LEVEL": "warning"}) as service:
        await _ask_all_sorts(http, service, range(REQUESTS // 3))
        before = service.memory_bytes()
        await _ask_all_sorts(http, service, range(REQUESTS // 3, REQUESTS))
        held = REVOCATION_BYTES * (REQUESTS - REQUESTS // 3) // 6
        assert service.memory_bytes() - before < GROWTH_BYTES + held


async def _ask_all_sorts(http: aiohttp.ClientSession, service: ServiceProcess, numbers: range) -> None:
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            method, path, body, status = (
                ("POST", "/revoke", {"jti": f"jti-{number}", "expires_in": 60}, 200),
                ("GET", f"/check?jti=jti-{number}&sub={number}", None, 200),
                ("POST", "/check/batch", {"checks": [{"sub": f"sub-{number}"}, {"token": f"{number}.."}]}, 200),
                ("GET", f"/nowhere/{number}", None, 404),
                ("POST", "/check", {f"member-{number}": number}, 400),
                ("GET", f"/revocations?claim=sub&value={number}", None, 404),
            )[number % 6]
            headers = {"X-Request-ID": f"request-{number}"}
            assert (await ask(http, method, service.url + path, body, headers=headers)).status == status

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
