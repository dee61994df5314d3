"""Requests that two servers could read differently do not pass, nor do aliases of the gateway's header fields."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from tests.gateway.serving import Gateway, Visit, application, bare_upstream, gateway_before, head_of

SECRET = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(*fields: bytes, body: bytes = b"0\r\n\r\n", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST / " + version, b"Host: h", *fields, b"", b""]) + body


REFUSED_BY_AIOHTTP = {
    "both lengths": post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SECRET),
    "both lengths, the other way": post(
        b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"0\r\n\r\n" + SECRET
    ),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: 40", body=SECRET),
    "two lengths that agree": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "two lengths in one field": post(b"Content-Length: 3, 3", body=b"abc"),
    "a length with a sign": post(b"Content-Length: +3", body=b"abc"),
    "a negative length": post(b"Content-Length: -3", body=b"abc"),
    "a length in hexadecimal": post(b"Content-Length: 0x3", body=b"abc"),
    "a length with an underscore": post(b"Content-Length: 1_0", body=b"abcdefghij"),
    "a length that is no number": post(b"Content-Length: three", body=b"abc"),
    "an endless length": post(b"Content-Length: " + b"9" * 40, body=b"abc"),
    "an empty length": post(b"Content-Length: ", body=b"abc"),
    "a folded field": post(b"X: a", b" Transfer-Encoding: chunked"),
    "a folded field with a tab": post(b"X: a", b"\tb"),
    "a fold before every field": b"POST / HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n",
    "space before the colon": post(b"Transfer-Encoding : chunked"),
    "space before the colon of the length": post(b"Content-Length : 3", body=b"abc"),
    "a coding that is not known": post(b"Transfer-Encoding: xchunked"),
    "chunked, and then another": post(b"Transfer-Encoding: chunked, identity"),
    "another, and then chunked": post(b"Transfer-Encoding: gzip, chunked"),
    "identity": post(b"Transfer-Encoding: identity"),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked"),
    "chunked twice in two fields": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "identity and chunked in two fields": post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
    "chunked behind a control character": post(b"Transfer-Encoding: \x0bchunked"),
    "chunked in quotes": post(b'Transfer-Encoding: "chunked"'),
    "an empty coding": post(b"Transfer-Encoding: "),
    "a chunk size that is no number": CHUNKED + b"Z\r\nabc\r\n0\r\n\r\n",
    "a chunk size with a prefix": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "a chunk size with space behind": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "a chunk size too large": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "a chunk size that ends in a bare line feed": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"3\r\nabcX\r\n0\r\n\r\n",
    "a chunk that ends in a bare line feed": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "a trailer that frames": CHUNKED + b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a chunk extension with a bare line feed": CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: h\n\n",
    "a bare line feed in a field": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n",
    "a bare carriage return in a field": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",
    "a bare carriage return as an end": b"GET / HTTP/1.1\r\nHost: h\r\n\r" + SECRET,
    "NUL in a field": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\x00c\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: h\r\nA\x00: b\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: h\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a lower case version": b"GET / http/1.1\r\nHost: h\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n",
    "a name with a space": b"GET / HTTP/1.1\r\nHost: h\r\nA b: x\r\n\r\n",
    "a name that is no token": b"GET / HTTP/1.1\r\nHost: h\r\nA(b): x\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\r\n\r\n",
    "space before the method": b" GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "space behind the version": b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
    "a tab in the line": b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "bytes in the target that are not ASCII": b"GET /\xe9 HTTP/1.1\r\nHost: h\r\n\r\n",
    "a target that is no path": b"GET x HTTP/1.1\r\nHost: h\r\n\r\n",
    "the asterisk for another method": b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
    "an unknown method": b"FOO / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a field too large": b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 40_000 + b"\r\n\r\n",
    "a target too large": b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    "too many fields": b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 300 + b"\r\n",
}
"""Requests that aiohttp's parser refuses with a plain 400 and the end of the connection."""

REFUSED = {
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a user in the target": b"GET http://u:p@a/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
    "a target of another scheme": b"GET ftp://h/x HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n",
}
"""Requests that the parser accepts, and the gateway refuses."""

REWRITTEN = {
    "two spaces before the target": (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", ["GET", "/", ""]),
    "empty lines before the request": (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", ["GET", "/", ""]),
    "HTTP/0.9 without a version": (b"GET /\r\n\r\n", ["GET", "/", ""]),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", ["GET", "/", ""]),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", ["GET", "/", ""]),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", ["GET", "/", ""]),
    "chunked in HTTP/1.0": (
        post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n", version=b"HTTP/1.0"),
        ["POST", "/", "abc"],
    ),
    "chunk extensions and trailers": (
        CHUNKED + b"3;ext=1\r\nabc\r\n00\r\nX-Trailer: 1\r\nAuthorization: Bearer other\r\n\r\n" + SECRET,
        ["POST", "/", "abc"],
    ),
    "a body behind an upgrade that does not pass": (
        post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc" + SECRET),
        ["POST", "/", "abc"],
    ),
}


@dataclass(frozen=True)
class Behind:
    """A gateway in front of uvicorn, whose application records the requests."""

    gateway: Gateway
    upstream_url: str

    async def seen(self) -> list[list[str]]:
        """Return method, target and body of each request since the last call."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.upstream_url}/seen") as response:
            requests: list[list[str]] = await response.json(content_type=None)
            return requests


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["h11", "httptools"])
async def behind(request: pytest.FixtureRequest) -> AsyncIterator[Behind]:
    """A gateway in front of uvicorn, with the parser that the parameter names."""
    async with (
        application("tests.gateway.upstream_app:recorder", "--http", request.param) as url,
        gateway_before(url) as gateway,
    ):
        yield Behind(gateway, url)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REFUSED_BY_AIOHTTP)
async def test_what_is_not_http_is_refused(behind: Behind, name: str) -> None:
    """A malformed request gets one 400 and the end of its connection. The application sees nothing of it."""
    raw = await behind.gateway.talk(REFUSED_BY_AIOHTTP[name], answers=2)
    assert (raw.statuses, raw.closed) == ([400], True)
    assert await behind.seen() == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_doubtful_is_refused(behind: Behind, name: str) -> None:
    """A dubious request gets a problem with 400 or 501. The application sees nothing of it."""
    raw = await behind.gateway.talk(REFUSED[name])
    assert raw.statuses[0] in {400, 501}
    assert raw.headers["Content-Type"] == "application/problem+json"
    assert await behind.seen() == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REWRITTEN)
async def test_what_is_harmless_goes_on_in_one_form(behind: Behind, name: str) -> None:
    """The application sees an unusual but harmless request once. It never sees a request hidden behind that one."""
    request, expected = REWRITTEN[name]
    raw = await behind.gateway.talk(request, answers=2 if SECRET in request else 1)
    assert raw.statuses == [200]
    assert raw.closed or SECRET not in request
    assert await behind.seen() == [expected]


BROKEN_LATER = {
    "a bad second chunk size": b"Z\r\nabc\r\n0\r\n\r\n",
    "a second chunk longer than its size": b"3\r\nabcX\r\n0\r\n\r\n",
    "a bare line feed": b"3\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_LATER)
async def test_a_body_that_breaks_on_the_way_is_never_whole(name: str) -> None:
    """If a later chunk is malformed, the client gets 408, and the upstream never sees the end of the body.

    aiohttp does not tell the reader of the body about the malformed chunk, so the idle timeout ends the request.
    """
    async with (
        bare_upstream(Visit.to_the_end) as upstream,
        gateway_before(upstream.url, IDLE_TIMEOUT_SECONDS="0.3") as gateway,
    ):
        raw = await gateway.talk(CHUNKED + b"3\r\nabc\r\n", BROKEN_LATER[name] + SECRET)
        assert raw.statuses == [408]
        visit = await upstream.visit()
        await visit.over.wait()
        assert b"\r\n0\r\n" not in visit.received
        assert b"smuggled" not in upstream.received
        assert upstream.requests == 1


@pytest.mark.parametrize(
    "name",
    [
        "X_Forwarded_For",
        "x_forwarded-for",
        "X_Real_IP",
        "Content_Length",
        "Transfer_Encoding",
        "HOST_",
        "Connection_",
        "X_Forwarded_Anything",
    ],
)
async def test_aliases_of_the_gateways_own_fields_stay_behind(name: str) -> None:
    """Fields that WSGI and CGI, which equate _ and -, would take for the gateway's are dropped. Others are kept."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(f"GET / HTTP/1.1\r\nHost: h\r\n{name}: 6.6.6.6\r\nX_Other: 1\r\n\r\n".encode())
        assert raw.statuses == [200]
        names = [field for field, _ in head_of(upstream.received)[1]]
        assert (name in names) == name.endswith("_"), "a name that ends so is the alias of no other"
        assert "X_Other" in names
