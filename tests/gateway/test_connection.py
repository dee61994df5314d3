"""What clients may take of the gateway: how large and how slow a head may be, how many connections, how much memory."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.api.serving import Raw
from tests.gateway.serving import OK, GatewayProcess, Visit, bare_upstream, gateway_before, gateway_process, head_of
from tests.redis_processes import HOST, eventually
from tests.scale import scaled

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
MEBIBYTE = 1 << 20


def fields(count: int, size: int) -> bytes:
    """So many fields of that size."""
    return b"".join(b"H%03d: %s\r\n" % (number, b"x" * (size - 8)) for number in range(count))


def problem_in(raw: Raw) -> bytes:
    assert raw.headers["Content-Type"] == "application/problem+json"
    assert raw.headers["X-Request-ID"]
    return raw.data.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "sent",
    [
        [GET + fields(150, 450) + b"\r\n"],
        [GET + fields(150, 450)],
        [GET + fields(3, 30_000) + b"\r\n"],
        [GET, fields(60, 1_000), fields(8, 1_000), b"\r\n"],
        [GET + b"\r\n" + GET + fields(160, 450) + b"\r\n"],
    ],
    ids=["whole", "without an end", "of large fields", "in pieces", "the second of two"],
)
async def test_a_head_too_large_is_431(sent: list[bytes]) -> None:
    """More than 64 KiB of head, however it is cut, is a problem, the end of the connection, and nobody else's."""
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(*sent, answers=3)
        assert raw.closed
        assert raw.statuses == [200] * (sent[0].count(b"GET ") - 1) + [431]
        assert upstream.requests == len(raw.statuses) - 1
        last = Raw(raw.data[raw.data.rindex(b"HTTP/1.") :], raw.closed)
        assert b"header_too_large" in problem_in(last)


async def test_a_head_of_63_kib_passes() -> None:
    """Up to the limit heads pass whole, many of them on one connection, also in pieces."""
    request = GET + fields(126, 510) + b"\r\n"
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(request * 3, request[:70], request[70:30_000], request[30_000:] + request, answers=5)
        assert raw.statuses == [200] * 5
        assert len(head_of(upstream.received)[1]) > 126


async def test_a_trailer_too_large_breaks_its_request() -> None:
    """What follows the last chunk is bounded as a head is: the upstream never has the request whole."""
    async with bare_upstream(Visit.to_the_end) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(CHUNKED, b"0\r\n" + fields(150, 450), fields(40, 450), answers=2, seconds=5)
        assert (raw.statuses, raw.closed) == ([400], True)
        visit = await upstream.visit()
        async with asyncio.timeout(5):
            await visit.over.wait()
        assert b"\r\n0\r\n" not in visit.received


@pytest.mark.parametrize(
    "sent",
    [[GET], [b"G"], [b"\r\n"], [GET + b"\r\n", GET]],
    ids=["half", "a letter", "an empty line", "the second of two"],
)
async def test_a_head_that_does_not_end_is_408(sent: list[bytes]) -> None:
    """From its first bytes on a head has so long; then it is a problem, and the end of the connection."""
    async with bare_upstream() as upstream, gateway_before(upstream.url, HEAD_TIMEOUT_SECONDS="0.5") as gateway:
        before = asyncio.get_running_loop().time()
        raw = await gateway.talk(*sent, answers=3, seconds=5)
        assert raw.closed
        assert raw.statuses == [200] * raw.data.count(b" 200 ") + [408]
        assert 0.4 < asyncio.get_running_loop().time() - before < 4
        last = Raw(raw.data[raw.data.rindex(b"HTTP/1.") :], raw.closed)
        assert b"request_timeout" in problem_in(last)
        assert upstream.requests == len(raw.statuses) - 1


async def test_a_head_that_comes_drop_by_drop_is_408_too() -> None:
    """What comes in between does not prolong the time that a head has."""
    async with bare_upstream() as upstream, gateway_before(upstream.url, HEAD_TIMEOUT_SECONDS="0.5") as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(GET)
        answer = asyncio.create_task(reader.readuntil(b"\r\n"))
        for drop in range(100):
            await asyncio.wait({answer}, timeout=0.1)
            if answer.done():
                break
            writer.write(b"X%d: y\r\n" % drop)
        assert b" 408 " in await answer
        writer.close()


async def test_neither_a_slow_body_nor_a_pause_is_a_late_head() -> None:
    """What has its head may take its time, and so may the next request on a kept connection."""
    async with bare_upstream() as upstream, gateway_before(upstream.url, HEAD_TIMEOUT_SECONDS="0.2") as gateway:
        drops = [b"1\r\nx\r\n"] * 8
        raw = await gateway.talk(GET + b"\r\n", *[b""] * 8, CHUNKED, *drops, b"0\r\n\r\n", answers=2)
        assert raw.statuses == [200, 200]


async def test_what_is_pipelined_behind_a_large_body_is_answered() -> None:
    """Neither an upload that has to wait, nor forty requests behind it, are taken for a head without an end."""

    async def slowly(visit: Visit) -> None:
        answered = 0
        while data := await visit.read():
            await asyncio.sleep(0)
            while answered < visit.received.count(b" HTTP/1.1\r\n") and not data.endswith(b"x"):
                answered += 1
                await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    body = b"x" * (3 * MEBIBYTE) + b"."
    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with bare_upstream(slowly) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(post + (GET + fields(10, 500) + b"\r\n") * 40, answers=41)
        assert raw.statuses == [200] * 41
        assert upstream.requests == 41


async def test_one_client_more_than_allowed_is_503() -> None:
    """It is told at once, with a time to come back; those who are in are served, and who leaves makes room."""
    async with bare_upstream() as upstream, gateway_before(upstream.url, MAX_CONNECTIONS="2") as gateway:
        streams = [await asyncio.open_connection(HOST, gateway.port) for _ in range(2)]
        for _reader, writer in streams:
            writer.write(GET + b"\r\n")
        for reader, _writer in streams:
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        raw = await gateway.talk(answers=2)
        assert (raw.statuses, raw.closed, raw.headers["Retry-After"]) == ([503], True, "1")
        assert b"too_many_connections" in problem_in(raw)
        streams[0][1].write(GET + b"\r\n")
        assert b" 200 " in await streams[0][0].readuntil(b"\r\n\r\n")
        for _reader, writer in streams:
            writer.close()
            await writer.wait_closed()

        async def served() -> bool:
            return (await gateway.talk(GET + b"\r\n")).statuses == [200]

        await eventually(served, "a place", 5)
        assert upstream.requests == 4


CLIENTS = scaled(40, 400)


@contextlib.asynccontextmanager
async def clients(gateway: GatewayProcess, sent: bytes) -> AsyncIterator[None]:
    """Many clients that send as much as is taken of them, and stay."""
    writers = []
    try:
        for _ in range(CLIENTS):
            _, writer = await asyncio.open_connection(HOST, gateway.port)
            writers.append(writer)
            with contextlib.suppress(ConnectionError):
                writer.write(sent)
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


async def _answers(gateway: GatewayProcess) -> None:
    """The gateway has come round to all that was sent before."""
    for _ in range(20):
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(GET + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    ("sent", "most"),
    [
        (GET + fields(190, 32_000), 1 * MEBIBYTE),
        ((GET + b"Wait: 1\r\n" + fields(120, 500) + b"\r\n") * 32, 2 * MEBIBYTE),
    ],
    ids=["heads without an end", "heads behind a slow answer"],
)
async def test_clients_take_little_memory(tmp_path: pathlib.Path, sent: bytes, most: int) -> None:
    """Clients that send large heads and nothing else, each as much as it can, hold a bounded amount each."""

    async def unless_told_to_wait(visit: Visit) -> None:
        while data := await visit.read():
            if data.endswith(b"\r\n\r\n") and b"Wait: 1" not in visit.received:
                await visit.send(OK)

    async with bare_upstream(unless_told_to_wait) as upstream, gateway_process(tmp_path, upstream.url) as gateway:
        await _answers(gateway)
        before = gateway.peak_memory_bytes()
        async with clients(gateway, sent):
            await _answers(gateway)
            assert gateway.peak_memory_bytes() - before < CLIENTS * most
