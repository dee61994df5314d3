"""The clocks of one worker, and the offset of Redis' clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from revocation_client.expiry_clock import ExpiryClock, uptime

BEHIND_SECONDS: Final = 86_400.0
"""How far Redis' clock may be behind and still count: if it were wrong by years, no mirror would forget anything."""

JUMP_SECONDS: Final = 1.0
"""How far the wall clock and the monotonic clock may part from one heartbeat to the next."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The wall clock in epoch seconds, and a monotonic clock in seconds."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = uptime


class WorkerClock:
    """The clock by which records expire in the mirror. It also notices jumps of the wall clock."""

    def __init__(self, clocks: Clocks) -> None:
        self.monotonic = clocks.monotonic
        self.offset = 0.0
        """Offset of Redis' clock from the wall clock here, in seconds."""
        self._wall = clocks.wall
        self._expiry = ExpiryClock(clocks.wall, clocks.monotonic)
        self._ahead = clocks.wall() - clocks.monotonic()

    def now(self) -> float:
        """Return the time that decides whether a record in the mirror has expired, in epoch seconds.

        It is the earlier of Redis' clock and the wall clock here, and advances no faster than the monotonic clock. So
        the mirror drops nothing early when a clock jumps ahead.
        """
        return self._expiry.now() + max(-BEHIND_SECONDS, min(0.0, self.offset))

    def redis_now(self) -> float:
        """Return an estimate of Redis' clock, in epoch seconds."""
        return self._wall() + self.offset

    def heard(self, redis_now: float, at: float) -> float:
        """Measure the offset of Redis' clock, which said `redis_now` when the monotonic clock said `at`.

        Return by how many seconds the wall clock here has jumped since the last call; 0 if at most `JUMP_SECONDS`.
        """
        wall, monotonic = self._wall(), self.monotonic()
        self.offset = redis_now - (wall - (monotonic - at))
        jump, self._ahead = wall - monotonic - self._ahead, wall - monotonic
        return jump if abs(jump) > JUMP_SECONDS else 0.0
