"""What replies of Redis say about revocations. Pure."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from revocation_client.claims import CLAIMS, ClaimName
from revocation_client.revocation import Revocation
from revocation_client.schema import parse_claim, revocation_form
from revocation_service.store.cursor import Cursor

AGREEMENT_SECONDS: Final = 0.05
"""How far apart a record's end and its key's may be and still be the same: Redis counts milliseconds."""

CHANGE_MEMBERS: Final = {"claim", "value", "revoked_at", "expires_at", "issued_before"}
"""Members of a change in the log. A later version may write others, which may mean more than this one understands."""

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TOKENS_RECORD: Final = re.compile(rb'\{"revoked_at":(\d{1,12}(?:\.\d+)?),"expires_at":(\d{1,12}(?:\.\d+)?)[,}]')
"""How `merge.lua` begins the record of a token."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the change log."""

    cursor: Cursor
    change: Revocation | None = None
    foreign_found: bool | None = None
    """Whether a worker's rescan found records of a foreign application; None if the entry is no such report."""
    understood: bool = True
    """False for an entry of a later version. What is known of its change is still read."""


def clock_of(reply: Sequence[Any]) -> float:
    """Return the server's clock in epoch seconds, from the two numbers of TIME."""
    return int(reply[0]) + int(reply[1]) / 1e6


def revocation_from_record(claim: ClaimName, value: str, record: bytes, key_expires_at: float | None) -> Revocation:
    """Return the revocation of a key. The key's presence and expiry decide; a record of ours says the rest.

    If the claim never has a cutoff, a cutoff in the record is ignored.
    """
    try:
        members = json.loads(record)
        return Revocation(
            claim=claim,
            value=value,
            expires_at=_end(members, key_expires_at),
            revoked_at=_number(members["revoked_at"]),
            issued_before=_cutoff(claim, members),
            reason=_text(members.get("reason")),
            revoked_by=_text(members.get("revoked_by")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return Revocation(claim=claim, value=value, expires_at=key_expires_at, revoked_at=None)


def _end(members: Mapping[str, object], key_expires_at: float | None) -> float | None:
    """Return when a key ends: by its record, which is more exact, if Redis' milliseconds agree; else by Redis."""
    stated = _number(members["expires_at"]) if "expires_at" in members else None
    agree = stated is not None and key_expires_at is not None and abs(stated - key_expires_at) < AGREEMENT_SECONDS
    return stated if agree else key_expires_at


def _cutoff(claim: ClaimName, members: Mapping[str, object]) -> float | None:
    cutoff = _number(members["issued_before"]) if "issued_before" in members else None
    return None if CLAIMS[claim].cutoff == "never" else cutoff


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _text(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or _LONE_SURROGATE.search(value)):
        raise TypeError
    return value


def change_form(revocation: Revocation) -> dict[str, object]:
    """Return a revocation as the change log carries it: without reason and actor, which decide nothing."""
    return revocation_form(revocation._replace(reason=None, revoked_by=None))


def found_record(claim: ClaimName, value: str, row: Sequence[Any], now: float) -> Revocation:
    """Return the revocation in a row of `get.lua`: (position, value, PTTL), read at `now` on the server's clock."""
    _, record, left = row
    ends = now + left / 1_000 if left >= 0 else None
    return revocation_from_record(claim, value, record, ends)


def scanned_record(claim: ClaimName, value: str, row: Sequence[Any], now: float) -> Revocation:
    """Return the revocation in a scanned row, mostly without reason and actor: mirrors do not keep them."""
    _, record, left = row
    ours = _TOKENS_RECORD.match(record) if claim == "jti" and left >= 0 else None
    if ours is None:
        return found_record(claim, value, row, now)
    ends, stated = now + left / 1_000, float(ours[2])
    return Revocation(claim, value, stated if abs(stated - ends) < AGREEMENT_SECONDS else ends, float(ours[1]))


def merged_record(claim: ClaimName, value: str, result: Sequence[Any]) -> Revocation:
    """Return the record in a result of `merge.lua`: {result, record, expires_at, was_foreign, changed}."""
    return revocation_from_record(claim, value, result[1], float(result[2]) if result[2] else None)


def nonce_of(fields: Mapping[bytes, bytes]) -> str:
    """Return the nonce of an entry of the log, as `beat.lua` does; empty for an entry of another application."""
    nonce = fields.get(b"n", b"")
    return nonce.decode("ascii") if nonce.isalnum() else ""


def log_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Return an entry of the log: `n` is its nonce; `r` a change; `f` whether a rescan found foreign records."""
    cursor = Cursor.parse(f"{entry_id.decode()}.{nonce_of(fields)}")
    if b"f" in fields:
        return Entry(cursor, foreign_found=fields[b"f"] == b"1")
    if b"r" not in fields:
        return Entry(cursor)
    try:
        members = json.loads(fields[b"r"])
        return Entry(cursor, _change(members), understood=members.keys() <= CHANGE_MEMBERS)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return Entry(cursor, understood=False)


def _change(members: Mapping[str, Any]) -> Revocation:
    cutoff, end, since = members.get("issued_before"), members["expires_at"], members.get("revoked_at")
    return Revocation(
        claim=parse_claim(members["claim"]),
        value=str(members["value"]),
        expires_at=None if end is None else _finite(end),
        revoked_at=None if since is None else _finite(since),
        issued_before=None if cutoff is None else _finite(cutoff),
    )


def _finite(moment: object) -> float:
    """Return finite epoch seconds. Raises ValueError: other values in the log would stop the mirror of every worker."""
    seconds = float(str(moment))
    if not math.isfinite(seconds):
        raise ValueError
    return seconds
