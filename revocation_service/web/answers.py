"""The outermost layer: every answer gets its request id, every failure its problem, every request its count."""

from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from time import perf_counter, time
from typing import Final

import structlog
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE

from revocation_client.wire import WireError, dumps
from revocation_service.errors import InvalidRequest, ServiceError, Unavailable
from revocation_service.telemetry import Metrics, begin_request
from revocation_service.traffic import Traffic
from revocation_service.web.auth import admit_local
from revocation_service.web.problems import http_problem, internal_problem, problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_QUIET: Final = frozenset({"/check", "/check/batch", "/healthz", "/readyz", "/metrics"})
"""Routes that are asked all the time: their requests are logged at level debug, and counted at every level."""

_JSON: Final = {"Content-Type": "application/json"}

_log = structlog.get_logger()


def json_answer(form: object) -> web.Response:
    """A success."""
    return encoded_answer(dumps(form))


def encoded_answer(body: bytes) -> web.Response:
    """A success whose JSON is at hand."""
    return _Short(body=body, headers=_JSON)


class _Short(web.Response):
    """A success that leaves in one piece where the connection goes on: aiohttp's own way costs a sixth of a check."""

    _written = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it, or leave it to aiohttp where there is more to say than these headers."""
        goes_on = self.keep_alive is not False and request.keep_alive and request.version == HttpVersion11
        if not goes_on or request.method == "HEAD" or self.status != 200:
            return await super().prepare(request)
        if not self._written:
            self._written = True
            await request.writer.write_eof(self._whole())
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write, if it was written in one piece."""
        if not self._written:
            await super().write_eof(data)

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection goes on."""
        return self._written or super().keep_alive

    def _whole(self) -> bytes:
        body = self.body
        assert isinstance(body, bytes), "it was made of bytes"
        lines = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        return f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(body)}\r\n{_about_now()}\r\n".encode("ascii") + body


@lru_cache(maxsize=1)
def _about(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n"


def _about_now() -> str:
    return _about(int(time()))


class Answers:
    """What every answer has in common, whichever handler gives it.

    It wraps the handlers rather than being a middleware: on the path of a check, a middleware's own machinery and
    finding the route again cost more than all that is done here.
    """

    def __init__(self, metrics: Metrics, traffic: Traffic, *, protected: bool, log_all: bool) -> None:
        self._metrics = metrics
        self._traffic = traffic
        self._protected = protected
        self._log_all = log_all

    def of(self, method: str, route: str, handler: Handler) -> Handler:
        """`handler`, with its failures told as problems, its requests counted, and the common headers.

        In protected mode what is not plainly local is turned away first.
        """
        traffic, protected = self._traffic, self._protected
        logged = self._log_all or route not in _QUIET
        counts = _Counts(self._metrics, method, route)

        async def answer(request: web.Request) -> web.StreamResponse:
            started = perf_counter()
            current = begin(request)
            traffic.came()
            try:
                if protected:
                    admit_local(request)
                response = await handler(request)
            except Exception as error:  # noqa: BLE001 - every failure has its problem; what is unknown is logged, as code
                response = _failure(error)
            finally:
                traffic.went()
            if traffic.leaving or "Transfer-Encoding" in request.headers:
                # a kept connection would soon be closed under the caller's next request; and where that came in chunks,
                # aiohttp's parser would read the last of its trailers as a header of the next one
                response.force_close()
            finish(response, current)
            seconds = perf_counter() - started
            counts[response.status](seconds)
            if logged:
                _log_request(method, route, response.status, seconds)
            return response

        return answer


def begin(request: web.BaseRequest) -> str:
    """Give what follows the request's id: the caller's, if it is a good one, or one that nobody else gives."""
    return begin_request(request.headers.get("X-Request-ID"))


def finish(response: web.StreamResponse, current: str) -> None:
    """The headers that every answer carries."""
    headers = response.headers
    headers["X-Request-ID"] = current
    headers["Cache-Control"] = "no-store"


def _failure(error: Exception) -> web.Response:
    """The problem that tells why there is no better answer."""
    if isinstance(error, ServiceError):
        if isinstance(error, Unavailable):
            _log.debug("unavailable", code=error.code, error=error)  # the store and the keys tell it once, as a warning
        return problem(error)
    if isinstance(error, WireError):
        return problem(InvalidRequest(str(error)))
    if isinstance(error, web.HTTPException):
        return http_problem(error, error.text if error.status in {408, 415} else None)
    _log.error("internal_error", error=error)
    return internal_problem()


def _log_request(method: str, route: str, status: int, seconds: float) -> None:
    note = _log.debug if route in _QUIET else _log.info
    note("request", method=method, route=route, status=status, duration_ms=round(seconds * 1000, 3))


class _Counts(dict[int, Callable[[float], None]]):
    """How to count a request, by status; to find a metric by its labels costs more than to count."""

    def __init__(self, metrics: Metrics, method: str, route: str) -> None:
        super().__init__()
        self._metrics = metrics
        self._method = method
        self._route = route

    def __missing__(self, status: int) -> Callable[[float], None]:
        one_more = self._metrics.requests.labels(self._route, self._method, status).inc
        observe = self._metrics.latency.labels(self._route).observe

        def count(seconds: float) -> None:
            one_more()
            observe(seconds)

        self[status] = count
        return count
