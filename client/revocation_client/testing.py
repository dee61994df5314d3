"""A stand-in for an application's own tests: the real client over a service in memory, which can be away or slow."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from revocation_client.answers import Answer
from revocation_client.claims import CLAIMS
from revocation_client.client import RevocationClient
from revocation_client.errors import ServiceUnavailable
from revocation_client.http import Transport
from revocation_client.jwt_reader import TokenError, read_token
from revocation_client.revocation import DEFAULT_CLOCK_SKEW_SECONDS, Revocation, first_covering, iat_unusable, merge
from revocation_client.schema import (
    RevokeToken,
    SchemaError,
    dumps,
    loads,
    parse_batch,
    parse_question,
    parse_revoke,
    revocation_form,
)

MAX_TOKEN_LIFETIME_SECONDS: Final = 30 * 24 * 3600.0
"""The default of the service's REVOCATION_MAX_TOKEN_LIFETIME_SECONDS."""


class MemoryService:
    """A service in memory. It answers as the real one does, by the same rule and the same merge."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.latency_seconds = 0.0
        """Time that each answer takes; may be set."""
        self.outage: int | None = None
        """The status of every answer; 0 if there is none; None while the service is well."""
        self._clock = clock
        self.records: dict[tuple[str, str], Revocation] = {}

    async def post(self, path: str, body: bytes) -> Answer:
        """Return the answer of the service. During an outage, nothing is done."""
        await asyncio.sleep(self.latency_seconds)
        if self.outage == 0:
            raise ServiceUnavailable("no answer")
        if self.outage is not None:
            return Answer(self.outage, "text/plain", b"")
        if path == "check/batch":
            results = [_result(self._check, element) for element in parse_batch(loads(body))]
            return Answer(200, "application/json", dumps({"results": results}))
        form = _result(self._revoke, loads(body))
        if "error" in form:
            return Answer(400, "application/problem+json", dumps(form["error"]))
        return Answer(200, "application/json", dumps(form))

    async def aclose(self) -> None:
        """Keep what is revoked."""

    def at(self, claim: str, value: str) -> Revocation | None:
        """Return the live revocation of this claim and value."""
        found = self.records.get((claim, value))
        return found if found and found.expires_at is not None and found.expires_at > self._clock() else None

    def _check(self, element: object) -> dict[str, Any]:
        now, question = self._clock(), parse_question(element)
        token = read_token(question) if isinstance(question, str) else None
        claims = question if token is None else token.claims
        assert not isinstance(claims, str)
        covering = first_covering(filter(None, itertools.starmap(self.at, claims.identifiers)), claims, now)
        form = {"revoked": covering is not None, "considered": claims.considered, "verified": False, "source": "redis"}
        if covering is not None:
            form |= {"revocation": revocation_form(covering), "iat_unusable": iat_unusable(covering, claims, now)}
        if token is not None:
            form["expired"] = token.exp is not None and token.exp <= now
        return form

    def _revoke(self, body: object) -> dict[str, Any]:
        given, now = self._requested(body), self._clock()
        result, record = "revoked", given
        if given.expires_at is not None and given.expires_at <= now:
            result, record = "expired", Revocation(given.claim, given.value, given.expires_at, None, None, given.reason)
        else:
            if stored := self.at(given.claim, given.value):
                record = merge(stored, given)
                result = "already_revoked" if record.issued_before == stored.issued_before else "revoked"
            self.records[given.claim, given.value] = record
        return {"result": result, "verified": False} | revocation_form(record)

    def _requested(self, body: object) -> Revocation:
        """Return the revocation that a request asks for. Raises SchemaError, TokenError (contract, section 2)."""
        asked, now = parse_revoke(body), self._clock()
        lifetime, cutoff = asked.lifetime, None
        ends = [lifetime.exp, None if lifetime.expires_in is None else now + lifetime.expires_in]
        if isinstance(asked, RevokeToken):
            token = read_token(asked.token)
            claim, value = "jti", token.name
            ends.append(token.exp)
            if ends == [None] * 3:
                raise TokenError("the token has no exp: send exp or expires_in with it", "exp_required")
        else:
            claim, value, cutoff = asked.claim, asked.value, asked.issued_before
            if cutoff is None and CLAIMS[claim].cutoff == "always":
                cutoff = now
        last = max(now, cutoff or now)
        if last > now + DEFAULT_CLOCK_SKEW_SECONDS:
            raise TokenError("issued_before lies too far ahead", "issued_before_too_far")
        expires_at = max((end for end in ends if end is not None), default=last + MAX_TOKEN_LIFETIME_SECONDS)
        if expires_at > now + MAX_TOKEN_LIFETIME_SECONDS + DEFAULT_CLOCK_SKEW_SECONDS:
            raise TokenError("the end is further away than REVOCATION_MAX_TOKEN_LIFETIME_SECONDS", "exp_too_far")
        return Revocation(claim, value, expires_at, now, cutoff, asked.reason)


def _result(act: Callable[[object], dict[str, Any]], asked: object) -> dict[str, Any]:
    try:
        return act(asked)
    except (SchemaError, TokenError) as error:
        code = error.code if isinstance(error, TokenError) else "invalid_request"
        return {"error": {"status": 400, "code": code, "detail": str(error)}}


class InMemoryRevocationClient(RevocationClient):
    """A `RevocationClient` without a network: give it to the application under test in place of the real one.

    It takes the real one's options, and `clock`, which returns the time in epoch seconds. What was revoked stays with
    the client when it is closed and started again. Tokens are read, and not verified.

    It has no feed: its memory holds only what was revoked, or seen revoked, through this client, which no outage takes
    away. Every other check asks the service in memory, so that `outage` and `service.latency_seconds` show.
    """

    def __init__(
        self, url: str = "http://in-memory.invalid", *, clock: Callable[[], float] = time.time, **options: Any
    ) -> None:
        self._wall = self._uptime = clock
        self.service = MemoryService(clock)
        super().__init__(url, **options)

    def _transport(self, url: str, api_key: str | None) -> Transport:
        return self.service

    async def mirror_ready(self, timeout_seconds: float | None = None) -> bool:
        """Return True: there is nothing to wait for."""
        self._started()
        return True

    @property
    def revocations(self) -> tuple[Revocation, ...]:
        """All that is revoked and has not expired."""
        return tuple(filter(None, itertools.starmap(self.service.at, self.service.records)))

    @contextmanager
    def outage(self, status: int = 0) -> Iterator[None]:
        """Take the service away for the time of the block: it does not answer, or answers with `status`."""
        before, self.service.outage = self.service.outage, status
        try:
            yield
        finally:
            self.service.outage = before
