"""Sliding rate-limit windows in Redis, on Redis' clock. One script decides on an attempt and counts it in one step."""

import asyncio
from dataclasses import dataclass
from math import ceil
from typing import Final

from revocation_service.errors import StoreUnavailable
from revocation_service.store.key_names import Keyspace
from revocation_service.store.scripts import HIT
from revocation_service.store.topology import NOT_IN_TIME, Refused, Topology

TURN_SECONDS: Final = 0.1
DEADLINE_TURNS: Final = 10
"""How long an attempt waits for Redis: a second while the event loop is on time."""

PROBE_SECONDS: Final = 0.5

_LATE_LOOP_SECONDS: Final = 60.0  # beyond the deadline, however late its turns are
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """One window: the name of what is counted in it, its limit, and its length."""

    counted: str
    limit: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RateLimitResult:
    """The decision on an attempt, and the state of its window after it. Times are in seconds."""

    admitted: bool
    remaining: int
    frees_in: float
    """Until the oldest attempt that counts leaves the window. With none remaining, the next is admitted then."""
    now: float
    """The clock that decided, in epoch seconds."""


class Windows:
    """The windows in one deployment of Redis, shared by all gateways."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._keyspace = Keyspace(topology.key_prefix)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._topology.aclose()

    async def hit(self, window: Window) -> RateLimitResult:
        """Count an attempt if its window has room.

        The deadline is counted in short waits, not in clock time. A wait that ends late, because the event loop was
        blocked, counts as a single wait. So a blocked loop is not mistaken for an absent Redis.

        Raises StoreUnavailable. Even then, the attempt may have been counted.
        """
        reply = asyncio.create_task(self._count_or_retry(window), name="throttle-hit")
        try:
            for _ in range(DEADLINE_TURNS):
                if (await asyncio.wait({reply}, timeout=TURN_SECONDS))[0]:
                    return reply.result()
        finally:
            reply.cancel()
            await asyncio.gather(reply, return_exceptions=True)
        raise StoreUnavailable(NOT_IN_TIME)

    async def probe(self) -> None:
        """Count an attempt in a window that only probes use. Raises StoreUnavailable."""
        await self._count(Window("probe", limit=1, seconds=0.001), PROBE_SECONDS)

    async def _count_or_retry(self, window: Window) -> RateLimitResult:
        """Count an attempt. Retry once if the connection fails: the master may have changed, or the loop was late."""
        try:
            return await self._count(window, _LATE_LOOP_SECONDS)
        except Refused:
            raise
        except StoreUnavailable:
            return await self._count(window, _LATE_LOOP_SECONDS)

    async def _count(self, window: Window, timeout_seconds: float) -> RateLimitResult:
        keys = [self._keyspace.window(window.counted)]
        async with self._topology.operation(timeout_seconds) as master:
            reply = await HIT.run(master, keys, (window.limit, ceil(window.seconds * _MICROSECONDS)))
        admitted, remaining, frees_in, now = reply
        return RateLimitResult(bool(admitted), remaining, frees_in / _MICROSECONDS, now / _MICROSECONDS)
