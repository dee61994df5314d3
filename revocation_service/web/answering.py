"""The outermost layer: every answer gets its request id, every failure its problem, every request its count."""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final, TypeVar

import structlog
from aiohttp import hdrs, web
from multidict import istr

from revocation_client.wire import WireError
from revocation_service.errors import InvalidRequest, ServiceError, Unavailable
from revocation_service.telemetry import Metrics, begin_request
from revocation_service.traffic import Traffic
from revocation_service.web.answers import Answer
from revocation_service.web.auth import admit_local
from revocation_service.web.problems import http_problem, internal_problem, problem

Handler = Callable[[web.Request], Awaitable[Answer]]

_Said = TypeVar("_Said", bound=Answer | web.StreamResponse)
"""What a handler answers: an answer, or a stream that aiohttp writes."""

_QUIET: Final = frozenset({"/check", "/check/batch", "/healthz", "/readyz", "/metrics"})
"""Routes that are asked all the time: their requests are logged at level debug, and counted at every level."""

_REQUEST_ID: Final = istr("X-Request-ID")

_log = structlog.get_logger()


class Answering:
    """What every answer has in common, whichever handler gives it.

    It wraps the handlers rather than being a middleware: on the path of a check, a middleware's own machinery and
    finding the route again cost more than all that is done here.
    """

    def __init__(self, metrics: Metrics, traffic: Traffic, *, protected: bool, log_all: bool) -> None:
        self._metrics = metrics
        self._traffic = traffic
        self._protected = protected
        self._log_all = log_all

    def of(
        self, method: str, route: str, handler: Callable[[web.Request], Awaitable[_Said]]
    ) -> Callable[[web.Request], Awaitable[_Said | Answer]]:
        """`handler`, with its failures told as problems, its requests counted, and what all answers carry.

        In protected mode what is not plainly local is turned away first.
        """
        traffic, protected = self._traffic, self._protected
        logged = self._log_all or route not in _QUIET
        counts = _Counts(self._metrics, method, route)

        async def answered(request: web.Request) -> _Said | Answer:
            started = perf_counter()
            current = begin(request)
            traffic.came()
            answer: _Said | Answer
            try:
                if protected:
                    admit_local(request)
                answer = await handler(request)
            except Exception as error:  # noqa: BLE001 - every failure has its problem; what is unknown is logged, as code
                answer = _failure(error)
            finally:
                traffic.went()
            if isinstance(answer, Answer):
                answer.request_id = current
                # a kept connection would soon be closed under the caller's next request; and where that came in chunks,
                # aiohttp's parser would read the last of its trailers as a header of the next one
                answer.last = traffic.leaving or hdrs.TRANSFER_ENCODING in request.headers
            seconds = perf_counter() - started
            counts[answer.status](seconds)
            if logged:
                _log_request(method, route, answer.status, seconds)
            return answer

        return answered


def for_aiohttp(
    handler: Callable[[web.Request], Awaitable[Answer | web.StreamResponse]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """`handler` as aiohttp's router takes it."""

    async def respond(request: web.Request) -> web.StreamResponse:
        answer = await handler(request)
        return answer.response() if isinstance(answer, Answer) else answer

    return respond


def begin(request: web.BaseRequest) -> str:
    """Give what follows the request's id: the caller's, if it is a good one, or one that nobody else gives."""
    return begin_request(request.headers.get(_REQUEST_ID))


def _failure(error: Exception) -> Answer:
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
        observe: Callable[[float], None] = self._metrics.requests.labels(self._route, self._method, status).observe
        self[status] = observe
        return observe
