"""The feed: its events, and their text form (server-sent events, WHATWG HTML section 9.2), both ways. Pure.

The service writes, and a follower can rely on, this order in each stream:

    heartbeat                     first and at once: it tells the sender's clock, and proves nothing yet
    reset unknown_cursor          where the stream was to be resumed, and cannot be
    snapshot ...                  unless it is resumed; other heartbeats may stand between
    change ...                    if it is resumed: all that was missed
    synced                        the cursor from which the changes go on
    heartbeat                     at once; from here on a heartbeat vouches for all that stands before it
    change, heartbeat, ...        as they happen; a heartbeat each second
    reset shutdown                the sender is leaving: ask the service from now on; changes go on until the end
    reset too_slow|lost           the last event

Text is ASCII, one line of data an event. What is not of this form raises `FeedError`: the stream cannot be followed any
further, and what it said before still holds, because everything only adds. What a later version may have added (an
event, a member, a claim, a reason) is no error: `Heard.unknown` names it, and the memory is then not complete.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from revocation_client.model import CLAIM_NAMES, DEFAULT_CLOCK_SKEW_SECONDS, ClaimName, Revocation
from revocation_client.wire import number

EVENT_MAX_REVOCATIONS: Final = 2000
"""Of a snapshot's part, and of a change."""

PART_REVOCATIONS: Final = 250
"""Of a snapshot's part as it is written: so few that reading one, and forgetting it, wakes no garbage collector, whose
walk through all that a program holds would stop it for longer than anything here.
"""

EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of an event's text; the largest of the service's own, 2,000 values of 256 escaped characters, is below it."""

HEARTBEAT_SECONDS: Final = 1.0

ROW_COLUMNS: Final = 4
"""Columns of a revocation: claim, value, expires_at, issued_before."""

UNKNOWN_MAX_CHARACTERS: Final = 40
"""Characters of an unknown name that are kept."""

Why = Literal["unknown_cursor", "too_slow", "shutdown", "lost"]

_WHYS: Final[dict[object, Why]] = {
    "unknown_cursor": "unknown_cursor",
    "too_slow": "too_slow",
    "shutdown": "shutdown",
    "lost": "lost",
}
_CLAIMS: Final[dict[object, ClaimName]] = {name: name for name in CLAIM_NAMES}
_CURSOR: Final = re.compile(r"[!-~]{1,200}")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NOT_UNDERSTOOD: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class FeedError(ValueError):
    """The text is no feed, or one that this program does not understand."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A part of what was revoked when the stream began."""

    revocations: Sequence[Revocation]


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was revoked up to this cursor stands before it."""

    cursor: str
    complete: bool
    """Whether everything revoked comes this way; not while others write to the same Redis by themselves."""
    clock_skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
    """By how much the sender takes issuers' clocks to be ahead; with that its followers are to judge an `iat`."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was revoked since."""

    cursor: str
    revocations: Sequence[Revocation]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How far the sender was behind the store when it sent this, and when that was on its monotonic clock."""

    behind_seconds: float
    """`inf` where it cannot tell."""
    sent_at: float
    complete: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """A snapshot follows on this stream (`unknown_cursor`), the sender is leaving (`shutdown`), or the stream ends."""

    reason: Why


Event = Snapshot | Synced | Change | Heartbeat | Reset


class Heard(NamedTuple):
    """What a message says, as far as it is understood."""

    event: Event | None
    unknown: str | None = None
    """What in it this version does not know; None if everything was understood."""


class Message(NamedTuple):
    """An event as server-sent events know it."""

    event: str
    data: str
    id: str | None


def encode(event: Event) -> bytes:
    """An event's text.

    Raises ValueError for what no follower would take: more than 2,000 revocations, a cursor that fits in no header.
    """
    name, form, cursor = _form(event)
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise ValueError("a cursor is 1 to 200 printable ASCII characters without spaces")
    ident = "" if cursor is None else f"id: {cursor}\n"
    text = f"event: {name}\n{ident}data: {json.dumps(form, separators=(',', ':'), allow_nan=False)}\n\n"
    if len(text) > EVENT_MAX_BYTES:
        raise ValueError("the event is too large")
    return text.encode("ascii")


def snapshots(revocations: Iterable[Revocation]) -> Iterator[bytes]:
    """A snapshot's text, in parts; each is made when it is asked for."""
    rest = iter(revocations)
    while part := list(islice(rest, PART_REVOCATIONS)):
        yield encode(Snapshot(part))


def _form(event: Event) -> tuple[str, dict[str, object], str | None]:
    if isinstance(event, Snapshot):
        return "snapshot", {"revocations": _rows(event.revocations)}, None
    if isinstance(event, Change):
        return "change", {"revocations": _rows(event.revocations)}, event.cursor
    if isinstance(event, Synced):
        return "synced", {"complete": event.complete, "clock_skew_seconds": event.clock_skew_seconds}, event.cursor
    if isinstance(event, Reset):
        return "reset", {"reason": event.reason}, None
    behind = event.behind_seconds if math.isfinite(event.behind_seconds) else None
    return "heartbeat", {"behind_seconds": behind, "sent_at": event.sent_at, "complete": event.complete}, None


def _rows(revocations: Sequence[Revocation]) -> list[list[object]]:
    if len(revocations) > EVENT_MAX_REVOCATIONS:
        raise ValueError(f"an event has at most {EVENT_MAX_REVOCATIONS} revocations")
    return [[one.claim, one.value, number(one.expires_at), number(one.issued_before)] for one in revocations]


def decode(message: Message) -> Heard:
    """Read a message. Part of a later version's event is left out, and named.

    Raises FeedError.
    """
    read = _READERS.get(message.event)
    if read is None:
        return Heard(None, _named("the event", message.event))
    try:
        form = json.loads(message.data)
        unknown = form.keys() - _MEMBERS[message.event]
        heard = read(message, form)
    except _NOT_UNDERSTOOD:
        raise FeedError(f"an event named {message.event} is not of its form") from None
    member = _named("a member", min(unknown)) if unknown else None
    return Heard(heard.event, heard.unknown or member)


def _named(what: str, name: object) -> str:
    return f"{what} {str(name)[:UNKNOWN_MAX_CHARACTERS]!r}"


def _snapshot(_message: Message, form: dict[str, Any]) -> Heard:
    revocations, unknown = _revocations(form)
    return Heard(Snapshot(revocations), unknown)


def _change(message: Message, form: dict[str, Any]) -> Heard:
    revocations, unknown = _revocations(form)
    return Heard(Change(_cursor(message), revocations), unknown)


def _synced(message: Message, form: dict[str, Any]) -> Heard:
    skew_seconds = _time(form["clock_skew_seconds"])
    if skew_seconds < 0:
        raise ValueError
    return Heard(Synced(_cursor(message), _flag(form["complete"]), skew_seconds))


def _heartbeat(_message: Message, form: dict[str, Any]) -> Heard:
    behind = form["behind_seconds"]
    seconds = math.inf if behind is None else _time(behind)
    if seconds < 0:
        raise ValueError
    return Heard(Heartbeat(seconds, _time(form["sent_at"]), _flag(form["complete"])))


def _reset(_message: Message, form: dict[str, Any]) -> Heard:
    """Read a reset; one for a reason of a later version ends the stream, as `lost` does."""
    reason = form["reason"]
    if not isinstance(reason, str):
        raise TypeError
    return Heard(Reset(_WHYS.get(reason, "lost")))


_READERS: Final[dict[str, Callable[[Message, dict[str, Any]], Heard]]] = {
    "snapshot": _snapshot,
    "change": _change,
    "synced": _synced,
    "heartbeat": _heartbeat,
    "reset": _reset,
}
_MEMBERS: Final = {
    "snapshot": {"revocations"},
    "change": {"revocations"},
    "synced": {"complete", "clock_skew_seconds"},
    "heartbeat": {"behind_seconds", "sent_at", "complete"},
    "reset": {"reason"},
}


def _cursor(message: Message) -> str:
    if message.id is None or not _CURSOR.fullmatch(message.id):
        raise ValueError
    return message.id


def _revocations(form: dict[str, Any]) -> tuple[list[Revocation], str | None]:
    """Read the rows; those of an unknown claim are left out, unknown columns are dropped, and the first is named."""
    rows = form["revocations"]
    if not isinstance(rows, list) or len(rows) > EVENT_MAX_REVOCATIONS:
        raise TypeError
    unknown: str | None = None
    known = []
    for row in rows:
        if row[0] not in _CLAIMS or len(row) > ROW_COLUMNS:
            unknown = unknown or _unknown_in(row)
        if row[0] in _CLAIMS:
            known.append(_revocation(*row[:ROW_COLUMNS]))
    return known, unknown


def _unknown_in(row: list[object]) -> str:
    claim = row[0]
    if not isinstance(claim, str) or not isinstance(row, list):
        raise TypeError
    return "a column of a revocation" if claim in _CLAIMS else _named("the claim", claim)


def _revocation(claim: object, value: object, expires_at: object, issued_before: object) -> Revocation:
    if not isinstance(value, str):
        raise TypeError
    end = None if expires_at is None else _time(expires_at)
    cutoff = None if issued_before is None else _time(issued_before)
    return Revocation(_CLAIMS[claim], value, end, None, cutoff)


def _time(value: object) -> float:
    """A finite number."""
    if type(value) is not float and type(value) is not int:
        raise TypeError
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError
    return seconds


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


class Parser:
    """Bytes, as they come, to messages; it holds at most one event, of `most_bytes`.

    An unfinished event at the end of a stream counts for nothing.
    """

    def __init__(self, most_bytes: int = EVENT_MAX_BYTES) -> None:
        self._most_bytes = most_bytes
        self._line = bytearray()
        self._size = 0
        self._at_start = True
        self._after_return = False
        self._clear()

    def _clear(self) -> None:
        self._event = ""
        self._id: str | None = None
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that end in this chunk; to be exhausted before the next.

        Raises FeedError for what is no text, and for an event that is too large.
        """
        if self._after_return and chunk:
            self._after_return = False
            chunk = chunk.removeprefix(b"\n")
        for piece in chunk.splitlines(keepends=True):
            self._size += len(piece)
            if self._size > self._most_bytes:
                raise FeedError(f"an event is larger than {self._most_bytes} bytes")
            self._line += piece
            if piece.endswith((b"\n", b"\r")):
                line = bytes(self._line).rstrip(b"\r\n")
                self._line.clear()
                message = self._take(line)
                if message is not None:
                    yield message
        self._after_return = chunk.endswith(b"\r")

    def _take(self, line: bytes) -> Message | None:
        if self._at_start:
            self._at_start, line = False, line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            message = Message(self._event or "message", "\n".join(self._data), self._id) if self._data else None
            self._clear()
            return message
        try:
            name, _, value = line.decode().partition(":")
        except UnicodeDecodeError:
            raise FeedError("the text is not UTF-8") from None
        self._note(name, value.removeprefix(" "))
        return None

    def _note(self, name: str, value: str) -> None:
        """A field; a comment's name is empty, and what is not known is passed over."""
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
