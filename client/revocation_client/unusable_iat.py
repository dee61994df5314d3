"""Counts and logs tokens that are revoked only because they carry no usable `iat`: fix the issuer."""

import logging
from collections.abc import Callable
from typing import Final

from revocation_client.counters import Tally
from revocation_client.repetition import Repetition
from revocation_client.verdicts import Verdict

LOG_EVERY_SECONDS: Final = 60.0

_log = logging.getLogger("revocation_client")


class UnusableIat:
    """Looks at verdicts; logs the first, and then at most once a minute how many there were."""

    def __init__(self, tally: Tally, clock: Callable[[], float]) -> None:
        self._tally = tally
        self._repetition = Repetition(LOG_EVERY_SECONDS, clock)

    def look(self, verdict: Verdict) -> None:
        """Count a verdict that rests on an unusable `iat`."""
        if verdict.iat_unusable and verdict.revocation is not None:
            self._tally.add("iat_unusable")
            if number := self._repetition.occurred():
                _log.warning("iat_unusable claim=%s occurrences=%d", verdict.revocation.claim, number)
