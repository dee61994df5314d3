"""Where attempts are counted: in Redis, shared by all gateways; while Redis is away, in this gateway's own memory.

A failure opens the way to memory for all attempts at once, so that only those under way have waited for Redis; a probe
then looks whether Redis counts again. What this gateway admitted meanwhile it still counts when Redis is back.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from revocation_service.errors import StoreUnavailable
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.own_windows import OwnWindows
from revocation_service.gateway.settings import Rate
from revocation_service.store.windows import Attempt, Tally, Windows

PROBE_PAUSE_SECONDS: Final = (0.1, 0.4)
"""Between two looks whether Redis is back, at random, so that several gateways do not look together."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Clocks:
    """The times of this process, in seconds; neither decides anything while Redis is there."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Counting:
    """Counts attempts, in Redis if there is one and it answers."""

    def __init__(self, windows: Windows | None, metrics: GatewayMetrics, clocks: Clocks) -> None:
        self._windows = windows
        self._own = OwnWindows()
        self._metrics = metrics
        self._clocks = clocks
        self._away = windows is not None  # until proven well
        self._returns = 0
        self._probe: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def status(self) -> str:
        """`ok`: in Redis, shared; `degraded`: in memory, because Redis is away; `memory`: there is to be no Redis."""
        if self._windows is None:
            return "memory"
        return "degraded" if self._away else "ok"

    async def start(self) -> None:
        """Look whether Redis counts; one that is away is waited for in the background."""
        if self._windows is None:
            _log.warning("throttle_counts_in_memory", detail="GATEWAY_REDIS_URL is not set: each gateway counts alone")
            return
        try:
            await self._windows.probe()
        except StoreUnavailable as error:
            self._went_away(error)
        else:
            self._away = False
            self._metrics.redis_up.set(1)

    async def aclose(self) -> None:
        """Wait for what is being given back, and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._windows is not None:
            await self._windows.aclose()

    async def hit(self, counted: str, rate: Rate) -> tuple[Attempt, Tally]:
        """Count an attempt in that window, if it has room."""
        attempt = Attempt(counted, rate.count, rate.seconds, secrets.token_hex(8))
        return attempt, await self._hit(attempt)

    async def _hit(self, attempt: Attempt) -> Tally:
        made_at = self._clocks.monotonic()
        if self._windows is not None and not self._away:
            returns = self._returns
            try:
                answer = await self._windows.hit(attempt)
            except StoreUnavailable as error:
                if returns == self._returns:  # else it failed because of what is over by now
                    self._went_away(error)
            except asyncio.CancelledError:
                self.give_back_soon(attempt)
                raise
            else:
                return self._agreed(attempt, made_at, answer)
        self._metrics.counted_alone.inc()
        return self._own.hit(attempt, self._clocks.monotonic(), self._clocks.wall())

    def _agreed(self, attempt: Attempt, made_at: float, answer: Tally) -> Tally:
        tally = self._own.agree(attempt, made_at, answer)
        if answer.admitted and not tally.admitted:
            self.give_back_soon(attempt)
        return tally

    async def give_back(self, attempt: Attempt) -> None:
        """Count an attempt no longer, here and, if it answers, in Redis."""
        shared = self.give_back_soon(attempt)
        if shared is not None:
            await asyncio.shield(shared)

    def give_back_soon(self, attempt: Attempt) -> asyncio.Task[None] | None:
        """The same without waiting for Redis; also of an attempt that Redis may not have counted."""
        self._own.give_back(attempt)
        if self._windows is None or self._away:
            return None
        task = asyncio.get_running_loop().create_task(
            self._give_back_shared(self._windows, attempt), name="throttle-give-back"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _give_back_shared(self, windows: Windows, attempt: Attempt) -> None:
        with suppress(StoreUnavailable):  # it counts until its window has passed
            await windows.give_back(attempt)

    def _went_away(self, error: StoreUnavailable) -> None:
        self._away = True
        if self._probe is not None:
            return
        _log.warning("throttle_redis_away", detail="each gateway counts in its own memory", error=error)
        self._metrics.redis_up.set(0)
        self._probe = asyncio.get_running_loop().create_task(self._probe_until_back(), name="throttle-probe")

    async def _probe_until_back(self) -> None:
        """Probe Redis until it counts again."""
        assert self._windows is not None
        while self._away:
            await asyncio.sleep(random.uniform(*PROBE_PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
            with suppress(StoreUnavailable):
                await self._windows.probe()
                self._away = False
        self._probe = None
        self._returns += 1
        self._metrics.redis_up.set(1)
        _log.info("throttle_redis_back")
