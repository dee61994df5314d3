"""The middleware: request id, problems, metrics and log, and the headers that every response carries."""

from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Final

from aiohttp import hdrs, web
from multidict import istr

from revocation_service.http.in_flight import InFlight
from revocation_service.http.problems import problem_of
from revocation_service.telemetry import begin_request, current_request_id

REQUEST_ID: Final = istr("X-Request-ID")
HEADERS: Final[Mapping[str, str]] = {hdrs.CACHE_CONTROL: "no-store"}
"""Headers of every response of our own, beside X-Request-ID."""

CLIENT_LEFT: Final = 499
"""Status in metrics and log of a request whose client left before there was a response."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Observe = Callable[[web.Request, int, float], None]
"""Counts and logs one request: the request, the status, and the seconds that it took."""


class Middleware:
    """Handles what all requests of an application have in common."""

    def __init__(self, in_flight: InFlight, observe: Observe, headers: Mapping[str, str] = HEADERS) -> None:
        self._in_flight = in_flight
        self._observe = observe
        self._headers = list(headers.items())

    def install(self, app: web.Application) -> None:
        """Add this to an application, before all other middlewares."""
        app.middlewares.insert(0, self.handle)
        app.on_response_prepare.append(self.prepare)

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request; an error of the handler becomes a problem response."""
        started, status = perf_counter(), CLIENT_LEFT
        begin_request(request.headers.get(REQUEST_ID))
        try:
            with self._in_flight:
                response = await handler(request)
            status = response.status
        except Exception as error:
            if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                raise  # the client left
            response = problem_of(error)
            status = response.status
        finally:
            self._observe(request, status, perf_counter() - started)
        return response

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the common headers just before a response is sent, also to responses that aiohttp makes itself."""
        headers = response.headers
        headers.setdefault(REQUEST_ID, current_request_id() or begin_request(request.headers.get(REQUEST_ID)))
        for name, value in self._headers:
            headers[name] = value
        if (self._in_flight.draining or _confuses_the_parser(request)) and response.status != 101:
            response.force_close()
            headers[hdrs.CONNECTION] = "close"


def _confuses_the_parser(request: web.Request) -> bool:
    """Return True if aiohttp's parser might misread the next request on the connection.

    The parser reads the last trailer of a chunked body as a header of the next request. After a refused upgrade, it
    drops the data that came in the same packet.
    """
    return hdrs.TRANSFER_ENCODING in request.headers or hdrs.UPGRADE in request.headers
