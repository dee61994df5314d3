"""The JSON forms that service and client share: questions, requests to revoke, and revocations. Strict and pure.

Input of any other form raises `SchemaError`, which names the member.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from revocation_client.claims import CLAIMS, Claim, ClaimName, Claims
from revocation_client.revocation import Revocation

VALUE_MAX_CHARACTERS: Final = 256
REASON_MAX_CHARACTERS: Final = 256
BATCH_MAX_CHECKS: Final = 1000

_UNFIT_IN_VALUE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNFIT_IN_REASON: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

Result = Literal["revoked", "already_revoked", "expired"]


class SchemaError(ValueError):
    """A member is missing, unknown or of the wrong form."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class RevokeRequest:
    """A request to revoke every token whose claim has this value, or one token that is given whole."""

    claim: ClaimName
    """`token` for a whole token, which `value` then is."""
    value: str
    exp: float | None = None
    """When the revocation ends, in epoch seconds; None if the caller does not say."""
    expires_in: float | None = None
    """In how many seconds it ends, which the caller may say instead."""
    issued_before: float | None = None
    reason: str | None = None


Question = Claims | str
"""What a check asks about: claims, or a whole token."""


def loads(text: str | bytes) -> Any:
    """Decode JSON in UTF-8 (RFC 8259). Raises SchemaError, also for NaN, Infinity and duplicate members (section 4)."""
    try:
        return _DECODER.decode(text.decode() if isinstance(text, bytes) else text)
    except SchemaError:
        raise
    except (ValueError, RecursionError):  # also numbers that are too long, and what nests too deeply
        raise SchemaError("body", "is not valid JSON in UTF-8") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise SchemaError("body", "has two members of one name")
    return members


def _no_constant(_name: str) -> None:
    raise SchemaError("body", "has NaN or Infinity, which are not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dumps(body: Any) -> bytes:
    """Return compact JSON in UTF-8. A lone surrogate, which UTF-8 cannot encode, becomes a JSON escape."""
    return _ENCODER.encode(body).encode(errors="backslashreplace")


def check_value(field: str, value: object) -> str:
    """Return the value of a claim: 1 to 256 characters without control characters; an integer as its decimal digits.

    Raises SchemaError.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**VALUE_MAX_CHARACTERS:
        value = str(value)
    if not isinstance(value, str):
        raise SchemaError(field, f"must be a string, or an integer of at most {VALUE_MAX_CHARACTERS} digits")
    if not 1 <= len(value) <= VALUE_MAX_CHARACTERS:
        raise SchemaError(field, f"must have 1 to {VALUE_MAX_CHARACTERS} characters")
    if _UNFIT_IN_VALUE.search(value):
        raise SchemaError(field, "must not have control characters or lone surrogates")
    return str.__str__(value)  # a member of a string enumeration has a hash of its own


def check_seconds(field: str, value: object) -> float:
    """Return a NumericDate (RFC 7519 section 2) or a duration: a finite number, not negative. Raises SchemaError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SchemaError(field, "must be a number of seconds")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise SchemaError(field, "must be a finite number of seconds, 0 or more")
    return seconds


def optional_seconds(field: str, value: object) -> float | None:
    """Return a time or a duration as `check_seconds` does, and None for null. Raises SchemaError."""
    return None if value is None else check_seconds(field, value)


def issued_at_of(value: object) -> float | None:
    """Return the `iat` of a token; None if it is no time: the token then counts as issued before every cutoff."""
    try:
        return check_seconds("iat", value)
    except SchemaError:
        return None


def check_token(value: object) -> str:
    """Return the text of a token without reading the token. Raises SchemaError."""
    if not isinstance(value, str) or not value or _LONE_SURROGATE.search(value):
        raise SchemaError("token", "must be a string that is not empty")
    return value


def check_reason(value: object) -> str | None:
    """Return a reason: at most 256 characters on one line; None if it is empty. Raises SchemaError."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > REASON_MAX_CHARACTERS:
        raise SchemaError("reason", f"must be a string of at most {REASON_MAX_CHARACTERS} characters")
    if _UNFIT_IN_REASON.search(value):
        raise SchemaError("reason", "must be one line without control characters")
    return value


def parse_revoke(body: object) -> RevokeRequest:
    """Parse the body of `POST /revoke`. Raises SchemaError."""
    members = _object(body, "body")
    forms = [name for name in ("token", *CLAIMS) if name in members]
    if len(forms) != 1:
        raise SchemaError("body", f"must have exactly one of token, {', '.join(CLAIMS)}")
    form, claim = forms[0], CLAIMS.get(forms[0])
    times = {"exp", "expires_in"} | ({"issued_before"} if claim and claim.cutoff != "never" else set())
    _no_others(members, {form, "reason"} | times)
    if {"exp", "expires_in"} <= members.keys():
        raise SchemaError("body", "must have at most one of exp and expires_in")
    value = check_token(members[form]) if claim is None else _value(claim, members[form])
    stated = {name: check_seconds(name, members[name]) for name in times & members.keys()}
    return RevokeRequest(form, value, reason=check_reason(members.get("reason")), **stated)


def _value(claim: Claim, value: object) -> str:
    if claim.members:
        return check_value(claim.name, value)
    if value is not True:
        raise SchemaError(claim.name, "must be true")
    return ""


def parse_question(body: object) -> Question:
    """Parse the body of `POST /check`, or one element of a batch. Raises SchemaError.

    A question by claims considers revocations of all tokens only if it has the member `iat`, which may be null.
    """
    members = _object(body, "check")
    if "token" in members:
        _no_others(members, {"token"})
        return check_token(members["token"])
    given, every_token, has_iat = [], [], "iat" in members
    for name, claim in CLAIMS.items():
        if not claim.members:
            every_token.append((name, ""))
        elif name in members:
            given.append((name, check_value(name, members[name])))
    if not members or len(given) + has_iat < len(members):
        known = [name for name, claim in CLAIMS.items() if claim.members]
        raise SchemaError("check", f"must have a token, or one or more of {', '.join(known)} and iat, and nothing else")
    if not has_iat:
        return Claims(tuple(given))
    iat = None if members["iat"] is None else check_seconds("iat", members["iat"])
    return Claims((*given, *every_token), iat)


def parse_batch(body: object) -> list[object]:
    """Return the elements of `POST /check/batch`, each still to be parsed. Raises SchemaError."""
    members = _object(body, "body")
    _no_others(members, {"checks"})
    checks = members.get("checks")
    if not isinstance(checks, list) or not 1 <= len(checks) <= BATCH_MAX_CHECKS:
        raise SchemaError("checks", f"must be a list of 1 to {BATCH_MAX_CHECKS} checks")
    return checks


def parse_claim(claim: object) -> ClaimName:
    """Return the name of a claim by which tokens are revoked. Raises SchemaError."""
    if not isinstance(claim, str) or claim not in CLAIMS:
        raise SchemaError("claim", f"must be one of {', '.join(CLAIMS)}")
    return claim


def _object(body: object, field: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise SchemaError(field, "must be a JSON object")
    return body


def _no_others(members: Mapping[str, object], known: set[str]) -> None:
    if not known.issuperset(members):
        raise SchemaError("body", f"has an unknown member; known here: {', '.join(sorted(known))}")


def revocation_form(revocation: Revocation) -> dict[str, object]:
    """Return a revocation as answers show it; unknown times are null."""
    form: dict[str, object] = {
        "claim": revocation.claim,
        "value": revocation.value,
        "revoked_at": number(revocation.revoked_at),
        "expires_at": number(revocation.expires_at),
    }
    others = {
        "issued_before": number(revocation.issued_before),
        "reason": revocation.reason,
        "revoked_by": revocation.revoked_by,
    }
    return form | {name: value for name, value in others.items() if value is not None}


def number(seconds: float | None) -> int | float | None:
    """Return whole seconds as an integer, so that a NumericDate reads as it was written."""
    return int(seconds) if seconds is not None and seconds.is_integer() else seconds
