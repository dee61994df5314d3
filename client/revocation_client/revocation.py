"""The rule: which tokens a revocation covers, and how two revocations merge. Pure: it knows no I/O and no clock.

The service and every mirror use these functions.
"""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from revocation_client.claims import ClaimName, Claims

DEFAULT_CLOCK_SKEW_SECONDS: Final = 60.0


class Revocation(NamedTuple):
    """One revocation: it covers every token whose `claim` is `value` and that was issued at or before the cutoff.

    Times are epoch seconds (NumericDate, RFC 7519 section 2).
    """

    claim: ClaimName
    value: str
    expires_at: float | None
    """When it ends; None only where a foreign writer set no expiry."""
    revoked_at: float | None
    """When it was first requested; None where a foreign writer did not say."""
    issued_before: float | None = None
    """The cutoff, itself included; None covers every token."""
    reason: str | None = None
    revoked_by: str | None = None


def issued_at(iat: float | None, now: float, skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS) -> float:
    """Return when a token counts as issued: its `iat` as it stands, or `-inf` where that is unusable.

    An `iat` is unusable if it is absent, not finite, or more than `skew_seconds` ahead of `now`.
    """
    if iat is None or not math.isfinite(iat) or iat > now + skew_seconds:
        return -math.inf
    return iat


def iat_unusable(
    covering: Revocation | None, claims: Claims, now: float, skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
) -> bool:
    """Return whether `covering` covers a token with these claims only because the token's `iat` is unusable.

    Every token without a usable `iat` is then revoked until the revocation ends, also one that is issued later. A
    question by claims that leaves `iat` out counts as such a token. False for a revocation without a cutoff.
    """
    if covering is None or covering.issued_before is None:
        return False
    return issued_at(claims.iat, now, skew_seconds) == -math.inf


def covers(
    revocation: Revocation, claims: Claims, now: float, skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
) -> bool:
    """Return whether a revocation, at `now`, covers a token with these claims: the rule."""
    if (revocation.claim, revocation.value) not in claims.identifiers:
        return False
    if revocation.expires_at is not None and revocation.expires_at < now:
        return False
    return revocation.issued_before is None or issued_at(claims.iat, now, skew_seconds) <= revocation.issued_before


def first_covering(
    revocations: Iterable[Revocation], claims: Claims, now: float, skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
) -> Revocation | None:
    """Return the first revocation that covers a token with these claims; any one is enough."""
    return next((found for found in revocations if covers(found, claims, now, skew_seconds)), None)


def merge(one: Revocation, other: Revocation) -> Revocation:
    """Merge two records of one claim and value. The result covers what either covers, for as long as either does.

    It has the later expiry, the later cutoff, and the earlier `revoked_at` with its reason and actor. The operation is
    commutative, associative and idempotent, so order, duplicates, retries and late copies do no harm.
    Raises ValueError if the two are not of the same claim and value.
    """
    if (one.claim, one.value) != (other.claim, other.value):
        raise ValueError("only records of the same claim and value can be merged")
    first = min(one, other, key=_origin)
    return Revocation(
        claim=one.claim,
        value=one.value,
        expires_at=later(one.expires_at, other.expires_at),
        revoked_at=first.revoked_at,
        issued_before=later(one.issued_before, other.issued_before),
        reason=first.reason,
        revoked_by=first.revoked_by,
    )


def later(one: float | None, other: float | None) -> float | None:
    """Return the later of two times, where None is never reached."""
    return None if one is None or other is None else max(one, other)


def _origin(record: Revocation) -> tuple[float, bool, str, bool, str]:
    """Order records by `revoked_at`; what is known goes before what is not, so that it is kept."""
    return (
        math.inf if record.revoked_at is None else record.revoked_at,
        record.reason is None,
        record.reason or "",
        record.revoked_by is None,
        record.revoked_by or "",
    )
