"""Tests of which tokens the application accepts, without HTTP."""

import time
from typing import Any

import jwt
import pytest
from conftest import SECRET

from main_api.tokens import InvalidToken, Tokens

TOKENS = Tokens(SECRET, 900, 3600)


def claims(**other: Any) -> dict[str, Any]:
    """Return the claims of a good access token, updated with `other`. A claim that is None is left out."""
    now = time.time()
    good = {"jti": "t1", "iat": now, "exp": int(now) + 900, "sub": "alice", "sid": "s1", "token_use": "access"}
    return {name: value for name, value in (good | other).items() if value is not None}


def signed(changed: dict[str, Any] | None = None, secret: str = SECRET, algorithm: str = "HS256") -> str:
    """Return a signed token with the claims of a good one, except for those in `changed`."""
    return jwt.encode(claims(**(changed or {})), secret, algorithm)


def test_a_good_token_is_read() -> None:
    """A good token is accepted, and its `iat` keeps the fraction of a second."""
    assert TOKENS.read(signed({"iat": 1_700_000_000.25}), "access").iat == 1_700_000_000.25


@pytest.mark.parametrize(
    "token",
    [
        signed({"token_use": "refresh"}),
        signed({"token_use": None}),
        *(signed({name: None}) for name in ("jti", "iat", "exp", "sub", "sid")),
        *(signed({name: ""}) for name in ("jti", "sub", "sid")),
        signed({"sid": 7}),
        signed({"exp": int(time.time())}),
        signed({"exp": "4000000000"}),
        signed({"exp": 4_000_000_000.5}),
        signed({"iat": time.time() + 3600}),
        signed({"iat": "now"}),
        signed(secret="another-secret-0123456789abcdef-012345"),
        signed(algorithm="HS512", secret=SECRET * 2),
        signed(algorithm="HS384", secret=SECRET * 2),
        jwt.encode(claims(), "", "none"),
        signed()[:-2],
        signed() + ".x",
        "",
        "x",
    ],
)
def test_what_is_not_quite_a_token_is_none(token: str) -> None:
    """A token with a wrong form, kind, claim, time, key or algorithm raises InvalidToken. Times have no leeway."""
    with pytest.raises(InvalidToken):
        TOKENS.read(token, "access")


def test_a_refresh_token_is_no_access_token_and_vice_versa() -> None:
    """A token is accepted only as its own kind, although one key signs both kinds."""
    pair = TOKENS.pair("alice", "s1", time.time())
    for token, kind, other in ((pair.access_token, "access", "refresh"), (pair.refresh_token, "refresh", "access")):
        assert TOKENS.read(token, "access" if kind == "access" else "refresh").kind == kind
        with pytest.raises(InvalidToken):
            TOKENS.read(token, "access" if other == "access" else "refresh")
