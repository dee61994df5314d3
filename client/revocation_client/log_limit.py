"""Limit how often a recurring event is logged. Does no I/O but logging."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

WARNING_INTERVAL_SECONDS: Final = 60.0

_log = logging.getLogger("revocation_client")


class Warnings:
    """Recurring warnings, by the names of their events. Each is logged at once, then at most once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_at: dict[str, float] = {}
        self._unlogged = Counter[str]()

    def occurred(self, event: str) -> int:
        """Count one occurrence. If a log line is due, return the number of occurrences since the last one, else 0."""
        self._unlogged[event] += 1
        now = self._clock()
        if now < self._due_at.get(event, now):
            return 0
        self._due_at[event] = now + WARNING_INTERVAL_SECONDS
        return self._unlogged.pop(event)

    def warn(self, event: str, fields: str, level: int = logging.WARNING) -> None:
        """Count one occurrence. If a log line is due, log the number of occurrences since the last one."""
        if number := self.occurred(event):
            _log.log(level, "%s %s occurrences=%d", event, fields, number)
