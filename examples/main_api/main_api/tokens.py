"""Mint and read the tokens. This is the only module that uses PyJWT.

Access and refresh tokens of one login carry the same `sid`, so that one revocation ends the session. `iat` keeps its
fraction of a second, which RFC 7519 section 2 allows. So a login right after "log out everywhere" counts as later.
With whole seconds, the user would be locked out until the next second. `exp` is a whole number, because PyJWT would cut
off a fraction.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import jwt

Kind = Literal["access", "refresh"]

ALGORITHM: Final = "HS256"
REQUIRED: Final = ["jti", "iat", "exp", "sub", "sid", "token_use"]


class InvalidToken(Exception):
    """The token is not one of ours, is not of this kind, or has expired."""


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """The claims of one of this application's tokens."""

    kind: Kind
    jti: str
    sub: str
    sid: str
    iat: float
    exp: int

    def for_revocations(self) -> Mapping[str, object]:
        """Return the claims that the revocation client needs to check this token."""
        return {"jti": self.jti, "sub": self.sub, "sid": self.sid, "iat": self.iat}


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The tokens that a login or a refresh returns."""

    access_token: str
    refresh_token: str
    expires_in: int


class Tokens:
    """Mints pairs of tokens that are signed with one secret, and reads such tokens."""

    def __init__(self, secret: str, access_lifetime_seconds: int, refresh_lifetime_seconds: int) -> None:
        self._secret = secret
        self._lifetimes: dict[Kind, int] = {"access": access_lifetime_seconds, "refresh": refresh_lifetime_seconds}

    def pair(self, sub: str, sid: str, issued_at: float) -> TokenPair:
        """Return an access and a refresh token of one session."""
        access, refresh = (self._mint(kind, sub, sid, issued_at) for kind in self._lifetimes)
        return TokenPair(access, refresh, self._lifetimes["access"])

    def _mint(self, kind: Kind, sub: str, sid: str, issued_at: float) -> str:
        claims = {
            "jti": new_id(),
            "iat": issued_at,
            "exp": math.ceil(issued_at) + self._lifetimes[kind],
            "sub": sub,
            "sid": sid,
            "token_use": kind,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def read(self, token: str, kind: Kind) -> TokenClaims:
        """Return the claims of a token of this kind with a valid signature and valid times. It may be revoked.

        Raises InvalidToken.
        """
        try:
            claims = jwt.decode(token, self._secret, algorithms=[ALGORITHM], leeway=0, options={"require": REQUIRED})
            return _checked(claims, kind)
        except (jwt.PyJWTError, TypeError):
            raise InvalidToken from None


def new_id() -> str:
    """Return a random id for a token or a session."""
    return secrets.token_urlsafe(16)


def _checked(claims: dict[str, Any], kind: Kind) -> TokenClaims:
    """Return the claims if their types and the kind are right. One key signs both kinds, so the kind counts."""
    if claims["token_use"] != kind:
        raise TypeError
    jti, sub, sid = (claims[name] for name in ("jti", "sub", "sid"))
    if not all(isinstance(name, str) and name for name in (jti, sub, sid)):
        raise TypeError
    if type(claims["exp"]) is not int or not isinstance(claims["iat"], float | int):
        raise TypeError
    return TokenClaims(kind, jti, sub, sid, iat=float(claims["iat"]), exp=claims["exp"])
