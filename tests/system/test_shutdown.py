"""On a signal, the service fails readiness, finishes requests in flight and ends. Wrong settings stop its start."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.redis_processes import HOST, eventually, standalone
from tests.system.service_process import ServiceProcess, ask, ending, gone, serving
from tests.system.slow_proxy import slow_proxy

GONE_WITHIN_SECONDS = 10.0
STOPS = pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])


async def _draining(service: ServiceProcess) -> None:
    async def said() -> bool:
        return bool(service.events("draining"))

    await eventually(said, "the event `draining`")


async def _ends_well(service: ServiceProcess, began: float) -> float:
    """Check that the service exits with 0 in time and leaves no process. Return the seconds since `began`."""
    assert await service.ended() == 0, service.output()
    took = time.monotonic() - began
    assert took < GONE_WITHIN_SECONDS
    await service.nothing_left()
    assert service.events("stopped")
    assert "Traceback" not in service.output()
    return took


@STOPS
async def test_readyz_fails_first_and_requests_are_still_served(
    stop: signal.Signals, tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """During the drain, /readyz answers 503 and new requests are served. Then the service and its Redis end."""
    async with serving(tmp_path, {"REVOCATION_DRAIN_SECONDS": "2"}) as service:
        redis = await service.redis_pid()
        began = time.monotonic()
        service.signal(stop)
        await service.until("/readyz", 503)
        ready = await ask(http, "GET", f"{service.url}/readyz")
        assert ready.body["components"]["server"] == {"status": "draining"}
        revoked = await ask(http, "POST", f"{service.url}/revoke", {"jti": "late", "expires_in": 600})
        assert revoked.status == 200
        checked = await ask(http, "GET", f"{service.url}/check?jti=late")
        assert (checked.status, checked.body["revoked"]) == (200, True)
        assert await _ends_well(service, began) >= 2, "the requests may have come after the drain"
        assert gone(redis)
        await service.start()
        assert (await ask(http, "GET", f"{service.url}/check?jti=late")).body["revoked"] is True


@STOPS
async def test_what_is_in_flight_is_finished(
    stop: signal.Signals, tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """A revocation and a check that wait for Redis at the time of the signal are answered 200, even without a drain."""
    async with standalone() as server, slow_proxy(server.port) as proxy:
        settings = {"REVOCATION_REDIS_URL": proxy.url, "REVOCATION_DRAIN_SECONDS": "0"}
        async with serving(tmp_path, settings) as service:
            warm_up = ({"jti": f"warm-up-{number}", "expires_in": 600} for number in range(8))
            await asyncio.gather(*(ask(http, "POST", f"{service.url}/revoke", body) for body in warm_up))
            proxy.delay_seconds = 0.3  # after the warm-up, which has opened the connections
            proxy.asked.clear()
            revoking = asyncio.create_task(
                ask(http, "POST", f"{service.url}/revoke", {"jti": "held-up", "expires_in": 600})
            )
            await proxy.asked.wait()
            proxy.asked.clear()
            checking = asyncio.create_task(ask(http, "GET", f"{service.url}/check?jti=other"))
            await proxy.asked.wait()
            assert not revoking.done()
            began = time.monotonic()
            service.signal(stop)
            assert ((await revoking).status, (await checking).status) == (200, 200)
            assert (await revoking).seconds > 0.3
            await _ends_well(service, began)
        assert await server.command("EXISTS", "token_blacklist:held-up") == 1


@contextlib.asynccontextmanager
async def _half_sent(
    service: ServiceProcess, body: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request with half of its body. The response 100 Continue proves that the handler waits for the rest."""
    reader, writer = await asyncio.open_connection(HOST, service.port)
    head = f"POST /revoke HTTP/1.1\r\nHost: {HOST}:{service.port}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    try:
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(body[: len(body) // 2])
        await writer.drain()
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("drain_seconds", ["0", "1"])
async def test_a_body_that_is_half_sent_is_waited_for(drain_seconds: str, tmp_path: pathlib.Path) -> None:
    """A revocation is answered 200 even if the second half of its body comes after the service stopped listening."""
    body = json.dumps({"jti": "slow-body", "expires_in": 600}).encode()
    async with serving(tmp_path, {"REVOCATION_DRAIN_SECONDS": drain_seconds}) as service:
        async with _half_sent(service, body) as (reader, writer):
            began = time.monotonic()
            service.signal(signal.SIGTERM)
            await _draining(service)
            await eventually(lambda: _refuses(service), "the closed door")
            writer.write(body[len(body) // 2 :])
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b'"result":"revoked"' in answer
        await _ends_well(service, began)


async def test_idle_connections_do_not_hold_it_up(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """With 200 keep-alive connections and 20 that never sent anything, the service ends within three seconds."""
    async with serving(tmp_path, {"REVOCATION_DRAIN_SECONDS": "0.2"}) as service:
        await asyncio.gather(*(ask(http, "GET", f"{service.url}/healthz") for _ in range(200)))
        silent = [await asyncio.open_connection(HOST, service.port) for _ in range(20)]
        try:
            service.signal(signal.SIGTERM)
            assert await _ends_well(service, time.monotonic()) < 3
        finally:
            for _, writer in silent:
                writer.transport.abort()


async def test_stuck_clients_and_a_frozen_redis_are_given_up_in_time(tmp_path: pathlib.Path) -> None:
    """With the longest drain, unfinished headers and bodies, and a frozen Redis, the service ends within 10 s."""
    async with serving(tmp_path, {"REVOCATION_DRAIN_SECONDS": "2"}) as service:
        reader, writer = await asyncio.open_connection(HOST, service.port)
        writer.write(b"POST /revoke HTTP/1.1\r\nHost: 127")
        async with _half_sent(service, b'{"jti": "never"}'):
            redis = await service.redis_pid()
            os.kill(redis, signal.SIGSTOP)
            service.signal(signal.SIGTERM)
            await _ends_well(service, time.monotonic())
            assert gone(redis)
        assert await reader.read() == b""
        writer.transport.abort()


async def test_a_second_signal_cuts_the_drain_short(tmp_path: pathlib.Path) -> None:
    """At a second signal the service stops listening before the drain would have ended, and ends in order."""
    async with serving(tmp_path, {"REVOCATION_DRAIN_SECONDS": "2"}) as service:
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        await _draining(service)
        service.signal(signal.SIGINT)
        await eventually(lambda: _refuses(service), "the end of the drain")
        assert time.monotonic() - began < 2
        await _ends_well(service, began)


async def _refuses(service: ServiceProcess) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, service.port)
    except ConnectionRefusedError:
        return True
    writer.transport.abort()
    return False


async def test_callers_on_kept_connections_are_told_to_leave(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """Under load no connection breaks: each caller gets a 200 with `Connection: close`, and all revocations hold."""
    async with serving(tmp_path) as service:
        acknowledged: list[dict[str, str]] = []

        async def caller(name: str) -> None:
            answer = None
            while answer is None or answer.headers.get("Connection") != "close":
                jti = f"{name}-{len(acknowledged)}"
                answer = await ask(http, "POST", f"{service.url}/revoke", {"jti": jti, "expires_in": 600})
                assert answer.status == 200, answer
                acknowledged.append({"jti": jti})

        async def busy() -> bool:
            return len(acknowledged) > 100

        async with asyncio.TaskGroup() as callers:
            for number in range(16):
                callers.create_task(caller(f"caller-{number}"))
            await eventually(busy, "some load")
            service.signal(signal.SIGTERM)
            began = time.monotonic()
        await _ends_well(service, began)
        await service.start()
        for start in range(0, len(acknowledged), 1000):
            checks = {"checks": acknowledged[start : start + 1000]}
            answer = await ask(http, "POST", f"{service.url}/check/batch", checks)
            assert all(result["revoked"] for result in answer.body["results"])


async def test_a_stop_during_the_start_is_obeyed_in_time(tmp_path: pathlib.Path) -> None:
    """SIGTERM ends a service whose private Redis does not answer at the start, and no process is left."""
    silent = tmp_path / "silent-server"
    silent.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Redis server v=7.0.0' && exit\nexec sleep 60\n")
    silent.chmod(0o700)
    service = ServiceProcess(tmp_path / "service", {"REDIS_SERVER_BIN": str(silent)})
    async with ending(service):
        service.spawn()

        async def starting() -> bool:
            return (service.state_directory / "redis.log").exists()

        await eventually(starting, "the start of Redis")
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        await service.nothing_left()
        assert "Traceback" not in service.output()


async def test_a_port_in_use_is_one_clear_line(tmp_path: pathlib.Path) -> None:
    """If the port is in use, the service exits with 1, names address and setting in one line, and leaves no Redis."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        service = ServiceProcess(tmp_path, port=port)
        async with ending(service):
            service.spawn()
            assert await service.ended() == 1
            await service.nothing_left()
        (line,) = [line for line in service.output().splitlines() if not line.startswith("{")]
        assert line.startswith(f"revocation-service: cannot listen on {HOST}:{port}: ")
        assert "REVOCATION_PORT" in line


async def test_a_host_that_cannot_be_a_name_is_one_clear_line(tmp_path: pathlib.Path) -> None:
    """An invalid host gives exit code 1 and one line that names the host and its setting."""
    keys = f"ops={'a' * 20}:admin"
    service = ServiceProcess(tmp_path, {"REVOCATION_HOST": "no..name", "REVOCATION_API_KEYS": keys})
    async with ending(service):
        service.spawn()
        assert await service.ended() == 1
    (line,) = [line for line in service.output().splitlines() if not line.startswith("{")]
    assert line.startswith("revocation-service: cannot listen on no..name:")
    assert "REVOCATION_HOST" in line


WRONG = {
    "REVOCATION_PORT": "eighty",
    "REVOCATION_HOST": "0.0.0.0",
    "REVOCATION_REDIS_URL": "http://localhost",
    "REVOCATION_API_KEYS_FILE": "/does/not/exist",
    "REVOCATION_JWT_PUBLIC_KEY": "no key at all",
}


async def test_a_wrong_setting_is_one_line_that_names_it(tmp_path: pathlib.Path) -> None:
    """Each wrong setting gives exit code 1 and exactly one line, which names it, and no Redis is started."""
    services = {name: ServiceProcess(tmp_path / name, {name: value}) for name, value in WRONG.items()}
    async with ending(*services.values()):
        for service in services.values():
            service.spawn()
        for name, service in services.items():
            assert await service.ended() == 1, service.output()
            (line,) = service.output().splitlines()
            assert line.startswith("revocation-service: ")
            assert name in line
            assert not service.state_directory.exists()
