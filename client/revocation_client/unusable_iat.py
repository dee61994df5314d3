"""Counts and reports tokens that are revoked only because they carry no usable `iat`: the issuer has to be mended."""

import logging
import math
from collections.abc import Callable
from typing import Final

from revocation_client.counters import Tally
from revocation_client.verdicts import Verdict

LOG_EVERY_SECONDS: Final = 60.0

_log = logging.getLogger("revocation_client")


class UnusableIat:
    """Looks at verdicts; the log tells of the first, and then at most once a minute how many there were."""

    def __init__(self, tally: Tally, clock: Callable[[], float]) -> None:
        self._tally = tally
        self._clock = clock
        self._log_at = -math.inf
        self._unlogged = 0

    def look(self, verdict: Verdict) -> None:
        """Count a verdict that rests on an unusable `iat`."""
        if not verdict.iat_unusable:
            return
        self._tally.add("iat_unusable")
        self._unlogged += 1
        now = self._clock()
        if now >= self._log_at and verdict.revocation is not None:
            self._log_at = now + LOG_EVERY_SECONDS
            _log.warning("iat_unusable claim=%s occurrences=%d", verdict.revocation.claim, self._unlogged)
            self._unlogged = 0
