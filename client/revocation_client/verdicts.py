"""What the client says: whether a token is revoked, and what came of a revocation. Pure; knows no I/O."""

from dataclasses import dataclass
from typing import Literal

from revocation_client.model import ClaimName, Revocation
from revocation_client.wire import Result

Source = Literal["redis", "mirror", "policy"]
"""Who said so: the service from its store; a mirror, this process's or the service's; or nobody, and `on_unavailable`
decided."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a question about one token."""

    revoked: bool
    source: Source
    revocation: Revocation | None = None
    """What revokes it; None where nothing does, and where the policy decided."""
    considered: tuple[ClaimName, ...] = ()
    """The claims that were looked at."""
    verified: bool = False
    """Whether the service checked the token's signature."""
    expired: bool | None = None
    """Whether the token's `exp` has passed; None for a question by claims."""
    stale_seconds: float | None = None
    """How old the mirror was that answered; None for one that was never in step, and for every other source."""
    iat_unusable: bool = False
    """Whether `revocation` covers the token only because its `iat` is absent, no time, or too far ahead. Tokens like it
    are then revoked until the revocation ends, also those that are issued later."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """What came of a revocation: it is safely stored, or the token had already died (`expired`)."""

    result: Result
    claim: ClaimName
    value: str
    revoked_at: float | None
    """When it was first asked for; None where nothing is stored."""
    expires_at: float | None
    issued_before: float | None
    """The cutoff; None where there is none."""
    reason: str | None
    verified: bool
    """Whether the service checked the token's signature."""
