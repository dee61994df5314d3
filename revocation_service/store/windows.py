"""Sliding rate-limit windows in Redis: at most so many attempts in any stretch of time, by Redis' clock.

Attempts that arrive together leave as one batch, which one script counts on the master that holds all windows.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil
from typing import Any, Final, TypeVar

from redis.asyncio import Redis

from revocation_client.batcher import Batcher, BatcherClosed, BatchLimits
from revocation_service.errors import StoreUnavailable
from revocation_service.store.keyspace import Keyspace
from revocation_service.store.topology import Topology, is_refusal

DEADLINE_SECONDS: Final = 0.7
"""How long a login waits for Redis, before the gateway counts in its own memory."""

ATTEMPT_SECONDS: Final = 0.35
"""How long one exchange with Redis may take. Below the deadline, so that a lost reply leaves time for a retry."""

PROBE_SECONDS: Final = 0.5
FIRST_PAUSE_SECONDS: Final = 0.02
"""The longest pause before the first retry. It doubles with each retry; the actual pause is random."""

BATCH_MAX_ATTEMPTS: Final = 250
"""At most the `TIES` of hit.lua. A batch of them takes Redis about two milliseconds."""

_MICROSECONDS: Final = 1_000_000
_HIT: Final = files("revocation_service.store").joinpath("lua", "hit.lua").read_text(encoding="utf-8")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. The same id again is the same attempt, and counts once."""

    counted: str
    """Name of the window: the address or account, and what it attempts."""
    limit: int
    window_seconds: float
    id: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The result of an attempt, and the state of its window after it. Times are in seconds."""

    admitted: bool
    remaining: int
    frees_in: float
    """Until the oldest attempt that counts leaves the window. With none remaining, the next is admitted then."""
    now: float
    """The clock by which that was decided, in epoch seconds."""


_PROBE: Final = Attempt("probe", limit=1, window_seconds=0.001, id="probe")


class Windows:
    """The windows in one deployment of Redis, shared by all gateways. Needs a running event loop."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._keyspace = Keyspace(topology.key_prefix)
        limits = BatchLimits(questions=BATCH_MAX_ATTEMPTS, size=BATCH_MAX_ATTEMPTS, under_way=1)
        self._batcher: Batcher[Attempt, Tally] = Batcher(self._send, lambda _attempt: 1, limits)

    async def aclose(self) -> None:
        """Cancel what is under way, and close every connection."""
        await self._batcher.aclose()
        await self._topology.aclose()

    async def hit(self, attempt: Attempt) -> Tally:
        """Count an attempt if its window has room.

        Raises StoreUnavailable. The attempt may have been counted then.
        """
        try:
            return await self._batcher.ask(attempt, DEADLINE_SECONDS)
        except (TimeoutError, BatcherClosed) as error:
            raise StoreUnavailable("Redis did not answer within the deadline") from error

    async def give_back(self, attempt: Attempt) -> None:
        """Remove an attempt from its window, if it was counted. Raises StoreUnavailable."""

        async def remove(master: Any) -> None:
            await master.zrem(self._keyspace.window(attempt.counted), attempt.id)

        await self._retried(remove)

    async def probe(self) -> None:
        """Count an attempt in a window of its own, without a retry. Raises StoreUnavailable."""
        async with self._topology.operation(PROBE_SECONDS) as master:
            await self._count(master, [_PROBE])

    async def _send(self, attempts: list[Attempt]) -> list[Tally]:
        return await self._retried(lambda master: self._count(master, attempts))

    async def _count(self, master: Redis, attempts: Sequence[Attempt]) -> list[Tally]:
        keys = [self._keyspace.window(each.counted) for each in attempts]
        arguments: list[str | int] = []
        for each in attempts:
            arguments += (each.limit, ceil(each.window_seconds * _MICROSECONDS), each.id)
        replies = await master.register_script(_HIT)(keys, arguments)
        return [_tally(*reply) for reply in replies]

    async def _retried(self, operate: Callable[[Redis], Awaitable[T]]) -> T:
        """Repeat an idempotent operation until it succeeds, Redis refuses it, or the deadline has passed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + DEADLINE_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._topology.operation(min(ATTEMPT_SECONDS, until - loop.time())) as master:
                    return await operate(master)
            except StoreUnavailable as error:
                if is_refusal(error.__cause__) or loop.time() + pause >= until:
                    raise
            await asyncio.sleep(pause * random.random())  # noqa: S311 - jitter, not a secret
            pause *= 2


def _tally(now: int, frees_at: int, admitted: int, remaining: int) -> Tally:
    return Tally(bool(admitted), remaining, (frees_at - now) / _MICROSECONDS, now / _MICROSECONDS)
