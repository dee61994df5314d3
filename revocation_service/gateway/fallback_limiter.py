"""Counts attempts in Redis, which all gateways share; while Redis is away, in the memory of this gateway.

Redis counts as away once a connection fails, or once a reply does not come although the event loop was on time. After
one failure, all attempts are counted in memory until a probe finds that Redis counts again.

Memory also records every attempt that Redis admits through this gateway. If the window in memory is full, the attempt
is denied although Redis admitted it. So one gateway never admits more than the limit in a window, even across an outage
or after Redis has lost data. Memory dates an attempt by its arrival, which is before Redis counts it. So the attempt
leaves the window in memory first, and memory denies nothing that Redis rightly admits.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from revocation_service.errors import StoreUnavailable
from revocation_service.gateway.local_limiter import LocalLimiter
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.store.windows import RateLimitResult, Window, Windows
from revocation_service.tasks import begin, end

CONCURRENT_HITS: Final = 16
"""Fewer than the pool's connections: its timeout would take a long queue for a failure. In ours no deadline runs."""

PROBE_PAUSE_SECONDS: Final = (0.1, 0.4)
"""Least and longest pause between two probes, so that several gateways do not probe together."""

Clock = Callable[[], float]
"""A monotonic clock, in seconds."""

_log = structlog.get_logger()


class FallbackLimiter:
    """Counts in Redis if there is one and it answers, else in memory."""

    def __init__(self, windows: Windows | None, metrics: GatewayMetrics, clock: Clock) -> None:
        self._windows = windows
        self._local = LocalLimiter()
        self._metrics = metrics
        self._now = clock
        self._turns = asyncio.Semaphore(CONCURRENT_HITS)
        self._away = windows is not None  # until the first probe
        self._probes: list[asyncio.Task[None]] = []

    @property
    def status(self) -> str:
        """`ok` if attempts are counted in Redis, `degraded` if in memory in an outage, `memory` without Redis."""
        if self._windows is None:
            return "memory"
        return "degraded" if self._away else "ok"

    async def start(self) -> None:
        """Probe Redis, if one is configured. If the probe fails, keep probing in the background."""
        if self._windows is None:
            _log.warning("throttle_counts_in_memory", detail="GATEWAY_REDIS_URL is not set: each gateway counts alone")
            return
        try:
            await self._windows.probe()
            self._set_away(False)
        except StoreUnavailable as error:
            self._start_probes(error)

    async def aclose(self) -> None:
        """Stop the probes, and close the connections."""
        await end(self._probes)
        if self._windows is not None:
            await self._windows.aclose()

    async def hit(self, window: Window) -> RateLimitResult:
        """Count an attempt if its window has room."""
        arrived = self._now()
        shared = await self._hit_redis(window)
        if shared is None:
            self._metrics.counted_alone.inc()
            return replace(self._local.hit(window, self._now()), now=time.time())
        if not shared.admitted:
            return shared
        own = self._local.hit(window, self._now(), arrived)
        return shared if own.admitted else replace(own, now=shared.now)

    async def _hit_redis(self, window: Window) -> RateLimitResult | None:
        """Return Redis' decision; None if no Redis is configured, or while it is away."""
        if self._windows is None or self._away:
            return None
        async with self._turns:
            try:
                return None if self._away else await self._windows.hit(window)
            except StoreUnavailable as error:
                if not self._away:
                    self._start_probes(error)
                return None

    def _start_probes(self, error: StoreUnavailable) -> None:
        _log.warning("throttle_redis_away", detail="each gateway counts in its own memory", error=error)
        self._set_away(True)
        self._probes = begin("throttle-probe", self._probe_until_back())

    async def _probe_until_back(self) -> None:
        assert self._windows is not None
        while self._away:
            await asyncio.sleep(random.uniform(*PROBE_PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
            with suppress(StoreUnavailable):
                await self._windows.probe()
                self._set_away(False)
        _log.info("throttle_redis_back")

    def _set_away(self, away: bool) -> None:
        self._away = away
        self._metrics.redis_up.set(not away)
