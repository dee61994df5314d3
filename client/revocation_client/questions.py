"""Questions about tokens, from what an application has to what the service is asked. Pure; knows no I/O."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from revocation_client.errors import RequestRefused, TokenNeeded
from revocation_client.model import ClaimName, Claims
from revocation_client.wire import HASH_PREFIX, VALUE_MAX_CHARACTERS, WireError, check_seconds, check_token, check_value

FRAME_BYTES: Final = len(b'{"checks":[]}')
BODY_MAX_BYTES: Final = 1024 * 1024
"""What the service takes as one batch."""

_SCHEME: Final = re.compile(r"(?:\s*bearer(?:\s+|$))*\s*", re.IGNORECASE)
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


class Inquiry(NamedTuple):
    """One question as it is sent, and what an answer must say to be an answer to it."""

    encoded: bytes
    considered: tuple[ClaimName, ...] | None
    """The claims that must be looked at; None where only the service can tell: for a whole token."""
    values: Mapping[ClaimName, str] | None
    claims: Claims | None = None
    """What the rule looks at; None for a whole token."""
    token: str | None = None


def inquiry(question: str | Mapping[str, object]) -> Inquiry:
    """The question about a token (a string), or about a whole token's claims (a mapping).

    Raises TokenNeeded where the claims do not name the token, and RequestRefused for what the service would refuse.
    """
    if isinstance(question, str):
        token = bare_token(question)
        return _sized(f'{{"token":{_encode(token)}}}', Inquiry(b"", None, None, token=token))
    if not isinstance(question, Mapping):
        raise TypeError(f"a question is a token (str) or its claims (a mapping), not {type(question).__name__}")
    values = _identifiers(question)
    iat = _issued_at(question.get("iat"))
    members = f'{_members(values)},"iat":{"null" if iat is None else repr(iat)}'
    claims = Claims(values["jti"], values.get("sid"), values.get("sub"), values.get("client_id"), iat, True)
    values["all"] = ""
    return _sized(f"{{{members}}}", Inquiry(b"", tuple(values), values, claims))


def inquiry_by_jti(jti: str) -> Inquiry:
    """The question about a `jti` alone, of whose token nothing else is known.

    Raises RequestRefused.
    """
    values: dict[ClaimName, str] = {"jti": _value("jti", jti)}
    return _sized(f"{{{_members(values)}}}", Inquiry(b"", ("jti",), values, Claims(values["jti"])))


def _members(values: Mapping[ClaimName, str]) -> str:
    """JSON members, written out: to encode an object takes several times as long as to encode its strings."""
    return ",".join([f'"{claim}":{_encode(value)}' for claim, value in values.items()])


def bare_token(token: str) -> str:
    """The token without white space around it and without its scheme, in any case (RFC 9110 section 11.1).

    Raises RequestRefused.
    """
    scheme = _SCHEME.match(token)
    text = token[scheme.end() if scheme else 0 :].rstrip()
    try:
        return check_token(text)
    except WireError as error:
        raise RequestRefused(400, "invalid_token", f"the {error}") from None


def _sized(text: str, unsent: Inquiry) -> Inquiry:
    encoded = text.encode()
    if len(encoded) + FRAME_BYTES > BODY_MAX_BYTES:
        raise RequestRefused(413, "body_too_large", "the token is larger than what the service takes")
    return unsent._replace(encoded=encoded)


def _identifiers(claims: Mapping[str, object]) -> dict[ClaimName, str]:
    """What revocations of this token may be about, in the order in which the service names it; null is absent."""
    values: dict[ClaimName, str] = {"jti": _own_name(claims)}
    client_id = claims.get("client_id")
    others: tuple[tuple[ClaimName, object], ...] = (
        ("sid", claims.get("sid")),
        ("sub", claims.get("sub")),
        ("client_id", claims.get("azp") if client_id is None else client_id),
    )
    for claim, value in others:
        if value is not None:
            values[claim] = _value(claim, value)
    return values


def _own_name(claims: Mapping[str, object]) -> str:
    """The `jti` that names the token; a token with none, or with one like a computed name, is named by its hash."""
    jti = claims.get("jti")
    if jti is None or jti == "":
        raise TokenNeeded
    name = _value("jti", jti)
    if name.startswith(HASH_PREFIX):
        raise TokenNeeded("the jti looks like a computed name, so it names nothing: pass the whole token instead")
    return name


def _value(claim: ClaimName, value: object) -> str:
    if type(value) is str and 0 < len(value) <= VALUE_MAX_CHARACTERS and value.isprintable():
        return value  # the usual one, for which to look closer costs more
    try:
        return str.__str__(check_value(claim, value))  # an enumeration's member has a hash of its own
    except WireError as error:
        raise RequestRefused(400, "invalid_token", f"the token's {error}") from None


def _issued_at(value: object) -> float | None:
    """Its `iat`; one that is no time is none, and the token then counts as issued before every cutoff."""
    try:
        return check_seconds("iat", value)
    except WireError:
        return None


def stated_jti(token: str) -> str | None:
    """The `jti` that a JWT plainly states, so that the answer to its revocation can be held against it; else None."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload: Any = json.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), b"-_", validate=True))
        jti = check_value("jti", payload["jti"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return None if jti.startswith(HASH_PREFIX) else jti
