"""A revocation service in memory: the answers of the real one, by the same rule and the same merge."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from revocation_client.answers import Answer, NoAnswer
from revocation_client.model import (
    CUTOFF_CLAIMS,
    DEFAULT_CLOCK_SKEW_SECONDS,
    ClaimName,
    Revocation,
    first_covering,
    iat_unusable,
    merge,
)
from revocation_client.tokens import Problem, Token, read_token
from revocation_client.wire import (
    Question,
    Result,
    RevokeClaim,
    RevokeToken,
    WireError,
    dumps,
    loads,
    number,
    parse_batch,
    parse_question,
    parse_revoke,
    revocation_to_json,
)

MAX_TOKEN_LIFETIME_SECONDS: Final = 30 * 24 * 3600.0
"""The default of the service's REVOCATION_MAX_TOKEN_LIFETIME_SECONDS."""


class MemoryService:
    """What the client posts to; plays an outage and latency."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.records = Records(clock)
        self.latency_seconds = 0.0
        self.outage: int | str | None = None

    async def post(self, path: str, body: bytes, *, seconds: float, most_bytes: int) -> Answer | NoAnswer:
        """The service's answer, unless it is away or takes too long; then nothing was done."""
        await asyncio.sleep(min(self.latency_seconds, seconds))
        if self.latency_seconds >= seconds:
            return NoAnswer(f"no answer within {seconds:.3g} s")
        if isinstance(self.outage, int):
            return Answer(self.outage, "text/plain", b"")
        if self.outage is not None:
            return NoAnswer(self.outage)
        try:
            return _answer(200, _ROUTES[path](self.records, loads(body)))
        except Problem as problem:
            return _answer(problem.status, problem.form())
        except WireError as error:
            return _answer(400, Problem("invalid_request", str(error)).form())

    async def aclose(self) -> None:
        """There is nothing to let go of."""


def _answer(status: int, form: object) -> Answer:
    content_type = "application/json" if status == 200 else "application/problem+json"
    return Answer(status, content_type, dumps(form))


class Records:
    """What is revoked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.now = clock
        self._records: dict[tuple[ClaimName, str], Revocation] = {}

    def alive(self, now: float) -> Iterator[Revocation]:
        """All that have not expired."""
        return (one for one in self._records.values() if one.expires_at is None or one.expires_at > now)

    def at(self, claim: ClaimName, value: str, now: float) -> Revocation | None:
        """The live record of this claim and value."""
        found = self._records.get((claim, value))
        return found if found is not None and found in self.alive(now) else None

    def put(self, given: Revocation, now: float) -> tuple[Result, Revocation]:
        """Merge a record into what is there."""
        stored = self.at(given.claim, given.value, now)
        merged = given if stored is None else merge(stored, given)
        self._records[given.claim, given.value] = merged
        return "revoked" if stored is None or _covers_more(given, stored) else "already_revoked", merged


def _covers_more(given: Revocation, stored: Revocation) -> bool:
    if stored.issued_before is None:
        return False
    return given.issued_before is None or given.issued_before > stored.issued_before


def _revoke(records: Records, body: object) -> dict[str, object]:
    """`POST /revoke`."""
    asked, now = parse_revoke(body), records.now()
    token = read_token(asked.token) if isinstance(asked, RevokeToken) else None
    given = _record(asked, token, now)
    assert given.expires_at is not None
    dead = given.expires_at <= now
    result, record = ("expired", None) if dead else records.put(given, now)
    form: dict[str, object] = {
        "result": result,
        "claim": given.claim,
        "value": given.value,
        "revoked_at": number(record.revoked_at) if record else None,
        "expires_at": number(record.expires_at if record else given.expires_at),
        "reason": record.reason if record else asked.reason,
        "verified": False,
    }
    if record and record.issued_before is not None:
        form["issued_before"] = number(record.issued_before)
    return form


def _record(asked: RevokeToken | RevokeClaim, token: Token | None, now: float) -> Revocation:
    expires_at = _expiry(asked, token, now)
    if isinstance(asked, RevokeToken):
        assert token is not None
        return Revocation("jti", token.name, expires_at, now, reason=asked.reason)
    issued_before = asked.issued_before
    if issued_before is None and asked.claim in CUTOFF_CLAIMS:
        issued_before = now
    return Revocation(asked.claim, asked.value, expires_at, now, issued_before, asked.reason)


def _expiry(asked: RevokeToken | RevokeClaim, token: Token | None, now: float) -> float:
    """When the revocation ends (section 2)."""
    lifetime, cutoff = asked.lifetime, getattr(asked, "issued_before", None) or now
    if cutoff > now + DEFAULT_CLOCK_SKEW_SECONDS:
        raise Problem("issued_before_too_far", "the cutoff lies further ahead than clocks may differ")
    ends = [] if lifetime.exp is None else [lifetime.exp]
    ends += [] if lifetime.expires_in is None else [now + lifetime.expires_in]
    ends += [] if token is None or token.exp is None else [token.exp]
    if token is not None and not ends:
        raise Problem("exp_required", "nothing says when this token dies: send exp or expires_in with it")
    dies_at = max(ends, default=max(now, cutoff) + MAX_TOKEN_LIFETIME_SECONDS)
    if dies_at > now + MAX_TOKEN_LIFETIME_SECONDS + DEFAULT_CLOCK_SKEW_SECONDS:
        raise Problem("exp_too_far", "exp or expires_in is further away than REVOCATION_MAX_TOKEN_LIFETIME_SECONDS")
    return dies_at


def _check_batch(records: Records, body: object) -> dict[str, object]:
    """`POST /check/batch`."""
    return {"results": [_result(records, element) for element in parse_batch(body)]}


def _result(records: Records, element: object) -> dict[str, object]:
    try:
        return _verdict(records, parse_question(element))
    except WireError as error:
        return {"error": Problem("invalid_request", str(error)).form()}
    except Problem as problem:
        return {"error": problem.form()}


def _verdict(records: Records, question: Question) -> dict[str, object]:
    now = records.now()
    token = read_token(question) if isinstance(question, str) else None
    claims = question if not isinstance(question, str) else read_token(question).claims
    identifiers = claims.identifiers()
    found = (record for claim, value in identifiers if (record := records.at(claim, value, now)))
    covering = first_covering(found, claims, now)
    form: dict[str, object] = {"revoked": covering is not None}
    if covering is not None:
        form["revocation"] = revocation_to_json(covering)
    if iat_unusable(covering, claims, now):
        form["iat_unusable"] = True
    form["considered"] = [claim for claim, _value in identifiers]
    if token is not None:
        form["expired"] = token.exp is not None and token.exp <= now
    return form | {"verified": False, "source": "redis"}


_ROUTES: Final[dict[str, Callable[[Records, Any], dict[str, object]]]] = {
    "revoke": _revoke,
    "check/batch": _check_batch,
}
