"""Send checks to the service in batches. While it hangs, one at a time waits for it where memory could decide."""

import asyncio
import logging
import math
import time
from functools import partial
from typing import Final

from revocation_client.answers import Answer, NoAnswer, Outcome, verdicts
from revocation_client.api import Service
from revocation_client.batcher import Batcher, BatcherClosed, BatchLimits
from revocation_client.counters import Tally
from revocation_client.errors import NotStarted, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.questions import BODY_MAX_BYTES, FRAME_BYTES, Inquiry
from revocation_client.wire import BATCH_MAX_CHECKS

ANSWER_SECONDS: Final = 1.0
"""How long a check waits for the service where memory could decide."""

ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024
"""Bound of the response to a batch; a revocation with the longest texts is below 8 KiB."""

LIMITS: Final = BatchLimits(BATCH_MAX_CHECKS, BODY_MAX_BYTES - FRAME_BYTES)
"""What the service accepts as one batch, a comma after each check included."""

UNANSWERED: Final = "the service does not answer, and another check is asking it already"

_log = logging.getLogger("revocation_client")


class Asking:
    """Sends checks in batches, and knows whether the service answers those that memory could decide."""

    def __init__(self, service: Service, timeout_seconds: float, tally: Tally) -> None:
        requests = _Requests(service, timeout_seconds, tally)
        self._batcher = Batcher(requests.send, _size, LIMITS)
        self._timeout_seconds = timeout_seconds
        self._answer_seconds = min(ANSWER_SECONDS, timeout_seconds)
        self._silent_until = -math.inf
        self._asked = 0

    async def aclose(self) -> None:
        """End the requests under way."""
        await self._batcher.aclose()

    def ask(self, asked: Inquiry, *, memory_can_decide: bool) -> asyncio.Future[Outcome]:
        """Return the future of a check, from a request that leaves after this call; await it with `settled`.

        Where memory can decide, it waits a second. After one has timed out, only one such check at a time is sent, and
        the outcome of the others is ServiceUnavailable at once. A refused connection does not count as silence: it
        fails quickly, and the service may be back at the next check.
        """
        if not memory_can_decide:
            return self._batcher.ask(asked, self._timeout_seconds)
        now = asyncio.get_running_loop().time()
        if self._asked and now < self._silent_until:
            outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            outcome.set_result(ServiceUnavailable(UNANSWERED))
            return outcome
        self._asked += 1
        outcome = self._batcher.ask(asked, self._answer_seconds)
        outcome.add_done_callback(partial(self._heard, now + self._answer_seconds))
        return outcome

    def _heard(self, deadline: float, outcome: asyncio.Future[Outcome]) -> None:
        """Note whether a check timed out. That it did counts for as long as the next one may take, and no longer."""
        self._asked -= 1
        if not outcome.cancelled():
            now = asyncio.get_running_loop().time()
            failed = outcome.exception() or outcome.result()
            timed_out = now >= deadline and isinstance(failed, (TimeoutError, ServiceUnavailable))
            self._silent_until = now + 2 * self._answer_seconds if timed_out else -math.inf


async def settled(asked: asyncio.Future[Outcome]) -> Outcome:
    """Wait for the outcome of a check. No answer in time, and a client that is closed, are outcomes too."""
    try:
        return await asked
    except TimeoutError:
        return ServiceUnavailable("no answer in time")
    except BatcherClosed:
        return NotStarted()


def _size(inquiry: Inquiry) -> int:
    return len(inquiry.encoded) + len(b",")


class _Requests:
    """Sends batches to `/check/batch`."""

    def __init__(self, service: Service, timeout_seconds: float, tally: Tally) -> None:
        self._service = service
        self._timeout_seconds = timeout_seconds
        self._tally = tally

    async def send(self, inquiries: list[Inquiry]) -> list[Outcome]:
        """Return the outcome of each check; one may be an error, and an error of the whole request is each one's."""
        try:
            return verdicts(await self._answer(inquiries), inquiries, time.time())
        except RevocationError as error:
            return [error] * len(inquiries)
        except Exception as error:  # noqa: BLE001 - a fault of the client must not look like an outage, which may admit
            _log.error("revocation_check_failed error=%s", type(error).__name__, exc_info=error)
            return [UnexpectedAnswer(f"a fault of the client itself ({type(error).__name__})")] * len(inquiries)

    async def _answer(self, inquiries: list[Inquiry]) -> Answer | NoAnswer:
        """Send the request, and again if the connection broke off, as a kept one does when the service restarts."""
        self._tally.add("batches")
        body = b'{"checks":[%b]}' % b",".join([inquiry.encoded for inquiry in inquiries])
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_seconds
        answer = await self._post(body, self._timeout_seconds)
        if isinstance(answer, NoAnswer) and answer.broke_off and (left := until - loop.time()) > 0:
            self._tally.add("retries")
            answer = await self._post(body, left)
        return answer

    async def _post(self, body: bytes, seconds: float) -> Answer | NoAnswer:
        self._tally.add("requests")
        return await self._service.post("check/batch", body, seconds=seconds, most_bytes=ANSWER_MAX_BYTES)
