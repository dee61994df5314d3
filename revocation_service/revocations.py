"""The use cases: revoke, check, look up. They know neither HTTP nor Redis' commands.

A check is answered from Redis and the worker's mirror together: revoked if either says so. When "not revoked" may be
said is rule 11 of docs/architecture.md, "Replication".
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

import structlog

from revocation_client.model import CUTOFF_CLAIMS, ClaimName, Claims, Revocation, first_covering, iat_unusable
from revocation_client.wire import Lifetime, Question, Result, RevokeClaim, RevokeToken
from revocation_service.errors import ExpRequired, NoSuchRevocation, ServiceError, StoreUnavailable
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.settings import Limits
from revocation_service.store.store import DEADLINE_SECONDS, Put, Store, Stored
from revocation_service.store.topology import NOT_IN_TIME
from revocation_service.telemetry import Metrics, RepeatedWarning
from revocation_service.tokens import Token, TokenReader

LOGGED_CHARACTERS: Final = 8

READ_WHILE_AWAY_SECONDS: Final = 0.01
"""How long a check waits for Redis, which did not answer the last time, if the mirror can answer."""

IN_DOUBT: Final = "Redis may lack revocations: "

_CLAIM: Final = itemgetter(0)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Revoked:
    """The result of a request to revoke. Of a token that had already expired, nothing is stored: there is no record."""

    result: Result
    claim: ClaimName
    value: str
    expires_at: float | None
    record: Revocation | None
    verified: bool


class Verdict(NamedTuple):
    """The answer to a question: the revocation that covers the token, if there is one, and where it was found."""

    revocation: Revocation | None
    considered: tuple[ClaimName, ...]
    verified: bool
    expired: bool | None = None
    """Whether the token's `exp` has passed; None for a question by claims."""
    stale_seconds: float | None = None
    """Age of the mirror that gave the answer, `inf` where it is unknown; None if Redis gave it."""
    iat_unusable: bool = False
    """Whether the revocation covers the token only because its `iat` is unusable."""


@lru_cache(maxsize=64)
def _not_revoked(considered: tuple[ClaimName, ...]) -> Verdict:
    """Return the usual verdict, of Redis on a question by claims. There are few different ones, so they are shared."""
    return Verdict(None, considered, verified=False)


_Subject = tuple[Claims, list[tuple[ClaimName, str]], Token | None]
"""The subject of a question: the claims, the claim and value of each record that may cover them, and the token."""


def _described(claims: Claims) -> _Subject:
    return claims, claims.identifiers(), None


class Revocations:
    """Revocations over one store, judged by one reader of tokens."""

    def __init__(self, store: Store, sync: MirrorSync, tokens: TokenReader, limits: Limits, metrics: Metrics) -> None:
        self._store = store
        self._sync = sync
        self._tokens = tokens
        self._limits = limits
        self._metrics = metrics
        self._exp_too_far = RepeatedWarning("exp_too_far")
        self._iat_unusable = RepeatedWarning("iat_unusable")
        self._counted_revoked = metrics.checks.labels("revoked")
        self._counted_not_revoked = metrics.checks.labels("not_revoked")

    async def revoke(self, request: RevokeToken | RevokeClaim, revoked_by: str | None) -> Revoked:
        """Revoke what the request names, for the caller of that name; it is safe when this returns.

        Raises RequestError, Unavailable.
        """
        put, token = await self._put_for(request, revoked_by)
        stored = await self._sync.write(put)
        self._metrics.revocations.labels(put.claim, stored.result).inc()
        shown = put.value[:LOGGED_CHARACTERS]
        _log.info("revocation", result=stored.result, claim=put.claim, value=shown, revoked_by=revoked_by)
        return _revoked(put, stored, verified=token is not None and token.verified)

    async def _put_for(self, request: RevokeToken | RevokeClaim, revoked_by: str | None) -> tuple[Put, Token | None]:
        if isinstance(request, RevokeToken):
            token = await self._tokens.read(request.token)
            return _put_token(token, request, revoked_by), token
        cutoff_is_now = request.claim in CUTOFF_CLAIMS and request.issued_before is None
        return Put(
            claim=request.claim,
            value=request.value,
            exp=request.lifetime.exp,
            expires_in=request.lifetime.expires_in,
            issued_before=request.issued_before,
            cutoff_is_now=cutoff_is_now,
            reason=request.reason,
            revoked_by=revoked_by,
        ), None

    async def check(self, question: Question) -> Verdict:
        """Return whether the token in question is revoked.

        Raises RequestError, Unavailable.
        """
        subject = _described(question) if isinstance(question, Claims) else await self._given(question)
        evidence = await self._read(subject[1], lambda: self._mirror_answers(subject[0]))
        verdict = self._verdict(subject, evidence)
        (self._counted_revoked if verdict.revocation else self._counted_not_revoked).inc()
        return verdict

    async def _given(self, raw: str) -> _Subject:
        token = await self._tokens.read(raw)
        return token.claims, token.claims.identifiers(), token

    def _mirror_answers(self, claims: Claims) -> bool:
        mirror, alive_at = self._sync.mirror, self._sync.now()
        return self._sync.mirror_decides() or mirror.covering(claims, time.time(), alive_at=alive_at) is not None

    async def check_many(self, questions: Sequence[Question | ServiceError]) -> list[Verdict | ServiceError]:
        """Return the verdicts in order; what is wrong with one question is the answer to that question alone.

        Raises StoreUnavailable if Redis does not answer, and the mirror answers none of them.
        """
        tokens = iter(await asyncio.gather(*(self._subject(raw) for raw in questions if isinstance(raw, str))))
        subjects = [
            _described(one) if isinstance(one, Claims) else next(tokens) if isinstance(one, str) else one
            for one in questions
        ]
        stated = [subject[1] for subject in subjects if not isinstance(subject, ServiceError)]
        wanted = list(dict.fromkeys(chain.from_iterable(stated)))
        evidence = await self._read(wanted, self._sync.mirror_decides) if wanted else self._nothing_read()
        verdicts = [self._verdict_or_error(subject, evidence) for subject in subjects]
        given = [verdict.revocation for verdict in verdicts if isinstance(verdict, Verdict)]
        if wanted and evidence.silent and not given:
            raise StoreUnavailable(NOT_IN_TIME)
        not_revoked = given.count(None)
        self._counted_revoked.inc(len(given) - not_revoked)
        self._counted_not_revoked.inc(not_revoked)
        return verdicts

    async def _subject(self, raw: str) -> _Subject | ServiceError:
        try:
            return await self._given(raw)
        except ServiceError as error:
            return error

    def _verdict_or_error(self, subject: _Subject | ServiceError, evidence: "_Evidence") -> Verdict | ServiceError:
        if isinstance(subject, ServiceError):
            return subject
        try:
            return self._verdict(subject, evidence)
        except StoreUnavailable as error:
            return error

    async def _read(
        self, identifiers: Sequence[tuple[ClaimName, str]], mirror_answers: Callable[[], bool]
    ) -> "_Evidence":
        """Ask Redis. While it is away, and the mirror can answer, wait only so long that its return is seen."""
        believed = self._sync.believes()  # before Redis is asked: what it lacks then may be restored meanwhile
        seconds = READ_WHILE_AWAY_SECONDS if self._store.up is False and mirror_answers() else DEADLINE_SECONDS
        try:
            reading = await self._store.get(identifiers, seconds)
        except StoreUnavailable:
            return self._nothing_read()
        records = {(record.claim, record.value): record for record in reading.found}
        return _Evidence(records, reading.now, self._sync.now(), silent=False, believed=believed)

    def _nothing_read(self) -> "_Evidence":
        return _Evidence({}, time.time(), self._sync.now(), silent=True, believed=False)

    def _verdict(self, subject: _Subject, evidence: "_Evidence") -> Verdict:
        """Judge by what Redis said and by the mirror (rule 11). Raises StoreUnavailable if neither decides."""
        claims, identifiers, token = subject
        records, now, alive_at, silent, believed = evidence
        covering = stale_seconds = None
        if records and not records.keys().isdisjoint(identifiers):
            found = [records[one] for one in identifiers if one in records]
            covering = first_covering(found, claims, now, self._limits.clock_skew_seconds)
        if covering is None:
            covering = self._sync.mirror.covering(claims, now, alive_at=alive_at)
            if covering is not None or not believed:
                stale_seconds = self._from_the_mirror(covering, silent=silent)
        considered = tuple(map(_CLAIM, identifiers))
        if token is None and covering is None and stale_seconds is None:
            return _not_revoked(considered)
        unusable = self._watch_iat(covering, claims, now)
        if token is None:
            return Verdict(covering, considered, False, None, stale_seconds, unusable)
        expired = token.exp is not None and token.exp <= now
        self._watch_lifetime(token, now)
        return Verdict(covering, considered, token.verified, expired, stale_seconds, unusable)

    def _from_the_mirror(self, covering: Revocation | None, *, silent: bool) -> float:
        """Return the age of what the mirror answers: that it lacks a record counts only while Redis is silent."""
        if covering is None and not silent:
            raise StoreUnavailable(f"{IN_DOUBT}{self._sync.reason()}")
        if covering is None and not self._sync.mirror_decides():
            raise StoreUnavailable(NOT_IN_TIME)
        self._metrics.checks_from_mirror.labels("not_revoked" if covering is None else "revoked").inc()
        return self._sync.staleness()

    def _watch_iat(self, covering: Revocation | None, claims: Claims, now: float) -> bool:
        """Return whether a cutoff covers the token only because its `iat` is unusable; count and log it.

        The user stays locked out until the revocation ends, unless the issuer starts to send a usable `iat`.
        """
        unusable = iat_unusable(covering, claims, now, self._limits.clock_skew_seconds)
        if covering is not None and unusable:
            self._metrics.iat_unusable.inc()
            self._iat_unusable.occurred(claim=covering.claim)
        return unusable

    def _watch_lifetime(self, token: Token, now: float) -> None:
        """Count and log a token whose `exp` is too far away: it could outlive its revocation."""
        furthest = now + self._limits.max_token_lifetime_seconds + self._limits.clock_skew_seconds
        if token.exp is not None and token.exp > furthest:
            self._metrics.exp_too_far.inc()
            self._exp_too_far.occurred(setting="REVOCATION_MAX_TOKEN_LIFETIME_SECONDS")

    async def look_up(self, claim: ClaimName, value: str) -> Revocation:
        """Return the live revocation of this claim and value; one that the mirror alone holds has no origin.

        Raises NoSuchRevocation, StoreUnavailable.
        """
        known = self._sync.mirror.held(claim, value, self._sync.now())
        evidence = await self._read([(claim, value)], lambda: known is not None)
        record = evidence.records.get((claim, value), known)
        if record is not None:
            return record
        if evidence.silent:
            raise StoreUnavailable(NOT_IN_TIME)
        if not evidence.believed:
            raise StoreUnavailable(f"{IN_DOUBT}{self._sync.reason()}")
        raise NoSuchRevocation("there is no live revocation of that claim and value")


class _Evidence(NamedTuple):
    """What Redis said, or that it was silent."""

    records: Mapping[tuple[ClaimName, str], Revocation]
    now: float
    """Redis' clock, in epoch seconds; the clock here if Redis was silent."""
    alive_at: float
    """The time by which records end in the mirror."""
    silent: bool
    """Whether Redis did not answer."""
    believed: bool
    """Whether a record that Redis lacks means "not revoked"."""


def _put_token(token: Token, request: RevokeToken, revoked_by: str | None) -> Put:
    """A token's revocation lives until its own `exp`, or a later one that the caller states."""
    stated: Lifetime = request.lifetime
    if token.exp is None and not stated.stated:
        raise ExpRequired("nothing says when this token dies: send exp or expires_in with it")
    exps = [exp for exp in (token.exp, stated.exp) if exp is not None]
    assert token.claims.jti is not None, "every token has a name"
    return Put(
        claim="jti",
        value=token.claims.jti,
        exp=max(exps, default=None),
        expires_in=stated.expires_in,
        reason=request.reason,
        revoked_by=revoked_by,
    )


def _revoked(put: Put, stored: Stored, *, verified: bool) -> Revoked:
    expires_at = put.exp if stored.record is None else stored.record.expires_at
    return Revoked(stored.result, put.claim, put.value, expires_at, stored.record, verified)
