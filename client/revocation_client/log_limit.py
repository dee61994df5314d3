"""Limit how often a recurring event is logged. Does no I/O but logging."""

import logging
import math
import time
from collections.abc import Callable
from typing import Final

WARNING_INTERVAL_SECONDS: Final = 60.0

_log = logging.getLogger("revocation_client")


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


class Warnings:
    """The recurring warnings of one client, by the names of their events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._repetitions: dict[str, Repetition] = {}
        self._clock = clock

    def warn(self, event: str, fields: str, level: int = logging.WARNING) -> None:
        """Log an event: the first occurrence, then at most one line a minute, with the number since the last line."""
        repetition = self._repetitions.setdefault(event, Repetition(WARNING_INTERVAL_SECONDS, self._clock))
        if number := repetition.occurred():
            _log.log(level, "%s %s occurrences=%d", event, fields, number)
