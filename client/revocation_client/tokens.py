"""What a token says of itself, unverified: its name, its claims and its times, as the service reads them. Pure."""

import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from revocation_client.model import Claims
from revocation_client.wire import WireError, check_seconds, check_value, hash_name, token_issued_at, token_name

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9+/]")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Problem(Exception):
    """A 400 of the service."""

    status: Final = 400

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def form(self) -> dict[str, object]:
        """Its members (RFC 9457)."""
        return {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": self.detail, "code": self.code}


@dataclass(frozen=True, slots=True)
class Token:
    """A token's claims, its name among them, and when it dies."""

    claims: Claims
    exp: float | None

    @property
    def name(self) -> str:
        """What it is listed under."""
        assert self.claims.jti is not None
        return self.claims.jti


def read_token(token: str) -> Token:
    """The claims of a token.

    Raises Problem.
    """
    if token.startswith("{"):
        raise Problem("unsupported_token", "The token is JSON: only the compact serialization is read here.")
    parts = token.split(".")
    if len(parts) == 3:
        return _jwt(*parts)
    if len(parts) == 5:
        raise Problem("unsupported_token", "The token has five parts: the claims of an encrypted JWT cannot be read.")
    if _UNPRINTABLE.search(token) or (len(parts) > 1 and _is_jose_header(parts[0])):
        raise Problem("invalid_token", "The token begins as a JWT does, or holds control characters.")
    return Token(Claims(jti=hash_name(token.encode()), considers_all=True), None)


def _is_jose_header(segment: str) -> bool:
    try:
        return "alg" in _json_object(segment)
    except Problem:
        return False


def _jwt(header: str, payload: str, signature: str) -> Token:
    algorithm = _json_object(header).get("alg")
    if not isinstance(algorithm, str) or algorithm.strip().lower() in ("", "none") or not _decoded(signature):
        raise Problem("invalid_token", "The token is not signed.")
    members = _json_object(payload)
    client_id = _identifier(members, "client_id")
    claims = Claims(
        jti=_name(f"{header}.{payload}", _identifier(members, "jti")),
        sid=_identifier(members, "sid"),
        sub=_identifier(members, "sub"),
        client_id=_identifier(members, "azp") if client_id is None else client_id,
        iat=token_issued_at(members.get("iat")),
        considers_all=True,
    )
    return Token(claims, _expiry(members.get("exp")))


def _decoded(segment: str) -> bytes:
    """Base64 as the most lenient verifier reads it."""
    digits = _FOREIGN.sub("", segment.replace("-", "+").replace("_", "/"))
    whole = digits[: len(digits) - (len(digits) % 4 == 1)]
    return binascii.a2b_base64(whole + "=" * (-len(whole) % 4))


def _json_object(segment: str) -> dict[str, Any]:
    try:
        value = json.loads(_decoded(segment).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Problem("invalid_token", "A part of the token is no JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


def _identifier(members: dict[str, Any], claim: str) -> str | None:
    try:
        return None if members.get(claim) is None else check_value(claim, members[claim])
    except WireError as error:
        raise Problem("invalid_token", f"The token's {error}.") from None


def _name(signing_input: str, jti: str | None) -> str:
    name = token_name(signing_input.encode(errors="surrogatepass"), jti)
    if name is None:
        raise Problem("invalid_token", "The token has no jti of its own and holds characters outside base64url.")
    return name


def _expiry(value: object) -> float | None:
    try:
        return None if value is None else check_seconds("exp", value)
    except WireError as error:
        raise Problem("invalid_token", f"The token's {error}.") from None
