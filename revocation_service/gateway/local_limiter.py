"""Sliding windows in the memory of one gateway. No I/O; the time is passed in."""

from bisect import bisect_right, insort
from collections import OrderedDict
from typing import Final

from revocation_service.store.windows import RateLimitResult, Window

MOST_WINDOWS: Final = 50_000
MOST_ATTEMPTS: Final = 500_000
"""Bounds on memory. Beyond them, the window that was asked least recently is forgotten."""


class LocalLimiter:
    """Windows by name. Times are in seconds on a monotonic clock."""

    def __init__(self, *, most_windows: int = MOST_WINDOWS, most_attempts: int = MOST_ATTEMPTS) -> None:
        self._windows: OrderedDict[str, list[float]] = OrderedDict()
        self._most_windows = most_windows
        self._most_attempts = most_attempts
        self._held = 0

    def hit(self, window: Window, now: float, arrived: float | None = None) -> RateLimitResult:
        """Count an attempt, dated `arrived` (by default `now`, never later), if its window has room."""
        times = self._windows.setdefault(window.counted, [])
        self._windows.move_to_end(window.counted)
        gone = bisect_right(times, now - window.seconds)
        del times[:gone]
        admitted = len(times) < window.limit
        if admitted:
            insort(times, now if arrived is None else arrived)
        self._held += admitted - gone
        while len(self._windows) > self._most_windows or self._held > self._most_attempts:
            self._held -= len(self._windows.popitem(last=False)[1])
        return RateLimitResult(admitted, window.limit - len(times), times[0] + window.seconds - now, now)
