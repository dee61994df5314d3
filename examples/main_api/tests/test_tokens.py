"""What is no token of ours: pure, no HTTP."""

import time
from typing import Any

import jwt
import pytest
from conftest import SECRET

from main_api.tokens import InvalidToken, Tokens

TOKENS = Tokens(SECRET, 900, 3600)


def claims(**other: Any) -> dict[str, Any]:
    """A good access token's claims, but for `other`; None leaves one out."""
    now = time.time()
    good = {"jti": "t1", "iat": now, "exp": int(now) + 900, "sub": "alice", "sid": "s1", "token_use": "access"}
    return {name: value for name, value in (good | other).items() if value is not None}


def signed(changed: dict[str, Any] | None = None, secret: str = SECRET, algorithm: str = "HS256") -> str:
    """A token of a good one's claims, but for those that are changed."""
    return jwt.encode(claims(**(changed or {})), secret, algorithm)


def test_a_good_token_is_read() -> None:
    """What the corpus below changes is what makes the difference; iat keeps its fraction of a second."""
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
    """Another kind, a missing or odd claim, another time, key or algorithm: no leeway, no exception but ours."""
    with pytest.raises(InvalidToken):
        TOKENS.read(token, "access")


def test_a_refresh_token_is_no_access_token_and_vice_versa() -> None:
    """The same key signs both, so the kind is checked."""
    pair = TOKENS.pair("alice", "s1", time.time())
    for token, kind, other in ((pair.access_token, "access", "refresh"), (pair.refresh_token, "refresh", "access")):
        assert TOKENS.read(token, "access" if kind == "access" else "refresh").kind == kind
        with pytest.raises(InvalidToken):
            TOKENS.read(token, "access" if other == "access" else "refresh")
