"""Counts attempts before they reach the upstream, and answers 429 to those beyond the limit.

The limiter is aiohttp-ratelimiter's, with a strategy that decides and counts in one step. The library's own strategy
asks first and counts later, so a burst passes. The library's `default_keyfunc` and `exempt_ips` are not used, because
they believe any X-Forwarded-For.
"""

import re
import time
from contextvars import ContextVar
from typing import Final

import structlog
from aiohttp import web
from aiohttplimiter import Limiter, RateLimitExceeded
from limits import RateLimitItem
from limits.aio.strategies import MovingWindowRateLimiter

from revocation_service.gateway.addresses import NO_ADDRESS, IPAddress, client_address, counted_as
from revocation_service.gateway.fallback_limiter import Clock, FallbackLimiter
from revocation_service.gateway.login_paths import LoginPaths
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.rate_headers import rate_headers
from revocation_service.gateway.settings import Rate, ThrottleSettings
from revocation_service.http.middleware import Handler
from revocation_service.http.problems import problem
from revocation_service.store.topology import topology
from revocation_service.store.windows import RateLimitResult, Window, Windows

_LOGIN: Final = "login"
_DEFAULT: Final = "default"
_REFUSALS: Final = {
    _LOGIN: ("too many login attempts from this address; wait before the next", "too_many_attempts"),
    _DEFAULT: ("too many requests from this address; wait before the next", "too_many_requests"),
}

_PARAMETERS: Final = re.compile(r"[?#;]|%(?:25)*3[fb]", re.IGNORECASE)
_RATE_LIMIT_FIELD: Final = re.compile("(?:x-)?ratelimit", re.IGNORECASE)
_HEADERS: Final = web.RequestKey("rate_headers", dict[str, str])
_decision: ContextVar[tuple[Window, RateLimitResult]] = ContextVar("decision")
"""The last decision of the strategy in this task. The library itself passes on only whether it was favourable."""

_log = structlog.get_logger()


class Throttle:
    """All limits of one gateway. Raises SettingsError for a wrong URL or key prefix of Redis."""

    def __init__(self, settings: ThrottleSettings, metrics: GatewayMetrics, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._metrics = metrics
        windows = None if settings.store is None else Windows(topology(settings.store))
        self._fallback = FallbackLimiter(windows, metrics, clock)
        self._paths = LoginPaths(settings.login_paths)
        self._library = Limiter(keyfunc=lambda request: counted_as(self._client(request)))
        self._library.moving_window = _AtomicStrategy(self._library, self._fallback)

    async def start(self) -> None:
        """Probe Redis, if one is configured. While it is away, attempts are counted in memory."""
        await self._fallback.start()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._fallback.aclose()

    def health(self) -> str:
        """Return `ok` if attempts are counted in Redis, `degraded` if in memory in an outage, else `memory`."""
        return self._fallback.status

    def before(self, forward: Handler) -> Handler:
        """Return a handler that calls `forward` for the admitted requests only."""
        default = self._settings.default_limit
        login = self._limited(_LOGIN, self._settings.login_limit, forward)
        other = self._limited(_DEFAULT, default, forward) if default else forward

        async def throttled(request: web.Request) -> web.StreamResponse:
            is_login = self._paths.is_attempt(request.method, request.raw_path, request.headers.items())
            return await (login if is_login else other)(request)

        return throttled

    async def add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Write the rate limit fields on a response that is about to be sent (`on_response_prepare`)."""
        headers = request.get(_HEADERS)
        if headers is not None:
            for name in [name for name in response.headers if _RATE_LIMIT_FIELD.match(name)]:
                response.headers.popall(name, None)
            response.headers.update(headers)

    def _limited(self, name: str, rate: Rate, forward: Handler) -> Handler:
        async def admit(request: web.Request) -> web.StreamResponse:
            self._metrics.attempts.labels(name, "admitted").inc()
            if name == _LOGIN:
                request[_HEADERS] = rate_headers(name, *_decision.get())
            return await forward(request)

        async def refuse(request: web.Request, _exceeded: RateLimitExceeded) -> web.StreamResponse:
            self._metrics.attempts.labels(name, "denied").inc()
            window, result = _decision.get()
            if name == _LOGIN:
                self._log_denied(request, window)
            request[_HEADERS] = rate_headers(name, window, result)
            return problem(429, *_REFUSALS[name])  # RFC 6585 section 4

        limit = self._library.limit(f"{rate.count}/{rate.seconds:.0f} second", error_handler=refuse, path_id=name)
        return limit(admit)

    def _client(self, request: web.Request) -> IPAddress | None:
        forwarded = request.headers.getall("X-Forwarded-For", [])
        return client_address(request.remote, forwarded, self._settings.trusted_proxies)

    def _log_denied(self, request: web.Request, window: Window) -> None:
        address = str(self._client(request) or NO_ADDRESS)
        path = _PARAMETERS.split(request.rel_url.raw_path, maxsplit=1)[0][:256]
        limit = {"limit": _LOGIN, "quota": window.limit, "window_seconds": window.seconds}
        _log.warning("login_denied", address=address, path=path, **limit)


class _AtomicStrategy(MovingWindowRateLimiter):
    """Decides and counts in `test`, which the library calls before `hit`."""

    def __init__(self, library: Limiter, fallback: FallbackLimiter) -> None:
        super().__init__(library.db)
        self._fallback = fallback

    async def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Count the attempt if its window has room. Return whether it was counted."""
        window = Window("/".join(identifiers), item.amount, item.get_expiry())
        result = await self._fallback.hit(window)
        _decision.set((window, result))
        return result.admitted

    async def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Return True: `test` has counted the attempt."""
        return True
