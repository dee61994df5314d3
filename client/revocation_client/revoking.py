"""Revocations, tried until they are acknowledged, refused, or out of time. A logout that did not happen is an error.

To repeat one is safe: revoking is idempotent, and a cutoff only moves forward.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

from revocation_client.answers import revoked
from revocation_client.api import Service
from revocation_client.counters import Tally
from revocation_client.errors import RequestRefused, ServiceUnavailable
from revocation_client.questions import stated_jti
from revocation_client.verdicts import Revoked
from revocation_client.wire import RevokeClaim, RevokeToken, WireError, dumps, parse_revoke

FIRST_BACKOFF_SECONDS: Final = 0.1
LONGEST_BACKOFF_SECONDS: Final = 1.6
ANSWER_MAX_BYTES: Final = 64 * 1024
SHORTEST_ATTEMPT_SECONDS: Final = 0.001


def backoff_seconds(attempt: int, retry_after_seconds: float | None, jitter: Callable[[], float]) -> float:
    """How long to wait after so many attempts: exponential with full jitter, on top of what the service asks for."""
    most: float = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    return (retry_after_seconds or 0.0) + most * jitter()


class Revoking:
    """Sends revocations; each has a deadline, and each attempt a shorter one."""

    def __init__(self, service: Service, deadline_seconds: float, attempt_seconds: float, tally: Tally) -> None:
        self._service = service
        self._deadline_seconds = deadline_seconds
        self._attempt_seconds = attempt_seconds
        self._tally = tally

    async def revoke(self, form: dict[str, Any]) -> Revoked:
        """What came of it, acknowledged by the service.

        Raises RequestRefused, UnexpectedAnswer, and ServiceUnavailable at the deadline.
        """
        try:
            done = await self._until_acknowledged(form)
        except BaseException:
            self._tally.add("revocations_failed")
            raise
        self._tally.add("revocations")
        return done

    async def _until_acknowledged(self, form: dict[str, Any]) -> Revoked:
        asked, body = _request(form)
        jti = stated_jti(asked.token) if isinstance(asked, RevokeToken) else None
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadline_seconds
        attempt, away = 0, None
        while True:
            attempt += 1
            seconds = max(SHORTEST_ATTEMPT_SECONDS, min(self._attempt_seconds, until - loop.time()))
            self._tally.add("requests")
            answer = await self._service.post("revoke", body, seconds=seconds, most_bytes=ANSWER_MAX_BYTES)
            try:
                return revoked(answer, asked, jti, time.time())
            except ServiceUnavailable as error:
                cut_short = error.status is None and loop.time() >= until
                away = away if away and cut_short else error
                wait = backoff_seconds(attempt, error.retry_after_seconds, random.random)
            if loop.time() + wait >= until:
                raise ServiceUnavailable(away.detail, away.status, away.code, away.retry_after_seconds, attempt)
            self._tally.add("retries")
            await asyncio.sleep(wait)


def _request(form: dict[str, Any]) -> tuple[RevokeToken | RevokeClaim, bytes]:
    """The body, judged by the same rules as by the service.

    Raises RequestRefused.
    """
    try:
        return parse_revoke(form), dumps(form)
    except WireError as error:
        raise RequestRefused(400, "invalid_request", str(error)) from None
