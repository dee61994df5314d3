"""The events of the feed and their JSON, both ways. Pure.

The service sends, and a follower can rely on, this order in each stream:

    heartbeat                     first and at once: it tells the sender's clock, and proves nothing yet
    reset unknown_cursor          if the stream cannot be resumed from the cursor that was asked for
    snapshot ...                  unless it is resumed; other heartbeats may stand between
    change ...                    if it is resumed: everything that was missed
    synced                        the cursor from which the changes go on
    heartbeat                     at once; from here on a heartbeat proves that nothing before it is missing
    change, heartbeat, ...        as they happen; a heartbeat each second
    reset shutdown                the sender is leaving: ask the service from now on; changes go on until the end
    reset too_slow|lost           the last event

What a later version adds (an event, a member, a claim) is skipped, and `decode` names it. Anything else that is
not of this form is a `FeedError`: what the stream said before still holds, because revocations only add.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, get_args

from revocation_client.claims import CLAIMS
from revocation_client.revocation import DEFAULT_CLOCK_SKEW_SECONDS, Revocation
from revocation_client.schema import check_seconds, number
from revocation_client.sse import FeedError, Message

ROW_COLUMNS: Final = 4
"""Columns of a revocation: claim, value, expires_at, issued_before."""

Why = Literal["unknown_cursor", "too_slow", "shutdown", "lost"]


class Snapshot(NamedTuple):
    """A part of what was revoked when the stream began."""

    revocations: Sequence[Revocation]


class Synced(NamedTuple):
    """Everything that was revoked up to this cursor stands before it."""

    cursor: str
    complete: bool
    """False while foreign applications write to the same Redis: the feed does not carry their revocations."""
    clock_skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
    """By how much the sender lets issuers' clocks be ahead; followers judge an `iat` with it."""


class Change(NamedTuple):
    """What was revoked since."""

    cursor: str
    revocations: Sequence[Revocation]


class Heartbeat(NamedTuple):
    """How far the sender was behind the store when it sent this; `inf` if it does not know."""

    behind_seconds: float
    sent_at: float
    """On the sender's monotonic clock."""
    complete: bool


class Reset(NamedTuple):
    """A snapshot follows on this stream (`unknown_cursor`), the sender is leaving (`shutdown`), or the stream ends."""

    reason: Why


Event = Snapshot | Synced | Change | Heartbeat | Reset


def encode(event: Event) -> bytes:
    """Return the text of an event. Raises ValueError for a time that is no finite number."""
    name = type(event).__name__.lower()
    form = {member: getattr(event, member) for member in _FORMS[name][1]}
    if isinstance(event, Snapshot | Change):
        form["revocations"] = [
            [one.claim, one.value, number(one.expires_at), number(one.issued_before)] for one in event.revocations
        ]
    elif isinstance(event, Heartbeat) and event.behind_seconds == math.inf:
        form["behind_seconds"] = None
    cursor = f"id: {event.cursor}\n" if isinstance(event, Synced | Change) else ""
    data = json.dumps(form, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\n{cursor}data: {data}\n\n".encode("ascii")


def decode(message: Message) -> tuple[Event | None, str | None]:
    """Return the event of a message, None if this version does not know it; and the name of something unknown in it.

    Raises FeedError.
    """
    if message.event not in _FORMS:
        return None, f"the event {message.event!r:.40}"
    kind, readers = _FORMS[message.event]
    try:
        form = json.loads(message.data)
        members = {name: read(form[name]) for name, read in readers.items()}
        if kind in (Synced, Change):
            members["cursor"] = _cursor(message.id)
        return kind(**members), _unknown(form, readers)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise FeedError(f"an event named {message.event} is not of its form") from None


def _unknown(form: dict[str, Any], readers: dict[str, Any]) -> str | None:
    """Return the name of a member, or of the claim of a row, that this version does not know."""
    unknown = [f"the member {name!r:.40}" for name in form.keys() - readers.keys()]
    for row in form.get("revocations", ()):
        if row[0] not in CLAIMS or len(row) > ROW_COLUMNS:
            unknown.append(f"a revocation by {row[0]!r:.40}")
    return unknown[0] if unknown else None


def _cursor(cursor: str | None) -> str:
    """Return a cursor if it may stand in a header."""
    if cursor is None or not re.fullmatch(r"[!-~]{1,200}", cursor):
        raise ValueError
    return cursor


def _revocations(rows: object) -> list[Revocation]:
    """Return the revocations by known claims."""
    if not isinstance(rows, list):
        raise TypeError
    return [_revocation(*row[:ROW_COLUMNS]) for row in rows if row[0] in CLAIMS]


def _revocation(claim: str, value: object, expires_at: object, issued_before: object) -> Revocation:
    if not isinstance(value, str):
        raise TypeError
    end = None if expires_at is None else _seconds(expires_at)
    return Revocation(claim, value, end, None, None if issued_before is None else _seconds(issued_before))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


_seconds: Final = partial(check_seconds, "a time")

_FORMS: Final[dict[str, tuple[Callable[..., Event], dict[str, Callable[[object], Any]]]]] = {
    "snapshot": (Snapshot, {"revocations": _revocations}),
    "synced": (Synced, {"complete": _flag, "clock_skew_seconds": _seconds}),
    "change": (Change, {"revocations": _revocations}),
    "heartbeat": (
        Heartbeat,
        {"behind_seconds": lambda it: math.inf if it is None else _seconds(it), "sent_at": _seconds, "complete": _flag},
    ),
    "reset": (Reset, {"reason": lambda it: it if it in get_args(Why) else "lost"}),
}
"""The class of each event, and how each member of its JSON is read. The cursor of an event is its `id`.

A reset for a reason of a later version ends the stream, as `lost` does.
"""
