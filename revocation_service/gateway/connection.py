"""aiohttp's own side of a client's connection: what its parser refuses is answered like every other failure.

None of that reaches the upstream, and the connection ends with the answer. How many connections there are, and how much
and how long the head of a request may be, is bounded here: aiohttp bounds neither.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from revocation_service.gateway.headers import head
from revocation_service.gateway.passed import PassedAnswer
from revocation_service.gateway.problems import (
    ExpectationFailed,
    HeaderTooLarge,
    MalformedRequest,
    MethodNotImplemented,
    RequestTimeout,
    TooManyConnections,
)
from revocation_service.gateway.upstream import BUFFER_BYTES, FIELD_MAX_BYTES, FIELDS_MAX, LINE_MAX_BYTES
from revocation_service.http.problems import HttpError, problem_of
from revocation_service.telemetry import begin_request

HEAD_MAX_BYTES: Final = 1 << 16
"""Of a request's line and fields together, and of a trailer."""

PIPELINED_MAX: Final = 4
"""Requests that may wait on one connection, each with its head in memory; beyond it nothing is read."""

_PIECE_BYTES: Final = 1 << 12
"""In such pieces a head is parsed, so that what is behind the end of one is not long."""

OPTIONS: Final[dict[str, Any]] = {
    "max_line_size": LINE_MAX_BYTES,
    "max_field_size": FIELD_MAX_BYTES,
    "max_headers": FIELDS_MAX,
    "read_bufsize": BUFFER_BYTES,
}
"""How requests are read: bodies as they are, a line and a field as large as those of answers."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What clients may take of the gateway."""

    connections: int
    head_seconds: float
    """From a head's first bytes to its last."""


class Runner(web.AppRunner):
    """Serves an application over connections of this kind."""

    def __init__(self, app: web.Application, limits: ClientLimits, **options: Any) -> None:
        super().__init__(app, **options, **OPTIONS)
        self._limits = limits

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # the application makes it, and knows no other way to be told of its kind
        assert isinstance(server, _Server)
        server.limits = self._limits
        return server


class _Server(web.Server):
    limits: ClientLimits
    was_full = False

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def is_full(self) -> bool:
        """Whether no further connection is taken; the log has it once, each time that it comes to that."""
        full = len(self._connections) >= self.limits.connections
        if full and not self.was_full:
            _log.warning("too_many_connections", connections=self.limits.connections)
        self.was_full = full
        return full


class _Connection(web.RequestHandler):
    __slots__ = ("_body", "_head_bytes", "_head_timer", "_limits", "_progress", "_refused", "_server")

    def __init__(self, server: _Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._server = server
        self._limits = server.limits
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the last request whose head is there."""
        self._progress = (0, 0)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._parser = _parser(self, loop)
        self._max_msg_queue_size = PIPELINED_MAX
        self._msg_queue_resume_size = PIPELINED_MAX // 2

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve a client, if there is room for one more."""
        if not self._server.is_full():
            super().connection_made(transport)
            return
        self._refused = True
        assert isinstance(transport, asyncio.Transport)
        transport.write(_bytes_of(TooManyConnections("as many clients are connected as this gateway serves")))
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing more is waited for."""
        self._watch_head(under_way=False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, in pieces; what breaks a body is told to its reader, which would wait for ever."""
        start = 0
        while not self._refused:
            piece = data[start : start + (_PIECE_BYTES if self._body.is_eof() else BUFFER_BYTES)]
            super().data_received(piece)
            if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
                self._break_bodies()
            self._measure(len(piece))
            start += len(piece)
            if start >= len(data):
                return

    def _measure(self, size: int) -> None:
        """Count the bytes that neither completed a head nor belonged to a body: a head is under way, or a trailer."""
        if self._messages and self._request_count != self._progress[0]:
            self._body = self._messages[-1][1]
        progress = (self._request_count, self._body.total_bytes)
        if progress != self._progress:
            self._progress, self._head_bytes = progress, 0
        elif not (self._upgraded or self._reading_paused or self._buffer_paused):
            self._head_bytes += size
        self._watch_head(under_way=self._head_bytes > 0 and self._body.is_eof())
        if self._head_bytes >= HEAD_MAX_BYTES:
            self._refuse(HeaderTooLarge(f"the head of a request is at most {HEAD_MAX_BYTES >> 10} KiB"))

    def _watch_head(self, *, under_way: bool) -> None:
        if under_way and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._limits.head_seconds, self._head_is_late)
        elif not under_way and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._reading_paused or self._buffer_paused:
            self._watch_head(under_way=True)  # it is not the client that lets it wait
        else:
            self._refuse(RequestTimeout("the head of the request did not come in time"))

    def _refuse(self, error: HttpError) -> None:
        """Answer so in the request's turn, and read no more."""
        self._refused = True
        self._watch_head(under_way=False)
        self._pause_transport_reading()
        self._request_count += 1
        self._messages.append((_ErrInfo(error.status, error, error.detail), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._break_bodies()

    def _break_bodies(self) -> None:
        """Tell whoever reads a body that its rest will not come."""
        current = self._current_request
        for content in (self._body, EMPTY_PAYLOAD if current is None else current.content):
            if not content.is_eof():
                content.set_exception(web.RequestPayloadError("the body is not valid HTTP"))
                self._lingering_time = 0

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What came was no HTTP; aiohttp's own message would quote it, and its log too."""
        current = begin_request(request.headers.get("X-Request-ID"))
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way; another cannot be sent")
        answer = self._problem(status, exc)
        answer.headers["X-Request-ID"] = current
        return answer

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """What aiohttp itself refuses (a target without a path, an expectation that nobody knows) is a problem too."""
        if isinstance(resp, web.HTTPException):
            current = begin_request(request.headers.get("X-Request-ID"))
            resp = _refusal(request, resp)
            resp.headers["X-Request-ID"] = current
        if resp.status == RequestTimeout.status and not isinstance(resp, PassedAnswer):
            self._lingering_time = 0  # who does not go on is not waited for
        return super().finish_response(request, resp, start_time)

    def _problem(self, status: int, exc: BaseException | None) -> web.StreamResponse:
        if isinstance(exc, Exception) and (status >= 500 or isinstance(exc, HttpError)):
            return problem_of(exc)
        if isinstance(exc, LineTooLong):
            return problem_of(HeaderTooLarge("a line of the request's head is too long"))
        return problem_of(MalformedRequest("this is not valid HTTP"))


def _refusal(request: web.BaseRequest, refused: web.HTTPException) -> web.StreamResponse:
    if request.method == "CONNECT":
        return problem_of(MethodNotImplemented("this gateway passes on neither CONNECT nor TRACE"))
    if isinstance(refused, web.HTTPExpectationFailed):
        return problem_of(ExpectationFailed("the only expectation that is known is 100-continue"))
    return problem_of(MalformedRequest("this is no request target"))


def _parser(connection: _Connection, loop: asyncio.AbstractEventLoop) -> HttpRequestParser:
    """As aiohttp makes one, with a shorter queue behind it."""
    return HttpRequestParser(
        connection,
        loop,
        BUFFER_BYTES,
        max_line_size=LINE_MAX_BYTES,
        max_field_size=FIELD_MAX_BYTES,
        max_headers=FIELDS_MAX,
        payload_exception=web.RequestPayloadError,
        auto_decompress=False,
        max_msg_queue_size=PIPELINED_MAX,
    )


def _bytes_of(error: HttpError) -> bytes:
    """The whole answer that tells of an error, for a client that no request is read from."""
    answer = problem_of(error)
    answer.headers.update({"X-Request-ID": begin_request(None), "Retry-After": "1", "Connection": "close"})
    assert isinstance(answer.body, bytes)
    fields = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    fields.append((b"Content-Length", b"%d" % len(answer.body)))
    return head(f"HTTP/1.1 {answer.status} {answer.reason}".encode(), fields) + answer.body
