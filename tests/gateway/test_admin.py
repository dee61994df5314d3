"""The gateway's probes, metrics and logs, errors at its start, and its shutdown."""

import asyncio
import json
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from revocation_service import __version__
from tests.gateway.serving import OK, GatewayProcess, Visit, answering, bare_upstream, gateway_before, gateway_process
from tests.redis_processes import HOST, eventually, free_port


async def ask(url: str) -> tuple[int, Any, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        text = await response.text()
        assert response.headers["Cache-Control"] == "no-store"
        return (
            response.status,
            json.loads(text) if response.content_type.endswith("json") else text,
            response.content_type,
        )


async def test_readiness_names_each_part() -> None:
    """/readyz names the status of each component. It is 200 while the upstream is down."""
    async with gateway_before(f"http://{HOST}:{free_port()}") as gateway:
        status, form, _ = await ask(f"{gateway.admin_url}/readyz")
        components = {"process": {"status": "ok"}, "throttle_store": {"status": "memory"}}
        assert (status, form) == (200, {"status": "ready", "components": components})
        assert (await ask(f"{gateway.admin_url}/healthz"))[:2] == (200, {"status": "ok", "version": __version__})


async def test_redis_away_is_degraded_and_ready() -> None:
    """If Redis is down, /readyz is still 200, and shows that the throttle store is degraded."""
    redis = f"redis://{HOST}:{free_port()}"
    async with bare_upstream() as upstream, gateway_before(upstream.url, REDIS_URL=redis) as gateway:
        status, form, _ = await ask(f"{gateway.admin_url}/readyz")
        assert (status, form["components"]["throttle_store"]) == (200, {"status": "degraded"})


async def test_metrics_count_and_show_nothing_of_a_request() -> None:
    """/metrics counts and times requests by class of status. It contains no path, header or address of a request."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        await gateway.talk(b"GET /canary?canary=1 HTTP/1.1\r\nHost: canary\r\nX-Canary: canary\r\n\r\n")
        await gateway.talk(b"TRACE /canary HTTP/1.1\r\nHost: canary\r\n\r\n")
        _, text, _ = await ask(f"{gateway.admin_url}/metrics")
        assert 'gateway_requests_total{status_class="2xx"} 1.0' in text
        assert 'gateway_requests_total{status_class="5xx"} 1.0' in text
        assert "gateway_request_duration_seconds_count 2.0" in text
        assert "canary" not in text.lower()
        assert HOST not in text


async def test_probes_are_not_on_the_public_port_nor_the_upstream_on_the_admin_port() -> None:
    """The public port passes `/healthz` on to the upstream. The admin port answers unknown paths with 404."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert raw.data.endswith(b"ok")
        assert upstream.requests == 1
        status, form, kind = await ask(f"{gateway.admin_url}/anything")
        assert (status, form["code"], kind) == (404, "not_found", "application/problem+json")
        assert upstream.requests == 1


async def answers_slowly(visit: Visit) -> None:
    """Answer one second after the request."""
    await visit.until(b"\r\n\r\n")
    await asyncio.sleep(1)
    await visit.send(OK)
    await visit.to_the_end()


async def test_leaving_in_good_order(tmp_path: pathlib.Path) -> None:
    """After SIGTERM /readyz answers 503, old and new requests are still served, and then the process exits with 0."""
    async with (
        bare_upstream(answers_slowly) as upstream,
        gateway_process(tmp_path / "gateway", upstream.url, DRAIN_SECONDS="0.5") as gateway,
        aiohttp.ClientSession() as session,
    ):
        asked = asyncio.create_task(_status(session, gateway.url))
        await upstream.visit()
        gateway.signal(signal.SIGTERM)
        await gateway.until("/readyz", 503)
        late = asyncio.create_task(_status(session, gateway.url))
        assert await asked == (200, "close")
        assert await late == (200, "close")
        assert await gateway.ended(10) == 0
        assert [event["event"] for event in gateway.events("serving", "draining", "stopped")] == [
            "serving",
            "draining",
            "stopped",
        ]


async def _status(session: aiohttp.ClientSession, url: str) -> tuple[int, str | None]:
    async with session.get(url) as response:
        return response.status, response.headers.get("Connection")


streams_for_ever = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
"""The behaviour of an upstream that begins a response and never ends it."""


async def test_nothing_holds_up_the_end(tmp_path: pathlib.Path) -> None:
    """The process exits in time although a response never ends and its client never completes its body."""
    async with (
        bare_upstream(streams_for_ever) as upstream,
        gateway_process(tmp_path / "gateway", upstream.url, DRAIN_SECONDS="0") as gateway,
    ):
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc")
        await reader.readuntil(b"ok\r\n")
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended(10) == 0
        assert not (await reader.read()).endswith(b"0\r\n\r\n"), "the answer is no whole one"
        writer.close()


async def test_logs_hold_nothing_of_a_request(tmp_path: pathlib.Path) -> None:
    """The log contains no path, query, body, cookie, credentials or malformed line of a request, even if it fails."""
    canary = "canary-77aa"
    requests = [
        f"GET /{canary}?token={canary} HTTP/1.1\r\nHost: h\r\nCookie: {canary}\r\nAuthorization: {canary}\r\n\r\n",
        f"POST /auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: {len(canary)}\r\n\r\n{canary}",
        f"GET /{canary} HTTP/1.1\r\nHost: h\r\n{canary} : {canary}\r\n\r\n",
        f"GET /{canary}#{canary} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"TRACE /{canary} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"CONNECT {canary}:443 HTTP/1.1\r\nHost: {canary}\r\n\r\n",
    ]
    url = f"http://{HOST}:{free_port()}"
    async with gateway_process(tmp_path / "gateway", url, "/healthz", LOG_LEVEL="debug") as gateway:
        for request in requests:
            reader, writer = await asyncio.open_connection(HOST, gateway.port)
            writer.write(request.encode())
            async with asyncio.timeout(10):
                assert (await reader.readline()).split()[1] in {b"502", b"400", b"501"}
            writer.close()

        async def logged() -> bool:
            return len(gateway.events("request")) >= 4

        await eventually(logged, "the requests in the log")
        assert canary not in gateway.output()
        assert gateway.events("request_failed")[0]["status"] == 502
        assert gateway.events("request_failed")[0]["request_id"]


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run `revocation-service gateway`, which must exit by itself."""
    return subprocess.run(
        [sys.executable, "-m", "revocation_service", "gateway"],
        env={f"GATEWAY_{name}": value for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "GATEWAY_UPSTREAM_URL"),
        ({"UPSTREAM_URL": "http://127.0.0.1:1", "LOGIN_LIMIT": "lots"}, "GATEWAY_LOGIN_LIMIT"),
        ({"UPSTREAM_URL": "http://127.0.0.1:1", "REDIS_URL": "embedded:"}, "GATEWAY_REDIS_URL"),
        ({"UPSTREAM_URL": "http://127.0.0.1:1", "REDIS_URL": "redis://h:port"}, "GATEWAY_REDIS_URL"),
    ],
)
def test_a_wrong_setting_is_one_line(variables: dict[str, str], named: str) -> None:
    """With a wrong setting the process exits with 1 and prints one line, which begins with the variable's name."""
    done = run(**variables)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"revocation-service: {named} ")


@pytest.mark.parametrize("taken", ["PORT", "ADMIN_PORT"])
def test_an_address_that_is_taken_is_one_line(taken: str) -> None:
    """If a port is taken, the process exits with 1, and its last line names the setting. There is no traceback."""
    with socket.create_server((HOST, 0)) as holder:
        ports = {"PORT": "0", "ADMIN_PORT": "0", taken: str(holder.getsockname()[1])}
        done = run(UPSTREAM_URL="http://127.0.0.1:1", LOG_FORMAT="json", **ports)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"GATEWAY_{taken}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


async def test_the_process_serves_as_the_command(tmp_path: pathlib.Path) -> None:
    """`revocation-service gateway` passes on the upstream's response, and warns of a misspelt setting."""
    async with (
        bare_upstream() as upstream,
        gateway_process(tmp_path / "gateway", upstream.url, LOGIN_LIMITS="1/day") as gateway,
        aiohttp.ClientSession() as session,
    ):
        assert isinstance(gateway, GatewayProcess)
        async with session.get(gateway.url) as response:
            assert (response.status, await response.text()) == (200, "ok")
        assert [event["name"] for event in gateway.events("unknown_setting")] == ["GATEWAY_LOGIN_LIMITS"]
