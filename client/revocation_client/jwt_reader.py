"""Read a token without verifying it: its name, its claims and its expiry. Pure; used by the service and the client.

There is only one way to read a token. A JWT has three parts of unpadded base64url (RFC 7515 section 2) and no duplicate
members. Any other text of three parts is refused, because a verifier may accept it as a JWT. A second spelling of a
revoked token therefore has the same name, or is an error.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from revocation_client.claims import CLAIMS, Claims
from revocation_client.schema import SchemaError, check_seconds, check_value, issued_at_of, loads

HASH_PREFIX: Final = "sha256:"
"""Begins the computed names. No token may claim such a name for itself."""

_BEARER: Final = re.compile(r"\s*(?:bearer\s+)?", re.IGNORECASE)
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")


class TokenError(ValueError):
    """The text cannot be read as a token. `code` is `invalid_token` or `unsupported_token`."""

    def __init__(self, detail: str, code: str = "invalid_token") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. Nothing is verified."""

    claims: Claims
    """What decides whether it is revoked; its `jti` is the token's name, which may be computed."""
    exp: float | None = None
    """When it expires, in epoch seconds; None if it does not say."""
    text: str = field(default="", repr=False)
    """The token without white space around it and without `Bearer `."""
    header: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The JOSE header; empty for an opaque token."""
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The name under which it is revoked: its `jti`, or a computed one."""
        return self.claims.identifiers[0][1]


def bare_token(raw: str) -> str:
    """Return the token without white space around it and without one leading `Bearer `. Raises TokenError."""
    scheme = _BEARER.match(raw)
    text = raw[scheme.end() if scheme else 0 :].rstrip()
    if not text or text.lower() == "bearer":
        raise TokenError("The token is empty.")
    if not text.isprintable() or " " in text:
        raise TokenError("The token has white space, control characters or lone surrogates in it.")
    return text


def read_token(raw: str) -> Token:
    """Read a JWT or an opaque token. Raises TokenError."""
    text = bare_token(raw)
    if text.startswith("{"):
        raise TokenError("The token is JSON: only the compact serialization is supported.", "unsupported_token")
    parts = text.split(".")
    if len(parts) == 3:
        return _jwt(text, *parts)
    if len(parts) == 5:
        raise TokenError("The token has five parts: an encrypted JWT cannot be read.", "unsupported_token")
    if len(parts) > 1 and _begins_as_json(parts[0]):
        raise TokenError("The token begins as a JWT does and has not three parts.")
    return Token(Claims.of(jti=hash_name(text), all=""), text=text)


def hash_name(covered: str) -> str:
    """Return the computed name of a token: the SHA-256 of the signing input of a JWT, or of a whole opaque token."""
    return HASH_PREFIX + sha256(covered.encode()).hexdigest()


def claims_of(payload: Mapping[str, object], name: str) -> Claims:
    """Return the `Claims` of a token with this payload and this name. Raises SchemaError."""
    identifiers = [("jti", name)]
    for claim in CLAIMS.values():
        if not claim.members:
            identifiers.append((claim.name, ""))
        elif claim.name != "jti":
            for member in claim.members:
                if (stated := payload.get(member)) is not None:
                    identifiers.append((claim.name, check_value(claim.name, stated)))
                    break
    return Claims(tuple(identifiers), issued_at_of(payload.get("iat")))


def stated_name(payload: Mapping[str, object]) -> str | None:
    """Return a payload's `jti`; None if it is missing, or looks like a computed name.

    Raises SchemaError.
    """
    jti = payload.get("jti")
    name = None if jti is None else check_value("jti", jti)
    return None if name is None or name.startswith(HASH_PREFIX) else name


def _jwt(text: str, header: str, payload: str, signature: str) -> Token:
    jose, members = _json_object(header, "header"), _json_object(payload, "payload")
    _check_header(jose)
    if not _decoded(signature, "signature"):
        raise TokenError("The token has no signature.")
    try:
        name = stated_name(members) or hash_name(f"{header}.{payload}")
        exp = None if members.get("exp") is None else check_seconds("exp", members["exp"])
        return Token(claims_of(members, name), exp, text, jose, members)
    except SchemaError as error:
        raise TokenError(f"The token's {error}.") from None


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse `none` (RFC 8725 section 3.2), extensions (RFC 7515 section 4.1.11) and detached payloads (RFC 7797)."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm.strip().lower() in ("", "none"):
        raise TokenError("The token's header names no signature algorithm.")
    if "crit" in header or header.get("b64", True) is not True:
        raise TokenError("The token's header requires an extension that is not supported.")


def _decoded(segment: str, part: str) -> bytes:
    """Decode unpadded base64url. Only the canonical encoding is accepted (RFC 4648 section 3.5)."""
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        data = b""
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
        raise TokenError(f"The token's {part} is not unpadded base64url.")
    return data


def _json_object(segment: str, part: str) -> dict[str, Any]:
    try:
        value = loads(_decoded(segment, part))
    except SchemaError:
        value = None
    if not isinstance(value, dict):
        raise TokenError(f"The token's {part} is not a JSON object with unique members.")
    return value


def _begins_as_json(segment: str) -> bool:
    """Return whether a lenient decoder, which skips invalid characters, would see the beginning of a JOSE header."""
    digits = _FOREIGN.sub("", segment)
    return base64.urlsafe_b64decode(digits[: len(digits) // 4 * 4]).lstrip().startswith(b"{")
