"""Parse server-sent events (WHATWG HTML section 9.2). Pure."""

import codecs
import io
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
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
        self._unfinished = ""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that end in this chunk; exhaust it before the next one.

        Raises FeedError for text that is not UTF-8, and for an event that is too large.
        """
        try:
            text = self._unfinished + self._decoder.decode(chunk)
        except UnicodeDecodeError:
            raise FeedError("the text is not UTF-8") from None
        *events, self._unfinished = text.split("\n\n")
        if max(map(len, [*events, self._unfinished])) > self._max_bytes:
            raise FeedError(f"an event is larger than {self._max_bytes} bytes")
        yield from filter(None, map(_message, events))


def _message(text: str) -> Message | None:
    """Return the message of an event's lines; None without data (section 9.2.6). Other fields are ignored."""
    fields: dict[str, list[str]] = {"event": ["message"], "data": [], "id": []}
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        if name in fields:
            fields[name].append(value.removeprefix(" "))
    event, data, ids = fields.values()
    return Message(event[-1], "\n".join(data), ids[-1] if ids else None) if data else None
