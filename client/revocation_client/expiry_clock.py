"""The clock by which a mirror decides that a revocation has ended. Reads clocks; does no other I/O."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

uptime: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""The monotonic clock, in seconds. On Linux it includes the time for which the machine was suspended.

Elsewhere an `ExpiryClock` falls behind by that time, and revocations are held that much longer.
"""


class ExpiryClock:
    """The wall clock, bounded by the monotonic clock: a wall clock that jumps ahead ends no revocation early.

    A wall clock that was behind at construction and is corrected later leaves this clock behind: revocations are then
    held longer than necessary. A wall clock that was ahead at construction puts this one ahead until it is corrected.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = uptime) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def now(self) -> float:
        """Return the wall clock's epoch seconds, but at most its reading at construction plus the time passed since."""
        return min(self._wall(), self._offset + self._monotonic())
