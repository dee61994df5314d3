"""Read the answers of the service. Pure.

What is not plainly the service's answer to what was asked is `UnexpectedAnswer`, and never "not revoked".
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Final

from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.questions import CheckRequest
from revocation_client.results import Revoked, Verdict
from revocation_client.revocation import Revocation
from revocation_client.schema import loads

Outcome = Verdict | RevocationError
"""The outcome of one question of a batch."""

_NOT_UNDERSTOOD: Final = (ValueError, TypeError, KeyError, AttributeError)

_VERDICT, _REVOKED = ([field.name for field in fields(kind)] for kind in (Verdict, Revoked))
_REVOCATION: Final = ("claim", "value", "expires_at", "revoked_at", "issued_before", "reason", "revoked_by")

_TYPES: Final[dict[str, tuple[type, ...]]] = (
    dict.fromkeys(("claim", "value", "result", "source", "code", "detail"), (str,))
    | dict.fromkeys(("reason", "revoked_by"), (str, NoneType))
    | dict.fromkeys(("revoked_at", "expires_at", "issued_before", "stale_seconds"), (int, float, NoneType))
    | dict.fromkeys(("revoked", "verified"), (bool,))
    | dict.fromkeys(("expired", "iat_unusable"), (bool, NoneType))
    | {"considered": (list,), "revocation": (dict, NoneType), "status": (int,)}
)
"""The types that each member of an answer may have. A member that may be null may also be absent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


def verdicts(answer: Answer, asked: Sequence[CheckRequest]) -> list[Outcome]:
    """Return the outcome of each question of a batch, in order. Raises RevocationError if the whole batch failed."""
    results = _object(answer).get("results")
    if not isinstance(results, list) or len(results) != len(asked):
        raise UnexpectedAnswer("the answer is no list of results, one for each question", answer.status)
    return list(map(_outcome, results, asked))


def revoked(answer: Answer, claim: str, value: str) -> Revoked:
    """Return the outcome of a revocation by this claim and value. Raises RevocationError."""
    form = _object(answer)
    with suppress(*_NOT_UNDERSTOOD):
        done = Revoked(**_members(form, *_REVOKED))
        if done.result in ("revoked", "already_revoked", "expired") and (done.claim, done.value) == (claim, value):
            return done
    raise UnexpectedAnswer("the answer is about another revocation, or is not understood", answer.status)


def failure(answer: Answer) -> RevocationError | None:
    """Return why an answer says nothing of revocations; None for a 200 with JSON."""
    if answer.status == 200 and answer.content_type == "application/json":
        return None
    if not 400 <= answer.status <= 599:
        return UnexpectedAnswer("the answer is no JSON, or a redirect: this is not the service", answer.status)
    with suppress(*_NOT_UNDERSTOOD):
        if answer.content_type == "application/problem+json":
            return _problem(loads(answer.body), answer.status, answer.retry_after)
    detail = f"status {answer.status}, without a problem document of the service"
    return _problem({"code": "http_error", "detail": detail}, answer.status, answer.retry_after)


def _problem(form: Any, status: int, retry_after: str | None = None) -> RevocationError:
    """Return the error for a problem document (RFC 9457) and the seconds of a Retry-After."""
    code, detail = _members(form, "code", "detail").values()
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", code) or not detail.isprintable():
        raise ValueError
    if status < 500:
        return RequestRefused(status, code, detail[:300])
    seconds = float(retry_after) if retry_after and re.fullmatch("[0-9]{1,9}", retry_after) else None
    return ServiceUnavailable(detail[:300], status, code, seconds)


def _object(answer: Answer) -> dict[str, Any]:
    """Return the JSON object in an answer. Raises RevocationError."""
    failed, form = failure(answer), None
    if failed is not None:
        raise failed
    with suppress(ValueError):
        form = loads(answer.body)
    if not isinstance(form, dict):
        raise UnexpectedAnswer("the answer is no JSON object", answer.status)
    return form


def _outcome(result: Any, asked: CheckRequest) -> Outcome:
    try:
        if "error" not in result:
            return _verdict(result, asked)
        status = _members(result["error"], "status")["status"]
        if 400 <= status <= 599:
            return _problem(result["error"], status)
    except _NOT_UNDERSTOOD:
        pass
    return UnexpectedAnswer("the answer to this question is not understood")


def _verdict(form: Any, asked: CheckRequest) -> Verdict:
    """Read a verdict. A service with a newer table of claims may consider more claims of a token than this client."""
    said = _members(form, *_VERDICT)
    considered = said["considered"] = tuple(said["considered"])
    if not set(considered).issuperset(asked.claims.considered) or said["source"] not in ("redis", "mirror"):
        raise ValueError
    said["revocation"] = None
    if said["revoked"]:
        found = said["revocation"] = Revocation(**_members(form["revocation"], *_REVOCATION))
        if found.claim not in considered or asked.claims.value_of(found.claim) not in (None, found.value):
            raise ValueError
    return Verdict(**said | {"iat_unusable": said["iat_unusable"] is True})


def _members(form: Any, *names: str) -> dict[str, Any]:
    """Return these members of a JSON object, each of its type; numbers are sane. Raises ValueError."""
    found = {}
    for name in names:
        value = found[name] = form.get(name)
        kind = type(value)
        if kind not in _TYPES[name] or (kind in (int, float) and not 0 <= value < 1e15):
            raise ValueError(name)
    return found
