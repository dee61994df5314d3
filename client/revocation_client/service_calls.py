"""Call the service: checks leave in batches, revocations are retried until they are acknowledged."""

import asyncio
import math
from contextlib import aclosing
from typing import Final

from revocation_client.answers import Answer, Outcome, revoked, verdicts
from revocation_client.batcher import Batcher, BatcherClosed, BatchLimits
from revocation_client.counters import Counters
from revocation_client.errors import NotStarted, RequestRefused, RevocationError, ServiceUnavailable
from revocation_client.http import ConnectionBroken, Http
from revocation_client.questions import CheckRequest, revoke_target
from revocation_client.results import Revoked, Verdict
from revocation_client.retry import BATCH_BACKOFF_SECONDS, REVOKE_BACKOFF_SECONDS, SENDS_WITHOUT_PAUSE, backoff_seconds
from revocation_client.schema import BATCH_MAX_CHECKS, dumps

ANSWER_SECONDS: Final = 1.0
"""How long a check waits for the service where memory could decide."""

BODY_MAX_BYTES: Final = 1024 * 1024
"""Size of the largest batch that the service accepts."""

LIMITS: Final = BatchLimits(BATCH_MAX_CHECKS, BODY_MAX_BYTES - len(b'{"checks":[]}'), cancel_overdue=True)
"""What the service accepts as one batch, a comma after each check included."""


class Service:
    """Sends checks and revocations over HTTP, on the event loop that is running when it is created."""

    def __init__(self, http: Http, counters: Counters, timeout_seconds: float, revoke_timeout_seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.http = http
        self._counters = counters
        self._timeout_seconds = timeout_seconds
        self._revoke_timeout_seconds = revoke_timeout_seconds
        self._batcher = Batcher(self._send, lambda asked: asked.max_bytes + len(b","), LIMITS)
        self._silent_until = -math.inf
        self._probes = 0

    async def aclose(self) -> None:
        """End the requests under way, and close the connections."""
        async with aclosing(self.http):
            await self._batcher.aclose()

    async def check(self, asked: CheckRequest, *, memory_can_decide: bool) -> Verdict:
        """Return the verdict of the service, from a request that is sent after this call. Raises RevocationError.

        A check that memory can decide instead waits one second at most. After a timeout, only one of these checks is
        sent at a time; the others raise ServiceUnavailable at once. A refused connection does not count as a timeout:
        it fails quickly, and the service may be back at the next check.
        """
        if asked.max_bytes > LIMITS.size:  # aiohttp warns of larger bodies
            raise RequestRefused(413, "body_too_large", "the token is larger than what the service accepts")
        if memory_can_decide and self._probes and self.loop.time() < self._silent_until:
            raise ServiceUnavailable("the service does not answer, and another check is asking it already")
        seconds = min(ANSWER_SECONDS, self._timeout_seconds) if memory_can_decide else self._timeout_seconds
        self._probes += memory_can_decide
        try:
            outcome = await self._outcome(asked, seconds)
        finally:
            self._probes -= memory_can_decide
        if isinstance(outcome, Verdict):
            self._counters.revoked += outcome.revoked
            self._counters.not_revoked += not outcome.revoked
            return outcome
        self._counters.failed += not isinstance(outcome, ServiceUnavailable)
        raise outcome.again()

    async def _outcome(self, asked: CheckRequest, seconds: float) -> Outcome:
        outcome: Outcome
        try:
            outcome = await self._batcher.ask(asked, seconds)
        except TimeoutError:
            self._silent_until = self.loop.time() + 2 * seconds  # while the next probe may last
            return ServiceUnavailable("no answer in time")
        except BatcherClosed:
            outcome = NotStarted()
        except RevocationError as error:
            outcome = error
        self._silent_until = -math.inf
        return outcome

    async def _send(self, asked: list[CheckRequest]) -> list[Outcome]:
        """Post a batch. Post it again after a broken connection, until cancelled: another instance may answer."""
        self._counters.batches += 1
        body = dumps({"checks": [one.form for one in asked]})
        sends = 0
        while True:
            try:
                return verdicts(await self._post("check/batch", body), asked)
            except ConnectionBroken:
                self._counters.retries += 1
            sends += 1
            if sends >= SENDS_WITHOUT_PAUSE:
                await asyncio.sleep(backoff_seconds(sends, BATCH_BACKOFF_SECONDS))

    async def _post(self, path: str, body: bytes) -> Answer:
        self._counters.requests += 1
        return await self.http.post(path, body)

    async def revoke(self, form: dict[str, object]) -> Revoked:
        """Return the outcome of a revocation that the service has acknowledged.

        A retry is safe: revoking is idempotent, and a cutoff only moves forward.
        Raises RequestRefused, UnexpectedAnswer, and ServiceUnavailable at the deadline.
        """
        claim, value = revoke_target(form)
        body, until = dumps(form), self.loop.time() + self._revoke_timeout_seconds
        attempts, away = 0, None
        while True:
            attempts += 1
            error = ServiceUnavailable("no answer in time")
            try:
                async with asyncio.timeout(min(self._timeout_seconds, until - self.loop.time())):
                    return revoked(await self._post("revoke", body), claim, value)
            except TimeoutError:
                pass
            except ServiceUnavailable as failure:
                error = failure
            cut_short = error.status is None and self.loop.time() >= until
            away = away if away and cut_short else error
            wait = backoff_seconds(attempts, REVOKE_BACKOFF_SECONDS, error.retry_after_seconds)
            if self.loop.time() + wait >= until:
                raise ServiceUnavailable(away.detail, away.status, away.code, away.retry_after_seconds, attempts)
            self._counters.retries += 1
            await asyncio.sleep(wait)
