"""Requests get the same responses through the gateway as directly, and the gateway streams all bodies."""

import asyncio
import hashlib
import pathlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from tests.gateway.serving import Gateway, Visit, bare_upstream, gateway_before, gateway_process
from tests.gateway.upstream_app import CHUNK, EVENTS
from tests.redis_processes import HOST, eventually

LARGE_BYTES: Final = 100_000_000
ROOM_BYTES: Final = 48 << 20
"""How much a process may grow while large bodies pass: by buffers, and by what the allocator keeps."""

HOPS: Final = frozenset({"date", "x-request-id", "connection", "transfer-encoding", "keep-alive"})
"""Response fields that may differ from hop to hop."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    chunked: bool = False


REQUESTS: Final = {
    "get": Asked("GET", "/echo?a=1&a=2&b=%20"),
    "a target that is odd": Asked("GET", '/echo?x=%zz|{}[]"<>^`\\'),
    "double slashes": Asked("GET", "//echo"),
    "dots and escapes": Asked("GET", "/a/../echo/%2e%2e/%2F;p=1"),
    "an escaped name": Asked("GET", "/%65cho"),
    "head": Asked("HEAD", "/bytes/1000"),
    "head, chunked": Asked("HEAD", "/bytes/1000?chunked=true"),
    "options": Asked("OPTIONS", "/echo"),
    "post without a body": Asked("POST", "/echo", (("Content-Length", "0"),)),
    "post": Asked("POST", "/echo", (("Content-Type", "application/json"),), b'{"a":1}'),
    "post of a form": Asked("POST", "/echo", (("Content-Type", "application/x-www-form-urlencoded"),), b"a=1&b=2"),
    "post in chunks": Asked("POST", "/echo", (), b"x" * 300_000, chunked=True),
    "put": Asked("PUT", "/echo", (), b"y" * 70_000),
    "patch": Asked("PATCH", "/echo", (), b"\x00\xff" * 1000),
    "delete": Asked("DELETE", "/echo"),
    "delete with a body": Asked("DELETE", "/echo", (), b"z"),
    "get with a body": Asked("GET", "/echo", (), b"body"),
    "a compressed body": Asked("POST", "/echo", (("Content-Encoding", "gzip"),), b"no gzip at all"),
    "repeated fields": Asked(
        "GET", "/echo", (("X-A", "1"), ("X-B", "2"), ("X-A", "3"), ("Accept", "a"), ("Accept", "b"))
    ),
    "fields of every kind": Asked(
        "GET", "/echo", (("Authorization", "Bearer x"), ("Range", "bytes=0-1"), ("Origin", "http://o"))
    ),
    "large fields": Asked("GET", "/echo", (("X-Large", "v" * 8_000), ("Cookie", "c=" + "w" * 8_000))),
    "bytes with their length": Asked("GET", "/bytes/200000"),
    "bytes in chunks": Asked("GET", "/bytes/200000?chunked=true"),
    "no bytes": Asked("GET", "/bytes/0"),
    "204": Asked("GET", "/status/204"),
    "304": Asked("GET", "/status/304", (("If-None-Match", '"x"'),)),
    "404": Asked("GET", "/no/such/route"),
    "405": Asked("DELETE", "/gzip"),
    "422": Asked("GET", "/cookies"),
    "an error": Asked("GET", "/error"),
    "a redirect": Asked("GET", "/redirect"),
    "a redirect of the framework": Asked("GET", "/somewhere"),
    "a compressed answer": Asked("GET", "/gzip", (("Accept-Encoding", "gzip"),)),
    "large fields in the answer": Asked("GET", "/large-headers"),
    "cookies": Asked("GET", "/cookies?user=ann", (("Cookie", "a=1; b=2"), ("Cookie", "c=3"))),
    "an early answer": Asked("POST", "/no/such/route", (), b"x" * 500_000),
}


@dataclass(frozen=True)
class Got:
    """A response, without the fields of HOPS."""

    status: int
    reason: str | None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


async def ask(session: aiohttp.ClientSession, url: str, asked: Asked) -> Got:
    headers = CIMultiDict({"Host": "main.example:8443"})
    headers.extend(asked.headers)
    body: Any = in_pieces(asked.body) if asked.chunked and asked.body else asked.body
    target = URL(url + asked.target, encoded=True)
    async with session.request(asked.method, target, headers=headers, data=body, allow_redirects=False) as response:
        fields = [(name.decode().lower(), value.decode("latin-1")) for name, value in response.raw_headers]
        kept = sorted(field for field in fields if field[0] not in HOPS)
        return Got(response.status, response.reason, kept, await response.read())


def plain_session() -> aiohttp.ClientSession:
    """Return a session that adds no header fields of its own and does not decompress."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        timeout=aiohttp.ClientTimeout(total=30),
        max_field_size=1 << 16,
    )


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_same_request_gets_the_same_answer(upstream_url: str, name: str) -> None:
    """Status, reason, fields and body of a response are the same through the gateway as directly."""
    async with gateway_before(upstream_url) as gateway, plain_session() as session:
        straight = await ask(session, upstream_url, REQUESTS[name])
        assert await ask(session, gateway.url, REQUESTS[name]) == straight
        assert straight.status < 500 or name == "an error"


async def test_users_are_not_mixed_up(upstream_url: str) -> None:
    """The gateway does not send one user's cookies for another, although ten users send requests at once.

    The upstream is addressed by a name, because a cookie jar ignores cookies from an IP address.
    """
    named = upstream_url.replace(HOST, "localhost")
    async with gateway_before(named) as gateway, plain_session() as session:

        async def user(name: str) -> None:
            for _ in range(5):
                asked = Asked("GET", f"/cookies?user={name}", (("Cookie", f"session={name}"),))
                got = await ask(session, gateway.url, asked)
                assert got.body == f'{{"got":["session={name}"]}}'.encode()
                cookies = [value for field_name, value in got.headers if field_name == "set-cookie"]
                assert len(cookies) == 2
                assert all(name in cookie for cookie in cookies)

        await asyncio.gather(*(user(f"user{number}") for number in range(10)))
        assert (await ask(session, gateway.url, Asked("GET", "/cookies?user=x"))).body == b'{"got":[]}'


async def test_events_arrive_as_they_are_sent(upstream_url: str) -> None:
    """Server-sent events come one by one, not together at the end."""
    async with gateway_before(upstream_url) as gateway, plain_session() as session:
        arrived = []
        async with session.get(f"{gateway.url}/events") as response:
            assert response.content_type == "text/event-stream"
            async for line in response.content:
                if line.startswith(b"id: "):
                    arrived.append((int(line[4:]), time.monotonic()))
        assert [number for number, _ in arrived] == list(range(EVENTS))
        assert arrived[-1][1] - arrived[0][1] > 0.2, "they were sent 0.1 s apart"


async def test_large_bodies_need_no_memory(upstream_url: str, tmp_path: pathlib.Path) -> None:
    """Bodies of 100 MB pass whole in both directions, with a length or in chunks, and the process hardly grows."""

    async def sent() -> AsyncIterator[bytes]:
        for start in range(0, LARGE_BYTES, len(CHUNK)):
            yield CHUNK[: LARGE_BYTES - start]

    digest = hashlib.sha256()
    async for piece in sent():
        digest.update(piece)
    async with gateway_process(tmp_path / "gateway", upstream_url) as gateway, plain_session() as session:
        await ask(session, gateway.url, Asked("POST", "/echo", (), b"warm"))
        before = gateway.peak_memory_bytes()
        for headers in ({}, {"Content-Length": str(LARGE_BYTES)}):
            async with session.post(f"{gateway.url}/echo", data=sent(), headers=headers) as response:
                told = await response.json()
            assert (told["size"], told["sha256"]) == (LARGE_BYTES, digest.hexdigest())
        for query in ("", "?chunked=true"):
            received = hashlib.sha256()
            async with session.get(f"{gateway.url}/bytes/{LARGE_BYTES}{query}") as response:
                async for piece in response.content.iter_any():
                    received.update(piece)
            assert received.digest() == digest.digest()
        assert gateway.peak_memory_bytes() - before < ROOM_BYTES


async def fills(gateway: Gateway, head: bytes) -> int:
    """Return how many bytes of a body a client can send until no more are taken."""
    _, writer = await asyncio.open_connection(HOST, gateway.port)
    sent = 0
    try:
        writer.write(head)
        while sent < 200 << 20:
            writer.write(b"x" * 65_536)
            sent += 65_536
            async with asyncio.timeout(1):
                await writer.drain()
    except TimeoutError:
        return sent
    finally:
        writer.transport.abort()
    return sent


async def test_a_slow_upstream_slows_the_client() -> None:
    """If the upstream reads nothing, the client can send only what fits into the buffers."""

    async def never_reads(visit: Visit) -> None:
        await visit.over.wait()

    async with bare_upstream(never_reads) as upstream, gateway_before(upstream.url) as gateway:
        taken = await fills(gateway, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
        assert taken < 40 << 20, "sockets' buffers, and two of ours"


async def test_a_slow_client_slows_the_upstream() -> None:
    """If the client stops reading, the upstream can send only what fits into the buffers."""
    written = 0

    async def writes_much(visit: Visit) -> None:
        nonlocal written
        await visit.until(b"\r\n\r\n")
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await visit.send(b"x" * 65_536)
            written += 65_536

    async with bare_upstream(writes_much) as upstream, gateway_before(upstream.url) as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.read(1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own reader would go on for a while

        async def stalled() -> bool:
            before = written
            await asyncio.sleep(0.3)
            return written == before

        await eventually(stalled, "the upstream to be slowed")
        assert written < 40 << 20, "sockets' buffers, and two of ours"
        writer.transport.abort()
