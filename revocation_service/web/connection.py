"""aiohttp's own side of a connection: what never reaches a handler of ours is answered like every other failure.

That is what the parser refuses, an expectation that nobody knows, and a target that no route can have.
"""

from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from revocation_service.web.answers import begin, finish
from revocation_service.web.problems import http_problem, internal_problem


class Runner(web.AppRunner):
    """Serves an application over connections of this kind."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # the application makes it, and knows no other way to be told of its kind
        return server


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

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
        response = internal_problem() if status >= 500 else http_problem(web.HTTPBadRequest(), "this is not valid HTTP")
        response.force_close()
        finish(response, current)
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """An answer of aiohttp's own becomes a problem."""
        if isinstance(resp, web.HTTPException):
            current = begin(request)
            resp = http_problem(resp)
            finish(resp, current)
        return super().finish_response(request, resp, start_time)
