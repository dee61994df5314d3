"""The outermost layer: every request gets its id, every failure its problem, every answer its count."""

from time import perf_counter
from typing import Final

import structlog
from aiohttp import web

from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.passed import PassedAnswer
from revocation_service.gateway.problems import GatewayError, internal_problem, problem, problem_of
from revocation_service.gateway.proxy import Handler
from revocation_service.telemetry import begin_request, request_id
from revocation_service.traffic import Traffic

REQUEST_ID: Final = "X-Request-ID"

_log = structlog.get_logger()


class Answers:
    """What every answer has in common, whoever gives it."""

    def __init__(self, metrics: GatewayMetrics, traffic: Traffic, *, log_all: bool) -> None:
        self._metrics = metrics
        self._traffic = traffic
        self._log_all = log_all
        self._classes = {number: metrics.requests.labels(f"{number}xx") for number in range(1, 10)}

    def of(self, forward: Handler) -> Handler:
        """`forward`, with its failures told as problems, and its requests counted."""

        async def answer(request: web.Request) -> web.StreamResponse:
            began = perf_counter()
            begin_request(request.headers.get(REQUEST_ID))
            self._traffic.came()
            self._metrics.in_flight.inc()
            status = 499  # the client left before there was an answer
            try:
                response = await _answered(request, forward)
                status = response.status
            finally:
                self._traffic.went()
                self._metrics.in_flight.dec()
                self._note(request, status, perf_counter() - began)
            if isinstance(response, PassedAnswer) and response.broken:
                _log.warning("answer_broken_off", method=request.method, status=status)
            return response

        return answer

    def _note(self, request: web.Request, status: int, seconds: float) -> None:
        self._classes[status // 100].inc()
        self._metrics.seconds.observe(seconds)
        if self._log_all:
            _log.debug("request", method=request.method, status=status, duration_ms=round(seconds * 1000, 3))

    async def prepare(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """The headers that every answer carries; an id that the upstream gave itself stays."""
        response.headers.setdefault(REQUEST_ID, request_id.get() or "")
        if response.status != 101 and (self._traffic.leaving or _leaves_a_trace(request)):
            response.force_close()
            response.headers["Connection"] = "close"


def _leaves_a_trace(request: web.BaseRequest) -> bool:
    """Whether aiohttp's parser could read the next request on the connection in a wrong way.

    It takes the last trailer of a chunked body for a field of what follows, and after an upgrade that did not come
    about it drops what came in the same packet.
    """
    return "Transfer-Encoding" in request.headers or "Upgrade" in request.headers


async def _answered(request: web.Request, forward: Handler) -> web.StreamResponse:
    try:
        return await forward(request)
    except GatewayError as error:
        note = _log.warning if error.status >= 500 else _log.info
        note("request_failed", method=request.method, code=error.code, error=error)
        return problem_of(error)
    except web.HTTPException as error:
        return problem(error.status, error.text or error.reason, "http_error")
    except ConnectionError:
        raise  # the client has gone; nobody is left to answer
    except Exception as error:  # noqa: BLE001 - every failure has its problem; what is unknown is logged, as code
        _log.error("internal_error", error=error)
        return internal_problem()
