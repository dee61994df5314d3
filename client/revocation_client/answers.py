"""Answers of the service, from bytes to what they say. Pure; knows no I/O.

What is not plainly the service's answer to what was asked is `UnexpectedAnswer`, and never "not revoked".
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final

from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.model import ClaimName, Revocation
from revocation_client.questions import Inquiry
from revocation_client.verdicts import Revoked, Source, Verdict
from revocation_client.wire import RevokeClaim, RevokeToken, WireError, parse_claim

DETAIL_MAX_CHARACTERS: Final = 300

USUAL_MAX_BYTES: Final = 256
"""Of a result that is remembered; the service's own, "not revoked", are below 150."""

_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESULTS: Final = ("revoked", "already_revoked", "expired")
_BEGIN: Final = b'{"results":[{'
_BETWEEN: Final = b"},{"
_END: Final = b"}]}"
_NOT_REVOKED: Final = b'"revoked":false,'
_NOT_UNDERSTOOD: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer, its body bounded."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There was none."""

    detail: str
    broke_off: bool = False
    """Whether a connection that stood was lost, as a kept one is when the service restarts: once more may help."""


Outcome = Verdict | RevocationError
"""What becomes of one question."""


def verdicts(answer: Answer | NoAnswer, inquiries: Sequence[Inquiry], now: float) -> list[Outcome]:
    """What a batch's answer says to each of the questions in it, in their order."""
    failed = failure(answer, now)
    if failed is not None:
        return [failed] * len(inquiries)
    assert isinstance(answer, Answer)
    try:
        return _apart(answer.body, inquiries)
    except (ValueError, RecursionError):
        pass  # it is written in another way than the service's, or is wrong
    try:
        results = json.loads(answer.body.decode())["results"]
        if not isinstance(results, list) or len(results) != len(inquiries):
            raise TypeError
    except _NOT_UNDERSTOOD:
        strange = UnexpectedAnswer("the answer is no list of results, one for each question", answer.status)
        return [strange] * len(inquiries)
    return list(map(_outcome, results, inquiries))


def _apart(body: bytes, inquiries: Sequence[Inquiry]) -> list[Outcome]:
    """The outcomes, where each result stands by itself between commas, as the service writes them.

    Where each piece is a whole object, the body is the list of exactly these (RFC 8259 sections 4 and 5).
    Raises ValueError or RecursionError where they are not objects, each with a question.
    """
    if not (body.startswith(_BEGIN) and body.endswith(_END)):
        raise ValueError
    texts = body[len(_BEGIN) : -len(_END)].split(_BETWEEN)
    return [_read(text, inquiry) for text, inquiry in zip(texts, inquiries, strict=True)]


def _read(text: bytes, inquiry: Inquiry) -> Outcome:
    if text.startswith(_NOT_REVOKED) and len(text) <= USUAL_MAX_BYTES:
        usual = _usual(text, inquiry.considered)
        if usual is not None:
            return usual
    return _outcome(_members(text), inquiry)


def _members(text: bytes) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(f"{{{text.decode()}}}")
    return members


@lru_cache(maxsize=256)
def _usual(text: bytes, considered: tuple[ClaimName, ...] | None) -> Verdict | None:
    """The verdict "not revoked" that a result states; None for all else that it may say.

    It says nothing of the token, so there are few of its texts, and most need be neither read nor judged again.
    """
    outcome = _outcome(_members(text), Inquiry(b"", considered))
    return outcome if isinstance(outcome, Verdict) and not outcome.revoked else None


def revoked(answer: Answer | NoAnswer, asked: RevokeToken | RevokeClaim, jti: str | None, now: float) -> Revoked:
    """What came of a revocation; `jti` is the token's where it was given whole and plainly states one.

    Raises RevocationError.
    """
    failed = failure(answer, now)
    if failed is not None:
        raise failed
    assert isinstance(answer, Answer)
    try:
        done = _revoked(json.loads(answer.body))
    except _NOT_UNDERSTOOD:
        raise UnexpectedAnswer("the answer to the revocation is not understood", answer.status) from None
    if not _is_about(done, asked, jti):
        raise UnexpectedAnswer("the answer is about another revocation", answer.status)
    return done


def _is_about(done: Revoked, asked: RevokeToken | RevokeClaim, jti: str | None) -> bool:
    if isinstance(asked, RevokeToken):
        return done.claim == "jti" and done.value != "" and jti in (None, done.value)
    return (done.claim, done.value) == (asked.claim, asked.value)


def failure(answer: Answer | NoAnswer, now: float) -> RevocationError | None:
    """Why an answer says nothing of revocations; None for a 200 that may be the service's."""
    if isinstance(answer, NoAnswer):
        return ServiceUnavailable(answer.detail)
    if answer.status == 200:
        good = answer.content_type == "application/json"
        return None if good else UnexpectedAnswer("the answer is no JSON: this is not the service", 200)
    if answer.status < 400:
        return UnexpectedAnswer("the answer is a redirect or no answer of the service", answer.status)
    code, detail = _problem(answer)
    return _error(answer.status, code, detail, retry_after_seconds(answer.retry_after, now))


def _error(status: int, code: str, detail: str, retry_after: float | None = None) -> RevocationError:
    if status < 500:
        return RequestRefused(status, code, detail)
    return ServiceUnavailable(detail, status, code, retry_after)


def _problem(answer: Answer) -> tuple[str, str]:
    """Code and detail of a problem (RFC 9457); of an answer that is none, nothing is repeated."""
    try:
        if answer.content_type != "application/problem+json":
            raise TypeError
        return _code_and_detail(json.loads(answer.body))
    except _NOT_UNDERSTOOD:
        return "http_error", f"status {answer.status}, with no problem of the service's"


def _code_and_detail(problem: Mapping[str, Any]) -> tuple[str, str]:
    code, detail = problem["code"], problem["detail"]
    if not _CODE.fullmatch(code) or not isinstance(detail, str) or not detail.isprintable():
        raise TypeError
    return code, detail[:DETAIL_MAX_CHARACTERS]


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """When to ask again: seconds or a date (RFC 9110 section 10.2.3); None where that is not said."""
    if header is None:
        return None
    if header.isascii() and header.isdigit() and len(header) < 10:
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _outcome(result: Any, inquiry: Inquiry) -> Outcome:
    try:
        if "error" in result:
            code, detail = _code_and_detail(result["error"])
            return _error(_status(result["error"]["status"]), code, detail)
        return _verdict(result, inquiry)
    except _NOT_UNDERSTOOD:
        return UnexpectedAnswer("the answer to this question is not understood")


def _status(value: object) -> int:
    if type(value) is not int or not 400 <= value <= 599:
        raise TypeError
    return value


def _verdict(result: dict[str, Any], inquiry: Inquiry) -> Verdict:
    considered = tuple(result["considered"])
    if considered != inquiry.considered and not (inquiry.considered is None and {"jti", "all"} <= set(considered)):
        raise ValueError
    stale_seconds = result.get("stale_seconds")
    return Verdict(
        revoked=_flag(result["revoked"]),
        source=_source(result["source"]),
        revocation=_revocation(result["revocation"], inquiry) if result["revoked"] else None,
        considered=considered,
        verified=_flag(result["verified"]),
        expired=_maybe_flag(result.get("expired")),
        stale_seconds=None if stale_seconds is None else _time(stale_seconds),
        iat_unusable=_flag(result.get("iat_unusable", False)),
    )


def _revocation(form: dict[str, Any], inquiry: Inquiry) -> Revocation:
    """What revokes the token; it must be about the token that was asked about."""
    claim = parse_claim(form["claim"])
    if inquiry.claims is not None and inquiry.claims.value_of(claim) != form["value"]:
        raise ValueError
    return Revocation(
        claim=claim,
        value=_text(form["value"]),
        expires_at=_maybe_time(form["expires_at"]),
        revoked_at=_maybe_time(form["revoked_at"]),
        issued_before=_maybe_time(form.get("issued_before")),
        reason=_maybe_text(form.get("reason")),
        revoked_by=_maybe_text(form.get("revoked_by")),
    )


def _revoked(form: dict[str, Any]) -> Revoked:
    if form["result"] not in _RESULTS:
        raise ValueError
    return Revoked(
        result=form["result"],
        claim=parse_claim(form["claim"]),
        value=_text(form["value"]),
        revoked_at=_maybe_time(form["revoked_at"]),
        expires_at=_maybe_time(form["expires_at"]),
        issued_before=_maybe_time(form.get("issued_before")),
        reason=_maybe_text(form["reason"]),
        verified=_flag(form["verified"]),
    )


def _source(value: object) -> Source:
    if value == "redis":
        return "redis"
    if value == "mirror":
        return "mirror"
    raise WireError("source", "is neither redis nor mirror")


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _maybe_flag(value: object) -> bool | None:
    return None if value is None else _flag(value)


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _maybe_time(value: object) -> float | None:
    return None if value is None else _time(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _maybe_text(value: object) -> str | None:
    return None if value is None else _text(value)
