"""Tests of refresh and logout: which tokens are refused afterwards, which are not, and what an outage does."""

import asyncio
import itertools
import time
from collections.abc import Coroutine
from typing import Any

import httpx
import jwt
import pytest
from conftest import ALICE, BOB, HASHER, LOGIN, LOGOUT, LOGOUT_ALL, SECRET, Api, bearer, started
from fastapi import FastAPI

from main_api.app import create_app
from main_api.settings import Settings
from main_api.tokens import Tokens
from revocation_client.testing import InMemoryRevocationClient


def is_refused(answer: httpx.Response) -> bool:
    """Return whether a response is 401 with a Bearer challenge."""
    return answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_logged_out_session_is_refused_at_once(api: Api) -> None:
    """A logout ends both tokens of its session at once. The user's other session and other users go on."""
    mine, other, bobs = await api.log_in(), await api.log_in(), await api.log_in(BOB)
    assert (await api.log_out(mine)).status_code == 204
    assert is_refused(await api.me(mine))
    assert is_refused(await api.refresh(mine))
    assert (await api.me(other)).status_code == 200
    assert (await api.me(bobs)).status_code == 200


async def test_a_logout_can_be_repeated(api: Api) -> None:
    """A repeated logout gets 204 again, so a client that missed the first response can retry."""
    pair = await api.log_in()
    assert [(await api.log_out(pair)).status_code for _ in range(2)] == [204, 204]


async def test_a_logout_is_in_the_list_of_tokens_too(api: Api, revocations: InMemoryRevocationClient) -> None:
    """A logout also revokes the access token's `jti` until its `exp`, for programs that look up only the `jti`."""
    pair = await api.log_in()
    claims = jwt.decode(pair["access_token"], SECRET, ["HS256"])
    await api.log_out(pair)
    verdict = await revocations.check_jti(claims["jti"])
    assert verdict.revocation is not None
    assert verdict.revocation.expires_at == claims["exp"]


async def test_logout_all_ends_every_session_and_lets_the_next_login_in(api: Api) -> None:
    """Logout-all ends every token issued before, also after a refresh. A login right after it works."""
    first, second, bobs = await api.log_in(), await api.log_in(), await api.log_in(BOB)
    third = (await api.refresh(first)).json()
    assert (await api.log_out(second, LOGOUT_ALL)).status_code == 204
    for pair in (second, third):
        assert is_refused(await api.me(pair))
        assert is_refused(await api.refresh(pair))
    assert (await api.me(bobs)).status_code == 200
    assert (await api.me(await api.log_in())).status_code == 200


async def test_a_dead_token_cannot_log_everybody_out(api: Api) -> None:
    """A logout-all with a logged-out token is refused, and the user's other session goes on."""
    dead, alive = await api.log_in(), await api.log_in()
    await api.log_out(dead)
    assert is_refused(await api.log_out(dead, LOGOUT_ALL))
    assert (await api.me(alive)).status_code == 200


async def test_a_refresh_token_works_once(api: Api) -> None:
    """A refresh returns a new pair of the same session. A second use of a refresh token ends that session."""
    first = await api.log_in()
    second = (await api.refresh(first)).json()
    third = (await api.refresh(second)).json()
    sids = {jwt.decode(pair["access_token"], SECRET, ["HS256"])["sid"] for pair in (first, second, third)}
    assert len(sids) == 1
    assert (await api.me(third)).status_code == 200
    assert is_refused(await api.refresh(first))
    assert is_refused(await api.me(third))
    assert is_refused(await api.refresh(third))


async def test_of_many_refreshes_at_once_one_succeeds(api: Api) -> None:
    """Of 20 concurrent refreshes with one token, one gets a new pair. The reuse revokes the session and that pair."""
    for _round in range(5):
        pair = await api.log_in()
        answers = await asyncio.gather(*(api.refresh(pair) for _ in range(20)))
        assert sorted(answer.status_code for answer in answers) == [200, *itertools.repeat(401, 19)]
        (won,) = [answer.json() for answer in answers if answer.status_code == 200]
        assert is_refused(await api.me(won))
        assert is_refused(await api.refresh(won))


async def test_a_use_whose_answer_was_lost_was_a_use(api: Api, revocations: InMemoryRevocationClient) -> None:
    """If a refresh token was revoked but the response was lost, a second use of it still ends the session."""
    pair = await api.log_in()
    claims = jwt.decode(pair["refresh_token"], SECRET, ["HS256"])
    await revocations.revoke_jti(claims["jti"], exp=claims["exp"], reason="refreshed")
    assert is_refused(await api.refresh(pair))
    assert is_refused(await api.me(pair))


async def test_no_refresh_slips_through_a_logout_all(api: Api, revocations: InMemoryRevocationClient) -> None:
    """However a refresh and a logout-all overlap, the tokens of the refresh are refused after the logout."""
    for head_start_seconds in (-0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.05):
        pair = await api.log_in()
        revocations.service.latency_seconds = 0.04  # each of the two requests makes a check, and then a revocation
        logout = asyncio.create_task(_after(max(0.0, -head_start_seconds), api.log_out(pair, LOGOUT_ALL)))
        refresh = asyncio.create_task(_after(max(0.0, head_start_seconds), api.refresh(pair)))
        assert (await logout).status_code == 204
        refreshed = await refresh
        revocations.service.latency_seconds = 0
        assert is_refused(await api.me(pair))
        assert refreshed.status_code in {200, 401}
        if refreshed.status_code == 200:
            assert is_refused(await api.me(refreshed.json()))


async def _after(seconds: float, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    await asyncio.sleep(seconds)
    return await request


async def test_logout_all_holds_where_the_services_clock_is_behind(settings: Settings) -> None:
    """Logout-all works even if the clock of the service is 30 s behind that of the application."""
    revocations = InMemoryRevocationClient(clock=lambda: time.time() - 30)
    app = create_app(settings, revocations, HASHER)
    async with started(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://main-api") as http:
        api = Api(http)
        pair = await api.log_in()
        assert (await api.log_out(pair, LOGOUT_ALL)).status_code == 204
        assert is_refused(await api.me(pair))
        assert (await api.me(await api.log_in())).status_code == 200


async def test_the_kinds_are_not_mixed_up(api: Api) -> None:
    """A refresh token cannot be used as an access token, not even for a logout, and an access token cannot refresh."""
    pair = await api.log_in()
    swapped = {"access_token": pair["refresh_token"], "refresh_token": pair["access_token"]}
    assert is_refused(await api.me(swapped))
    assert is_refused(await api.log_out(swapped))
    assert is_refused(await api.log_out(swapped, LOGOUT_ALL))
    assert is_refused(await api.refresh(swapped))
    assert (await api.me(pair)).status_code == 200
    assert (await api.refresh(pair)).status_code == 200


@pytest.mark.parametrize("route", [LOGOUT, LOGOUT_ALL])
async def test_in_an_outage_no_logout_succeeds(api: Api, revocations: InMemoryRevocationClient, route: str) -> None:
    """In an outage, a logout gets 503 with Retry-After, and the token still works. After the outage, it succeeds."""
    pair = await api.log_in()
    with revocations.outage():
        answer = await api.log_out(pair, route)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await api.me(pair)).status_code == 200
    assert (await api.log_out(pair, route)).status_code == 204
    assert is_refused(await api.me(pair))


async def test_in_an_outage_no_refresh_token_is_used_up(api: Api, revocations: InMemoryRevocationClient) -> None:
    """In an outage, a refresh gets 503 and no new tokens, because the old token cannot be revoked."""
    pair = await api.log_in()
    with revocations.outage():
        answer = await api.refresh(pair)
    assert answer.status_code == 503
    assert "access_token" not in answer.text


async def test_in_an_outage_the_application_goes_on_or_not_as_was_stated(settings: Settings) -> None:
    """In an outage, a request with a token passes with the policy `allow`, and gets 503 with `deny`. Logins work."""
    for policy, status in (("allow", 200), ("deny", 503)):
        revocations = InMemoryRevocationClient(on_unavailable="allow" if policy == "allow" else "deny")
        app: FastAPI = create_app(settings, revocations, HASHER)
        transport = httpx.ASGITransport(app)
        async with started(app), httpx.AsyncClient(transport=transport, base_url="http://main-api") as http:
            api = Api(http)
            pair = await api.log_in()
            with revocations.outage():
                assert (await api.http.post(LOGIN, data=ALICE)).status_code == 200
                assert (await api.me(pair)).status_code == status


async def test_a_deleted_user_is_out(revocations: InMemoryRevocationClient) -> None:
    """A token whose user no longer exists is refused."""
    app = create_app(Settings(SECRET, {}), revocations, HASHER)
    pair = Tokens(SECRET, 900, 3600).pair("alice", "s1", time.time())
    async with started(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://main-api") as http:
        answer = await http.get("/api/v1/users/me", headers=bearer({"access_token": pair.access_token}))
        assert is_refused(answer)
