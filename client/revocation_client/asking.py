"""Checks that are sent to the service. While it hangs, one at a time waits for it where memory could decide."""

import asyncio
import math
from functools import partial
from typing import Final

from revocation_client.answers import Outcome
from revocation_client.api import Service
from revocation_client.coalescing import Batches
from revocation_client.counters import Tally
from revocation_client.errors import ServiceUnavailable
from revocation_client.questions import Inquiry

ANSWER_SECONDS: Final = 1.0
"""How long a check waits for the service where memory could decide."""

UNANSWERED: Final = "the service does not answer, and another check is asking it already"


class Asking:
    """Sends checks in batches, and knows whether the service answers those that memory could decide."""

    def __init__(self, service: Service, timeout_seconds: float, tally: Tally) -> None:
        self._batches = Batches(service, timeout_seconds, tally)
        self._answer_seconds = min(ANSWER_SECONDS, timeout_seconds)
        self._silent_until = -math.inf
        self._asked = 0

    async def aclose(self) -> None:
        """End the requests under way."""
        await self._batches.aclose()

    def ask(self, asked: Inquiry, *, memory_can_decide: bool) -> asyncio.Future[Outcome]:
        """Return the outcome of a check, from a request that leaves after this call. It may be an error.

        Where memory can decide, it waits a second. After one has timed out, only one such check at a time is sent, and
        the outcome of the others is ServiceUnavailable at once. A refused connection does not count as silence: it
        fails quickly, and the service may be back at the next check.
        """
        if not memory_can_decide:
            return self._batches.ask(asked)
        now = asyncio.get_running_loop().time()
        if self._asked and now < self._silent_until:
            outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            outcome.set_result(ServiceUnavailable(UNANSWERED))
            return outcome
        self._asked += 1
        outcome = self._batches.ask(asked, self._answer_seconds)
        outcome.add_done_callback(partial(self._heard, now + self._answer_seconds))
        return outcome

    def _heard(self, deadline: float, outcome: asyncio.Future[Outcome]) -> None:
        """Note whether a check timed out. That it did counts for as long as the next one may take, and no longer."""
        self._asked -= 1
        if not outcome.cancelled():
            now = asyncio.get_running_loop().time()
            timed_out = now >= deadline and isinstance(outcome.result(), ServiceUnavailable)
            self._silent_until = now + 2 * self._answer_seconds if timed_out else -math.inf
