"""Logins, refreshes and logouts from outside, through real processes: gateway, main API, service and Redis."""

import asyncio
import collections
import pathlib
import random
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.redis_processes import eventually
from tests.scale import scaled
from tests.system.service_process import Answer, ask
from tests.system.whole_path import LOGIN, LOGOUT_ALL, ME, Path, claims_of, client_address, client_from, whole_path

LIMIT = 5
WINDOW_SECONDS = scaled(5, 60)
PHASES = scaled(4, 20)
MOMENTS = (0, 0.45, 0.5, 0.6, 0.7)
"""When each of the five logins comes, as parts of the window. The second leaves it well after the first."""
LOGOUTS = scaled(100, 1000)
TROUBLES = scaled(2, 50)
LONG_ONE_IN = scaled(1000, 8)
AT_ONCE = 10
LOGOUT_SECONDS = 13.0
"""The limit for a logout: two revocations, each tried for five seconds at most, and what a busy machine adds."""
MANY = "10000/minute"
NOW_AND_TTL = "local now = redis.call('TIME') return {now[1], now[2], redis.call('PTTL', KEYS[1])}"


def says_the_limit(answer: Answer, remaining: int) -> None:
    """Check the headers of a login response: the limit, what is left of it, and its reset time (epoch seconds)."""
    headers = answer.headers
    assert headers["X-RateLimit-Limit"] == str(LIMIT)
    assert headers["X-RateLimit-Remaining"] == str(remaining)
    assert 0 <= int(headers["X-RateLimit-Reset"]) - time.time() <= 61
    assert {"RateLimit", "RateLimit-Policy"} <= headers.keys()


async def test_in_out_and_refused(tmp_path: pathlib.Path) -> None:
    """A logged-out token gets 401 at the very next request, and its entry in Redis expires when the token does.

    Each login response says how many attempts are left, also after a failure. The sixth attempt gets 429.
    """
    async with whole_path(tmp_path) as path:
        tokens = await _logs_in_until_429(path)
        assert (await path.me(tokens)).body == {"username": "alice"}
        assert (await path.me({"access_token": tokens["refresh_token"]})).status == 401
        assert (await ask(path.http, "GET", path.url + ME)).status == 401
        assert (await path.log_out(tokens)).status == 204
        refused = await path.me(tokens)
        assert (refused.status, refused.body) == (401, {"detail": "The token was revoked"})
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await path.refresh(tokens)).status == 401
        await _entry_lives_as_long_as(path, tokens)


async def _logs_in_until_429(path: Path) -> dict[str, str]:
    """Make five login attempts with different outcomes, and a sixth, which gets 429. Return the tokens of the first."""
    first = await path.log_in()
    answers = [first]
    answers += [await path.log_in(password="wrong"), await path.log_in(username="unknown")]
    answers += [await path.log_in(password=""), await ask(path.http, "POST", path.url + LOGIN, {"username": "alice"})]
    assert [answer.status for answer in answers] == [200, 401, 401, 422, 422]
    for number, answer in enumerate(answers, 1):
        says_the_limit(answer, LIMIT - number)
    sixth = await path.log_in()
    assert sixth.status == 429
    assert 1 <= int(sixth.headers["Retry-After"]) <= 60
    says_the_limit(sixth, 0)
    tokens: dict[str, str] = first.body
    return tokens


async def _entry_lives_as_long_as(path: Path, tokens: dict[str, str]) -> None:
    claims = claims_of(tokens)
    key = f"token_blacklist:{claims['jti']}"
    seconds, microseconds, left = await path.redis.command("EVAL", NOW_AND_TTL, 1, key)
    remaining = claims["exp"] - int(seconds) - int(microseconds) / 1e6
    assert 0 < remaining <= 901
    assert left / 1000 == pytest.approx(remaining, abs=0.002)


async def test_sessions_end_and_go_on_as_they_should(tmp_path: pathlib.Path) -> None:
    """A refresh token that is used again ends its session. After logout-all, old tokens fail and a new login works."""
    async with whole_path(tmp_path, GATEWAY_LOGIN_LIMIT=MANY) as path:
        first = await path.tokens()
        second = (await path.refresh(first)).body
        assert (await path.me(second)).status == 200
        answers = await asyncio.gather(*(path.refresh(second) for _ in range(20)))
        assert collections.Counter(answer.status for answer in answers) == {200: 1, 401: 19}
        (third,) = [answer.body for answer in answers if answer.status == 200]
        assert [(await path.me(tokens)).status for tokens in (first, second, third)] == [401, 401, 401]

        others = [await path.tokens() for _ in range(3)]
        assert (await path.log_out(others[0], LOGOUT_ALL)).status == 204
        again = await path.tokens()
        assert [(await path.me(tokens)).status for tokens in (*others, again)] == [401, 401, 401, 200]


@pytest.mark.skipif(sys.platform != "linux", reason="clients come from many loopback addresses")
async def test_the_sixth_login_is_429_at_any_phase_of_the_window(tmp_path: pathlib.Path) -> None:
    """Five logins spread over a window succeed and a sixth gets 429, at whatever moment the first one comes.

    Windows slide: after `Retry-After`, when the first login has left the window, exactly one more succeeds.
    """
    async with whole_path(tmp_path, GATEWAY_LOGIN_LIMIT=f"{LIMIT}/{WINDOW_SECONDS} seconds") as path:
        await asyncio.gather(*(_begun_after(path, WINDOW_SECONDS * phase / PHASES) for phase in range(PHASES)))


async def _begun_after(path: Path, seconds: float) -> None:
    async with client_from(client_address()) as http:
        await asyncio.sleep(seconds)
        began = time.monotonic()
        for part_of_window in MOMENTS:
            await asyncio.sleep(max(0.0, began + WINDOW_SECONDS * part_of_window - time.monotonic()))
            assert (await path.log_in(http)).status == 200
        sixth = await path.log_in(http)
        assert time.monotonic() - began < WINDOW_SECONDS, "too slow to tell"
        assert sixth.status == 429
        await asyncio.sleep(int(sixth.headers["Retry-After"]))
        assert [(await path.log_in(http)).status for _ in range(2)] == [200, 429]


async def test_a_logout_that_was_answered_204_has_happened(tmp_path: pathlib.Path) -> None:
    """A token whose logout was answered 204 is never accepted again, whatever happens to service and Redis meanwhile.

    Every other logout is answered 503 in time. The main API uses `deny`, because `allow` admits tokens in an outage.
    """
    async with whole_path(tmp_path, GATEWAY_LOGIN_LIMIT=MANY, MAIN_API_ON_UNAVAILABLE="deny") as path:
        tokens = [await path.tokens() for _ in range(LOGOUTS)]
        outcomes: collections.Counter[int] = collections.Counter()
        ended: list[dict[str, str]] = []
        troubles: collections.Counter[str] = collections.Counter()
        trouble = asyncio.create_task(_trouble(path, troubles))
        try:
            await _all_log_out(path, tokens, outcomes, ended)
        finally:
            trouble.cancel()
            await asyncio.gather(trouble, return_exceptions=True)
        await _in_order_again(path)
        assert outcomes.keys() == {204, 503}, outcomes
        assert troubles.total() >= TROUBLES, troubles
        assert outcomes[204] == len(ended) > LOGOUTS / 10
        answers = await asyncio.gather(*(path.me(each) for each in ended))
        assert {answer.status for answer in answers} == {401}


async def _all_log_out(
    path: Path, tokens: list[dict[str, str]], outcomes: collections.Counter[int], ended: list[dict[str, str]]
) -> None:
    waiting = iter(tokens)

    async def one_after_another() -> None:
        for each in waiting:
            answer = await path.log_out(each)
            outcomes[answer.status] += 1
            assert answer.seconds < LOGOUT_SECONDS
            if answer.status != 204:
                assert answer.headers["Retry-After"]
                continue
            ended.append(each)
            assert (await path.me(each)).status in {401, 503}
            await asyncio.sleep(random.uniform(0, 0.5))  # spreads the logouts over all of the trouble

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


async def _trouble(path: Path, met: collections.Counter[str]) -> None:
    """Kill and start the service, freeze it, or freeze Redis, at random and without end, sometimes for 6 s."""
    for turn in range(10**6):
        seconds = 6.0 if turn % LONG_ONE_IN == 0 else random.uniform(0.1, 1.0)  # 6 s is longer than a logout is retried
        kind = random.choice(("killed", "frozen", "redis frozen"))
        met[kind] += 1
        if kind == "killed":
            path.service.kill()
            await asyncio.sleep(seconds)
            await path.service.start()
        elif kind == "frozen":
            path.service.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            path.service.signal(signal.SIGCONT)
        else:
            path.redis.freeze()
            await asyncio.sleep(seconds)
            path.redis.thaw()
        await asyncio.sleep(random.uniform(0.05, 0.5))


async def _in_order_again(path: Path) -> None:
    path.redis.thaw()
    if path.service.alive:
        path.service.signal(signal.SIGCONT)
    else:
        path.service.spawn()
    await path.service.until("/readyz")


async def _is_refused(path: Path, tokens: Mapping[str, Any]) -> bool:
    answer = await path.me(tokens)
    assert answer.status in {200, 503}
    return answer.status == 503


async def test_a_wrong_api_key_lets_nobody_in(tmp_path: pathlib.Path) -> None:
    """If the service refuses the main API's key, requests, logouts and refreshes get 503, even with `allow`.

    Before that, the main API may answer from memory for as long as its mirror is fresh enough.
    """
    async with whole_path(tmp_path, MAIN_API_ON_UNAVAILABLE="allow") as path:
        tokens = await path.tokens()
        path.service.kill()
        assert (await path.me(tokens)).status == 200
        other = {**path.service.settings, "REVOCATION_API_KEYS": "main-api=another-api-key-0123456789:check+revoke"}
        path.service.settings = other
        await path.service.start()
        await eventually(lambda: _is_refused(path, tokens), "the end of what memory may say")
        for answer in (await path.me(tokens), await path.log_out(tokens), await path.refresh(tokens)):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
