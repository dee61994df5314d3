"""Parse server-sent events (WHATWG HTML section 9.2) in the form in which the service writes them. Pure."""

from collections.abc import Iterator
from typing import Final, NamedTuple

EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
"""Size of the largest event. The largest of the service's own, 2,000 values of 256 escaped characters, is smaller."""


class FeedError(ValueError):
    """The text is not the service's feed, or a part of it cannot be understood."""


class Message(NamedTuple):
    """One event, as server-sent events know it."""

    event: str
    data: str
    id: str | None


class Parser:
    """Parses a stream as its bytes arrive. Holds at most one event; one that the stream does not finish is dropped."""

    def __init__(self, max_bytes: int = EVENT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._unfinished = b""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that end in this chunk; exhaust it before the next one.

        Raises FeedError for text that is not UTF-8, and for an event that is too large.
        """
        *events, self._unfinished = (self._unfinished + chunk).split(b"\n\n")
        if max(map(len, [*events, self._unfinished])) > self._max_bytes:
            raise FeedError(f"an event is larger than {self._max_bytes} bytes")
        for event in events:
            try:
                fields = dict(line.partition(": ")[::2] for line in event.decode().split("\n"))
            except UnicodeDecodeError:
                raise FeedError("the text is not UTF-8") from None
            if "data" in fields:
                yield Message(fields.get("event", "message"), fields["data"], fields.get("id"))
