"""The connections of the service: what goes aiohttp's own way and what does not looks the same from outside."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import uvloop
from aiohttp import web
from structlog.testing import capture_logs

from revocation_service.telemetry import Metrics
from revocation_service.traffic import Traffic
from revocation_service.web.answering import Answering, for_aiohttp
from revocation_service.web.answers import Answer
from revocation_service.web.connection import ROUTES, Route, Runner
from tests.web.serving import request_bytes, talk_to

HOST = "127.0.0.1"
JSON = "Content-Type: application/json"


@dataclass
class Served:
    """A server with one route, `/asked`, that answers with the query and the body, when it may."""

    runner: Runner
    begun: list[str] = field(default_factory=list)
    """The queries that the handler has seen, in order."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    by_aiohttp: int = 0
    """How many requests that the handler has seen went aiohttp's own way, which gives each a writer."""

    @property
    def port(self) -> int:
        port: int = self.runner.addresses[0][1]
        return port

    @property
    def counted(self) -> int:
        """How many requests the server says that it had."""
        assert isinstance(self.runner.server, web.Server)
        return self.runner.server.requests_count

    async def asked(self, request: web.Request) -> Answer:
        """The handler."""
        self.begun.append(request.query_string)
        self.by_aiohttp += request.writer is not None
        await self.may_answer.wait()
        body = await request.content.read()
        return Answer(f"{request.query_string}|".encode() + body, headers={"X-More": "told"})

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of a client."""
        return await asyncio.open_connection(HOST, self.port)


@asynccontextmanager
async def served(*, keepalive_seconds: float = 75, fixed: Answer | None = None) -> AsyncIterator[Served]:
    """It runs, over connections as the service has them."""
    app = web.Application()
    one = Served(Runner(app, access_log=None, keepalive_timeout=keepalive_seconds, shutdown_timeout=5))
    one.may_answer.set()
    answering = Answering(Metrics(), Traffic(), protected=False, log_all=False)

    async def handler(request: web.Request) -> Answer:
        return replace(fixed) if fixed else await one.asked(request)

    table = {}
    for method in ("GET", "POST"):
        answered = answering.of(method, "/asked", handler)
        route = app.router.add_route(method, "/asked", for_aiohttp(answered))
        table[method, "/asked"] = Route.of(app, route, answered)
    app[ROUTES] = table
    await one.runner.setup()
    await web.TCPSite(one.runner, HOST, 0).start()
    try:
        yield one
    finally:
        one.may_answer.set()
        await one.runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the event loop will bring."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


USUAL = request_bytes("POST /asked?a=1 HTTP/1.1", JSON, "X-Request-ID: one", body=b"{}")
UNUSUAL = {
    "it comes in two pieces": [USUAL[:-1], USUAL[-1:]],
    "it asks before it sends": [
        request_bytes("POST /asked?a=1 HTTP/1.1", JSON, "X-Request-ID: one", "Expect: 100-continue", body=b"{}")
    ],
    "another came with it": [USUAL + USUAL],
    "its connection ends with it": [
        request_bytes("POST /asked?a=1 HTTP/1.1", JSON, "X-Request-ID: one", "Connection: close", body=b"{}")
    ],
    "it comes in chunks": [
        request_bytes("POST /asked?a=1 HTTP/1.1", JSON, "X-Request-ID: one", "Transfer-Encoding: chunked")
        + b"2\r\n{}\r\n0\r\n\r\n"
    ],
    "it is of HTTP/1.0": [request_bytes("POST /asked?a=1 HTTP/1.0", JSON, "X-Request-ID: one", body=b"{}")],
    "it would keep HTTP/1.0": [
        request_bytes("POST /asked?a=1 HTTP/1.0", JSON, "X-Request-ID: one", "Connection: keep-alive", body=b"{}")
    ],
    "its path is written otherwise": [
        request_bytes("POST /%61sked?a=1 HTTP/1.1", JSON, "X-Request-ID: one", body=b"{}")
    ],
}


def said(answer: bytes) -> tuple[bytes, set[bytes], bytes]:
    """Status, headers but those of the moment and of the connection, and body, of the first answer."""
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    kept = {header for header in headers if not header.startswith((b"Connection:", b"Date:"))}
    return line.partition(b" ")[2], kept, body[: len(b"a=1|{}")]


async def test_a_request_that_is_whole_and_alone_is_answered_without_aiohttps_loop() -> None:
    """Neither its router nor its second task: both cost more than a check."""
    async with served() as server:
        for _ in range(2):
            raw = await talk_to(HOST, server.port, USUAL)
            assert (raw.statuses, raw.closed) == ([200], False)
        assert server.by_aiohttp == 0


def test_the_first_request_of_a_connection_is_no_exception() -> None:
    """Nor where it was there before the server came round to the connection, as on a busy machine; as it is served."""

    async def asked_at_once() -> int:
        async with served() as server:
            with ExitStack() as stack:
                for _ in range(8):  # all this while the server's loop has no turn
                    stack.enter_context(socket.create_connection((HOST, server.port))).sendall(USUAL)
                await until(lambda: len(server.begun) == 8)
            return server.by_aiohttp

    assert uvloop.run(asked_at_once()) == 0


@pytest.mark.parametrize("pieces", UNUSUAL.values(), ids=list(UNUSUAL))
async def test_every_other_request_goes_aiohttps_way_and_is_told_the_same(pieces: list[bytes]) -> None:
    """Status, headers and body are the same, whatever is unusual about the request."""
    async with served() as server:
        usual = await talk_to(HOST, server.port, USUAL)
        assert server.by_aiohttp == 0
        unusual = await talk_to(HOST, server.port, *pieces)
        assert said(unusual.data) == said(usual.data)
        assert said(usual.data)[2] == b"a=1|{}"
        assert server.by_aiohttp >= 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"{}", 401, headers={"WWW-Authenticate": 'Bearer realm="x"'}),
        Answer(b"{}", 413, "application/problem+json"),
        Answer(b"{}", 503, headers={"Retry-After": "1", "X-More": "told"}),
        Answer(b""),
    ],
    ids=lambda answer: str(answer.status),
)
async def test_whatever_is_answered_is_told_the_same_either_way(answer: Answer) -> None:
    """Each status, with its own headers, and without a body."""
    async with served(fixed=answer) as server:
        usual, unusual = (
            await talk_to(HOST, server.port, USUAL),
            await talk_to(HOST, server.port, USUAL[:-1], USUAL[-1:]),
        )
        assert said(usual.data) == said(unusual.data)
        assert usual.statuses == [answer.status]


async def test_a_connection_goes_on_after_either_way() -> None:
    """One connection, ways in turn: each request has its answer, in order."""
    async with served() as server:
        raw = await talk_to(HOST, server.port, USUAL, USUAL[:-1], USUAL[-1:], USUAL, USUAL + USUAL, USUAL, answers=6)
        assert raw.statuses == [200] * 6
        assert server.by_aiohttp == 3
        assert server.counted == 6  # what gunicorn's max_requests goes by


async def test_who_asks_again_before_the_answer_waits_for_his_turn() -> None:
    """The second request of a connection is not begun before the first is answered; a third joins them in order."""
    async with served() as server:
        server.may_answer.clear()
        reader, writer = await server.open()
        for number in (1, 2, 3):
            writer.write(request_bytes(f"GET /asked?n={number} HTTP/1.1"))
            await writer.drain()
            await until(lambda: server.begun == ["n=1"])
        server.may_answer.set()
        received = b""
        while received.count(b"|") < 3:
            received += await reader.read(1 << 16)
        assert server.begun == ["n=1", "n=2", "n=3"]
        assert [received.find(f"n={number}|".encode()) for number in (1, 2, 3)] == sorted(
            received.find(f"n={number}|".encode()) for number in (1, 2, 3)
        )
        writer.close()


async def test_who_leaves_before_the_answer_leaves_nothing_behind() -> None:
    """The handler ends, nothing is written to nobody, and the server knows the connection no more."""
    async with served() as server:
        server.may_answer.clear()
        _, writer = await server.open()
        writer.write(USUAL)
        await until(lambda: server.begun == ["a=1"])
        writer.close()
        assert isinstance(server.runner.server, web.Server)
        connections = server.runner.server.connections
        await until(lambda: not server.runner.server.connections)  # type: ignore[union-attr]
        with capture_logs() as logged:
            server.may_answer.set()
            await until(lambda: not [task for task in asyncio.all_tasks() if "_Connection" in repr(task.get_coro())])
        assert (len(connections), [event["event"] for event in logged]) == (1, ["request"])


async def test_an_answer_under_way_is_finished_before_the_end() -> None:
    """A server that closes waits for it, as for those of aiohttp."""
    async with served() as server:
        server.may_answer.clear()
        reader, writer = await server.open()
        writer.write(USUAL)
        await until(lambda: server.begun == ["a=1"])
        closing = asyncio.create_task(server.runner.cleanup())
        await until(lambda: not server.runner.addresses)
        assert not closing.done()
        server.may_answer.set()
        received = await reader.read()
        await closing
        assert received.endswith(b"a=1|{}")
        writer.close()


async def test_a_connection_that_asks_nothing_more_is_closed_in_time() -> None:
    """Counted from the last request: one that came short of the end puts the end off."""
    loop = asyncio.get_running_loop()
    async with served(keepalive_seconds=2) as server:
        reader, writer = await server.open()
        for wait in (1.2, 0):
            asked_at = loop.time()
            writer.write(USUAL)
            assert (await reader.readuntil(b"a=1|{}")).startswith(b"HTTP/1.1 200 OK\r\n")
            await asyncio.sleep(wait)
        assert await reader.read() == b""
        assert loop.time() - asked_at >= 1.9
        assert server.by_aiohttp == 0
        writer.close()


async def test_an_answer_that_cannot_be_written_ends_its_connection() -> None:
    """Nobody waits for ever for what went wrong behind the handlers; it is logged."""
    with capture_logs():
        async with served(fixed=Answer(b"", headers={"X-More": "\N{SNOWMAN}"})) as server:
            raw = await talk_to(HOST, server.port, USUAL)
    assert (raw.data, raw.closed) == (b"", True)
