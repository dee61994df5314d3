"""How the gateway handles request heads that are large or slow, and many idle connections."""

import asyncio
import pathlib

import aiohttp
import pytest

from tests.gateway.serving import (
    OK,
    Visit,
    bare_upstream,
    gateway_before,
    gateway_process,
    idle_connections,
    impatient_gateway,
)

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
SILENT = 1_100
"""More than the 1,024 files that a process may usually open."""

FEW_FILES = """
import resource
import {loop}
from revocation_service.gateway.app import serve
from revocation_service.gateway.settings import load

resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
{loop}.run(serve(load().settings))
"""
"""Runs the gateway on one of the event loops, with the usual limit on open files."""


def fields(count: int, size: int) -> bytes:
    """Return `count` header fields of `size` bytes each."""
    return b"".join(b"H%03d: %s\r\n" % (number, b"x" * (size - 8)) for number in range(count))


@pytest.mark.parametrize(
    "sent",
    [
        GET + fields(1, 8_300) + b"\r\n",
        GET + fields(101, 20) + b"\r\n",
        GET + fields(101, 20),
        b"GET /" + b"x" * 8_300 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
    ids=["a large field", "many fields", "without an end", "a long target"],
)
async def test_a_head_too_large_is_400(sent: bytes) -> None:
    """A head beyond the limits gets 400 and the end of the connection, and nothing of it reaches the upstream."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(sent, answers=2)
        assert (raw.statuses, raw.closed) == ([400], True)
        assert upstream.received == b""


async def test_a_head_of_the_largest_size_passes() -> None:
    """Requests with 90 fields and 8 KB of cookies pass, several on one connection, whole or in pieces."""
    request = GET + fields(90, 100) + b"Cookie: " + b"c" * 8_100 + b"\r\n\r\n"
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(request * 3, request[:70], request[70:9_000], request[9_000:], answers=4)
        assert raw.statuses == [200] * 4
        assert upstream.received.count(b"Cookie: " + b"c" * 8_100 + b"\r\n") == 4


@pytest.mark.parametrize(
    "sent",
    [[], [b"\r\n"], [GET], [GET + b"\r\n", GET], [GET, *[b"X: y\r\n"] * 20]],
    ids=["nothing", "an empty line", "half a head", "the second of two", "a head drop by drop"],
)
async def test_a_head_that_does_not_end_ends_the_connection(sent: list[bytes]) -> None:
    """A connection is closed if the next head is not complete in time. Parts of a head do not extend that time."""
    async with bare_upstream() as upstream, impatient_gateway(0.5, upstream.url) as gateway:
        raw = await gateway.talk(*sent, answers=2, seconds=5)
        assert raw.closed
        assert raw.statuses == [200] * (len(sent) == 2)
        assert upstream.requests == len(raw.statuses)


async def test_a_body_and_an_answer_may_take_longer_than_a_head() -> None:
    """The timeout for a head does not apply to the body of a request, nor to its response."""

    async def slow(visit: Visit) -> None:
        await visit.until(b"end")
        await asyncio.sleep(0.4)
        await visit.send(OK)
        await visit.to_the_end()

    async with bare_upstream(slow) as upstream, impatient_gateway(0.2, upstream.url) as gateway:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"
        raw = await gateway.talk(head, *[b"x"] * 7, b"end")
        assert raw.statuses == [200]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_idle_connections_keep_no_client_out(tmp_path: pathlib.Path, loop: str) -> None:
    """With more idle connections than the soft limit on open files, new clients and the admin port are served."""
    async with (
        bare_upstream() as upstream,
        gateway_process(tmp_path, upstream.url, arguments=("-c", FEW_FILES.format(loop=loop))) as gateway,
        aiohttp.ClientSession() as session,
    ):
        with idle_connections(gateway.port, SILENT):
            for url in [gateway.url, f"{gateway.admin_url}/readyz", f"{gateway.admin_url}/metrics"] * 3:
                async with asyncio.timeout(10), session.get(url) as response:
                    assert response.status == 200
