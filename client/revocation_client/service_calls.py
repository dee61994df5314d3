"""Call the service: checks leave in batches, revocations are retried until they are acknowledged."""

import asyncio
import math
from typing import Final

from revocation_client.answers import Answer, Outcome, revoked, verdicts
from revocation_client.batcher import Batcher, BatcherClosed, BatchLimits
from revocation_client.counters import Tally
from revocation_client.errors import NotStarted, RevocationError, ServiceUnavailable
from revocation_client.http import Transport
from revocation_client.questions import QUESTIONS_MAX_BYTES, CheckRequest, revoke_target
from revocation_client.results import Revoked, Verdict
from revocation_client.retry import BATCH_SENDS, REVOKE_BACKOFF_SECONDS, backoff_seconds
from revocation_client.schema import BATCH_MAX_CHECKS, dumps

ANSWER_SECONDS: Final = 1.0
"""How long a check waits for the service where memory could decide."""

LIMITS: Final = BatchLimits(BATCH_MAX_CHECKS, QUESTIONS_MAX_BYTES, cancel_overdue=True)
"""What the service accepts as one batch, a comma after each check included."""


class Service:
    """Sends checks and revocations over one transport."""

    def __init__(
        self, transport: Transport, timeout_seconds: float, revoke_timeout_seconds: float, tally: Tally
    ) -> None:
        self.transport = transport
        self._timeout_seconds = timeout_seconds
        self._revoke_timeout_seconds = revoke_timeout_seconds
        self._tally = tally
        self._batcher = Batcher(self._send, lambda asked: len(asked.encoded) + len(b","), LIMITS)
        self._silent_until = -math.inf
        self._probes = 0

    async def aclose(self) -> None:
        """End the requests under way, and close the connections."""
        try:
            await self._batcher.aclose()
        finally:
            await self.transport.aclose()

    async def check(self, asked: CheckRequest, *, memory_can_decide: bool) -> Verdict:
        """Return the verdict of the service, from a request that leaves after this call. Raises RevocationError.

        Where memory can decide, the check waits one second at most. After one has timed out, only one such check at a
        time is sent, and the others raise ServiceUnavailable at once. A refused connection does not count as silence:
        it fails quickly, and the service may be back at the next check.
        """
        outcome = await (self._probe(asked) if memory_can_decide else self._outcome(asked, self._timeout_seconds))
        if isinstance(outcome, Verdict):
            return outcome
        raise outcome.again()

    async def _probe(self, asked: CheckRequest) -> Outcome:
        loop, seconds = asyncio.get_running_loop(), min(ANSWER_SECONDS, self._timeout_seconds)
        until = loop.time() + seconds
        if self._probes and loop.time() < self._silent_until:
            return ServiceUnavailable("the service does not answer, and another check is asking it already")
        self._probes += 1
        try:
            outcome = await self._outcome(asked, seconds)
        finally:
            self._probes -= 1
        timed_out = isinstance(outcome, ServiceUnavailable) and loop.time() >= until
        self._silent_until = loop.time() + 2 * seconds if timed_out else -math.inf  # while the next probe may last
        return outcome

    async def _outcome(self, asked: CheckRequest, seconds: float) -> Outcome:
        try:
            return await self._batcher.ask(asked, seconds)
        except RevocationError as error:
            return error
        except BatcherClosed:
            return NotStarted()
        except TimeoutError:
            return ServiceUnavailable("no answer in time")

    async def _send(self, asked: list[CheckRequest]) -> list[Outcome]:
        """Post a batch, and again if a connection failed: a restart of the service breaks all that are kept."""
        self._tally.add("batches")
        body = b'{"checks":[%b]}' % b",".join([one.encoded for one in asked])
        for left in reversed(range(BATCH_SENDS)):
            try:
                answer = await self._post("check/batch", body)
                break
            except ServiceUnavailable:
                if not left:
                    raise
                self._tally.add("retries")
        return verdicts(answer, asked)

    async def _post(self, path: str, body: bytes) -> Answer:
        self._tally.add("requests")
        return await self.transport.post(path, body)

    async def revoke(self, form: dict[str, object]) -> Revoked:
        """Return the outcome of a revocation that the service has acknowledged.

        A retry is safe: revoking is idempotent, and a cutoff only moves forward.
        Raises RequestRefused, UnexpectedAnswer, and ServiceUnavailable at the deadline.
        """
        claim, value = revoke_target(form)
        body, loop = dumps(form), asyncio.get_running_loop()
        until = loop.time() + self._revoke_timeout_seconds
        attempts, away = 0, None
        while True:
            attempts += 1
            error = ServiceUnavailable("no answer in time")
            try:
                async with asyncio.timeout(min(self._timeout_seconds, until - loop.time())):
                    return revoked(await self._post("revoke", body), claim, value)
            except TimeoutError:
                pass
            except ServiceUnavailable as failure:
                error = failure
            cut_short = error.status is None and loop.time() >= until
            away = away if away and cut_short else error
            wait = backoff_seconds(attempts, REVOKE_BACKOFF_SECONDS, error.retry_after_seconds)
            if loop.time() + wait >= until:
                raise ServiceUnavailable(away.detail, away.status, away.code, away.retry_after_seconds, attempts)
            self._tally.add("retries")
            await asyncio.sleep(wait)
