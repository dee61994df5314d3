"""Counts attempts before they reach the upstream, and answers those too many with 429.

The limiter is aiohttp-ratelimiter's, with a strategy of ours in it: its own asks first and counts later, so that a
burst passes; ours does both in one step of Redis, in `test`. Its key function and its exempt addresses believe any
X-Forwarded-For, so ours is given, and nobody is exempt. Its memory limiter is taken, because the strategy has the
connections already.

The limit by account counts failures only: a place is taken before the login is passed on, and given back unless the
upstream answers 4xx. It lets a stranger who knows a name lock that account out: as many wrong guesses as the limit
allows, and the owner gets 429 too until the oldest of them leaves the window. That is its price, and why it is off by
default. A login that answers a wrong password with 200 or a redirect, as pages for browsers do, is not seen to fail.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import ceil
from typing import Final

import structlog
from aiohttp import web
from aiohttplimiter import Limiter, RateLimitExceeded
from limits import RateLimitItem
from limits.aio.strategies import MovingWindowRateLimiter

from revocation_service.gateway.accounts import BODY_MAX_BYTES, BUFFERED_BODY, AccountNames, Ambiguous, read_body
from revocation_service.gateway.addresses import NO_ADDRESS, IPAddress, client_address, counted_as
from revocation_service.gateway.counting import Clocks, Counting
from revocation_service.gateway.login_paths import LoginPaths
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.problems import MalformedRequest, RequestTimeout
from revocation_service.gateway.rate_headers import OURS, RATE_HEADERS, Judged, rate_headers, too_many
from revocation_service.gateway.settings import Rate, ThrottleSettings
from revocation_service.http.problems import problem
from revocation_service.store.topology import topology
from revocation_service.store.windows import Attempt, Windows

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_SECONDS: Final = 10.0
"""How long the body of a login may take, where it has to be read before it is passed on."""

LOGGED_PATH_MAX_CHARACTERS: Final = 256

_AUTHORITY: Final = re.compile(r"\A[a-z][a-z0-9+.-]*://[^/?#]*", re.IGNORECASE)
_END_OF_PATH: Final = re.compile(r"[?#;]|%(?:25)*3[fb]", re.IGNORECASE)

_LOGIN: Final = "login"
_ACCOUNT: Final = "account"
_DEFAULT: Final = "default"

_JUDGED: Final = web.RequestKey("judged", Judged)
_PLACES: Final[web.RequestKey["_Places"]] = web.RequestKey("places")

_current: ContextVar[web.Request] = ContextVar("throttled_request")
"""The request that the limiter asks about: it tells its strategy the key alone."""

_log = structlog.get_logger()


class Throttle:
    """All the limits of one gateway.

    Needs a running event loop. Raises SettingsError for a wrong URL or key prefix of Redis.
    """

    def __init__(self, settings: ThrottleSettings, metrics: GatewayMetrics, clocks: Clocks | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        windows = None if settings.store is None else Windows(topology(settings.store))
        self._counting = Counting(windows, metrics, clocks or Clocks())
        self._paths = LoginPaths(settings.login_paths)
        self._names = AccountNames(settings.account_key or secrets.token_bytes(32))

    async def start(self) -> None:
        """Look for Redis; one that is away stops nothing."""
        await self._counting.start()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._counting.aclose()

    def health(self) -> str:
        """Where attempts are counted: `ok` in Redis, `degraded` in memory while it is away, `memory` without one."""
        return self._counting.status

    def before(self, forward: Handler) -> Handler:
        """Return `forward` behind the limits: it is called for the admitted attempts only."""
        settings = self._settings
        by_account = forward if settings.account_limit is None else self._by_account(forward, settings.account_limit)
        login = self._by_address(_LOGIN, settings.login_limit, by_account, self._login_denied)
        other = forward
        if settings.default_limit is not None:
            other = self._by_address(_DEFAULT, settings.default_limit, forward, _default_denied)

        async def judged(request: web.Request) -> web.StreamResponse:
            is_login = self._paths.is_attempt(request.method, request.raw_path, request.headers.items())
            return await (login if is_login else other)(request)

        return judged

    async def add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Write what the answer to a login carries, whoever gave it; to be called as it is prepared."""
        places, told = request.get(_PLACES), request.get(RATE_HEADERS)
        if places is not None:
            await places.settle(response.status)
        if told is not None:
            for name in OURS:
                response.headers.popall(name, None)
            response.headers.update(told)

    def _by_address(self, limit: str, rate: Rate, forward: Handler, denied: "_Denied") -> Handler:
        limiter = Limiter(keyfunc=self._address_of)
        limiter.moving_window = _Strategy(limiter, limit, rate, self._counting, self._metrics)

        async def refuse(request: web.Request, _exceeded: RateLimitExceeded) -> web.StreamResponse:
            return denied(request, request[_JUDGED])

        limited = limiter.limit(f"{rate.count}/{ceil(rate.seconds)} second", error_handler=refuse, path_id=limit)(
            forward
        )

        async def counted(request: web.Request) -> web.StreamResponse:
            token = _current.set(request)
            try:
                return await limited(request)
            finally:
                _current.reset(token)

        return counted

    def _client_of(self, request: web.Request) -> IPAddress | None:
        forwarded = request.headers.getall("X-Forwarded-For", [])
        return client_address(request.remote, forwarded, self._settings.trusted_proxies)

    def _address_of(self, request: web.Request) -> str:
        return counted_as(self._client_of(request))

    def _login_denied(self, request: web.Request, denied: Judged) -> web.StreamResponse:
        self._log_denied(request, denied)
        return too_many(denied, {}, "too many login attempts from this address; wait before the next")

    def _log_denied(self, request: web.Request, denied: Judged) -> None:
        _log.warning(
            "login_denied",
            address=str(self._client_of(request) or NO_ADDRESS),
            path=_path_of(request.raw_path),
            limit=denied.limit,
            quota=denied.rate.count,
            window_seconds=denied.rate.seconds,
        )

    def _by_account(self, forward: Handler, rate: Rate) -> Handler:
        async def counted(request: web.Request) -> web.StreamResponse:
            refused = await _read_login(request)
            if refused is not None:
                return refused
            try:
                names = self._hashes(request)
            except Ambiguous:
                return problem(400, "a login names one account, in a few fields", "ambiguous_login")
            places = request[_PLACES] = _Places(self._counting)
            try:
                denied = await places.take(sorted(names), rate)
                self._metrics.attempts.labels(_ACCOUNT, "denied" if denied else "admitted").inc()
                if denied is None:
                    return await forward(request)
                self._log_denied(request, denied)
                return _account_denied(request, denied)
            except BaseException:
                places.leave()
                raise

        return counted

    def _hashes(self, request: web.Request) -> frozenset[str]:
        content_type = ", ".join(request.headers.getall("Content-Type", []))
        query = request.raw_path.partition("?")[2]
        credentials = request.headers.getall("Authorization", [])
        return self._names.hashes(request[BUFFERED_BODY], query, content_type, credentials)


_Denied = Callable[[web.Request, Judged], web.StreamResponse]


def _path_of(target: str) -> str:
    """Return the path of a target for the log: no credentials, parameters or query, also where these are encoded."""
    path = _AUTHORITY.sub("", target, count=1)
    return _END_OF_PATH.split(path, maxsplit=1)[0][:LOGGED_PATH_MAX_CHARACTERS]


def _default_denied(_request: web.Request, judged: Judged) -> web.StreamResponse:
    told = rate_headers([judged])
    return too_many(judged, told, "too many requests from this address; wait before the next", "too_many_requests")


def _account_denied(request: web.Request, denied: Judged) -> web.StreamResponse:
    request[RATE_HEADERS] = rate_headers([request[_JUDGED], denied])
    return too_many(denied, {}, "too many failed logins to this account; wait before the next")


class _Strategy(MovingWindowRateLimiter):
    """The limiter's strategy: deciding and counting are one step, and asking for it twice counts once."""

    def __init__(self, limiter: Limiter, limit: str, rate: Rate, counting: Counting, metrics: GatewayMetrics) -> None:
        super().__init__(limiter.db)
        self._limit = limit
        self._rate = rate
        self._counting = counting
        self._metrics = metrics

    async def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Count the current request, if its window has room."""
        _attempt, tally = await self._counting.hit("/".join(identifiers), self._rate)
        request = _current.get()
        request[_JUDGED] = judged = Judged(self._limit, self._rate, tally)
        if self._limit == _LOGIN:
            request[RATE_HEADERS] = rate_headers([judged])
        self._metrics.attempts.labels(self._limit, "admitted" if tally.admitted else "denied").inc()
        return tally.admitted

    async def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """It was counted when it was tested."""
        return True


@dataclass(slots=True)
class _Places:
    """The places that one login has taken in the windows of the accounts it names; they are kept only if it fails."""

    counting: Counting
    taken: list[Attempt] = field(default_factory=list)

    async def take(self, names: Iterable[str], rate: Rate) -> Judged | None:
        """Take one in each window; the answer is the limit that denies it, and then none is kept."""
        for name in names:
            attempt, tally = await self.counting.hit(f"{name}:{_ACCOUNT}", rate)
            if not tally.admitted:
                self.leave()
                return Judged(_ACCOUNT, rate, tally)
            self.taken.append(attempt)
        return None

    async def settle(self, status: int) -> None:
        """Keep them if that status tells of a failure; else they are free again before the client has its answer."""
        taken, self.taken = self.taken, []
        if not 400 <= status < 500:
            await asyncio.gather(*map(self.counting.give_back, taken))

    def leave(self) -> None:
        """Give back what is not settled: nobody has been told anything."""
        taken, self.taken = self.taken, []
        for attempt in taken:
            self.counting.give_back_soon(attempt)


async def _read_login(request: web.Request) -> web.StreamResponse | None:
    """Read the body of a login, which then waits to be passed on; the answer is a refusal, or None."""
    if any(coding.strip().casefold() != "identity" for coding in request.headers.getall("Content-Encoding", [])):
        return problem(415, "the body of a login must not be encoded", "unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(request)
    except TimeoutError as error:
        raise RequestTimeout("the body of the login did not come in time") from error
    except web.RequestPayloadError as error:
        raise MalformedRequest("the body is not valid HTTP") from error
    if body is None:
        refused = problem(413, f"the body of a login is at most {BODY_MAX_BYTES >> 10} KiB", "body_too_large")
        refused.force_close()
        return refused
    request[BUFFERED_BODY] = body
    return None
