"""The use cases: revoke, check, look up. They know neither HTTP nor Redis' commands.

A check is answered from Redis and the worker's mirror together: revoked if either says so. Rule 11 of
docs/architecture.md, "Replication", states when the answer may be "not revoked".
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import structlog

from revocation_client.claims import CLAIMS, ClaimName, Claims
from revocation_client.revocation import Revocation, first_covering, iat_unusable
from revocation_client.schema import Question, Result, RevokeRequest
from revocation_service.errors import ExpRequired, NoSuchRevocation, ServiceError, StoreUnavailable
from revocation_service.metrics import Metrics
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.settings import Limits
from revocation_service.store.store import DEADLINE_SECONDS, Put, Store
from revocation_service.store.topology import NOT_IN_TIME
from revocation_service.telemetry import RepeatedWarning
from revocation_service.tokens import Token, TokenReader

READ_WHILE_AWAY_SECONDS: Final = 0.01
"""Timeout of a read if Redis did not answer the last time and the mirror can answer."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Revoked:
    """The result of a request to revoke. `record` is None if the token had already expired."""

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
    valid: bool = False
    """Whether the token is verified and valid at present, revocations apart."""

    @property
    def active(self) -> bool:
        """True only for a token that is verified, valid at present, and not revoked."""
        return self.valid and self.revocation is None


_Subject = Claims | Token
"""What a question is about."""


class _Evidence(NamedTuple):
    """The answer of Redis to a read, or the fact that it did not answer."""

    records: Mapping[tuple[ClaimName, str], Revocation]
    now: float
    """Redis' clock in epoch seconds; the local clock if Redis did not answer."""
    silent: bool
    """Whether Redis did not answer."""
    believed: bool
    """Whether a record that Redis lacks means "not revoked"."""


class Revocations:
    """Revokes, checks and looks up, over one store and the mirror of this process."""

    def __init__(self, store: Store, sync: MirrorSync, tokens: TokenReader, limits: Limits, metrics: Metrics) -> None:
        self._store = store
        self._sync = sync
        self._tokens = tokens
        self._limits = limits
        self._metrics = metrics
        self._counters = {True: metrics.checks.labels("revoked"), False: metrics.checks.labels("not_revoked")}
        self._exp_too_far = RepeatedWarning("exp_too_far")
        self._iat_unusable = RepeatedWarning("iat_unusable")

    async def revoke(self, request: RevokeRequest, revoked_by: str | None, token: Token | None = None) -> Revoked:
        """Revoke what the request names. When this returns, the revocation is stored safely.

        `token` is the token in the request, if it has been read already. Raises RequestError, Unavailable.
        """
        if request.claim == "token" and token is None:
            token = await self._tokens.read(request.value)
        put, verified = _put(request, revoked_by, token), token is not None and token.verified
        stored = await self._sync.write(put)
        self._metrics.revocations.labels(put.claim, stored.result).inc()
        _log.info("revocation", result=stored.result, claim=put.claim, value=put.value[:8], revoked_by=revoked_by)
        expires_at = put.exp if stored.record is None else stored.record.expires_at
        return Revoked(stored.result, put.claim, put.value, expires_at, stored.record, verified)

    async def read(self, raw: str) -> Token:
        """Return what a token says, without checking whether it is revoked. Raises RequestError, Unavailable."""
        return await self._tokens.read(raw)

    async def check(self, question: Question | Token, patience_seconds: float = DEADLINE_SECONDS) -> Verdict:
        """Return whether the token in question is revoked.

        Waits for Redis at most `patience_seconds` if the mirror can answer alone, and otherwise until the deadline.
        Raises RequestError, Unavailable.
        """
        subject = await self._tokens.read(question) if isinstance(question, str) else question
        claims = _claims_of(subject)
        if patience_seconds < DEADLINE_SECONDS and not self._mirror_answers(claims):
            patience_seconds = DEADLINE_SECONDS
        verdict = self._verdict(subject, await self._read(claims.identifiers, patience_seconds))
        if isinstance(verdict, StoreUnavailable):
            raise verdict
        self._counters[verdict.revocation is not None].inc()
        return verdict

    async def check_many(self, questions: Sequence[Question | ServiceError]) -> list[Verdict | ServiceError]:
        """Return a verdict or an error for each question, in order.

        Raises StoreUnavailable if Redis does not answer and the mirror answers none of the questions.
        """
        raws = list(dict.fromkeys(question for question in questions if isinstance(question, str)))
        tokens = dict(zip(raws, await self._tokens.read_many(raws), strict=True)) if raws else {}
        subjects = [tokens[question] if isinstance(question, str) else question for question in questions]
        asked = [_claims_of(subject) for subject in subjects if isinstance(subject, _Subject)]
        wanted = list(dict.fromkeys(chain.from_iterable(claims.identifiers for claims in asked)))
        evidence = await self._read(wanted) if wanted else _nothing_read()
        outcomes = [each if isinstance(each, ServiceError) else self._verdict(each, evidence) for each in subjects]
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        if wanted and evidence.silent and not verdicts:
            raise StoreUnavailable(NOT_IN_TIME)
        revoked = sum(verdict.revocation is not None for verdict in verdicts)
        self._counters[True].inc(revoked)
        self._counters[False].inc(len(verdicts) - revoked)
        return outcomes

    def _mirror_answers(self, claims: Claims) -> bool:
        """Return whether the mirror can answer alone: it knows a covering revocation, or may answer "not revoked"."""
        known = self._sync.mirror.covering(claims, time.time(), self._sync.now)
        return known is not None or self._sync.mirror_decides()

    async def _read(self, identifiers: Sequence[tuple[ClaimName, str]], seconds: float = DEADLINE_SECONDS) -> _Evidence:
        """Read from Redis. While Redis is down and the mirror decides, wait only long enough to notice a recovery."""
        believed = self._sync.believes()  # before the read: what Redis lacks then may be restored meanwhile
        if self._store.up is False and self._sync.mirror_decides():
            seconds = READ_WHILE_AWAY_SECONDS
        try:
            reading = await self._store.get(identifiers, seconds)
        except StoreUnavailable:
            return _nothing_read()
        records = {(record.claim, record.value): record for record in reading.found}
        return _Evidence(records, reading.now, silent=False, believed=believed)

    def _verdict(self, subject: _Subject, evidence: _Evidence) -> Verdict | StoreUnavailable:
        """Decide by the answer of Redis and by the mirror (rule 11)."""
        claims, covering, stale_seconds = _claims_of(subject), None, None
        if evidence.records:
            found = [evidence.records[one] for one in claims.identifiers if one in evidence.records]
            covering = first_covering(found, claims, evidence.now, self._limits.clock_skew_seconds)
        if covering is None:
            covering = self._sync.mirror.covering(claims, evidence.now, self._sync.now)
            if covering is None and not evidence.believed and not (evidence.silent and self._sync.mirror_decides()):
                return self._unavailable(evidence)
            if covering is not None or not evidence.believed:
                self._metrics.checks_from_mirror.labels("not_revoked" if covering is None else "revoked").inc()
                stale_seconds = self._sync.staleness()
        unusable = covering is not None and self._watch_iat(covering, claims, evidence.now)
        if isinstance(subject, Claims):
            return Verdict(covering, claims.considered, False, None, stale_seconds, unusable)
        expired = subject.exp is not None and self._watch_exp(subject.exp, evidence.now)
        valid = subject.valid_at(evidence.now)
        return Verdict(covering, claims.considered, subject.verified, expired, stale_seconds, unusable, valid)

    def _watch_iat(self, covering: Revocation, claims: Claims, now: float) -> bool:
        """Return whether a cutoff covers the token only because of an unusable `iat`. Count and log such a token."""
        unusable = iat_unusable(covering, claims, now, self._limits.clock_skew_seconds)
        if unusable:
            self._metrics.iat_unusable.inc()
            self._iat_unusable.occurred(claim=covering.claim)
        return unusable

    def _watch_exp(self, exp: float, now: float) -> bool:
        """Return whether `exp` has passed. Count and log an `exp` so late that the token may outlive its revocation."""
        if exp > now + self._limits.max_token_lifetime_seconds + self._limits.clock_skew_seconds:
            self._metrics.exp_too_far.inc()
            self._exp_too_far.occurred(setting="REVOCATION_MAX_TOKEN_LIFETIME_SECONDS")
        return exp <= now

    async def look_up(self, claim: ClaimName, value: str) -> Revocation:
        """Return the live revocation of this claim and value. One held only by the mirror has no `revoked_at`.

        Raises NoSuchRevocation, StoreUnavailable.
        """
        known = self._sync.mirror.held(claim, value, self._sync.now())
        evidence = await self._read([(claim, value)])
        record = evidence.records.get((claim, value), known)
        if record is not None:
            return record
        if evidence.believed:
            raise NoSuchRevocation("there is no live revocation of that claim and value")
        raise self._unavailable(evidence)

    def _unavailable(self, evidence: _Evidence) -> StoreUnavailable:
        reason = f"Redis may lack revocations: {self._sync.reason()}"
        return StoreUnavailable(NOT_IN_TIME if evidence.silent else reason)


def _nothing_read() -> _Evidence:
    return _Evidence({}, time.time(), silent=True, believed=False)


def _claims_of(subject: _Subject) -> Claims:
    return subject.claims if isinstance(subject, Token) else subject


def _put(request: RevokeRequest, revoked_by: str | None, token: Token | None) -> Put:
    """Return what to store. A token is revoked until its `exp`, or until the caller's `exp` if that is later."""
    if token is not None and token.exp is None and request.exp is None and request.expires_in is None:
        raise ExpRequired("the token has no exp: send exp or expires_in with it")
    claim: ClaimName = "jti" if request.claim == "token" else request.claim
    exps = [exp for exp in (token.exp if token else None, request.exp) if exp is not None]
    return Put(
        claim=claim,
        value=request.value if token is None else token.name,
        exp=max(exps, default=None),
        expires_in=request.expires_in,
        issued_before=request.issued_before,
        cutoff_is_now=CLAIMS[claim].cutoff == "always" and request.issued_before is None,
        reason=request.reason,
        revoked_by=revoked_by,
    )
