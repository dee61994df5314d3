"""A reference merge of two records, with which tests compare `merge.lua` and `Mirror.add`."""

import math

from revocation_client.revocation import Revocation, later


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


def _origin(record: Revocation) -> tuple[float, bool, str, bool, str]:
    """Return a sort key by `revoked_at`. Known values sort before unknown ones, so that the merge keeps them."""
    return (
        math.inf if record.revoked_at is None else record.revoked_at,
        record.reason is None,
        record.reason or "",
        record.revoked_by is None,
        record.revoked_by or "",
    )
