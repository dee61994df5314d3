"""The JSON forms: what travels between callers, the service and its store. Pure; knows no HTTP and no Redis.

What is malformed raises `WireError`, which names the member and what it must be, and never quotes a token.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import Any, Final, Literal

from revocation_client.model import CLAIM_NAMES, ClaimName, Claims, Revocation

VALUE_MAX_CHARACTERS: Final = 256
REASON_MAX_CHARACTERS: Final = 256
BATCH_MAX_CHECKS: Final = 1000
HASH_PREFIX: Final = "sha256:"
"""Begins the names that are computed; no token may claim such a name for itself (section 1)."""

AGREEMENT_SECONDS: Final = 0.05
"""How far apart the two times of a key's end may be and still be the same: the server's has milliseconds."""

_UNFIT_IN_VALUE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNFIT_IN_REASON: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SEGMENTS: Final = re.compile(rb"[A-Za-z0-9+/_=.-]*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_FORMS: Final[tuple[ClaimName | Literal["token"], ...]] = ("token", *CLAIM_NAMES)

Result = Literal["revoked", "already_revoked", "expired"]


class WireError(ValueError):
    """A member is missing, unknown or of the wrong form."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The lifetime of a revocation as the caller states it: until `exp`, for `expires_in` seconds, or not stated."""

    exp: float | None = None
    expires_in: float | None = None

    @property
    def stated(self) -> bool:
        """True if the caller gave either of them."""
        return self.exp is not None or self.expires_in is not None


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """A request to revoke one token, given whole."""

    token: str
    lifetime: Lifetime
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RevokeClaim:
    """A request to revoke every token whose claim has this value."""

    claim: ClaimName
    value: str
    lifetime: Lifetime = Lifetime()
    issued_before: float | None = None
    reason: str | None = None


Question = Claims | str
"""What a check asks about: claims, or a whole token."""


def loads(text: str | bytes) -> Any:
    """JSON (RFC 8259), strictly: no NaN or Infinity, and no object with two members of one name (section 4).

    Raises WireError, also for what is not UTF-8, nests too deeply or holds a number too long to read.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = _DECODER.decode(text)
        # each member was written with a colon: with no more colons than members that are left, none came twice
        return value if text.count(":") == _members(value) else _STRICT_DECODER.decode(text)
    except WireError:
        raise
    except (ValueError, RecursionError):
        raise WireError("body", "is not valid JSON in UTF-8") from None


def _members(value: object) -> int:
    """How many members there are at least: those of the value, and of the objects in a list that it has."""
    if not isinstance(value, dict):
        return 0
    lists = [each for each in value.values() if isinstance(each, list)]
    return len(value) + sum([len(each) for each in chain.from_iterable(lists) if isinstance(each, dict)])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise WireError("body", "has two members of one name")
    return members


def _no_constant(_name: str) -> None:
    raise WireError("body", "holds NaN or Infinity, which JSON does not know")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
_STRICT_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""It judges the names as well, one object at a time, which costs more than to read them."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dumps(body: Any) -> bytes:
    """Compact JSON."""
    return _ENCODER.encode(body).encode()


def check_value(field: str, value: object) -> str:
    """The value of a claim as text: 1 to 256 characters, no control characters; an integer is its decimal digits.

    Raises WireError.
    """
    if type(value) is str and 0 < len(value) <= VALUE_MAX_CHARACTERS and value.isprintable():
        return value  # the usual one, for which to look closer costs more
    if isinstance(value, str):
        if not 1 <= len(value) <= VALUE_MAX_CHARACTERS:
            raise WireError(field, f"must have 1 to {VALUE_MAX_CHARACTERS} characters")
        if _UNFIT_IN_VALUE.search(value):
            raise WireError(field, "must not hold control characters or lone surrogates")
        return str.__str__(value)  # an enumeration's member has a hash of its own
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(field, "must be a string or an integer")
    if abs(value) >= 10**VALUE_MAX_CHARACTERS:
        raise WireError(field, f"must have at most {VALUE_MAX_CHARACTERS} characters")
    return check_value(field, str(value))


def check_seconds(field: str, value: object) -> float:
    """A NumericDate (RFC 7519 section 2) or a duration: a finite number that is not negative.

    Raises WireError.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WireError(field, "must be a number of seconds")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise WireError(field, "must be a finite number of seconds, 0 or more")
    return seconds


def hash_name(covered: bytes) -> str:
    """The name of a token that has none of its own: a hash of what its signature covers, or of all of it."""
    return HASH_PREFIX + sha256(covered).hexdigest()


def token_name(signing_input: bytes, jti: str | None) -> str | None:
    """A JWT's own `jti`, or a hash of what its signature covers, which no re-encoding can change.

    A verifier that cleans foreign characters away before it verifies would see another signing input than the one
    that is hashed here, so such a writing has no name: None.
    """
    if jti is not None and not jti.startswith(HASH_PREFIX):
        return jti
    return hash_name(signing_input) if _SEGMENTS.fullmatch(signing_input) else None


def token_issued_at(value: object) -> float | None:
    """A token's `iat`; one that is no finite number is none: the token counts as issued before every cutoff."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        iat = float(value)
    except OverflowError:
        return None
    return iat if math.isfinite(iat) else None


def check_token(value: object) -> str:
    """A token as text; its parts are judged by whoever reads tokens.

    Raises WireError.
    """
    if not isinstance(value, str) or not value or _LONE_SURROGATE.search(value):
        raise WireError("token", "must be a string that is not empty")
    return value


def check_reason(value: object) -> str | None:
    """A reason: at most 256 characters on one line; None where it says nothing.

    Raises WireError.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > REASON_MAX_CHARACTERS:
        raise WireError("reason", f"must be a string of at most {REASON_MAX_CHARACTERS} characters")
    if _UNFIT_IN_REASON.search(value):
        raise WireError("reason", "must be one line without control characters")
    return value


def parse_revoke(body: object) -> RevokeToken | RevokeClaim:
    """Parse the body of `POST /revoke`. Every form takes the same two lifetimes.

    Raises WireError.
    """
    members = _object(body, "body")
    form = _only_form(members)
    cutoff = set() if form in {"token", "jti"} else {"issued_before"}
    _no_others(members, {form, "exp", "expires_in", "reason"} | cutoff)
    lifetime, reason = _lifetime(members), check_reason(members.get("reason"))
    if form == "token":
        return RevokeToken(check_token(members["token"]), lifetime, reason)
    value = _all_value(members["all"]) if form == "all" else check_value(form, members[form])
    return RevokeClaim(form, value, lifetime, _optional_seconds(members, "issued_before"), reason)


def _only_form(members: Mapping[str, object]) -> ClaimName | Literal["token"]:
    forms = [name for name in _FORMS if name in members]
    if len(forms) != 1:
        raise WireError("body", "must have exactly one of token, jti, sid, sub, client_id, all")
    return forms[0]


def _lifetime(members: Mapping[str, object]) -> Lifetime:
    lifetime = Lifetime(_optional_seconds(members, "exp"), _optional_seconds(members, "expires_in"))
    if lifetime.exp is not None and lifetime.expires_in is not None:
        raise WireError("body", "must have at most one of exp and expires_in")
    return lifetime


def _optional_seconds(members: Mapping[str, object], field: str) -> float | None:
    return check_seconds(field, members[field]) if field in members else None


def _all_value(value: object) -> str:
    if value is not True:
        raise WireError("all", "must be true")
    return ""


def parse_question(body: object) -> Question:
    """The body of `POST /check`, or one element of a batch.

    Raises WireError.
    """
    members = _object(body, "check")
    if "token" in members:
        _no_others(members, {"token"})
        return check_token(members["token"])
    if not members:
        raise WireError("check", "must have a token, or at least one of jti, sid, sub, client_id, iat")
    if not _QUESTION_MEMBERS.issuperset(members):
        raise _stranger(_QUESTION_MEMBERS)
    values: list[Any] = [None, None, None, None, None, "iat" in members]
    for field, value in members.items():
        position, check = _QUESTION_CLAIMS[field]
        values[position] = check(field, value)
    return tuple.__new__(Claims, values)  # Claims._make without its look at their number


def _iat(field: str, value: object) -> float | None:
    """A question may say that the token has no `iat`: null."""
    return None if value is None else check_seconds(field, value)


_QUESTION_CLAIMS: Final[dict[str, tuple[int, Callable[[str, object], Any]]]] = {
    "jti": (0, check_value),
    "sid": (1, check_value),
    "sub": (2, check_value),
    "client_id": (3, check_value),
    "iat": (4, _iat),
}
"""Where a member stands in `Claims`, and what it must be."""

_QUESTION_MEMBERS: Final = set(_QUESTION_CLAIMS)


def parse_batch(body: object) -> list[object]:
    """The elements of `POST /check/batch`, each still to be parsed by itself.

    Raises WireError.
    """
    members = _object(body, "body")
    _no_others(members, {"checks"})
    checks = members.get("checks")
    if not isinstance(checks, list) or not 1 <= len(checks) <= BATCH_MAX_CHECKS:
        raise WireError("checks", f"must be a list of 1 to {BATCH_MAX_CHECKS} checks")
    return checks


def parse_claim(claim: str) -> ClaimName:
    """The name of a claim by which tokens are revoked.

    Raises WireError.
    """
    for name in CLAIM_NAMES:
        if name == claim:
            return name
    raise WireError("claim", f"must be one of {', '.join(CLAIM_NAMES)}")


def _object(body: object, field: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise WireError(field, "must be a JSON object")
    return body


def _no_others(members: Mapping[str, object], known: set[str]) -> None:
    if not known.issuperset(members):
        raise _stranger(known)


def _stranger(known: set[str]) -> WireError:
    return WireError("body", f"has a member that does not belong there; known here: {', '.join(sorted(known))}")


def revocation_from_record(claim: ClaimName, value: str, record: bytes, key_expires_at: float | None) -> Revocation:
    """What a key in the store says: presence decides, and the key's own expiry; a record of ours says the rest.

    A `jti` is revoked or it is not: a cutoff in its record says nothing.
    """
    try:
        members = _DECODER.decode(record.decode())
        if not isinstance(members, dict):
            raise TypeError
        return Revocation(
            claim=claim,
            value=value,
            expires_at=_end(members, key_expires_at),
            revoked_at=_finite(members["revoked_at"]),
            issued_before=_cutoff(claim, members),
            reason=_text(members.get("reason")),
            revoked_by=_text(members.get("revoked_by")),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Revocation(claim=claim, value=value, expires_at=key_expires_at, revoked_at=None)


def _end(members: Mapping[str, object], key_expires_at: float | None) -> float | None:
    """When a key ends; what its value states is more exact than the server's milliseconds, where the two agree."""
    stated = _finite(members["expires_at"]) if "expires_at" in members else None
    agree = stated is not None and key_expires_at is not None and abs(stated - key_expires_at) < AGREEMENT_SECONDS
    return stated if agree else key_expires_at


def _cutoff(claim: ClaimName, members: Mapping[str, object]) -> float | None:
    cutoff = _finite(members["issued_before"]) if "issued_before" in members else None
    return None if claim == "jti" else cutoff


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _text(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or _LONE_SURROGATE.search(value)):
        raise TypeError
    return value


def revocation_to_json(revocation: Revocation) -> dict[str, object]:
    """A revocation as answers show it; times that nobody knows are null."""
    form: dict[str, object] = {
        "claim": revocation.claim,
        "value": revocation.value,
        "revoked_at": number(revocation.revoked_at),
        "expires_at": number(revocation.expires_at),
    }
    if revocation.issued_before is not None:
        form["issued_before"] = number(revocation.issued_before)
    if revocation.reason is not None:
        form["reason"] = revocation.reason
    if revocation.revoked_by is not None:
        form["revoked_by"] = revocation.revoked_by
    return form


def change_to_json(revocation: Revocation) -> dict[str, object]:
    """A revocation as the change log carries it: what the rule needs, without reason and actor."""
    form = revocation_to_json(revocation)
    form.pop("reason", None)
    form.pop("revoked_by", None)
    return form


def number(seconds: float | None) -> int | float | None:
    """Whole seconds as an integer, so that a NumericDate reads as it was written."""
    return int(seconds) if seconds is not None and seconds.is_integer() else seconds
