"""What an application can read of its client: numbers that only grow. Pure; knows no I/O."""

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True)
class Counters:
    """The numbers at one moment, since the client was made."""

    checks: int = 0
    """Questions asked."""
    revoked: int = 0
    """Verdicts "revoked" of the service."""
    not_revoked: int = 0
    """Verdicts "not revoked" of the service."""
    mirror_revoked: int = 0
    """Verdicts "revoked" from this process's own memory."""
    mirror_not_revoked: int = 0
    """Verdicts "not revoked" from this process's own memory, while it was fresh."""
    iat_unusable: int = 0
    """Verdicts "revoked" only because the token has no usable `iat`, by the service and from memory."""
    policy_allowed: int = 0
    """Verdicts of `on_unavailable="allow"`."""
    policy_denied: int = 0
    """Verdicts of `on_unavailable="deny"`."""
    failed: int = 0
    """Checks that raised: refused by the service (4xx), or its answer not understood."""
    batches: int = 0
    """Batches of questions sent; `checks / batches` is the size of a batch."""
    requests: int = 0
    """HTTP requests sent, those for revocations and repeated ones included."""
    retries: int = 0
    """Requests that were repeated."""
    streams: int = 0
    """Streams of the feed that were begun; each beyond the first is a reconnection."""
    snapshots: int = 0
    """Streams that began with a whole snapshot, because there was nothing to resume."""
    revocations: int = 0
    """Revocations acknowledged by the service."""
    revocations_failed: int = 0
    """Revocations that raised; nothing is promised of them."""


NAMES: Final = tuple(field.name for field in fields(Counters))


class Tally:
    """Counts; belongs to one client."""

    def __init__(self) -> None:
        self._numbers = dict.fromkeys(NAMES, 0)

    def add(self, name: str, number: int = 1) -> None:
        """Count; the name is one of the fields of `Counters`."""
        self._numbers[name] += number

    def snapshot(self, admitted: int) -> Counters:
        """The numbers as they are now, with what was admitted at a glance, which is counted there."""
        own = {name: self._numbers[name] + admitted for name in ("checks", "mirror_not_revoked")}
        return Counters(**self._numbers | own)
