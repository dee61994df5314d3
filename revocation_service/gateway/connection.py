"""aiohttp's own side of a client's connection: what its parser refuses is answered like every other failure.

None of that reaches the upstream, and the connection ends with the answer.
"""

from collections.abc import Coroutine
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import _ErrInfo

from revocation_service.gateway.problems import (
    ExpectationFailed,
    HeaderTooLarge,
    MalformedRequest,
    MethodNotImplemented,
    internal_problem,
    problem_of,
)
from revocation_service.gateway.upstream import BUFFER_BYTES, FIELD_MAX_BYTES, FIELDS_MAX, LINE_MAX_BYTES
from revocation_service.telemetry import begin_request

OPTIONS: Final[dict[str, Any]] = {
    "auto_decompress": False,
    "max_line_size": LINE_MAX_BYTES,
    "max_field_size": FIELD_MAX_BYTES,
    "max_headers": FIELDS_MAX,
    "read_bufsize": BUFFER_BYTES,
}
"""How requests are read: bodies as they are, heads as large as those of answers."""

_log = structlog.get_logger()


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

    def data_received(self, data: bytes) -> None:
        """Take what came; where it breaks a body that is being read, tell the reader, which would wait for ever."""
        super().data_received(data)
        current = self._current_request
        if current is None or not self._messages or not isinstance(self._messages[-1][0], _ErrInfo):
            return
        if not current.content.is_eof():
            current.content.set_exception(web.RequestPayloadError("the body is not valid HTTP"))

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
        return super().finish_response(request, resp, start_time)

    def _problem(self, status: int, exc: BaseException | None) -> web.StreamResponse:
        if status >= 500:
            _log.error("internal_error", error=exc)
            return internal_problem()
        if isinstance(exc, LineTooLong):
            return problem_of(HeaderTooLarge("a line of the request's head is too long"))
        return problem_of(MalformedRequest("this is not valid HTTP"))


def _refusal(request: web.BaseRequest, refused: web.HTTPException) -> web.StreamResponse:
    if request.method == "CONNECT":
        return problem_of(MethodNotImplemented("this gateway passes on neither CONNECT nor TRACE"))
    if isinstance(refused, web.HTTPExpectationFailed):
        return problem_of(ExpectationFailed("the only expectation that is known is 100-continue"))
    return problem_of(MalformedRequest("this is no request target"))
