"""Encode and parse the events of the feed: server-sent events (WHATWG HTML section 9.2) of JSON. Pure.

Each stream has this order, and a follower can rely on it:

    heartbeat                     first and at once: it tells the sender's clock, and proves nothing yet
    reset unknown_cursor          if the stream cannot be resumed from the cursor that was asked for
    snapshot ...                  unless the stream is resumed; heartbeats may come between the parts
    change ...                    everything that was missed, or happened during the snapshot
    synced                        the cursor from which the changes go on
    heartbeat                     at once; from here on a heartbeat proves that nothing before it is missing
    change, heartbeat, ...        as they happen; a heartbeat each second
    reset shutdown                the sender is leaving: ask the service from now on; changes go on until the end
    reset too_slow|lost           the last event

A later version may add events, members and claims. They are skipped, and `Parser` names them. Anything else that
is malformed is a `FeedError`. What was sent before it stays valid, because the feed only adds revocations.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from revocation_client.claims import CLAIMS
from revocation_client.revocation import DEFAULT_CLOCK_SKEW_SECONDS, Revocation
from revocation_client.schema import check_seconds, number, optional_seconds

EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
"""Size of the largest event. The largest of the service's own, 2,000 values of 256 escaped characters, is smaller."""

ROW_COLUMNS: Final = 4
"""Columns of a revocation: claim, value, expires_at, issued_before."""


class FeedError(ValueError):
    """The text is not the service's feed, or a part of it cannot be understood."""


Why = Literal["unknown_cursor", "too_slow", "shutdown", "lost"]


class Snapshot(NamedTuple):
    """A part of what was revoked when the stream began."""

    revocations: Sequence[Revocation]


class Synced(NamedTuple):
    """Marks that everything revoked up to this cursor has been sent."""

    cursor: str
    complete: bool
    """False while foreign applications write to the same Redis: the feed does not carry their revocations."""
    clock_skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
    """How far ahead the sender lets issuers' clocks be; followers judge an `iat` with it."""


class Change(NamedTuple):
    """What was revoked since the snapshot or the previous cursor."""

    cursor: str
    revocations: Sequence[Revocation]


class Heartbeat(NamedTuple):
    """Tells how many seconds the sender was behind the store when it sent this event; `inf` if that is unknown."""

    behind_seconds: float
    sent_at: float
    """On the sender's monotonic clock."""
    complete: bool


class Reset(NamedTuple):
    """A snapshot follows on this stream (`unknown_cursor`), the sender is leaving (`shutdown`), or the stream ends."""

    reason: Why


Event = Snapshot | Synced | Change | Heartbeat | Reset


_KINDS: Final[dict[str, type[Event]]] = {kind.__name__.lower(): kind for kind in get_args(Event)}
"""The class of each event. Its fields are the members of its JSON, but for the cursor, which is the event's `id`."""


def encode(event: Event) -> bytes:
    """Return the text of an event. Raises ValueError for a time that is no finite number."""
    form = event._asdict()
    cursor = form.pop("cursor", None)
    if isinstance(event, Snapshot | Change):
        form["revocations"] = [
            [one.claim, one.value, number(one.expires_at), number(one.issued_before)] for one in event.revocations
        ]
    elif isinstance(event, Heartbeat) and event.behind_seconds == math.inf:
        form["behind_seconds"] = None
    head = f"event: {type(event).__name__.lower()}\n" + (f"id: {cursor}\n" if cursor else "")
    data = json.dumps(form, separators=(",", ":"), allow_nan=False)
    return f"{head}data: {data}\n\n".encode("ascii")


class Parser:
    """Parses a stream as its bytes arrive. Holds at most one unfinished event, which is lost if the stream ends."""

    def __init__(self, max_bytes: int = EVENT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._unfinished = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[Event | None, str | None]]:
        """Yield the events that end in this chunk. Exhaust the iterator before you feed the next chunk.

        Each event comes with the name of something unknown in it, or with None. An event of an unknown kind is None.
        Raises FeedError.
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
                yield _decode(fields.get("event", "message"), fields["data"], fields.get("id"))


def _decode(name: str, data: str, cursor: str | None) -> tuple[Event | None, str | None]:
    if name not in _KINDS:
        return None, f"the event {name!r:.40}"
    try:
        form = json.loads(data)
        return _event(name, form, cursor), _unknown(form, _KINDS[name]._fields)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise FeedError(f"an event named {name} is not of its form") from None


def _event(name: str, form: Any, cursor: str | None) -> Event:
    match name, form:
        case "snapshot", {"revocations": list(rows)}:
            return Snapshot(_revocations(rows))
        case "change", {"revocations": list(rows)}:
            return Change(_checked(cursor), _revocations(rows))
        case "synced", {"complete": bool(complete), "clock_skew_seconds": skew}:
            return Synced(_checked(cursor), complete, check_seconds("clock_skew_seconds", skew))
        case "heartbeat", {"behind_seconds": behind, "sent_at": sent_at, "complete": bool(complete)}:
            behind = math.inf if behind is None else check_seconds("behind_seconds", behind)
            return Heartbeat(behind, check_seconds("sent_at", sent_at), complete)
        case "reset", {"reason": why}:  # one of a later version ends the stream, as `lost` does
            return Reset(why if why in get_args(Why) else "lost")
    raise ValueError


def _unknown(form: dict[str, Any], known: Sequence[str]) -> str | None:
    """Return a description of something that this version does not know; None if it knows everything."""
    unknown = [f"the member {name!r:.40}" for name in form.keys() - known]
    for row in form.get("revocations", ()):
        if row[0] not in CLAIMS or len(row) > ROW_COLUMNS:
            unknown.append(f"a revocation by {row[0]!r:.40}")
    return unknown[0] if unknown else None


def _checked(cursor: str | None) -> str:
    """Return a cursor that fits in an HTTP header. Raises ValueError for any other."""
    if cursor is None or not re.fullmatch(r"[!-~]{1,200}", cursor):
        raise ValueError
    return cursor


def _revocations(rows: list[Any]) -> list[Revocation]:
    """Return the revocations in these rows, except those by unknown claims."""
    return [_revocation(*row[:ROW_COLUMNS]) for row in rows if row[0] in CLAIMS]


def _revocation(claim: str, value: object, expires_at: object, issued_before: object) -> Revocation:
    if not isinstance(value, str):
        raise TypeError
    end, cutoff = optional_seconds("expires_at", expires_at), optional_seconds("issued_before", issued_before)
    return Revocation(claim, value, end, None, cutoff)
