"""What a feed said last, for those who come back. Pure; it knows no time.

A cursor is `<name>.<number>`: how many events the feed of that name had said. It is worth nothing to another feed: that
one learned the same in another order, its own process' revocations first, so that no place in the log is one in both.
"""

from collections import deque
from typing import Final

RING_MAX_BYTES: Final = 8 * 1024 * 1024
EVENT_COSTS_BYTES: Final = 64
"""What an event takes beside its text."""


def cost(event: bytes) -> int:
    """How much memory an event counts for."""
    return len(event) + EVENT_COSTS_BYTES


class Ring:
    """The last events of the feed of one name."""

    def __init__(self, name: str, most_bytes: int = RING_MAX_BYTES) -> None:
        self._name = name
        self._most_bytes = most_bytes
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._forgotten = 0

    @property
    def cursor(self) -> str:
        """Where everything was said that was said so far."""
        return self._at(self._said)

    @property
    def next_cursor(self) -> str:
        """Where the next event will have been said."""
        return self._at(self._said + 1)

    @property
    def _said(self) -> int:
        return self._forgotten + len(self._events)

    def _at(self, number: int) -> str:
        return f"{self._name}.{number}"

    def add(self, event: bytes) -> None:
        """An event was said."""
        self._events.append(event)
        self._bytes += cost(event)
        while self._bytes > self._most_bytes:
            self._bytes -= cost(self._events.popleft())
            self._forgotten += 1

    def since(self, cursor: str) -> list[bytes] | None:
        """What was said since; None where it is not known, or not any more, or is another feed's cursor."""
        name, _, number = cursor.rpartition(".")
        if name != self._name or not (number.isascii() and number.isdigit() and len(number) < 20):
            return None
        told = int(number)
        if not self._forgotten <= told <= self._said:
            return None
        return [*self._events][told - self._forgotten :]
