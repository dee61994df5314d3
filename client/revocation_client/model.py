"""The rule: which tokens a revocation covers, and how two revocations merge. Pure; knows no I/O and no clock.

The service and every mirror use these same functions, so that the rule is written once.
"""

import math
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, get_args

ClaimName = Literal["jti", "sid", "sub", "client_id", "all"]
"""The claims by which tokens are revoked; `all` stands for every token, and its value is the empty string."""

CLAIM_NAMES: Final[tuple[ClaimName, ...]] = get_args(ClaimName)

CUTOFF_CLAIMS: Final[frozenset[ClaimName]] = frozenset({"sub", "client_id", "all"})
"""Claims whose revocation always has a cutoff; `sid` may have one, `jti` never."""

DEFAULT_CLOCK_SKEW_SECONDS: Final = 60.0


class Revocation(NamedTuple):
    """One revocation: every token whose `claim` is `value`, and that was issued at or before the cutoff, is dead.

    Times are epoch seconds (NumericDate, RFC 7519 section 2).
    """

    claim: ClaimName
    value: str
    expires_at: float | None
    """When it ends; None only where a foreign writer set no expiry."""
    revoked_at: float | None
    """When it was first asked for; None where a foreign writer did not say."""
    issued_before: float | None = None
    """The cutoff, itself included; None covers every token."""
    reason: str | None = None
    revoked_by: str | None = None


class Claims(NamedTuple):
    """What the rule looks at of a token, or of a question about one; a claim that is None is not considered."""

    jti: str | None = None
    sid: str | None = None
    sub: str | None = None
    client_id: str | None = None
    iat: float | None = None
    """When it was issued; None: it does not say, or says nothing usable."""
    considers_all: bool = False
    """Whether revocations of `all` are looked at: for a whole token, and for a question that names `iat`."""

    def identifiers(self) -> list[tuple[ClaimName, str]]:
        """The claims and values under which a revocation of this token may stand."""
        jti, sid, sub, client_id, _iat, considers_all = self
        found: list[tuple[ClaimName, str]] = [] if jti is None else [("jti", jti)]
        if sid is not None:
            found.append(("sid", sid))
        if sub is not None:
            found.append(("sub", sub))
        if client_id is not None:
            found.append(("client_id", client_id))
        if considers_all:
            found.append(("all", ""))
        return found

    def value_of(self, claim: ClaimName) -> str | None:
        """The value that a revocation of `claim` must have to be about this token; None if it is not considered."""
        if claim == "all":
            return "" if self.considers_all else None
        value: str | None = getattr(self, claim)
        return value


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
    """Whether `revocation`, alive at `now`, revokes a token with these claims: the rule."""
    if claims.value_of(revocation.claim) != revocation.value:
        return False
    if revocation.expires_at is not None and revocation.expires_at < now:
        return False
    return revocation.issued_before is None or issued_at(claims.iat, now, skew_seconds) <= revocation.issued_before


def first_covering(
    revocations: Iterable[Revocation], claims: Claims, now: float, skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS
) -> Revocation | None:
    """The first of `revocations` that covers a token with these claims; any one is enough to revoke it."""
    return next((found for found in revocations if covers(found, claims, now, skew_seconds)), None)


def merge(one: Revocation, other: Revocation) -> Revocation:
    """Two records of the same claim and value as one, which covers whatever either covers, for as long as either does.

    The later expiry, the later cutoff, and the earlier `revoked_at` with its reason and actor: commutative,
    associative and idempotent, so order, duplicates, retries and late copies can do no harm.

    Raises ValueError if the two are not of the same claim and value.
    """
    if (one.claim, one.value) != (other.claim, other.value):
        raise ValueError("only records of the same claim and value can be merged")
    first = min(one, other, key=_origin)
    return Revocation(
        claim=one.claim,
        value=one.value,
        expires_at=_later(one.expires_at, other.expires_at),
        revoked_at=first.revoked_at,
        issued_before=_later(one.issued_before, other.issued_before),
        reason=first.reason,
        revoked_by=first.revoked_by,
    )


def _later(one: float | None, other: float | None) -> float | None:
    """The later of two times, where None is never reached."""
    return None if one is None or other is None else max(one, other)


def _origin(record: Revocation) -> tuple[float, bool, str, bool, str]:
    """Orders records by who came first; what is known goes before what is not, so that it is kept."""
    return (
        math.inf if record.revoked_at is None else record.revoked_at,
        record.reason is None,
        record.reason or "",
        record.revoked_by is None,
        record.revoked_by or "",
    )
