"""The rule: which tokens a revocation covers. Pure: it does no I/O and reads no clock.

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

    Until `covering` ends, it then covers every such token of its claim and value, also those issued later.
    A question by claims without `iat` counts as such a token. False for a revocation without a cutoff.
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


def later(one: float | None, other: float | None) -> float | None:
    """Return the later of two times. None means never, and is later than any time."""
    return None if one is None or other is None else max(one, other)
