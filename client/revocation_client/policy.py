"""The verdict where neither the service nor memory can tell: `on_unavailable`, counted and logged."""

import logging
from collections.abc import Callable
from typing import Final, Literal

from revocation_client.counters import Tally
from revocation_client.errors import ServiceUnavailable
from revocation_client.repetition import Repetition
from revocation_client.verdicts import Verdict

OnUnavailable = Literal["allow", "deny"]

LOG_EVERY_SECONDS: Final = 30.0

_log = logging.getLogger("revocation_client")


class Policy:
    """Decides the checks that the service did not answer and memory could not."""

    def __init__(self, on_unavailable: OnUnavailable, tally: Tally, clock: Callable[[], float]) -> None:
        self._denies = on_unavailable == "deny"
        self._verdict = Verdict(revoked=self._denies, source="policy")
        self._counter = "policy_denied" if self._denies else "policy_allowed"
        self._tally = tally
        self._repetition = Repetition(LOG_EVERY_SECONDS, clock)
        self._in_all = 0
        self._away = False

    def verdict(self, away: ServiceUnavailable) -> Verdict:
        """Return the stated verdict; log the first, and then at most every 30 s how many there were."""
        self._tally.add(self._counter)
        self._in_all += 1
        self._away = True
        if number := self._repetition.occurred():
            note = "revocation_service_unavailable policy=%s checks=%d detail=%s"
            _log.warning(note, "deny" if self._denies else "allow", number, away)
        return self._verdict

    def answered(self) -> None:
        """Note that the service answers; log it after an outage, unless lines of that were logged a moment ago."""
        if self._away and self._repetition.due:
            _log.warning("revocation_service_back checks_decided_by_policy=%d", self._in_all)
            self._away, self._in_all = False, 0
            self._repetition.reset()
