"""Questions about tokens, from what an application has to what the service is asked. Pure; knows no I/O."""

import base64
import json
import re
from collections.abc import Mapping
from functools import cache
from itertools import compress
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from revocation_client.errors import RequestRefused, TokenNeeded
from revocation_client.model import CLAIM_NAMES, ClaimName, Claims
from revocation_client.tokens import Problem, read_token
from revocation_client.wire import HASH_PREFIX, WireError, check_seconds, check_token, check_value

FRAME_BYTES: Final = len(b'{"checks":[]}')
BODY_MAX_BYTES: Final = 1024 * 1024
"""What the service takes as one batch."""

_SCHEME: Final = re.compile(r"(?:\s*bearer(?:\s+|$))*\s*", re.IGNORECASE)


class Inquiry(NamedTuple):
    """One question as it is sent, and what an answer must say to be an answer to it."""

    encoded: bytes
    considered: tuple[ClaimName, ...] | None
    """The claims that must be looked at; None where only the service can tell: for a whole token."""
    claims: Claims | None = None
    """What the rule looks at; None for a whole token."""
    token: str | None = None


def inquiry(question: str | Mapping[str, object], token: str | None = None) -> Inquiry:
    """Return the question about a token (a string), or about a token's claims (a mapping), named by `token` if need be.

    Raises TokenNeeded where neither names the token, and RequestRefused for what the service would refuse.
    """
    if isinstance(question, str):
        if token is not None:
            raise TypeError("a token goes with its claims; a question that is a token is complete by itself")
        bare = bare_token(question)
        return Inquiry(_sized(f'{{"token":{encode_basestring(bare)}}}'), None, token=bare)
    if not isinstance(question, (dict, Mapping)):  # a dict is one, and much sooner recognized
        raise TypeError(f"a question is a token (str) or its claims (a mapping), not {type(question).__name__}")
    try:
        return _described(_claims(question, token))
    except WireError as error:
        raise _refused(error) from None


def inquiry_by_jti(jti: str) -> Inquiry:
    """The question about a `jti` alone, of whose token nothing else is known.

    Raises RequestRefused.
    """
    try:
        return _described(Claims(check_value("jti", jti)))
    except WireError as error:
        raise _refused(error) from None


def _refused(error: WireError) -> RequestRefused:
    return RequestRefused(400, "invalid_token", f"the token's {error}")


def _described(claims: Claims) -> Inquiry:
    """The question by claims, written out: to encode an object takes several times as long as to encode its strings."""
    jti, sid, sub, client_id, iat, considers_all = claims
    assert jti is not None, "who asks by claims names the token"
    members = f'"jti":{encode_basestring(jti)}'
    if sid is not None:
        members += f',"sid":{encode_basestring(sid)}'
    if sub is not None:
        members += f',"sub":{encode_basestring(sub)}'
    if client_id is not None:
        members += f',"client_id":{encode_basestring(client_id)}'
    if considers_all:
        members += ',"iat":null' if iat is None else f',"iat":{iat!r}'
    considered = _considered(sid is not None, sub is not None, client_id is not None, considers_all)
    return Inquiry(_sized(f"{{{members}}}"), considered, claims)


@cache
def _considered(*others: bool) -> tuple[ClaimName, ...]:
    """Which claims a question is about, in the order in which the service names them: `jti`, and which others."""
    return ("jti", *compress(CLAIM_NAMES[1:], others))


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


def _sized(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) + FRAME_BYTES > BODY_MAX_BYTES:
        raise RequestRefused(413, "body_too_large", "the token is larger than what the service takes")
    return encoded


def _claims(members: Mapping[str, object], token: str | None) -> Claims:
    """Return what the rule looks at; a member that is null counts as absent."""
    sid, sub, client_id = members.get("sid"), members.get("sub"), members.get("client_id")
    if client_id is None:
        client_id = members.get("azp")
    return Claims(
        _name(members, token),
        None if sid is None else check_value("sid", sid),
        None if sub is None else check_value("sub", sub),
        None if client_id is None else check_value("client_id", client_id),
        _issued_at(members.get("iat")),
        True,
    )


def _name(claims: Mapping[str, object], token: str | None) -> str:
    """Return the `jti` that names the token; else the name that is computed from the token, as the service does."""
    jti = claims.get("jti")
    own = None if jti is None or jti == "" else check_value("jti", jti)
    if own is not None and not own.startswith(HASH_PREFIX):
        return own
    if token is not None:
        return _computed_name(token)
    if own is None:
        raise TokenNeeded
    raise TokenNeeded("the jti looks like a computed name, so it does not name the token: pass the token too")


def _computed_name(token: str) -> str:
    try:
        return read_token(bare_token(token)).name
    except Problem as problem:
        raise RequestRefused(problem.status, problem.code, problem.detail) from None


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
