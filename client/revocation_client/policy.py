"""What is said of a token while nobody can know, memory included: `on_unavailable`, counted and logged."""

import logging
from collections.abc import Callable
from typing import Final, Literal

from revocation_client.counters import Tally
from revocation_client.errors import ServiceUnavailable
from revocation_client.verdicts import Verdict

OnUnavailable = Literal["allow", "deny"]

LOG_EVERY_SECONDS: Final = 30.0

_log = logging.getLogger("revocation_client")


class Policy:
    """Decides for the checks that the service did not answer; nothing else asks it."""

    def __init__(self, on_unavailable: OnUnavailable, tally: Tally, clock: Callable[[], float]) -> None:
        self._denies = on_unavailable == "deny"
        self._verdict = Verdict(revoked=self._denies, source="policy")
        self._counter = "policy_denied" if self._denies else "policy_allowed"
        self._tally = tally
        self._clock = clock
        self._log_at = float("-inf")
        self._unlogged = self._in_all = 0
        self._away = False

    def verdict(self, away: ServiceUnavailable) -> Verdict:
        """The stated verdict; the log tells of the first, and then from time to time how many there were."""
        self._tally.add(self._counter)
        self._unlogged += 1
        self._in_all += 1
        self._away = True
        now = self._clock()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_SECONDS
            note = "revocation_service_unavailable policy=%s checks=%d detail=%s"
            _log.warning(note, "deny" if self._denies else "allow", self._unlogged, away)
            self._unlogged = 0
        return self._verdict

    def answered(self) -> None:
        """The service answers; the log tells when that is news, and not each time where only some answers come."""
        if self._away and self._clock() >= self._log_at:
            self._away = False
            self._log_at = float("-inf")
            _log.warning("revocation_service_back checks_decided_by_policy=%d", self._in_all)
            self._unlogged = self._in_all = 0
