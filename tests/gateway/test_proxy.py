"""What the gateway sends to the upstream, and what the client gets if either side fails."""

import asyncio
from typing import Final

import pytest

from revocation_service.gateway.app import ADMIN
from revocation_service.http.probes import EXPOSITION
from tests.gateway.serving import (
    OK,
    BareUpstream,
    Gateway,
    Visit,
    answering,
    answers_ok,
    bare_upstream,
    fields_named,
    gateway_before,
    head_of,
)
from tests.redis_processes import HOST, WAIT_SECONDS, eventually, free_port

GET: Final = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
FORWARDING: Final = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded")


def get(target: str = "/", *fields: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: h", *fields, "", ""]).encode("latin-1")


def sample(gateway: Gateway, name: str) -> float:
    lines = gateway.app[ADMIN][EXPOSITION]().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        (target, target)
        for target in (
            "/",
            "/a?b?c&&=",
            "//a//b/",
            "/./a/../b/..",
            "/%2F/%2e%2e/%zz%",
            "/;a=b;c",
            "/a:b@c,d!$'()*+~",
            '/"<>\\^`{|}[]',
            "//evil.example/x",
            "/http://evil.example/",
        )
    ]
    + [
        ("http://evil.example:99/a//b?c", "/a//b?c"),
        ("HTTPS://evil.example/", "/"),
        ("http://127.0.0.1:1/%2F", "/%2F"),
    ],
)
async def test_the_target_goes_on_unchanged(target: str, sent: str) -> None:
    """The target reaches the configured upstream in origin form, and otherwise as it was spelled."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        assert (await gateway.talk(get(target))).statuses == [200]
        assert head_of(upstream.received)[0] == f"GET {sent} HTTP/1.1"


async def test_an_empty_query_and_the_asterisk_form_do_not_pass() -> None:
    """The `?` of an empty query is dropped and `OPTIONS *` gets 400, as aiohttp's client can send neither."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        assert (await gateway.talk(get("/a?"))).statuses == [200]
        assert head_of(upstream.received)[0] == "GET /a HTTP/1.1"
        assert (await gateway.talk(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")).statuses == [400]
        assert upstream.requests == 1


async def test_the_host_is_the_clients_and_chooses_no_upstream() -> None:
    """Host is passed on and selects no upstream. An absolute target's host replaces it (RFC 9112 section 3.2.2)."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        await gateway.talk(b"GET / HTTP/1.1\r\nHost: api.example:8443\r\n\r\n")
        assert fields_named(upstream.received, "host") == [("host", "api.example:8443")]
        await gateway.talk(b"GET http://other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n")
        second = b"GET " + upstream.received.split(b"GET ")[2]
        assert fields_named(second, "host") == [("host", "other.example")]


async def test_repeated_fields_stay_repeated_and_in_order() -> None:
    """Repeated fields keep their order in both directions. Values that are not UTF-8 are converted from Latin-1."""
    sent = b"Set-Cookie: a=1\r\nX-Odd: caf\xe9\x01\r\nSet-Cookie: b=2; Path=/\r\nX-Empty:\r\n"
    sent += b"X-UTF-8: caf\xc3\xa9\r\n"
    odd = answering(b"HTTP/1.1 299 Caf\xe9 ok\r\n" + sent + b"Content-Length: 0\r\n\r\n")
    async with bare_upstream(odd) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(get("/", "X-Odd: \xe9", "Cookie: a=1", "X-Odd: 2", "Cookie: b=2", "X-Empty:"))
        assert fields_named(upstream.received, "x-odd", "cookie", "x-empty") == [
            ("x-odd", "\xc3\xa9"),
            ("cookie", "a=1"),
            ("x-odd", "2"),
            ("cookie", "b=2"),
            ("x-empty", ""),
        ]
        line, fields = head_of(raw.data)
        assert line == "HTTP/1.1 299 Caf\xc3\xa9 ok"
        assert fields[:5] == [
            ("Set-Cookie", "a=1"),
            ("X-Odd", "caf\xc3\xa9"),
            ("Set-Cookie", "b=2; Path=/"),
            ("X-Empty", ""),
            ("X-UTF-8", "caf\xc3\xa9"),
        ]
        assert {name for name, _ in fields[5:]} == {"Content-Length", "Date", "X-Request-ID"}


async def test_a_request_gets_no_fields_that_clients_set() -> None:
    """The gateway adds no Accept, Accept-Encoding, User-Agent or Content-Type to a request."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        await gateway.talk(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n")
        names = {name for name, _ in head_of(upstream.received)[1]}
        own = {"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP", "Via", "X-Request-ID"}
        assert names == {"Host", "Content-Length", *own}


async def test_a_response_gets_no_type_and_no_server() -> None:
    """The gateway adds neither Content-Type nor Server to a response that has none."""
    untyped = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
    async with bare_upstream(untyped) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(GET)
        assert raw.headers.keys() == {"Content-Length", "Date", "X-Request-ID"}


async def test_hop_by_hop_fields_stay_behind() -> None:
    """Hop-by-hop fields (RFC 9110 section 7.6.1) and fields that Connection names are dropped in both directions."""
    fields = ["Connection: close, X-Private", "X-Private: 1", "Keep-Alive: 5", "TE: trailers", "Trailer: X-T"]
    fields += ["Proxy-Authorization: x", "Proxy-Connection: x", "Upgrade: h2c", "Proxy: http://evil", "X-Kept: 1"]

    more = b"Connection: X-Private\r\nX-Private: 1\r\nKeep-Alive: 5\r\nTrailer: X-T\r\nProxy-Authenticate: x\r\n"
    body = b"2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
    hops = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Kept: 1\r\n" + more + b"\r\n" + body)
    async with bare_upstream(hops) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(get("/", *fields), answers=2)
        kept = {name.lower() for name, _ in head_of(upstream.received)[1]}
        assert kept == {"host", "x-kept", "via", "x-request-id", *FORWARDING} - {"forwarded"}
        assert {name.lower() for name, _ in head_of(raw.data)[1]} == {
            "x-kept",
            "transfer-encoding",
            "connection",
            "date",
            "x-request-id",
        }
        assert raw.data.endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "the trailer stays behind"


@pytest.mark.parametrize("name", ["Content-Length", "Host", "X-Forwarded-For", "Via", "X-Request-ID"])
async def test_connection_cannot_take_away_what_the_gateway_says(name: str) -> None:
    """The upstream gets the fields that the gateway sets even if the client names them in Connection."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        request = f"POST / HTTP/1.1\r\nHost: h\r\nConnection: {name}\r\nContent-Length: 3\r\n\r\nabc"
        await gateway.talk(request.encode())
        assert len(fields_named(upstream.received, name.lower())) == 1


async def test_a_strangers_forwarding_fields_are_replaced() -> None:
    """Forwarding fields of a peer that is not a trusted proxy are replaced or dropped."""
    told = ["X-Forwarded-For: 6.6.6.6", "x-forwarded-for: 7.7.7.7", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6"]
    told += ["X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil"]
    told += ["True-Client-IP: 6.6.6.6", "CF-Connecting-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6", "X-Original-URL: /evil"]
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        await gateway.talk(get("/", *told))
        assert b"6.6.6.6" not in upstream.received
        assert b"7.7.7.7" not in upstream.received
        assert b"evil" not in upstream.received
        assert fields_named(upstream.received, *FORWARDING) == [
            ("x-forwarded-for", HOST),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "h"),
            ("x-real-ip", HOST),
        ]


async def test_a_trusted_proxys_word_is_passed_on() -> None:
    """A trusted proxy's fields are kept, but X-Forwarded-For gets its address added, and X-Real-IP is replaced."""
    told = ["X-Forwarded-For: 6.6.6.6, 10.1.1.1", "X-Forwarded-For: 127.0.0.9", "Forwarded: for=6.6.6.6;proto=https"]
    told += ["X-Forwarded-Proto: https", "X-Forwarded-Host: api.example", "X-Forwarded-Port: 443", "X-Real-IP: 9.9.9.9"]
    async with (
        bare_upstream() as upstream,
        gateway_before(upstream.url, TRUSTED_PROXIES="127.0.0.0/8") as gateway,
    ):
        await gateway.talk(get("/", *told))
        assert sorted(fields_named(upstream.received, *FORWARDING, "x-forwarded-port")) == [
            ("forwarded", "for=6.6.6.6;proto=https"),
            ("x-forwarded-for", "6.6.6.6, 10.1.1.1, 127.0.0.9, 127.0.0.1"),
            ("x-forwarded-host", "api.example"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "10.1.1.1"),
        ]


async def test_the_request_id_goes_both_ways() -> None:
    """A valid X-Request-ID is kept and an invalid one replaced. Both sides get the same one, and Via is added."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(get("/", "X-Request-ID: abc-1", "Via: 1.0 front"))
        assert raw.headers["X-Request-ID"] == "abc-1"
        assert fields_named(upstream.received, "x-request-id", "via") == [
            ("via", "1.0 front"),
            ("via", "1.1 revocation-gateway"),
            ("x-request-id", "abc-1"),
        ]
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(get("/", "X-Request-ID: a b", "X-Request-ID: c"))
        assert fields_named(upstream.received, "x-request-id") == [("x-request-id", raw.headers["X-Request-ID"])]
        assert raw.headers["X-Request-ID"] not in {"a b", "c", ""}


async def test_an_http_1_0_client_gets_the_end_of_the_connection() -> None:
    """An HTTP/1.0 client gets a chunked response without chunks, and the end of the connection ends the body."""
    chunks = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    async with bare_upstream(chunks) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(get(version="1.0"), answers=2)
        assert raw.data.startswith(b"HTTP/1.0 200 OK\r\n")
        assert raw.data.endswith(b"\r\n\r\nok")
        assert raw.closed
        assert "Transfer-Encoding" not in raw.headers


async def test_expect_is_answered_by_the_gateway() -> None:
    """The gateway itself answers `Expect: 100-continue` with 100, and any other expectation with 417."""
    whole = answering(OK, b"\r\n\r\nabc")
    async with bare_upstream(whole) as upstream, gateway_before(upstream.url) as gateway:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        raw = await gateway.talk(head, b"abc")
        assert raw.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert upstream.received.endswith(b"\r\n\r\nabc")
        assert b"xpect" not in upstream.received
        assert (await gateway.talk(get("/", "Expect: wonders"))).statuses == [417]


async def test_interim_responses_stay_behind() -> None:
    """The responses 100 and 103 are not passed on. The response after them is."""
    hints = answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
    async with bare_upstream(hints) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(GET)
        assert raw.data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert raw.data.endswith(b"ok")


async def test_an_upstream_that_is_down_is_502() -> None:
    """If the upstream is down, each request gets a 502 problem without the upstream's address. A metric counts it."""
    async with gateway_before(f"http://{HOST}:{free_port()}") as gateway:
        raw = await gateway.talk(GET + GET, answers=2)
        assert raw.statuses == [502, 502]
        assert raw.headers["Content-Type"] == "application/problem+json"
        assert b'"code":"bad_gateway"' in raw.data
        assert HOST.encode() not in raw.data
        assert sample(gateway, 'gateway_upstream_failures_total{status="502"}') == 2


async def closes_at_once(visit: Visit) -> None:
    """Read a request head, and close the connection."""
    await visit.until(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_is_not_idempotent_is_never_sent_twice(method: str) -> None:
    """A POST or PATCH is not retried if the upstream closes a new or a kept connection without a response."""

    async def answers_once(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        if upstream.visits.index(visit) == 0:
            await visit.send(OK)
            await visit.until(b"second")

    request = f"{method} /second HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc".encode()
    async with bare_upstream(answers_once) as upstream, gateway_before(upstream.url) as gateway:
        assert (await gateway.talk(GET)).statuses == [200]
        assert (await gateway.talk(request)).statuses == [502]
        assert len(upstream.visits) == 1, "the kept connection was used"
        assert (await gateway.talk(request)).statuses == [502]
        assert len(upstream.visits) == 2
        assert upstream.received.count(b"/second") == 2


async def test_a_body_is_never_sent_twice() -> None:
    """A PUT with a body is not retried if the upstream closes the connection without a response."""
    async with bare_upstream(closes_at_once) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
        assert raw.statuses == [502]
        assert upstream.requests == 1


async def test_connections_to_the_upstream_are_kept_and_not_too_long() -> None:
    """Successive requests share one connection to the upstream. The gateway closes it after it was idle for a while."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        for _ in range(5):
            assert (await gateway.talk(GET)).statuses == [200]
        assert len(upstream.visits) == 1
        visit = upstream.visits[0]

        async with asyncio.timeout(WAIT_SECONDS):
            await visit.over.wait()
        assert (await gateway.talk(GET)).statuses == [200]
        assert len(upstream.visits) == 2


async def test_a_kept_connection_that_died_is_not_used() -> None:
    """Requests succeed even if the upstream closes the connection after each response without `Connection: close`."""

    async def one_each(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(OK)

    async with bare_upstream(one_each) as upstream, gateway_before(upstream.url) as gateway:
        for number in range(5):
            assert (await gateway.talk(GET)).statuses == [200]
            await upstream.visits[number].writer.wait_closed()


NO_HTTP = {
    "nonsense": b"nonsense\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two kinds of framing": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab",
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "a switch that was not asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "a head too large": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_an_answer_that_is_no_http_is_502(name: str) -> None:
    """If the upstream's response is malformed, or is a 101 that was not asked for, the client gets 502."""

    async def answers(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(NO_HTTP[name])

    async with bare_upstream(answers) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(GET)
        assert raw.statuses == [502]
        assert b'"code":"bad_gateway"' in raw.data


BROKEN = {
    "too little of a length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "too few chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_answer_stays_broken(name: str) -> None:
    """If the upstream's response ends too early, so does the client's, without a proper end. The failure is counted."""

    async def answers(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(BROKEN[name])

    async with bare_upstream(answers) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(GET, answers=2)
        assert raw.closed
        assert raw.data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert not raw.data.endswith(b"0\r\n\r\n")
        assert len(raw.data.partition(b"\r\n\r\n")[2]) < 10
        assert sample(gateway, "gateway_broken_answers_total") == 1


async def test_a_client_that_leaves_takes_its_request_with_it() -> None:
    """If a client disconnects while it waits, downloads or uploads, the upstream's connection ends."""

    async def starts(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        if b"/stream" in visit.received:
            await visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await visit.to_the_end()

    upload = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc"
    async with bare_upstream(starts) as upstream, gateway_before(upstream.url) as gateway:
        for number, request in enumerate([GET, get("/stream"), upload]):
            _, writer = await asyncio.open_connection(HOST, gateway.port)
            writer.write(request)
            await eventually(lambda wanted=number: _has_head(upstream, wanted), "the request")  # type: ignore[misc]
            writer.close()
            async with asyncio.timeout(WAIT_SECONDS):
                await upstream.visits[number].over.wait()
        await eventually(lambda: _none_in_flight(gateway), "the end of the requests")


async def _has_head(upstream: BareUpstream, number: int) -> bool:
    return len(upstream.visits) > number and b"\r\n\r\n" in upstream.visits[number].received


async def _none_in_flight(gateway: Gateway) -> bool:
    return sample(gateway, "gateway_requests_in_flight") == 0


async def never_answers(visit: Visit) -> None:
    """Read to the end, and send nothing."""
    await visit.to_the_end()


async def test_an_upstream_that_is_slow_is_504() -> None:
    """If no response head comes in time, the client gets a 504 problem, and the upstream's connection ends."""
    async with (
        bare_upstream(never_answers) as upstream,
        gateway_before(upstream.url, RESPONSE_TIMEOUT_SECONDS="0.3") as gateway,
    ):
        raw = await gateway.talk(GET)
        assert raw.statuses == [504]
        assert b'"code":"gateway_timeout"' in raw.data
        async with asyncio.timeout(WAIT_SECONDS):
            await upstream.visits[0].over.wait()


async def test_the_time_for_an_answer_begins_after_the_request() -> None:
    """The response timeout begins after the upload: an upload that takes longer than the timeout succeeds."""
    whole = answering(OK, b"end")
    async with (
        bare_upstream(whole) as upstream,
        gateway_before(upstream.url, RESPONSE_TIMEOUT_SECONDS="0.3") as gateway,
    ):
        pieces = [b"x" * 97] + [b""] * 10 + [b"end"]
        raw = await gateway.talk(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n", *pieces)
        assert raw.statuses == [200]


async def test_a_client_that_stops_its_body_is_408() -> None:
    """If the client stops sending its body, it gets 408, and the upstream's connection ends."""
    async with (
        bare_upstream(never_answers) as upstream,
        gateway_before(upstream.url, IDLE_TIMEOUT_SECONDS="0.3") as gateway,
    ):
        raw = await gateway.talk(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        assert raw.statuses == [408]
        async with asyncio.timeout(WAIT_SECONDS):
            await upstream.visits[0].over.wait()


async def test_an_upstream_that_stops_reading_is_504() -> None:
    """If the upstream does not read an upload, the client gets 504."""

    async def never_reads(visit: Visit) -> None:
        await visit.over.wait()

    async with (
        bare_upstream(never_reads) as upstream,
        gateway_before(upstream.url, IDLE_TIMEOUT_SECONDS="0.3") as gateway,
    ):
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 30_000_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 504 ")
        writer.transport.abort()


async def test_an_answer_that_stalls_is_broken_off() -> None:
    """If the upstream stalls in the middle of a response, the client's connection is closed."""
    stalls = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    async with bare_upstream(stalls) as upstream, gateway_before(upstream.url, IDLE_TIMEOUT_SECONDS="0.3") as gateway:
        raw = await gateway.talk(GET)
        assert raw.closed
        assert raw.data.endswith(b"\r\n\r\nabc")


async def test_an_answer_may_come_before_the_body_is_sent() -> None:
    """A response in the middle of an upload reaches the client at once, and the upstream's connection ends."""
    refuses = answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    async with bare_upstream(refuses) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc", seconds=5)
        assert raw.statuses == [413]
        assert raw.data.endswith(b"\r\n\r\nno")
        async with asyncio.timeout(WAIT_SECONDS):
            await upstream.visits[0].over.wait()


async def test_an_upload_goes_on_after_its_answer_has_begun() -> None:
    """What a client sends after it has received the head of the response still reaches the upstream."""

    async def answers_early(visit: Visit) -> None:
        await visit.until(b"\r\n\r\nabc")
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await visit.until(b"end")
        await visit.send(b"ok")
        await visit.to_the_end()

    async with bare_upstream(answers_early) as upstream, gateway_before(upstream.url) as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc")
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"end")
            assert await reader.readexactly(2) == b"ok"
        writer.close()


async def test_a_large_field_of_the_upstream_passes() -> None:
    """The upstream may send a field of 30,000 bytes, such as a long policy, although clients may not."""
    large = answering(b"HTTP/1.1 200 OK\r\nX-Policy: " + b"x" * 30_000 + b"\r\nContent-Length: 0\r\n\r\n")
    async with bare_upstream(large) as upstream, gateway_before(upstream.url) as gateway:
        assert (await gateway.talk(GET)).headers["X-Policy"] == "x" * 30_000


async def test_responses_to_logins_carry_the_counts_also_those_of_the_gateway() -> None:
    """A response to a login has rate limit fields, even a 502 of the gateway. Other responses have none."""
    async with bare_upstream(answers_ok) as upstream, gateway_before(upstream.url) as gateway:
        login = b"POST /auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        assert (await gateway.talk(login)).headers["X-RateLimit-Remaining"] == "4"
        assert "X-RateLimit-Limit" not in (await gateway.talk(GET)).headers
    async with gateway_before(f"http://{HOST}:{free_port()}") as gateway:
        raw = await gateway.talk(login)
        assert (raw.statuses, raw.headers["X-RateLimit-Remaining"]) == ([502], "4")
