"""Something other than the service may answer. Only a well-formed "not revoked" of the service admits a token."""

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from revocation_client import (
    OnUnavailable,
    RequestRefused,
    RevocationClient,
    RevocationError,
    ServiceUnavailable,
    UnexpectedAnswer,
)
from tests.client.scripted import KEY, Script, Scripted, acknowledged, not_revoked, scripted
from tests.redis_processes import HOST

QUESTION = {"jti": "a", "sub": "alice", "iat": 5}
TOKEN = "secret-opaque-token-0123456789"


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """A server that answers as the test says."""
    async with scripted() as running:
        yield running


@pytest.fixture(params=["allow", "deny"])
async def client(server: Scripted, request: pytest.FixtureRequest) -> AsyncIterator[RevocationClient]:
    """A client of that server, under each policy in turn."""
    async with server.client(on_unavailable=request.param, revoke_timeout_seconds=0.2) as started:
        yield started


def answering(
    status: int = 200, body: bytes = b"", content_type: str = "application/json", headers: dict[str, str] | None = None
) -> Script:
    """Return a script that always gives this answer."""

    async def script(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=content_type, headers=headers)

    return script


def results(*elements: Any, **others: Any) -> bytes:
    return json.dumps({"results": list(elements)} | others, separators=(",", ":")).encode()


GOOD: dict[str, Any] = not_revoked(QUESTION)
RECORD = {"claim": "sub", "value": "alice", "revoked_at": 1, "expires_at": 2}
REVOKED = GOOD | {"revoked": True, "revocation": RECORD}

STRANGE_CHECKS: dict[str, Script] = {
    "a captive page": answering(body=b"<html>Welcome to our WLAN</html>", content_type="text/html"),
    "an empty 200": answering(),
    "no JSON": answering(body=b'{"results":['),
    "JSON as text": answering(body=results(GOOD), content_type="text/plain"),
    "no content": answering(204),
    "a redirect": answering(302, headers={"Location": "/elsewhere"}),
    "a moved service": answering(308, headers={"Location": "https://example.invalid/check/batch"}),
    "not modified": answering(304),
    "a list": answering(body=b"[]"),
    "null": answering(body=b"null"),
    "null results": answering(body=b'{"results":null}'),
    "too few results": answering(body=results()),
    "too many results": answering(body=results(GOOD, GOOD)),
    "a single answer": answering(body=json.dumps(GOOD).encode()),
    "a null result": answering(body=results(None)),
    "an empty result": answering(body=results({})),
    "revoked as a string": answering(body=results(GOOD | {"revoked": "false"})),
    "revoked as a number": answering(body=results(GOOD | {"revoked": 0})),
    "revoked as null": answering(body=results(GOOD | {"revoked": None})),
    "about fewer claims": answering(body=results(GOOD | {"considered": ["jti"]})),
    "about other claims": answering(body=results(GOOD | {"considered": ["jti", "sid", "all"]})),
    "about no claims": answering(body=results({name: GOOD[name] for name in ("revoked", "verified", "source")})),
    "an unknown source": answering(body=results(GOOD | {"source": "guess"})),
    "a policy's source": answering(body=results(GOOD | {"source": "policy"})),
    "no source": answering(body=results({name: GOOD[name] for name in ("revoked", "verified", "considered")})),
    "verified as a string": answering(body=results(GOOD | {"verified": "no"})),
    "expired as a number": answering(body=results(GOOD | {"expired": 0})),
    "revoked without a record": answering(body=results(GOOD | {"revoked": True})),
    "revoked for another": answering(body=results(REVOKED | {"revocation": RECORD | {"value": "bob"}})),
    "revoked by what was not asked": answering(body=results(REVOKED | {"revocation": RECORD | {"claim": "sid"}})),
    "revoked by nothing known": answering(body=results(REVOKED | {"revocation": RECORD | {"claim": "scope"}})),
    "times that are none": answering(body=results(REVOKED | {"revocation": RECORD | {"expires_at": "soon"}})),
    "an endless time": answering(body=results(REVOKED).replace(b'"expires_at":2', b'"expires_at":' + b"9" * 400)),
    "an error without a status": answering(body=results({"error": {"code": "x", "detail": "y"}})),
    "an error of status 200": answering(body=results({"error": {"status": 200, "code": "x", "detail": "y"}})),
    "nests without end": answering(body=b"[" * 100_000),
    "other bytes": answering(body=b"\xff\xfe\x00"),
    "compressed": answering(body=b"\x1f\x8b\x08\x00", headers={"Content-Encoding": "gzip"}),
    "too much": answering(body=b" " * (9 << 20)),
}


@pytest.mark.parametrize("script", STRANGE_CHECKS.values(), ids=list(STRANGE_CHECKS))
async def test_a_strange_answer_admits_no_token(client: RevocationClient, server: Scripted, script: Script) -> None:
    """A malformed answer to a question by claims raises UnexpectedAnswer under either policy. It is not an outage."""
    server.script = script
    for ask in (client.check, client.is_revoked, client.ensure_active):
        with pytest.raises(UnexpectedAnswer):
            await ask(QUESTION)
    assert client.counters.failed == 3
    assert client.counters.policy_allowed == client.counters.policy_denied == 0


@pytest.mark.parametrize("strange", [{"verified": 0}, {"verified": 0.0}, {"expired": 0}, {"source": "guess"}], ids=str)
async def test_a_usual_answer_vouches_for_no_strange_one(
    client: RevocationClient, server: Scripted, strange: dict[str, Any]
) -> None:
    """A member of the wrong type is refused even after usual answers, although 0 equals False in Python."""
    for usual in ({}, {"expired": False}):
        server.script = answering(body=results(GOOD | usual))
        assert not (await client.check(QUESTION)).revoked
    server.script = answering(body=results(GOOD | strange))
    with pytest.raises(UnexpectedAnswer):
        await client.check(QUESTION)


async def test_the_answers_that_these_are_near_to_are_understood(client: RevocationClient, server: Scripted) -> None:
    """Well-formed answers are accepted, also with unknown members. So each answer above is refused for its own flaw."""
    server.script = answering(body=results(GOOD | {"new": 1}, also="new"))
    assert not (await client.check(QUESTION)).revoked
    server.script = answering(body=results(REVOKED))
    assert (await client.check(QUESTION)).revoked
    server.script = answering(body=results(GOOD | {"source": "mirror", "stale_seconds": 0.5}))
    verdict = await client.check(QUESTION)
    assert (verdict.revoked, verdict.source, verdict.stale_seconds) == (False, "mirror", 0.5)


@pytest.mark.parametrize("considered", [[], ["jti"], ["all"], ["jti", "sub"]])
async def test_an_answer_about_a_token_looked_at_all_of_it(
    client: RevocationClient, server: Scripted, considered: list[str]
) -> None:
    """An answer about a whole token is refused unless it considered the token's name and `all`."""
    server.script = answering(body=results(GOOD | {"considered": considered}))
    with pytest.raises(UnexpectedAnswer):
        await client.check(TOKEN)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 431, 451])
async def test_every_4xx_admits_no_token(client: RevocationClient, server: Scripted, status: int) -> None:
    """Every 4xx, also of an intermediary, raises RequestRefused under either policy, and no revocation is retried."""
    server.script = answering(status, b"Too Many Requests", "text/plain", headers={"Retry-After": "1"})
    for call in (
        client.check(QUESTION),
        client.ensure_active(QUESTION),
        client.revoke_jti("a"),
        client.revoke(TOKEN, exp=9),
    ):
        with pytest.raises(RequestRefused) as caught:
            await call
        assert (caught.value.status, caught.value.code) == (status, "http_error")
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
async def test_every_5xx_is_an_outage(client: RevocationClient, server: Scripted, status: int) -> None:
    """After a 5xx, the policy decides checks. A revocation is retried, and then raises with the status of the 5xx."""
    server.script = answering(status, b"<h1>Bad Gateway</h1>", "text/html")
    assert (await client.check(QUESTION)).source == "policy"
    with pytest.raises(ServiceUnavailable) as caught:
        await client.revoke_jti("a")
    assert caught.value.status == status
    assert caught.value.attempts > 1
    assert client.counters.revocations == 0


STRANGE_REVOCATIONS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "a captive page": lambda _good: b"<html>",
    "nothing": lambda _good: b"",
    "no object": lambda _good: b"[]",
    "an empty object": lambda _good: b"{}",
    "an unknown result": lambda good: json.dumps(good | {"result": "accepted"}).encode(),
    "a result that is none": lambda good: json.dumps(good | {"result": ["revoked"]}).encode(),
    "another value": lambda good: json.dumps(good | {"value": "b"}).encode(),
    "another claim": lambda good: json.dumps(good | {"claim": "sid"}).encode(),
    "a problem": lambda _good: json.dumps({"status": 503, "code": "store_unavailable"}).encode(),
    "a check's answer": lambda _good: json.dumps(GOOD).encode(),
    "no time": lambda good: json.dumps(good | {"expires_at": "x"}).encode(),
    "too much": lambda good: json.dumps(good).encode() + b" " * (9 << 20),
}


@pytest.mark.parametrize("body", STRANGE_REVOCATIONS.values(), ids=list(STRANGE_REVOCATIONS))
async def test_a_strange_answer_is_no_logout(
    client: RevocationClient, server: Scripted, body: Callable[[dict[str, Any]], bytes]
) -> None:
    """A revocation succeeds only if a 200 confirms that very revocation. Other 2xx and redirects raise, too."""
    server.script = answering(body=body(acknowledged({"jti": "a"})))
    with pytest.raises(UnexpectedAnswer):
        await client.revoke_jti("a")
    for status in (201, 202, 204, 302, 307):
        server.script = answering(status, json.dumps(acknowledged({"jti": "a"})).encode())
        with pytest.raises(UnexpectedAnswer):
            await client.revoke_jti("a")
    server.script = answering(body=json.dumps(acknowledged({"jti": "a"})).encode())
    assert (await client.revoke_jti("a")).result == "revoked"


async def test_the_answer_to_a_tokens_revocation_is_about_that_token(
    client: RevocationClient, server: Scripted
) -> None:
    """If the revoked token carries a `jti`, the answer must name it."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJqdGkiOiJtaW5lIn0.c2ln"
    server.script = answering(body=json.dumps(acknowledged({"jti": "yours"})).encode())
    with pytest.raises(UnexpectedAnswer, match="another"):
        await client.revoke(token)
    server.script = answering(body=json.dumps(acknowledged({"jti": "mine"})).encode())
    assert (await client.revoke(token)).value == "mine"


async def test_redirects_are_not_followed(client: RevocationClient, server: Scripted) -> None:
    """Redirects are not followed, so neither the key nor a token is sent to another address."""
    server.script = answering(307, headers={"Location": f"{server.url}/elsewhere"})
    with pytest.raises(UnexpectedAnswer):
        await client.check(QUESTION)
    assert [request.path for request in server.requests] == ["/check/batch"]


async def test_cookies_and_proxies_of_the_environment_count_for_nothing(
    client: RevocationClient, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client returns no cookies, and does not use the proxy in HTTP_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.script = answering(body=results(GOOD), headers={"Set-Cookie": "session=1; Path=/"})
    for _ in range(2):
        await client.check(QUESTION)
    assert [request.headers.get("Cookie") for request in server.requests] == [None, None]
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_retry_after_is_honoured(server: Scripted) -> None:
    """A retry waits for the Retry-After. If that exceeds the deadline, the revocation raises after one attempt."""
    loop = asyncio.get_running_loop()
    times = []

    async def once_away(_request: web.Request, body: Any) -> web.StreamResponse:
        times.append(loop.time())
        if len(times) == 1:
            return web.Response(status=503, headers={"Retry-After": "1"})
        return web.json_response(acknowledged(body))

    server.script = once_away
    async with server.client(revoke_timeout_seconds=5) as client:
        await client.revoke_jti("a")
        assert times[1] - times[0] >= 1
    async with server.client(revoke_timeout_seconds=60) as client:
        server.script = answering(503, headers={"Retry-After": "600"})
        began = loop.time()
        with pytest.raises(ServiceUnavailable) as caught:
            await client.revoke_jti("a")
    assert loop.time() - began < 30
    assert (caught.value.retry_after_seconds, caught.value.attempts) == (600, 1)


@pytest.mark.parametrize(
    ("then", "timeout_seconds", "status"),
    [("silent", 2.0, 503), ("silent", 0.1, None), ("broken off", 2.0, None), ("other", 2.0, 500)],
    ids=["out of time", "silent", "broken off", "another answer"],
)
async def test_an_error_tells_what_was_last_heard(
    server: Scripted, then: str, timeout_seconds: float, status: int | None
) -> None:
    """The error has the status of the last attempt; or of the one before, if the deadline cut the last one short."""
    never = asyncio.Event()

    async def away(request: web.Request, _body: Any) -> web.StreamResponse:
        if len(server.requests) > 1 and then == "silent":
            await never.wait()
        if len(server.requests) > 1 and then == "broken off":
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=503 if len(server.requests) == 1 else 500)

    server.script = away
    try:
        async with server.client(timeout_seconds=timeout_seconds, revoke_timeout_seconds=0.4) as client:
            with pytest.raises(ServiceUnavailable) as caught:
                await client.revoke_jti("a")
    finally:
        never.set()
    assert caught.value.status == status
    assert caught.value.attempts > 1


async def speaks(lines: bytes) -> asyncio.Server:
    """Start a server that sends these bytes on every connection once it has read something."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(lines)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(talk, HOST, 0)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (b"-ERR unknown command 'POST'\r\n", UnexpectedAnswer),
        (b"SSH-2.0-OpenSSH_9.9\r\n", UnexpectedAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", UnexpectedAnswer),
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n" + results(GOOD), None),
        (
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"res\r\n',
            None,
        ),
    ],
)
async def test_what_speaks_no_http_raises_and_what_breaks_off_is_away(
    lines: bytes, kind: type[RevocationError] | None
) -> None:
    """A server that does not speak HTTP raises UnexpectedAnswer. An empty or incomplete response is an outage."""
    server = await speaks(lines)
    port = server.sockets[0].getsockname()[1]
    async with server, RevocationClient(f"http://{HOST}:{port}", revoke_timeout_seconds=0.3) as client:
        if kind is None:
            assert (await client.check(QUESTION)).source == "policy"
        else:
            with pytest.raises(kind):
                await client.check(QUESTION)
        with pytest.raises(kind or ServiceUnavailable):
            await client.revoke_jti("a")
        assert client.counters.revocations == 0


async def test_neither_key_nor_token_is_in_any_error_log_or_repr(
    server: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if an answer echoes the request, neither the key nor the token is in an error, a log line or a repr."""
    caplog.set_level(logging.DEBUG)

    async def echo(request: web.Request, body: Any) -> web.StreamResponse:
        said = json.dumps([dict(request.headers), body])
        return web.Response(status=status, text=said)

    server.script = echo
    seen: list[str] = []
    errors: list[RevocationError] = []
    async with server.client(revoke_timeout_seconds=0.2, on_unavailable="deny") as client:
        seen += [repr(client), str(client.counters)]
        for status in (200, 302, 401, 500):  # noqa: B007 - the server reads it
            for call in (client.ensure_active(TOKEN), client.revoke(TOKEN, expires_in=5), client.check_jti(TOKEN)):
                try:
                    seen.append(repr(await call))
                except RevocationError as error:
                    errors.append(error)
    for one in errors:
        seen += [*traceback.format_exception(one), repr(one), repr(one.__dict__)]
        assert (one.__context__, one.__cause__) == (None, None)
    text = "\n".join(seen) + caplog.text
    assert len(errors) == 11, "all but the check under deny while the service is away"
    for secret in (KEY, TOKEN):
        assert secret not in text


@pytest.mark.parametrize("on_unavailable", ["allow", "deny"])
async def test_a_server_without_tls_is_no_absence(on_unavailable: OnUnavailable) -> None:
    """An https URL for a plain HTTP server raises under either policy: it is a wrong setting and not an outage."""
    async with scripted() as server:
        client = RevocationClient(server.url.replace("http:", "https:"), mirror=False, on_unavailable=on_unavailable)
        async with client:
            with pytest.raises(UnexpectedAnswer, match="TLS"):
                await client.check_jti("a")
