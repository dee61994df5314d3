"""The sliding windows that one gateway keeps in its own memory; no I/O, and the time is passed in."""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

from revocation_service.store.windows import Attempt, Tally

MOST_WINDOWS: Final = 50_000
MOST_ATTEMPTS: Final = 500_000
"""How many addresses and accounts are remembered, and how many attempts of theirs in all. Beyond that, whoever
attempted least recently is forgotten: a bound on memory, at the price that a stranger with more addresses than that can
have an earlier one forgotten, which then has as many attempts as one more address would have had.
"""

DRIFT: Final = 0.001
"""By what part of a window this process's clock and Redis' may drift apart within it."""


@dataclass(slots=True)
class _Window:
    seconds: float
    attempts: dict[str, float] = field(default_factory=dict)
    """When each was made, by id, in the order in which they were counted."""
    full_until: float = 0.0
    """Redis has said that there is no room before."""

    def slide(self, until: float) -> int:
        """Drop what was made before; the answer is how many those were."""
        gone = list(takewhile(lambda each: self.attempts[each] <= until, self.attempts))
        for each in gone:
            del self.attempts[each]
        return len(gone)

    def frees_at(self, limit: int) -> float:
        """When the oldest attempt that counts leaves; not before Redis, which may know of others, has room."""
        oldest = next(islice(self.attempts.values(), max(len(self.attempts) - limit, 0), None), None)
        return max(self.full_until, 0.0 if oldest is None else oldest + self.seconds)

    def over(self, now: float) -> bool:
        """Whether nothing in it counts any more."""
        newest = next(reversed(self.attempts.values()), None)
        return self.full_until <= now and (newest is None or newest + self.seconds <= now)


class OwnWindows:
    """Windows by whoever is counted; times are seconds on a monotonic clock."""

    def __init__(self, *, most_windows: int = MOST_WINDOWS, most_attempts: int = MOST_ATTEMPTS) -> None:
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._most_windows = most_windows
        self._most_attempts = most_attempts
        self._held = 0

    @property
    def held(self) -> tuple[int, int]:
        """How many windows are remembered, and how many attempts in them."""
        return len(self._windows), self._held

    def hit(self, attempt: Attempt, now: float, wall: float) -> Tally:
        """Count an attempt if its window has room; `wall` is the time that the answer calls now."""
        window = self._slid(attempt, now, attempt.window_seconds)
        admitted = window.full_until <= now and len(window.attempts) < attempt.limit
        if admitted:
            self._add(window, attempt, now)
        remaining = 0 if window.full_until > now else max(attempt.limit - len(window.attempts), 0)
        return Tally(admitted, remaining, max(window.frees_at(attempt.limit) - now, 0.0), wall)

    def agree(self, attempt: Attempt, made_at: float, tally: Tally) -> Tally:
        """Redis' answer to an attempt, remembered; denied after all where Redis knows less than this gateway does.

        That is so after an outage: what was admitted meanwhile is not in Redis, nor what it lost.
        """
        window = self._slid(attempt, made_at, attempt.window_seconds * (1 - DRIFT))
        if not tally.admitted:
            window.full_until = made_at + tally.frees_in
            return tally
        admitted = len(window.attempts) < attempt.limit
        if admitted:
            self._add(window, attempt, made_at)
        remaining = attempt.limit - len(window.attempts)
        if admitted and remaining >= tally.remaining:
            return tally
        return Tally(admitted, max(remaining, 0), max(window.frees_at(attempt.limit) - made_at, 0.0), tally.now)

    def give_back(self, attempt: Attempt) -> None:
        """Count an attempt no longer."""
        window = self._windows.get(attempt.counted)
        if window is not None and window.attempts.pop(attempt.id, None) is not None:
            self._held -= 1
            window.full_until = 0.0

    def _slid(self, attempt: Attempt, now: float, seconds: float) -> _Window:
        """The window of an attempt, without what left it by now, and at the end of the line to be forgotten."""
        window = self._windows.setdefault(attempt.counted, _Window(attempt.window_seconds))
        self._windows.move_to_end(attempt.counted)
        self._held -= window.slide(now - seconds)
        while len(self._windows) > 1 and self._forgettable(now):
            _counted, forgotten = self._windows.popitem(last=False)
            self._held -= len(forgotten.attempts)
        return window

    def _forgettable(self, now: float) -> bool:
        """Whether whoever attempted least recently is to be forgotten: nothing counts any more, or memory is full."""
        full = len(self._windows) > self._most_windows or self._held >= self._most_attempts
        return full or next(iter(self._windows.values())).over(now)

    def _add(self, window: _Window, attempt: Attempt, made_at: float) -> None:
        window.attempts[attempt.id] = made_at
        self._held += 1
