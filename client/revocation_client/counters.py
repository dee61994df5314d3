"""What one client has done so far, in numbers that only grow. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """The counters since the client was made.

    `revoked` and `not_revoked` are verdicts of the service, `mirror_...` those of this process's memory, `policy_...`
    those of `on_unavailable`. `failed` counts checks that the service refused, or whose answer was not understood.
    """

    revoked: int = 0
    not_revoked: int = 0
    mirror_revoked: int = 0
    mirror_not_revoked: int = 0
    iat_unusable: int = 0
    """Verdicts "revoked" only because the token has no usable `iat`."""
    policy_allowed: int = 0
    policy_denied: int = 0
    failed: int = 0
    batches: int = 0
    requests: int = 0
    """HTTP requests for checks and revocations; `retries` are among them."""
    retries: int = 0
    streams: int = 0
    """Feed streams opened; each one after the first is a reconnection."""
    snapshots: int = 0
    """Feed streams that began with a whole snapshot, because there was nothing to resume."""
    revocations: int = 0
    revocations_failed: int = 0
