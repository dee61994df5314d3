"""What all responses have in common: no caching, a request id, and a problem (RFC 9457) for each error."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from time import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from revocation_service.http.in_flight import InFlight
from revocation_service.http.middleware import Middleware
from tests.api.serving import API_KEYS, KEYS, Answer, Service, Start, bearer, request_bytes, talk

ROUTES = {
    "/revoke": {"POST"},
    "/check": {"GET", "POST"},
    "/check/batch": {"POST"},
    "/revocations": {"GET"},
    "/healthz": {"GET", "HEAD"},
    "/readyz": {"GET", "HEAD"},
    "/metrics": {"GET", "HEAD"},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


async def every_kind(service: Service) -> dict[int, Answer]:
    """Return one response for each of several statuses, by status."""
    await service.revoke({"jti": "a"})
    return {
        200: await service.post("/check", {"jti": "a"}),
        400: await service.post("/revoke", {}),
        401: await service.get("/check", {"jti": "a"}, headers={"Authorization": ""}),
        403: await service.post("/revoke", {"all": True}, headers=bearer("revoker")),
        404: await service.get("/nowhere"),
        405: await service.get("/revoke"),
        413: await service.send("/revoke", b" " * (64 * 1024 + 1)),
        415: await service.send("/revoke", b"{}", "text/plain"),
    }


async def test_no_answer_may_be_cached(service: Service) -> None:
    """Every response has `Cache-Control: no-store`, also those of the probes."""
    for status, answer in (await every_kind(service)).items():
        assert answer.status == status
        assert answer.headers.getall("Cache-Control") == ["no-store"]
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await service.get(path)).headers["Cache-Control"] == "no-store"


async def test_every_failure_is_a_problem(service: Service) -> None:
    """Every error is a problem (RFC 9457), and each status has its own code."""
    codes = {
        400: "invalid_request",
        401: "unauthorized",
        403: "insufficient_scope",
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "unsupported_media_type",
    }
    answers = await every_kind(service)
    assert {status: answer.problem for status, answer in answers.items() if status != 200} == codes


async def test_every_answer_has_a_request_id_of_its_own(service: Service) -> None:
    """A request without a request id gets one in its response, and no two are equal."""
    ids = [answer.headers["X-Request-ID"] for answer in (await every_kind(service)).values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[A-Za-z0-9._-]{1,64}", one) for one in ids)


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 64])
async def test_a_good_request_id_is_kept(service: Service, given: str) -> None:
    """A valid request id of the caller comes back in the response, also with an error."""
    for path in ("/healthz", "/nowhere", "/check"):
        assert (await service.get(path, headers={"X-Request-ID": given})).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a,b", "é", 'a"b', "a/b", "{}"])
async def test_another_request_id_is_replaced(service: Service, given: str) -> None:
    """A request id that is empty, too long or has other characters is replaced, and the request succeeds."""
    answer = await service.get("/healthz", headers={"X-Request-ID": given})
    assert answer.status == 200
    assert answer.headers["X-Request-ID"] != given
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", answer.headers["X-Request-ID"])


async def test_no_key_is_401_with_a_challenge(service: Service) -> None:
    """A request without an API key, or with an unknown one, is 401 with a Bearer challenge."""
    for given in (None, f"Bearer {KEYS['ops']}x"):
        service.headers = {"Authorization": given} if given else {}
        for path in ("/check?jti=a", "/revocations?claim=jti&value=a"):
            answer = await service.get(path)
            assert (answer.status, answer.problem) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer ")


async def test_the_caller_is_judged_before_the_body(service: Service) -> None:
    """Without an API key, a request is 401 even if its body is malformed or too large."""
    for path in ("/revoke", "/check", "/check/batch"):
        for body in (b"{", b"x" * 100_000):
            answer = await service.send(path, body, "text/plain", headers={"Authorization": ""})
            assert answer.status == 401


@pytest.mark.parametrize("path", ROUTES)
async def test_other_methods_are_405_with_allow(service: Service, path: str) -> None:
    """A method that a route does not have is 405, and Allow lists those that it has."""
    for method in METHODS:
        answer = await service.request(method, path)
        if method in ROUTES[path]:
            assert answer.status != 405
            continue
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(", ")) == ROUTES[path]
        if method != "HEAD":
            assert answer.problem == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    ["/", "/revoke/", "/REVOKE", "//revoke", "/revoke/x", "/check/", "/documentation", "/%2e%2e/revoke", "/a%0ab"],
)
async def test_other_paths_are_404(service: Service, path: str) -> None:
    """A path is 404 if it differs from the documented routes, even only by case or a slash."""
    answer = await service.request("GET", path)
    assert (answer.status, answer.problem) == (404, "not_found")


@pytest.mark.parametrize("path", ["/revoke", "/check", "/check/batch"])
@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-json",
        "text/json",
        "application/json, text/plain",
        ";",
        "json",
    ],
)
async def test_another_content_type_is_415(service: Service, path: str, content_type: str) -> None:
    """A content type other than JSON or a form is 415, even if the body is JSON."""
    answer = await service.send(path, b'{"jti":"a"}', content_type)
    assert (answer.status, answer.problem) == (415, "unsupported_media_type")


async def test_a_missing_content_type_is_415(service: Service) -> None:
    """A body without a Content-Type is 415, even if it is JSON."""
    raw = await talk(service, request_bytes("POST /revoke HTTP/1.1", body=b'{"jti":"a"}'))
    assert raw.statuses == [415]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json ;x"])
async def test_case_and_parameters_do_not_matter(service: Service, content_type: str) -> None:
    """The case and the parameters of a content type are ignored (RFC 9110 section 8.3.1)."""
    assert (await service.send("/revoke", b'{"jti":"a"}', content_type)).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity", "GZIP", "gzip, gzip", ""])
@pytest.mark.parametrize("path", ["/revoke", "/check", "/check/batch"])
async def test_any_content_encoding_is_415(service: Service, path: str, encoding: str) -> None:
    """A body with any Content-Encoding, even `identity`, is 415."""
    headers = ("Content-Type: application/json", f"Content-Encoding: {encoding}")
    raw = await talk(service, request_bytes(f"POST {path} HTTP/1.1", *headers, body=b'{"jti":"a"}'))
    assert raw.statuses == [415]
    assert b"unsupported_media_type" in raw.data


@pytest.mark.parametrize("path", ["/revoke", "/check"])
async def test_64_kib_are_the_limit(service: Service, path: str) -> None:
    """A body of 64 KiB is accepted, and one more byte is 413."""
    body = b'{"jti":"a"}'
    assert (await service.send(path, body.ljust(64 * 1024))).status == 200
    assert (await service.send(path, body.ljust(64 * 1024 + 1))).status == 413


async def test_a_body_that_says_nothing_of_its_size_has_the_same_limit(service: Service) -> None:
    """A chunked body, which has no Content-Length, is 413 if it exceeds 64 KiB."""

    async def long() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1024

    answer = await service.request("POST", "/revoke", data=long(), headers={"Content-Type": "application/json"})
    assert (answer.status, answer.problem) == (413, "body_too_large")


async def test_503_says_when_to_come_back(start_without_redis: Start) -> None:
    """A 503 without Redis has Retry-After in whole seconds, Cache-Control and a request id."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    answer = await service.get("/check", {"jti": "a"})
    assert (answer.status, answer.problem) == (503, "store_unavailable")
    assert answer.headers["Retry-After"].isdigit()
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Request-ID"]


async def test_a_fault_of_ours_tells_nothing() -> None:
    """An unexpected exception is a 500 problem without its name and message. It is logged and counted."""

    async def failing(_request: web.Request) -> web.Response:
        raise ZeroDivisionError("secret-in-a-message")

    observed: list[int] = []
    app = web.Application()
    app.router.add_get("/failing", failing)
    Middleware(InFlight(), lambda _request, status, _seconds: observed.append(status)).install(app)
    with capture_logs() as logged:
        async with TestClient(TestServer(app)) as client, client.get("/failing") as response:
            answer = Answer(response.status, response.headers, await response.read())
    assert (answer.status, answer.problem) == (500, "internal_error")
    assert (answer.headers["Cache-Control"], bool(answer.headers["X-Request-ID"])) == ("no-store", True)
    assert b"secret-in-a-message" not in answer.body
    assert b"ZeroDivisionError" not in answer.body
    assert observed == [500]
    assert [event["event"] for event in logged if event["log_level"] == "error"] == ["internal_error"]


async def test_there_are_no_cors_headers(service: Service) -> None:
    """No response has a CORS header, not even that to a preflight request."""
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    answers = [await service.request("OPTIONS", path, headers=asking) for path in ROUTES]
    answers += [await service.get(path, headers=asking) for path in ROUTES]
    assert not [name for answer in answers for name in answer.headers if name.lower().startswith("access-control")]


async def test_requests_in_one_breath_are_answered_in_order(service: Service) -> None:
    """Pipelined requests in one segment get their responses in order, errors included."""
    await service.revoke({"jti": "a"})
    pieces = [
        request_bytes("GET /check?jti=a HTTP/1.1"),
        request_bytes("GET /nowhere HTTP/1.1"),
        request_bytes("POST /revoke HTTP/1.1", "Content-Type: application/json", body=b'{"jti":"b"}'),
        request_bytes("GET /revoke HTTP/1.1"),
        request_bytes("GET /healthz HTTP/1.1", key=None),
    ]
    raw = await talk(service, b"".join(pieces), answers=len(pieces))
    assert raw.statuses == [200, 404, 200, 405, 200]


@pytest.mark.parametrize("revoked", [False, True])
async def test_a_success_says_the_same_however_the_connection_goes_on(service: Service, revoked: bool) -> None:
    """But for Connection and Date, the response is the same with keep-alive, with close, and over HTTP/1.0."""
    if revoked:
        await service.revoke({"jti": "a"})
    question, asked = "GET /check?jti=a", "X-Request-ID: one"
    stays = await talk(service, request_bytes(f"{question} HTTP/1.1", asked))
    others = [
        await talk(service, request_bytes(f"{question} HTTP/1.1", asked, "Connection: close")),
        await talk(service, request_bytes(f"{question} HTTP/1.0", asked)),
        await talk(service, request_bytes(f"{question} HTTP/1.0", asked, "Connection: keep-alive")),
    ]
    assert not stays.closed
    for other in others:
        assert _said(other.data) == _said(stays.data)


def _said(answer: bytes) -> tuple[bytes, set[bytes], bytes]:
    """Return the status, the headers without Date and Connection, and the body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    dates = [header for header in headers if header.startswith(b"Date: ")]
    assert len(dates) == 1
    assert parsedate_to_datetime(dates[0].decode()[6:]).timestamp() == pytest.approx(time(), abs=5)
    left = {header for header in headers if not header.startswith((b"Connection:", b"Date:"))}
    return line.partition(b" ")[2], left, body


async def test_who_reads_no_answers_is_sent_no_more(service: Service) -> None:
    """The service stops reading from a client that sends request after request and reads no response."""
    reader, writer = await asyncio.open_connection(str(service.url.host), service.port)
    question = request_bytes("GET /check?jti=a HTTP/1.1") * 100
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 200_000:
            writer.write(question)
            async with asyncio.timeout(1):
                await writer.drain()
            sent += 100
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    del reader
    assert sent < 200_000


async def test_a_body_is_never_the_next_request(service: Service) -> None:
    """If the body of a GET looks like a request, it is skipped and not carried out."""
    smuggled = request_bytes("POST /revoke HTTP/1.1", "Content-Type: application/json", body=b'{"jti":"smuggled"}')
    both = request_bytes("GET /healthz HTTP/1.1", body=smuggled) + request_bytes("GET /nowhere HTTP/1.1")
    raw = await talk(service, both, answers=2)
    assert raw.statuses == [200, 404]
    assert not (await service.check({"jti": "smuggled"}))["revoked"]
