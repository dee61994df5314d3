"""Malformed and ambiguous HTTP gets a 4xx response or a closed connection, never a 5xx or a hang."""

import asyncio
import time
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from revocation_service.api.bodies import BODY_SECONDS
from tests.api.hostile import CANARY, Target, assert_problem, assert_refused, body_of
from tests.api.serving import KEYS, Service, request_bytes, talk
from tests.scale import scaled

JSON: Final = "Content-Type: application/json"
CHUNKED: Final = "Transfer-Encoding: chunked"
BODY: Final = b'{"jti":"prefixed-%s"}' % CANARY.encode()
HOST: Final = b"Host: localhost\r\n"

fuzzed = settings(
    max_examples=scaled(60, 5000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

HOPELESS: Final[dict[str, bytes]] = {
    "no method": CANARY.encode() + b" nonsense\r\n\r\n",
    "an unknown method": b"%s /check HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "a lower-case method": b"get /check?jti=%s HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "HTTP/9.9": b"GET /check?jti=%s HTTP/9.9\r\n%s\r\n" % (CANARY.encode(), HOST),
    "HTTP/1.10": b"GET /check?jti=%s HTTP/1.10\r\n%s\r\n" % (CANARY.encode(), HOST),
    "HTTP/2 by its preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "ICY": b"GET /check?jti=%s ICY/1.0\r\n%s\r\n" % (CANARY.encode(), HOST),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY.encode() + b"\r\n\r\n",
    "binary": bytes(range(256)),
    "Redis": b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a space in the target": b"GET /check?jti=%s x HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "a target without a slash": b"GET check?jti=%s HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "a target that is no URL": b"GET http://[%s/check HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "a target outside ASCII": b"GET /check?jti=\xff%s HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "NUL in the target": b"GET /check?jti=\x00%s HTTP/1.1\r\n%s\r\n" % (CANARY.encode(), HOST),
    "a target of 100 kB": b"GET /check?token=%s HTTP/1.1\r\n%s\r\n" % (CANARY.encode() * 5_000, HOST),
    "line feeds alone": b"GET /check?jti=%s HTTP/1.1\n%s\n" % (CANARY.encode(), HOST.replace(b"\r", b"")),
    "carriage returns alone": b"GET /check?jti=%s HTTP/1.1\rHost: localhost\r\r" % CANARY.encode(),
    "a carriage return in a header": b"GET /check HTTP/1.1\r\n%sX-A: a\rb%s\r\n\r\n" % (HOST, CANARY.encode()),
    "a folded header": b"GET /check HTTP/1.1\r\n%sX-A: a\r\n %s\r\n\r\n" % (HOST, CANARY.encode()),
    "NUL in a header": b"GET /check HTTP/1.1\r\n%sAuthorization: Bearer \x00%s\r\n\r\n" % (HOST, CANARY.encode()),
    "a header without a colon": b"GET /check HTTP/1.1\r\n%s%s\r\n\r\n" % (HOST, CANARY.encode()),
    "a header without a name": b"GET /check HTTP/1.1\r\n%s: %s\r\n\r\n" % (HOST, CANARY.encode()),
    "a space before the colon": b"GET /check HTTP/1.1\r\n%sX-A : %s\r\n\r\n" % (HOST, CANARY.encode()),
    "a header of 100 kB": b"GET /check HTTP/1.1\r\n%sX-A: %s\r\n\r\n" % (HOST, CANARY.encode() * 5_000),
    "a header's name of 100 kB": b"GET /check HTTP/1.1\r\n%s%s: x\r\n\r\n" % (HOST, CANARY.encode() * 5_000),
    "9,000 headers": b"GET /check HTTP/1.1\r\n%s%s\r\n" % (HOST, b"X-A: a\r\n" * 9_000),
    "no host": b"GET /check?jti=%s HTTP/1.1\r\n\r\n" % CANARY.encode(),
    "two hosts": b"GET /check?jti=%s HTTP/1.1\r\n%sHost: evil.example\r\n\r\n" % (CANARY.encode(), HOST),
    "an old web socket": b"GET /check?jti=%s HTTP/1.1\r\n%sSec-WebSocket-Key1: x\r\n\r\n" % (CANARY.encode(), HOST),
}


@pytest.mark.parametrize("sent", HOPELESS.values(), ids=list(HOPELESS))
def test_what_is_no_http(target: Target, sent: bytes) -> None:
    """Input that is not HTTP is 400, and the connection is closed, so that no later byte is read as a request."""
    raw = target.talk(sent, answers=2)
    assert_refused(raw)
    assert raw.closed


AMBIGUOUS: Final[dict[str, tuple[str, ...]]] = {
    "two lengths": (f"Content-Length: {len(BODY)}", "Content-Length: 5"),
    "the same length twice": (f"Content-Length: {len(BODY)}", f"Content-Length: {len(BODY)}"),
    "a list of lengths": (f"Content-Length: {len(BODY)}, {len(BODY)}",),
    "a signed length": (f"Content-Length: +{len(BODY)}",),
    "a negative length": ("Content-Length: -1",),
    "a length in hex": ("Content-Length: 0x10",),
    "a length in other digits": ("Content-Length: ١٢",),
    "a length of 30 digits": ("Content-Length: " + "9" * 30,),
    "no number as length": (f"Content-Length: {CANARY}",),
    "a length and chunks": (f"Content-Length: {len(BODY)}", CHUNKED),
    "chunks and a length": (CHUNKED, f"Content-Length: {len(BODY)}"),
    "an unknown coding": ("Transfer-Encoding: xchunked",),
    "a coding made up": (f"Transfer-Encoding: {CANARY}",),
    "chunks not last": ("Transfer-Encoding: chunked, gzip",),
    "chunks twice": (CHUNKED, CHUNKED),
    "chunks, with a vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "chunks, with a space before the colon": ("Transfer-Encoding : chunked",),
}


@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=list(AMBIGUOUS))
def test_a_body_whose_end_is_unclear(target: Target, headers: tuple[str, ...]) -> None:
    """A body of ambiguous length, as in request smuggling, is 400, and the connection is closed."""
    smuggled = target.request("POST /revoke", JSON, body=BODY)
    head = target.request("POST /check", JSON, *headers)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    for body in (BODY, chunked):
        raw = target.talk(head + body + smuggled, answers=3)
        assert_refused(raw)
        assert raw.closed


BAD_CHUNKS: Final[dict[str, bytes]] = {
    "no number": b"%s\r\n{}\r\n0\r\n\r\n" % CANARY.encode(),
    "negative": b"-1\r\n{}\r\n0\r\n\r\n",
    "0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "too large a number": b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n",
    "no line break behind": b"2\r\n{}XX\r\n0\r\n\r\n",
    "line feeds alone": b"2\n{}\n0\n\n",
    "too short": b"1\r\n{}\r\n0\r\n\r\n",
    "a space before": b" 2\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=list(BAD_CHUNKS))
def test_bad_chunks(target: Target, chunks: bytes) -> None:
    """A malformed chunk is 400, and the connection is closed."""
    raw = target.talk(target.request("POST /check", JSON, CHUNKED) + chunks, answers=2)
    assert_refused(raw)
    assert raw.closed


def test_a_coding_that_is_not_undone(target: Target) -> None:
    """A body with the transfer coding gzip is 400, because the service decompresses nothing."""
    head = target.request("POST /check", JSON, "Transfer-Encoding: gzip, chunked")
    assert_problem(target.talk(head + b"3\r\n\x1f\x8b\x08\r\n0\r\n\r\n"), 400)


def test_trailers_and_extensions_mean_nothing(target: Target) -> None:
    """Chunk extensions and trailers are ignored: they do not act as headers, and are not printed."""
    head = target.request("POST /check", JSON, CHUNKED)
    trailers = f"Authorization: Bearer {CANARY}\r\nContent-Encoding: gzip\r\nX-Forwarded-For: {CANARY}\r\n".encode()
    raw = target.talk(head + b"%x;a=%s\r\n%s\r\n0\r\n%s\r\n" % (len(BODY), CANARY.encode(), BODY, trailers))
    assert raw.statuses == [200]


def test_http_0_9(target: Target) -> None:
    """A request line without a version (HTTP/0.9) is refused, and the connection is closed."""
    raw = target.talk(b"GET /check?jti=%s\r\n\r\n" % CANARY.encode(), answers=2)
    assert raw.statuses[0] in {400, 401, 403}
    assert raw.closed


@pytest.mark.parametrize("line", ["CONNECT evil.example:443", "CONNECT localhost:22", "OPTIONS *", "OPTIONS /revoke"])
def test_methods_for_proxies(target: Target, line: str) -> None:
    """CONNECT and OPTIONS are refused with 403, 404 or 405."""
    assert_problem(target.ask(line), 403, 404, 405)


def test_trace_echoes_nothing(target: Target) -> None:
    """TRACE is 405, and the response repeats neither the target nor the headers of the request."""
    assert_problem(target.ask(f"TRACE /check?token={CANARY}", f"Cookie: {CANARY}"), 405)


def test_bytes_behind_a_connect_are_no_request(target: Target) -> None:
    """Bytes after a refused CONNECT are either ignored or handled as an ordinary request."""
    smuggled = target.request("POST /revoke", JSON, body=b'{"jti":"tunnelled"}')
    raw = target.talk(target.request("CONNECT evil.example:443") + smuggled, answers=2, seconds=2)
    assert raw.statuses[0] in {403, 404}
    check = target.post("/check", b'{"jti":"tunnelled"}')
    assert body_of(check)["revoked"] is (raw.statuses[1:] == [200])


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", CANARY])
def test_an_upgrade_is_not_made(target: Target, upgrade: str) -> None:
    """A request to upgrade gets an ordinary response; then the connection closes, and no later request is handled."""
    first = target.request("POST /check", JSON, "Connection: Upgrade", f"Upgrade: {upgrade}", body=BODY)
    raw = target.talk(first, target.request("GET /nowhere"), answers=2)
    assert raw.statuses == [200]
    assert raw.closed


@pytest.mark.parametrize("line", ["POST /revoke", "GET /check?jti=a", "GET /nowhere", "GET /healthz"])
def test_an_expectation_that_nobody_knows(target: Target, line: str) -> None:
    """An unknown expectation is 417 (RFC 9110 section 10.1.1) with the usual headers, and it is not printed."""
    raw = target.ask(line, f"Expect: {CANARY}", JSON, body=BODY if line.startswith("POST") else b"")
    assert raw.statuses == [417]
    assert raw.headers["X-Request-ID"]
    assert raw.headers["Cache-Control"] == "no-store"


def test_a_body_is_asked_for(target: Target) -> None:
    """`Expect: 100-continue` gets an interim response 100, then the final response."""
    head = target.request("POST /check", JSON, f"Content-Length: {len(BODY)}", "Expect: 100-continue")
    raw = target.talk(head, BODY)
    assert raw.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert raw.statuses == [200]


def test_a_body_that_breaks_off(target: Target) -> None:
    """A client that closes its sending side in the middle of a body gets a closed connection, and at most a 400."""
    for framing, part in ((f"Content-Length: {len(BODY) + 1}", BODY), (CHUNKED, b"%x\r\n%s\r\n" % (len(BODY), BODY))):
        for path in ("/revoke", "/check", "/check/batch"):
            raw = target.talk(target.request(f"POST {path}", JSON, framing) + part, half_close=True)
            assert raw.closed
            assert raw.statuses in ([], [400])


def test_a_request_that_breaks_off(target: Target) -> None:
    """A client that closes its sending side in the middle of a request gets a closed connection."""
    whole = target.request("POST /check", JSON, body=BODY)
    for cut in range(0, len(whole), 7):
        assert target.talk(whole[:cut], half_close=True).closed


async def test_a_body_that_never_ends(service: Service) -> None:
    """A body that is incomplete, too slow, or badly chunked after a pause is 408 when its time is up."""
    declared = request_bytes("POST /revoke HTTP/1.1", JSON, "Content-Length: 200")
    chunked = request_bytes("POST /check HTTP/1.1", JSON, CHUNKED)
    slow = {
        "nothing": (declared, b"{"),
        "byte by byte": (declared, *([b"x"] * 150)),
        "chunk by chunk": (chunked, *([b"1\r\n \r\n"] * 150)),
        "a bad chunk after a while": (chunked, b"ZZ\r\n{}\r\n0\r\n\r\n"),
    }
    began = time.monotonic()
    answers = await asyncio.gather(*(talk(service, *pieces) for pieces in slow.values()))
    assert BODY_SECONDS - 1 < time.monotonic() - began < BODY_SECONDS + 10
    for name, raw in zip(slow, answers, strict=True):
        assert raw.statuses == [408], name


@given(sent=st.binary(max_size=200))
@fuzzed
def test_any_bytes(running: Target, sent: bytes) -> None:
    """Any bytes get a closed connection or a response, and every response is 4xx."""
    raw = running.talk(sent + b"\r\n\r\n", half_close=True)
    assert raw.closed or raw.statuses
    assert all(400 <= status < 500 for status in raw.statuses)


@given(
    at=st.integers(min_value=0),
    cut=st.integers(min_value=0, max_value=8),
    put=st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\r\n\r\n", b"\x00", b" ", b"\t", b"%", b"\r", b"\n", b":"]),
)
@fuzzed
def test_any_damage(running: Target, at: int, cut: int, put: bytes) -> None:
    """A request with some bytes replaced gets only responses below 500, and the connection closes."""
    whole = running.request("POST /check", JSON, "X-Request-ID: a", body=b'{"jti":"a"}')
    at %= len(whole)
    raw = running.talk(whole[:at] + put + whole[at + cut :], answers=9, half_close=True)
    assert raw.closed
    assert all(status < 500 for status in raw.statuses)


async def test_a_trailer_is_no_header_of_the_next_request(service: Service) -> None:
    """A key in the trailers of a chunked body does not authorize the next request on the connection."""
    trailed = request_bytes(
        "POST /check HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked", key=None
    )
    trailed += b'b\r\n{"jti":"a"}\r\n0\r\nAuthorization: Bearer %b\r\n\r\n' % KEYS["ops"].encode()
    raw = await talk(service, trailed, request_bytes("GET /check?jti=a HTTP/1.1", key=None), answers=2)
    assert raw.statuses == [401]
    assert raw.closed
