"""Tests of login: who gets tokens, what the tokens hold, and what someone who guesses can learn."""

import statistics
import time
from collections.abc import AsyncIterator

import jwt
import pytest
from conftest import ALICE, BOB, LOGIN, ME, PASSWORD, SECRET, Api
from pwdlib import PasswordHash

from main_api.users import Users

TOKEN_CLAIMS = {"jti", "iat", "exp", "sub", "sid", "token_use"}


async def test_a_login_hands_out_two_tokens_of_one_session(api: Api) -> None:
    """A login returns an access and a refresh token with one `sid` and two `jti`, in a response that is not cached."""
    answer = await api.http.post(LOGIN, data={**ALICE, "grant_type": "password"})
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    access, refresh = (jwt.decode(body[name], SECRET, ["HS256"]) for name in ("access_token", "refresh_token"))
    assert access.keys() == refresh.keys() == TOKEN_CLAIMS
    assert (access["token_use"], refresh["token_use"]) == ("access", "refresh")
    assert access["sub"] == refresh["sub"] == "alice"
    assert access["sid"] == refresh["sid"]
    assert access["jti"] != refresh["jti"]
    assert 900 <= access["exp"] - access["iat"] < 901
    assert refresh["exp"] - access["exp"] > 13 * 86_400


async def test_the_access_token_opens_the_door(api: Api) -> None:
    """The access token opens the protected route, as the user who logged in."""
    assert (await api.me(await api.log_in(BOB))).json() == {"username": "bob"}


@pytest.mark.parametrize(
    "who",
    [
        {"username": "alice", "password": "wrong"},
        {"username": "unknown", "password": PASSWORD},
        {"username": "alice", "password": PASSWORD + " "},
        {"username": "Alice", "password": PASSWORD},
        {"username": "alice\0", "password": PASSWORD},
        {"username": "alice", "password": "\0"},
        {"username": "alice", "password": "ü" * 1024},
    ],
)
async def test_a_wrong_login_is_401(api: Api, who: dict[str, str]) -> None:
    """A wrong name and a wrong password get the same 401 response."""
    answer = await api.http.post(LOGIN, data=who)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json() == {"detail": "The user name or the password is wrong"}


@pytest.mark.parametrize(
    "form",
    [
        {"username": "alice"},
        {"password": PASSWORD},
        {"username": "", "password": PASSWORD},
        {"username": "a" * 129, "password": PASSWORD},
        {"username": "alice", "password": "secret-" + "x" * 1018},
        {"username": "alice", "password": PASSWORD, "grant_type": "client_credentials"},
    ],
)
async def test_a_form_that_is_no_login_is_422(api: Api, form: dict[str, str]) -> None:
    """A form with a missing, empty, too long or wrong field gets 422, and the response repeats no password."""
    answer = await api.http.post(LOGIN, data=form)
    assert answer.status_code == 422
    assert PASSWORD not in answer.text
    assert "secret-" not in answer.text


async def test_a_long_body_is_413(api: Api) -> None:
    """A body that is too long gets 413, with or without Content-Length."""
    body = b"username=alice&password=" + b"x" * 20_000
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    async def streamed() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 1000):
            yield body[at : at + 1000]

    assert (await api.http.post(LOGIN, content=body, headers=form)).status_code == 413
    assert (await api.http.post(LOGIN, content=streamed(), headers=form)).status_code == 413


async def test_an_unknown_name_takes_as_long_as_a_wrong_password() -> None:
    """Known and unknown names take similar times: the medians differ by less than half the time of a known one."""
    hasher = PasswordHash.recommended()
    users = Users({"alice": hasher.hash(PASSWORD)}, hasher)

    async def seconds(name: str) -> float:
        began = time.perf_counter()
        assert await users.authenticate(name, "wrong") is None
        return time.perf_counter() - began

    rounds = [(await seconds("alice"), await seconds("unknown")) for _ in range(7)]
    known, unknown = (statistics.median(side) for side in zip(*rounds, strict=True))
    assert abs(known - unknown) < known / 2, (known, unknown)


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "Bearer é"])
async def test_without_a_good_token_the_door_is_shut(api: Api, authorization: str | None) -> None:
    """A missing or malformed token, or another scheme, gets 401 with a Bearer challenge."""
    headers = [(b"Authorization", authorization.encode())] if authorization is not None else []
    answer = await api.http.get(ME, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
