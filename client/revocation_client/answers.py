"""Read the answers of the service. Pure.

An answer that is not understood, or is to another question, is an `UnexpectedAnswer`, never "not revoked".
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.questions import CheckRequest
from revocation_client.results import Revoked, Verdict
from revocation_client.revocation import Revocation
from revocation_client.schema import SchemaError, loads, optional_seconds

Outcome = Verdict | RevocationError
"""The outcome of one question of a batch."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


def verdicts(answer: Answer, asked: Sequence[CheckRequest]) -> list[Outcome]:
    """Return the outcome of each question of a batch, in order. Raises RevocationError if the whole batch failed."""
    match _json(answer):
        case {"results": list(results)} if len(results) == len(asked):
            return list(map(_outcome, results, asked))
    raise UnexpectedAnswer("the answer has not one result for each question", answer.status)


def revoked(answer: Answer, claim: str, value: str) -> Revoked:
    """Return the outcome of a revocation by this claim and value. Raises RevocationError."""
    with suppress(SchemaError):
        match _json(answer):
            case {"result": "revoked" | "already_revoked" | "expired" as result, "verified": bool(verified)} as form:
                done = _revocation(form)._asdict()
                del done["revoked_by"]
                if (done["claim"], done["value"]) == (claim, value):
                    return Revoked(result, **done, verified=verified)
    raise UnexpectedAnswer("the answer is about another revocation, or is not understood", answer.status)


def failure(answer: Answer) -> RevocationError | None:
    """Return the error that an answer stands for; None for a 200 with JSON."""
    if answer.status == 200 and answer.content_type == "application/json":
        return None
    if not 400 <= answer.status <= 599:
        return UnexpectedAnswer("the answer is no JSON, or a redirect: this is not the service", answer.status)
    if answer.content_type == "application/problem+json":
        with suppress(SchemaError):
            return _problem(loads(answer.body), answer.status, answer.retry_after)
    detail = f"status {answer.status}, without a problem document of the service"
    return _problem({"code": "http_error", "detail": detail}, answer.status, answer.retry_after)


def _problem(form: Any, status: int, retry_after: str | None = None) -> RevocationError:
    """Return the error for a problem document (RFC 9457). A 5xx error includes the seconds of Retry-After."""
    match form:
        case {"code": str(code), "detail": str(detail)} if (
            re.fullmatch("[a-z0-9_]{1,64}", code) and detail.isprintable()
        ):
            if status < 500:
                return RequestRefused(status, code, detail[:300])
            seconds = float(retry_after) if retry_after and re.fullmatch("[0-9]{1,9}", retry_after) else None
            return ServiceUnavailable(detail[:300], status, code, seconds)
    raise SchemaError("body", "is no problem document of the service")


def _json(answer: Answer) -> Any:
    """Return the JSON in an answer. Raises RevocationError."""
    if (failed := failure(answer)) is not None:
        raise failed
    with suppress(SchemaError):
        return loads(answer.body)
    raise UnexpectedAnswer("the answer is no JSON", answer.status)


def _outcome(result: Any, asked: CheckRequest) -> Outcome:
    try:
        if "error" not in result:
            return _verdict(result, asked)
        match result:
            case {"error": {"status": int(status)} as problem} if 400 <= status <= 599:
                return _problem(problem, status)
    except (SchemaError, TypeError, AttributeError):  # the last two where a member is of another type
        pass
    return UnexpectedAnswer("the answer to this question is not understood")


def _verdict(form: Any, asked: CheckRequest) -> Verdict:
    """Read a verdict. A newer service may also consider claims that this client does not know.

    A `match` statement would take ten times as long.
    """
    get = form.get
    revoked, verified, source, names = _flag(get("revoked")), _flag(get("verified")), get("source"), get("considered")
    if revoked is None or verified is None or source not in ("redis", "mirror") or not isinstance(names, list):
        raise SchemaError("check", "has no verdict")
    considered, needed = tuple(names), asked.claims.considered
    if considered != needed and not set(considered).issuperset(needed):
        raise SchemaError("considered", "has not all the claims of the question")
    found = _covering(get("revocation"), asked, names) if revoked else None
    expired, iat_unusable = _flag(get("expired")), _flag(get("iat_unusable")) is True
    stale_seconds = optional_seconds("stale_seconds", get("stale_seconds"))
    return Verdict(revoked, source, found, considered, verified, expired, stale_seconds, iat_unusable)


def _covering(form: Any, asked: CheckRequest, considered: list[str]) -> Revocation:
    """Return the revocation that a verdict names. Raises SchemaError if it does not cover the token in question."""
    found = _revocation(form)
    if found.claim not in considered or asked.claims.value_of(found.claim) not in (None, found.value):
        raise SchemaError("revocation", "is another token's")
    return found


def _revocation(form: Any) -> Revocation:
    match form:
        case {"claim": str(claim), "value": str(value)}:
            ends, began, cutoff = (
                optional_seconds(name, form.get(name)) for name in ("expires_at", "revoked_at", "issued_before")
            )
            reason, actor = form.get("reason"), form.get("revoked_by")
            if isinstance(reason, str | None) and isinstance(actor, str | None):
                return Revocation(claim, value, ends, began, cutoff, reason, actor)
    raise SchemaError("revocation", "is not of its form")


def _flag(value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise SchemaError("flag", "must be true, false or null")
    return value
