"""A stand-in for the tests of an application: the real client and an in-memory service that can be down or slow."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from revocation_client.answers import Answer
from revocation_client.claims import CLAIMS
from revocation_client.client import RevocationClient
from revocation_client.errors import ServiceUnavailable
from revocation_client.http import Http
from revocation_client.jwt_reader import Token, TokenError, read_token
from revocation_client.revocation import DEFAULT_CLOCK_SKEW_SECONDS, Revocation, first_covering, iat_unusable, later
from revocation_client.schema import dumps, loads, parse_question, parse_revoke, revocation_form

MAX_TOKEN_LIFETIME_SECONDS: Final = 30 * 24 * 3600.0
"""The default of the service's REVOCATION_MAX_TOKEN_LIFETIME_SECONDS."""


class MemoryService(Http):
    """An in-memory service that answers as the real one does. It relies on the client to send nothing malformed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.latency_seconds = 0.0
        """Time that each answer takes; may be set."""
        self.outage: int | None = None
        """The status of every answer; 0 if there is none; None while the service is well."""
        self._clock = clock
        self.records: dict[tuple[str, str], Revocation] = {}

    async def post(self, path: str, body: bytes) -> Answer:
        """Return the answer of the service. During an outage the request has no effect."""
        await asyncio.sleep(self.latency_seconds)
        if self.outage == 0:
            raise ServiceUnavailable("no answer")
        if self.outage is not None:
            return Answer(self.outage, "text/plain", b"")
        form = loads(body)
        if path == "check/batch":
            return Answer(200, "application/json", dumps({"results": [self._check(each) for each in form["checks"]]}))
        try:
            return Answer(200, "application/json", dumps(self._revoke(form)))
        except TokenError as error:
            return Answer(400, "application/problem+json", dumps({"code": error.code, "detail": error.detail}))

    async def aclose(self) -> None:
        """Close nothing: the revocations are kept."""

    def lives(self, record: Revocation) -> bool:
        """Return whether a record has not expired."""
        return (record.expires_at or 0.0) > self._clock()

    def _at(self, identifier: tuple[str, str]) -> Revocation | None:
        """Return the live revocation of this claim and value."""
        held = self.records.get(identifier)
        return held if held and self.lives(held) else None

    def _check(self, element: dict[str, Any]) -> dict[str, Any]:
        now, asked = self._clock(), parse_question(element)
        token = read_token(asked) if isinstance(asked, str) else Token(asked)
        claims = token.claims
        found = first_covering(filter(None, map(self._at, claims.identifiers)), claims, now)
        form = {"revoked": found is not None, "considered": claims.considered, "verified": False, "source": "redis"}
        if found is not None:
            form |= {"revocation": revocation_form(found), "iat_unusable": iat_unusable(found, claims, now)}
        return form | {"expired": token.exp is not None and token.exp <= now} if token.text else form

    def _revoke(self, form: object) -> dict[str, Any]:
        """Store a revocation (contract, section 2). Raises TokenError with the code that the service would answer."""
        now, asked = self._clock(), parse_revoke(form)
        token = read_token(asked.value) if asked.claim == "token" else None
        claim, value = ("jti", token.name) if token else (asked.claim, asked.value)
        cutoff = asked.issued_before
        if cutoff is None and CLAIMS[claim].cutoff == "always":
            cutoff = now
        stated = None if asked.expires_in is None else now + asked.expires_in
        ends = [end for end in (asked.exp, stated, token.exp if token else None) if end is not None]
        if token and not ends:
            raise TokenError("the token has no exp: send exp or expires_in with it", "exp_required")
        if cutoff is not None and cutoff > now + DEFAULT_CLOCK_SKEW_SECONDS:
            raise TokenError("issued_before lies too far ahead", "issued_before_too_far")
        last = max(now, cutoff or now) + MAX_TOKEN_LIFETIME_SECONDS
        end = max(ends, default=last)
        if end > last + DEFAULT_CLOCK_SKEW_SECONDS:
            raise TokenError("the end is further away than REVOCATION_MAX_TOKEN_LIFETIME_SECONDS", "exp_too_far")
        return self._store(Revocation(claim, value, end, now, cutoff, asked.reason))

    def _store(self, asked: Revocation) -> dict[str, Any]:
        result, held = "revoked", self._at((asked.claim, asked.value))
        if not self.lives(asked):
            result, asked = "expired", asked._replace(revoked_at=None, issued_before=None)
        else:
            if held:
                cutoff = later(held.issued_before, asked.issued_before)
                result = "already_revoked" if cutoff == held.issued_before else "revoked"
                asked = held._replace(expires_at=later(held.expires_at, asked.expires_at), issued_before=cutoff)
            self.records[asked.claim, asked.value] = asked
        return {"result": result, "verified": False} | revocation_form(asked)


class InMemoryRevocationClient(RevocationClient):
    """A `RevocationClient` without a network: give it to the application under test in place of the real one.

    It takes the options of the real client, and `clock`, which returns the time in epoch seconds. It keeps its
    revocations when it is closed and started again. Tokens are read without verification.

    It has no feed. Its memory holds only the revocations that this client has made or found, and keeps them in an
    outage. Every other check asks the in-memory service, so `outage` and `service.latency_seconds` affect it.
    """

    _feeds = False

    def __init__(
        self, url: str = "http://in-memory.invalid", *, clock: Callable[[], float] = time.time, **options: Any
    ) -> None:
        self._wall = self._uptime = clock
        self.service = MemoryService(clock)
        super().__init__(url, **options)

    def _http(self, url: str, api_key: str | None) -> Http:
        return self.service

    async def mirror_ready(self, timeout_seconds: float | None = None) -> bool:
        """Return True: there is nothing to wait for."""
        self._started()
        return True

    @property
    def revocations(self) -> tuple[Revocation, ...]:
        """The revocations that have not expired."""
        return tuple(filter(self.service.lives, self.service.records.values()))

    @contextmanager
    def outage(self, status: int = 0) -> Iterator[None]:
        """Make the service unavailable inside the block: it does not answer, or answers with `status`."""
        before, self.service.outage = self.service.outage, status
        try:
            yield
        finally:
            self.service.outage = before
