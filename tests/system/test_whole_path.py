"""What was promised, from outside and through real processes: gateway, main API, service, Redis."""

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
"""When in its window each of the five logins comes; the second leaves it well after the first has."""
LOGOUTS = scaled(100, 1000)
TROUBLES = scaled(2, 50)
LONG_ONE_IN = scaled(1000, 8)
AT_ONCE = 10
LOGOUT_SECONDS = 13.0
"""Two revocations, each tried for five seconds at most, and what a busy machine adds."""
MANY = "10000/minute"
NOW_AND_TTL = "local now = redis.call('TIME') return {now[1], now[2], redis.call('PTTL', KEYS[1])}"


def says_the_limit(answer: Answer, remaining: int) -> None:
    """The headers of every login response: the limit, what is left of it, and when there is more (epoch seconds)."""
    headers = answer.headers
    assert headers["X-RateLimit-Limit"] == str(LIMIT)
    assert headers["X-RateLimit-Remaining"] == str(remaining)
    assert 0 <= int(headers["X-RateLimit-Reset"]) - time.time() <= 61
    assert {"RateLimit", "RateLimit-Policy"} <= headers.keys()


async def test_in_out_and_refused(tmp_path: pathlib.Path) -> None:
    """A logged-out token is 401 on the very next request, and its entry in Redis ends when the token would have.

    And all logins say how many are left, failures and the sixth, which is 429, included.
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
    """Five attempts of every outcome, and a sixth."""
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
    """Refresh rotates, a refresh token used again ends its session, and after logout-all a login is in at once."""
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
    """Five logins spread over a window are let in and a sixth is not, whenever the first of them comes.

    Windows slide: when the first of them is a window old, as `Retry-After` said, exactly one more is let in.
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
    """Whatever becomes of service and Redis meanwhile: after a 204 the token never opens the door again.

    Everything else is a 503 that comes in time. With `deny`, so that an outage admits no token and hides nothing.
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
            await asyncio.sleep(random.uniform(0, 0.5))  # so that the logouts meet all of the trouble

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


async def _trouble(path: Path, met: collections.Counter[str]) -> None:
    """Without end: the service is killed and started, the service is frozen, Redis is frozen; at times for long."""
    for turn in range(10**6):
        seconds = 6.0 if turn % LONG_ONE_IN == 0 else random.uniform(0.1, 1.0)  # longer than a logout is tried, or not
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
    """A service that refuses the main API is no outage: `allow` is not asked, no logout succeeds, the user is told.

    What memory knew just before, it says for as long as it may.
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
