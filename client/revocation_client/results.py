"""The results of the client's calls: a verdict about a token, and the outcome of a revocation. Pure."""

from dataclasses import dataclass
from typing import Literal

from revocation_client.claims import ClaimName
from revocation_client.revocation import Revocation
from revocation_client.schema import Result

Source = Literal["redis", "mirror", "policy"]
"""Where a verdict comes from: the service's store; a mirror, this process's or the service's; or `on_unavailable`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one token is revoked."""

    revoked: bool
    source: Source
    revocation: Revocation | None = None
    """What revokes the token; None if nothing does, and if the policy decided."""
    considered: tuple[ClaimName, ...] = ()
    """The claims that were looked up."""
    verified: bool = False
    """True if the service verified the token's signature."""
    expired: bool | None = None
    """True if the token's `exp` has passed; None for a question by claims."""
    stale_seconds: float | None = None
    """Age of the mirror that answered, in seconds; None if it is unknown, and for every other source."""
    iat_unusable: bool = False
    """True if `revocation` covers the token only because its `iat` is absent, no time, or too far ahead. All such
    tokens are then revoked until the revocation ends, also those that are issued later."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """The outcome of a revocation: it is safely stored, or the token had already expired (`expired`)."""

    result: Result
    claim: ClaimName
    value: str
    revoked_at: float | None
    """When it was first requested, in epoch seconds; None if nothing is stored."""
    expires_at: float | None
    issued_before: float | None
    """The cutoff, in epoch seconds; None if there is none."""
    reason: str | None
    verified: bool
    """True if the service verified the token's signature."""
