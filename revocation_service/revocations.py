"""The use cases: revoke, check, look up. They know neither HTTP nor Redis' commands.

A check is answered from Redis and the process's mirror together: revoked if either says so. That none does is an answer
only if Redis spoke of every key, or the mirror is synced, complete and fresh.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

import structlog

from revocation_client.model import CUTOFF_CLAIMS, ClaimName, Claims, Revocation, first_covering, iat_unusable
from revocation_client.wire import Lifetime, Question, Result, RevokeClaim, RevokeToken
from revocation_service.errors import ExpRequired, NoSuchRevocation, ServiceError, StoreUnavailable
from revocation_service.reader import Reader
from revocation_service.settings import Limits
from revocation_service.store.redis import Put, Reading, Store, Stored
from revocation_service.telemetry import Metrics, RepeatedWarning
from revocation_service.tokens import Token, TokenReader

LOGGED_CHARACTERS: Final = 8

NOT_IN_TIME: Final = "Redis, or a part of it, did not answer within the deadline"
IN_DOUBT: Final = "Redis has lost data, or may have; others have still to write back what they hold"

_CLAIM: Final = itemgetter(0)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Revoked:
    """What came of a request to revoke; without a record the token had already died, and nothing is stored."""

    result: Result
    claim: ClaimName
    value: str
    expires_at: float | None
    record: Revocation | None
    verified: bool


class Verdict(NamedTuple):
    """The answer to a question: the revocation that covers the token, if there is one, and how that was found out."""

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
    """The usual verdict, of Redis on a question by claims; there are few of it, so that most need not be made."""
    return Verdict(None, considered, verified=False)


_Subject = tuple[Claims, list[tuple[ClaimName, str]], Token | None]
"""What a question is about: the claims to be judged, where their revocations would stand, and the token."""


def _described(claims: Claims) -> _Subject:
    return claims, claims.identifiers(), None


class Revocations:
    """Revocations over one store, judged by one reader of tokens."""

    def __init__(self, store: Store, reader: Reader, tokens: TokenReader, limits: Limits, metrics: Metrics) -> None:
        self._store = store
        self._reader = reader
        self._tokens = tokens
        self._limits = limits
        self._metrics = metrics
        self._exp_too_far = RepeatedWarning("exp_too_far")
        self._iat_unusable = RepeatedWarning("iat_unusable")
        self._redis_ahead = 0.0
        """By how much Redis' clock was ahead of this machine's when it was last asked, in seconds."""
        self._counted_revoked = metrics.checks.labels("revoked")
        self._counted_not_revoked = metrics.checks.labels("not_revoked")

    async def revoke(self, request: RevokeToken | RevokeClaim, revoked_by: str | None) -> Revoked:
        """Revoke what the request names, for the caller of that name; it is safe when this returns.

        Raises RequestError, Unavailable.
        """
        put, token = await self._put_for(request, revoked_by)
        stored = await self._store.put(put)
        if stored.record is not None:
            self._reader.add_own(stored.record)
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
        """Whether the token in question is revoked.

        Raises RequestError, Unavailable.
        """
        subject = _described(question) if isinstance(question, Claims) else await self._given(question)
        claims, identifiers, _token = subject
        doubtful = self._reader.doubt.doubtful  # before the reading: what it did not find may be given back since
        if self._store.away and self._is_answered_without_redis(claims):
            reading = await self._store.glance(identifiers)
        else:
            try:
                reading = await self._store.get(identifiers)
            except StoreUnavailable:
                reading = _nothing_read(identifiers)
        now = self._redis_now(reading.now)
        verdict = self._verdict(subject, _by_identifier(reading), reading.unread, now, doubtful=doubtful)
        (self._counted_revoked if verdict.revocation else self._counted_not_revoked).inc()
        return verdict

    async def _given(self, raw: str) -> _Subject:
        token = await self._tokens.read(raw)
        return token.claims, token.claims.identifiers(), token

    async def check_many(self, questions: Sequence[Question | ServiceError]) -> list[Verdict | ServiceError]:
        """The verdicts in order; what is wrong with one question is the answer to that question alone.

        Raises StoreUnavailable where nothing at all can be read.
        """
        tokens = iter(await asyncio.gather(*(self._subject(raw) for raw in questions if isinstance(raw, str))))
        subjects = [
            _described(one) if isinstance(one, Claims) else next(tokens) if isinstance(one, str) else one
            for one in questions
        ]
        stated = [subject[1] for subject in subjects if not isinstance(subject, ServiceError)]
        wanted = list(dict.fromkeys(chain.from_iterable(stated)))
        doubtful = self._reader.doubt.doubtful
        reading = await self._read_many(wanted) if wanted else Reading((), 0)
        verdicts = self._verdicts(subjects, reading, doubtful=doubtful)
        given = [verdict.revocation for verdict in verdicts if isinstance(verdict, Verdict)]
        if wanted and not reading.now and not given:
            raise StoreUnavailable("Redis did not answer within the deadline")
        not_revoked = given.count(None)
        self._counted_revoked.inc(len(given) - not_revoked)
        self._counted_not_revoked.inc(not_revoked)
        return verdicts

    async def _read_many(self, wanted: Sequence[tuple[ClaimName, str]]) -> Reading:
        if self._store.away and self._reader.fresh:
            return await self._store.glance(wanted)
        try:
            return await self._store.get(wanted)
        except StoreUnavailable:
            return _nothing_read(wanted)

    def _is_answered_without_redis(self, claims: Claims) -> bool:
        return self._reader.fresh or self._reader.mirror.covering(claims, self._redis_now()) is not None

    async def _subject(self, raw: str) -> _Subject | ServiceError:
        try:
            return await self._given(raw)
        except ServiceError as error:
            return error

    def _verdicts(
        self, subjects: Sequence[_Subject | ServiceError], reading: Reading, *, doubtful: bool
    ) -> list[Verdict | ServiceError]:
        records, unread, now = _by_identifier(reading), reading.unread, self._redis_now(reading.now)
        verdicts: list[Verdict | ServiceError] = []
        for subject in subjects:
            if isinstance(subject, ServiceError):
                verdicts.append(subject)
                continue
            try:
                verdicts.append(self._verdict(subject, records, unread, now, doubtful=doubtful))
            except StoreUnavailable as error:
                verdicts.append(error)
        return verdicts

    def _verdict(
        self,
        subject: _Subject,
        records: Mapping[tuple[ClaimName, str], Revocation],
        unread: Set[tuple[ClaimName, str]],
        now: float,
        *,
        doubtful: bool,
    ) -> Verdict:
        """One covering revocation is an answer; that there is none is one only if every key was spoken of."""
        claims, identifiers, token = subject
        covering = stale_seconds = None
        if records and not records.keys().isdisjoint(identifiers):
            found = [records[one] for one in identifiers if one in records]
            covering = first_covering(found, claims, now, self._limits.clock_skew_seconds)
        if covering is None:
            covering = self._reader.mirror.covering(claims, now)
            doubtful = doubtful or self._reader.doubt.doubtful
            if covering is not None or doubtful or (unread and not unread.isdisjoint(identifiers)):
                stale_seconds = self._from_the_mirror(covering, doubtful=doubtful)
        considered = tuple(map(_CLAIM, identifiers))
        if token is None and covering is None and stale_seconds is None:
            return _not_revoked(considered)
        unusable = self._watch_iat(covering, claims, now)
        if token is None:
            return Verdict(covering, considered, False, None, stale_seconds, unusable)
        expired = token.exp is not None and token.exp <= now
        self._watch_lifetime(token, now)
        return Verdict(covering, considered, token.verified, expired, stale_seconds, unusable)

    def _redis_now(self, told: float = 0) -> float:
        """Redis' clock decides: what it has just told, or else what it would."""
        now = time.time()
        if told:
            self._redis_ahead = told - now
        return now + self._redis_ahead

    def _from_the_mirror(self, covering: Revocation | None, *, doubtful: bool) -> float:
        """The age of what the mirror answers; that it knows of no revocation is an answer only while it is fresh."""
        if covering is None and (doubtful or not self._reader.fresh):
            raise StoreUnavailable(IN_DOUBT if doubtful else NOT_IN_TIME)
        self._metrics.checks_from_mirror.labels("not_revoked" if covering is None else "revoked").inc()
        return self._reader.age(time.monotonic())

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
        """The live revocation of this claim and value; one that the mirror alone holds has no origin.

        That there is none is Redis' alone to say. Raises NoSuchRevocation, StoreUnavailable.
        """
        known = self._reader.mirror.held(claim, value, self._redis_now())
        doubtful = self._reader.doubt.doubtful
        reading = await (self._store.get if known is None else self._store.glance)([(claim, value)])
        if reading.found:
            return reading.found[0]
        if known is None and (doubtful or self._reader.doubt.doubtful):
            raise StoreUnavailable(IN_DOUBT)
        if known is None:
            raise NoSuchRevocation("there is no live revocation of that claim and value")
        return known


def _by_identifier(reading: Reading) -> dict[tuple[ClaimName, str], Revocation]:
    return {(record.claim, record.value): record for record in reading.found}


def _nothing_read(identifiers: Sequence[tuple[ClaimName, str]]) -> Reading:
    return Reading((), 0, frozenset(identifiers))


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
