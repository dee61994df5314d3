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
    """Tells the time by which records end, and notices a wall clock that jumps."""

    def __init__(self, clocks: Clocks) -> None:
        self.monotonic = clocks.monotonic
        self.offset = 0.0
        """Offset of Redis' clock from the wall clock here, in seconds."""
        self._wall = clocks.wall
        self._expiry = ExpiryClock(clocks.wall, clocks.monotonic)
        self._ahead = clocks.wall() - clocks.monotonic()

    def now(self) -> float:
        """Return the time by which records end in the mirror, in epoch seconds.

        It is the earlier of Redis' clock and the one here, and passes no faster than the monotonic clock. So no clock
        that jumps ahead makes a mirror forget.
        """
        return self._expiry.now() + max(-BEHIND_SECONDS, min(0.0, self.offset))

    def redis_now(self) -> float:
        """Return what Redis' clock should say, in epoch seconds."""
        return self._wall() + self.offset

    def heard(self, redis_now: float, at: float) -> float:
        """Take what Redis' clock said at `at`, on the monotonic clock.

        Return by how much the wall clock here has jumped since the last time, in seconds; 0 for less than
        `JUMP_SECONDS`.
        """
        wall, monotonic = self._wall(), self.monotonic()
        self.offset = redis_now - (wall - (monotonic - at))
        jump, self._ahead = wall - monotonic - self._ahead, wall - monotonic
        return jump if abs(jump) > JUMP_SECONDS else 0.0
