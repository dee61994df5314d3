"""Counters of one client, which only grow, and its recurring warnings."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

from revocation_client.log_limit import Repetition

WARNING_INTERVAL_SECONDS: Final = 60.0

_log = logging.getLogger("revocation_client")


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters at one moment, since the client was made.

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

    @property
    def checks(self) -> int:
        """All checks that ended, whatever their outcome."""
        own = self.revoked + self.not_revoked + self.mirror_revoked + self.mirror_not_revoked
        return own + self.policy_allowed + self.policy_denied + self.failed


NAMES: Final = tuple(field.name for field in fields(Counters))


class Tally:
    """Counts for one client, and warns in its log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.numbers = dict.fromkeys(NAMES, 0)
        """By the fields of `Counters`."""
        self._warnings: dict[str, Repetition] = {}
        self._clock = clock

    def add(self, name: str, number: int = 1) -> None:
        """Add to a counter; the name is one of the fields of `Counters`."""
        self.numbers[name] += number

    def warn(self, event: str, fields: str) -> None:
        """Log an event: the first occurrence, then at most one line a minute, with the number since the last line."""
        repetition = self._warnings.setdefault(event, Repetition(WARNING_INTERVAL_SECONDS, self._clock))
        if number := repetition.occurred():
            _log.warning("%s %s occurrences=%d", event, fields, number)

    def snapshot(self) -> Counters:
        """Return the counters at this moment."""
        return Counters(**self.numbers)
