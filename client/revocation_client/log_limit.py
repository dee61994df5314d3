"""Limit how often a recurring event is logged. Pure."""

import math
from collections.abc import Callable


class Repetition:
    """Counts an event. The first occurrence is logged, then at most one line per interval, with their number."""

    def __init__(self, interval_seconds: float, clock: Callable[[], float]) -> None:
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._line_at, self._unlogged = -math.inf, 0

    def occurred(self) -> int:
        """Count one; return the number of occurrences since the last line if a line is due now, else 0."""
        self._unlogged += 1
        now = self._clock()
        if now < self._line_at:
            return 0
        self._line_at = now + self._interval_seconds
        number, self._unlogged = self._unlogged, 0
        return number
