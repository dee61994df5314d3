"""Limits for clients without an API key: the size of a head, the time for it, and the number of connections."""

import asyncio
import contextlib
import resource
import subprocess
import sys
from typing import Final

import pytest

from tests.api.serving import API_KEYS, Service, request_bytes, serving, talk
from tests.redis_processes import Process

BEGUN: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
TOO_LARGE: Final = {
    "a line of 9 kB": b"GET /healthz?" + b"x" * 9_000,
    "a field of 5 kB": BEGUN + b"X-A: " + b"x" * 5_000,
    "a field's name of 5 kB": BEGUN + b"x" * 5_000,
    "65 fields": BEGUN + b"X-A: a\r\n" * 65,
}


@pytest.mark.parametrize("sent", TOO_LARGE.values(), ids=list(TOO_LARGE))
@pytest.mark.parametrize("end", [b" HTTP/1.1\r\n\r\n", b"\r\n\r\n"])
async def test_a_head_that_is_too_large_is_refused(service: Service, sent: bytes, end: bytes) -> None:
    """A request head that is too large is 400, and the connection is closed."""
    raw = await talk(service, sent + end, answers=2)
    assert raw.statuses == [400]
    assert raw.closed


async def test_a_head_without_an_end_is_refused_when_it_is_too_large(service: Service) -> None:
    """The service closes the connection when a head becomes too large, without waiting for its end."""
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 4_000) for number in range(1_000))
    raw = await talk(service, BEGUN + fields, answers=2)
    assert raw.closed
    assert raw.statuses in ([400], [])  # no response: the connection was reset, as the service had stopped reading


async def test_a_head_of_an_ordinary_size_is_read(service: Service) -> None:
    """A head with 60 fields and a cookie of 4 kB is accepted, and so is a query with a token of 7 kB."""
    fields = [f"X-{number}: {'x' * 100}" for number in range(60)] + [f"Cookie: {'x' * 4_000}"]
    raw = await talk(service, request_bytes(f"GET /check?jti=a&sid={'s' * 200} HTTP/1.1", *fields))
    assert raw.statuses == [200]
    raw = await talk(service, request_bytes(f"GET /check?token={'t' * 7_000} HTTP/1.1"))
    assert raw.statuses == [200]


@pytest.mark.parametrize("begun", [b"", b"G", BEGUN, BEGUN + b"\r\n" + BEGUN])
async def test_a_connection_that_does_not_complete_a_head_is_closed(redis: Process, begun: bytes) -> None:
    """The time for a head starts at the connection or the last response. Data that trickles in does not extend it."""
    async with serving(redis, keepalive_seconds=0.3, API_KEYS=API_KEYS) as service:
        reader, writer = await asyncio.open_connection(str(service.url.host), service.port)
        writer.write(begun)
        closed = asyncio.create_task(_received(reader))
        for drop in range(100):
            await asyncio.wait({closed}, timeout=0.1)
            if closed.done():
                break
            writer.write(b"X%d: y\r\n" % drop if begun else b"")
        assert closed.done()
        assert (await closed).count(b"HTTP/1.1 200 OK") == begun.count(b"\r\n\r\n")
        writer.close()


async def _received(reader: asyncio.StreamReader) -> bytes:
    """Return all that comes until the connection is closed, or reset because it was written to meanwhile."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            received += piece
    return bytes(received)


async def test_a_request_that_takes_long_is_not_cut_off(redis: Process) -> None:
    """A body may take longer than the time for a head."""
    async with serving(redis, keepalive_seconds=0.3, API_KEYS=API_KEYS) as service:
        head = request_bytes("POST /check HTTP/1.1", "Content-Type: application/json", "Content-Length: 11")
        raw = await talk(service, head, *[bytes([byte]) for byte in b'{"jti":"a"}'])
        assert raw.statuses == [200]


def test_the_descriptor_limit_is_raised_at_the_start() -> None:
    """The soft limit on descriptors is raised to 65,536, or to the hard limit if that is lower."""
    script = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard));"
        "from revocation_service.http.serving import prepare_process; prepare_process();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert int(done.stdout) == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
