"""Sliding rate-limit windows in Redis: at most so many attempts in any stretch of time, by Redis' clock.

Attempts that arrive together leave as one batch, which one script counts on the master that holds all windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from redis.asyncio import Redis

from revocation_client.batcher import Batcher, BatchLimits
from revocation_service.store.key_names import Keyspace
from revocation_service.store.scripts import HIT
from revocation_service.store.topology import Topology, answered

DEADLINE_SECONDS: Final = 0.7
"""How long a login waits for Redis, before the gateway counts in its own memory."""

PROBE_SECONDS: Final = 0.5
BATCH_MAX_ATTEMPTS: Final = 250
"""At most the `TIES` of hit.lua. A batch of them takes Redis about two milliseconds."""

_MICROSECONDS: Final = 1_000_000


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
        return await answered(self._batcher.ask(attempt, DEADLINE_SECONDS))

    async def give_back(self, attempt: Attempt) -> None:
        """Remove an attempt from its window, if it was counted. Raises StoreUnavailable."""

        async def remove(master: Any) -> None:
            await master.zrem(self._keyspace.window(attempt.counted), attempt.id)

        await self._topology.retried(remove, DEADLINE_SECONDS)

    async def probe(self) -> None:
        """Count an attempt in a window of its own, without a retry. Raises StoreUnavailable."""
        async with self._topology.operation(PROBE_SECONDS) as master:
            await self._count(master, [_PROBE])

    async def _send(self, attempts: list[Attempt]) -> list[Tally]:
        return await self._topology.retried(lambda master: self._count(master, attempts), DEADLINE_SECONDS)

    async def _count(self, master: Redis, attempts: Sequence[Attempt]) -> list[Tally]:
        keys = [self._keyspace.window(each.counted) for each in attempts]
        arguments: list[str | int] = []
        for each in attempts:
            arguments += (each.limit, ceil(each.window_seconds * _MICROSECONDS), each.id)
        replies = await HIT.run(master, keys, arguments)
        return [_tally(*reply) for reply in replies]


def _tally(now: int, frees_at: int, admitted: int, remaining: int) -> Tally:
    return Tally(bool(admitted), remaining, (frees_at - now) / _MICROSECONDS, now / _MICROSECONDS)
