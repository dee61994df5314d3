"""The newest events of the feed, in order. This module does no I/O.

A position is the number of events that were appended before it. A cursor (`Last-Event-ID`) is `<name>.<position>`. Each
process has its own random name, because two processes append the same revocations in different orders.
"""

from collections import deque
from typing import Final

REPLAY_MAX_BYTES: Final = 16 * 1024 * 1024


class ReplayBuffer:
    """A bounded buffer that drops its oldest events."""

    def __init__(self, name: str) -> None:
        self.start = self.end = 0
        """The oldest position that can be read from, and the one after the newest event."""
        self._name = name
        self._events: deque[bytes] = deque()
        self._bytes = 0

    def append(self, event: bytes) -> None:
        """Add an event, and drop as many old ones as the bound requires."""
        self._events.append(event)
        self.end += 1
        self._bytes += len(event)
        while self._bytes > REPLAY_MAX_BYTES:
            self._bytes -= len(self._events.popleft())
            self.start += 1

    def read(self, position: int, enough_bytes: int) -> tuple[bytes, int]:
        """Return events from `position` (not before `start`) until they fill `enough_bytes`, and the next position."""
        events = bytearray()
        while position < self.end and len(events) < enough_bytes:
            events += self._events[position - self.start]
            position += 1
        return bytes(events), position

    def cursor(self, position: int) -> str:
        return f"{self._name}.{position}"

    def position(self, cursor: str) -> int | None:
        """Return the position of a cursor; None if it belongs to another process or is no longer in the buffer."""
        digits = cursor.rpartition(".")[2]
        position = int(digits) if digits.isdecimal() else -1
        return position if self.start <= position <= self.end and cursor == self.cursor(position) else None
