"""How often something that recurs is logged: at once, and then at most once in an interval, with its number."""

import math
from collections.abc import Callable


class Repetition:
    """Counts occurrences and decides which of them get a line in the log."""

    def __init__(self, interval_seconds: float, clock: Callable[[], float]) -> None:
        self._interval_seconds = interval_seconds
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Have the next occurrence logged."""
        self._line_at, self._unlogged = -math.inf, 0

    @property
    def due(self) -> bool:
        """True unless a line was logged within the last interval."""
        return self._clock() >= self._line_at

    def occurred(self) -> int:
        """Count one; return the number of occurrences since the last line if a line is due now, else 0."""
        self._unlogged += 1
        now = self._clock()
        if now < self._line_at:
            return 0
        self._line_at = now + self._interval_seconds
        number, self._unlogged = self._unlogged, 0
        return number
