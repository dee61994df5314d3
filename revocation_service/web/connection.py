"""aiohttp's own side of a connection, where its way is longer than ours, or tells too much.

A request that is whole, and alone on its connection, is answered by one task, and in one piece: aiohttp's way, by its
router, a second task and a response of its own, costs more than all that a check needs (docs/decisions/14). All others
go that way. What never reaches a handler of ours is answered like every other failure: what the parser refuses, an
expectation that nobody knows, a target that no route can have.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final, NamedTuple

from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from revocation_service.web.answering import Handler, begin
from revocation_service.web.answers import Answer
from revocation_service.web.problems import http_problem, internal_problem


class Route(NamedTuple):
    """A route whose handler needs no more than the request, and what aiohttp's router would find for it."""

    handler: Handler
    match_info: web.UrlMappingMatchInfo

    @classmethod
    def of(cls, app: web.Application, route: web.AbstractRoute, handler: Handler) -> "Route":
        """The same for each of its requests, so that it is made once."""
        match_info = web.UrlMappingMatchInfo({}, route)
        match_info.add_app(app)
        match_info.freeze()
        return cls(handler, match_info)


Routes = Mapping[tuple[str, str], Route]
"""By method and path, exactly as a request writes it."""

ROUTES: Final[web.AppKey[Routes]] = web.AppKey("routes")


class Runner(web.AppRunner):
    """Serves an application over connections of this kind."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # the application makes it, and knows no other way to be told of its kind
        assert isinstance(server, _Server)
        server.routes = self.app[ROUTES]
        return server


class _Server(web.Server):
    routes: Routes

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ("_answering", "_early", "_routes")

    def __init__(self, server: _Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._routes = server.routes
        self._answering: asyncio.Task[None] | None = None
        self._early: bytearray | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; below Python 3.12 aiohttp's loop begins a turn later, and would take what comes before that."""
        super().connection_made(transport)
        if self._waiter is None:
            self._early = bytearray()
            self._loop.call_soon(self._loop_begun)

    def _loop_begun(self) -> None:
        early, self._early = self._early, None
        if early:
            self.data_received(bytes(early))

    def data_received(self, data: bytes) -> None:
        """Take what came. aiohttp only queues the requests in it: its own loop must not wake before we looked."""
        if self._early is not None:
            self._early += data
            return
        waiter, self._waiter = self._waiter, None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if self._messages and self._answering is None:
            self._go_on()

    def _go_on(self) -> None:
        """Answer what is queued, here or in aiohttp's loop; where that is busy, it will see for itself."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        message, payload = self._messages[0]
        route = self._direct_route(message, payload)
        if route is None:
            waiter.set_result(None)
            return
        self._messages.popleft()
        assert self._parser is not None, "the connection is open, or nobody would wait"
        assert self._manager is not None
        self._parser.message_consumed()
        self._manager.requests_count += 1  # gunicorn's max_requests goes by it
        self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
        request = web.Request(message, payload, self, None, self._task_handler, self._loop)  # type: ignore[arg-type]
        request._match_info = route.match_info
        self._answering = self._loop.create_task(self._answer(request, route.handler))

    def _direct_route(self, message: object, payload: StreamReader) -> Route | None:
        """The route of a request that can be answered here: all of it is there, and it wants nothing but an answer."""
        if (
            len(self._messages) > 1
            or not isinstance(message, RawRequestMessage)
            or message.version != HttpVersion11
            or message.should_close
            or message.upgrade
            or message.chunked
            or not (payload is EMPTY_PAYLOAD or payload.is_eof())
            or self._paused
            or self._reading_paused
            or hdrs.EXPECT in message.headers
        ):
            return None
        return self._routes.get((message.method, message.path.partition("?")[0]))

    async def _answer(self, request: web.Request, handler: Handler) -> None:
        try:
            self._write(await handler(request))
        except Exception as error:  # noqa: BLE001 - as aiohttp: whatever it is, nobody may wait for an answer
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
        finally:
            self._answering = None
        if self._messages:
            self._go_on()

    def _write(self, answer: Answer) -> None:
        if self.transport is None:
            return
        self.transport.write(answer.encoded())
        if answer.last:
            self.force_close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """End as aiohttp does, which does not know of the answer under way."""
        if self._answering is not None:
            _, late = await asyncio.wait({self._answering}, timeout=timeout)
            for task in late:
                task.cancel()
                await asyncio.wait({task})
        await super().shutdown(timeout)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What came was no HTTP; aiohttp's own message would quote it, and with it a token or a key."""
        current = begin(request)
        super().handle_error(request, status, exc)
        answer = internal_problem() if status >= 500 else http_problem(web.HTTPBadRequest(), "this is not valid HTTP")
        answer.request_id, answer.last = current, True
        return answer.response()

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """An answer of aiohttp's own becomes a problem."""
        if isinstance(resp, web.HTTPException):
            current = begin(request)
            answer = http_problem(resp)
            answer.request_id = current
            resp = answer.response()
        return super().finish_response(request, resp, start_time)
