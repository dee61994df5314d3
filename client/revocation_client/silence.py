"""Whether the service answers, so that a hanging service slows down one check at a time and not all of them."""

import asyncio
from typing import Final

from revocation_client.answers import Outcome
from revocation_client.errors import ServiceUnavailable

UNANSWERED: Final = "the service does not answer, and another check is asking it already"


class Silence:
    """Watches checks that memory could decide; while the service does not answer, one of them at a time is a probe."""

    def __init__(self) -> None:
        self._silent = False
        self._asked = 0

    @property
    def has_probe(self) -> bool:
        """True while the service does not answer and a check is under way that will find out when it does."""
        return self._silent and self._asked > 0

    def watch(self, outcome: asyncio.Future[Outcome]) -> None:
        """Learn from the outcome of a check that was sent to the service."""
        self._asked += 1
        outcome.add_done_callback(self._heard)

    def _heard(self, outcome: asyncio.Future[Outcome]) -> None:
        self._asked -= 1
        if not outcome.cancelled():
            heard = outcome.result()
            self._silent = isinstance(heard, ServiceUnavailable) and heard.status is None

    @staticmethod
    def unanswered() -> asyncio.Future[Outcome]:
        """Return the outcome of a check that is not sent, because a probe is under way."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.set_result(ServiceUnavailable(UNANSWERED))
        return outcome
