"""The events of the feed and their JSON, both ways. Pure.

The service sends, and a follower can rely on, this order in each stream:

    heartbeat                     first and at once: it tells the sender's clock, and proves nothing yet
    reset unknown_cursor          if the stream cannot be resumed from the cursor that was asked for
    snapshot ...                  unless it is resumed; other heartbeats may stand between
    change ...                    everything that was missed, or happened during the snapshot
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
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from revocation_client.claims import CLAIMS
from revocation_client.revocation import DEFAULT_CLOCK_SKEW_SECONDS, Revocation
from revocation_client.schema import check_seconds, number, optional_seconds
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


def decode(message: Message) -> tuple[Event | None, str | None]:
    """Return the event of a message, None if this version does not know it; and the name of something unknown in it.

    Raises FeedError.
    """
    if message.event not in _KINDS:
        return None, f"the event {message.event!r:.40}"
    try:
        form = json.loads(message.data)
        return _event(message, form), _unknown(form, _KINDS[message.event]._fields)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise FeedError(f"an event named {message.event} is not of its form") from None


def _event(message: Message, form: Any) -> Event:
    match message.event, form:
        case "snapshot", {"revocations": list(rows)}:
            return Snapshot(_revocations(rows))
        case "change", {"revocations": list(rows)}:
            return Change(_cursor(message), _revocations(rows))
        case "synced", {"complete": bool(complete), "clock_skew_seconds": skew}:
            return Synced(_cursor(message), complete, check_seconds("clock_skew_seconds", skew))
        case "heartbeat", {"behind_seconds": behind, "sent_at": sent_at, "complete": bool(complete)}:
            behind = math.inf if behind is None else check_seconds("behind_seconds", behind)
            return Heartbeat(behind, check_seconds("sent_at", sent_at), complete)
        case "reset", {"reason": why}:  # one of a later version ends the stream, as `lost` does
            return Reset(why if why in get_args(Why) else "lost")
    raise ValueError


def _unknown(form: dict[str, Any], known: Sequence[str]) -> str | None:
    """Return the name of a member, or of the claim of a row, that this version does not know."""
    unknown = [f"the member {name!r:.40}" for name in form.keys() - known]
    for row in form.get("revocations", ()):
        if row[0] not in CLAIMS or len(row) > ROW_COLUMNS:
            unknown.append(f"a revocation by {row[0]!r:.40}")
    return unknown[0] if unknown else None


def _cursor(message: Message) -> str:
    """Return the cursor of an event if it may stand in a header."""
    if message.id is None or not re.fullmatch(r"[!-~]{1,200}", message.id):
        raise ValueError
    return message.id


def _revocations(rows: list[Any]) -> list[Revocation]:
    """Return the revocations by known claims."""
    return [_revocation(*row[:ROW_COLUMNS]) for row in rows if row[0] in CLAIMS]


def _revocation(claim: str, value: object, expires_at: object, issued_before: object) -> Revocation:
    if not isinstance(value, str):
        raise TypeError
    end, cutoff = optional_seconds("expires_at", expires_at), optional_seconds("issued_before", issued_before)
    return Revocation(claim, value, end, None, cutoff)
