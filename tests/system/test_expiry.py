"""Redis removes each entry by itself, exactly when the token would have expired, and nothing is left."""

import asyncio
import math
import pathlib
import time
from typing import Any

import aiohttp

from tests.redis_processes import WAIT_SECONDS, Process, eventually, standalone
from tests.scale import scaled
from tests.system.service_process import Answer, ServiceProcess, ask, serving
from tests.system.tokens import mint

MANY = scaled(500, 20_000)
LIFE_SECONDS = scaled(3, 40)
CALLERS = 32
WEEK_SECONDS = 7 * 86_400
LOG_KEY = "token_revocations:log"
STATE_KEY = "token_revocations:state"


async def _revoke(http: aiohttp.ClientSession, service: ServiceProcess, body: dict[str, Any]) -> Answer:
    answer = await ask(http, "POST", f"{service.url}/revoke", body)
    assert answer.status == 200, answer.body
    return answer


async def _found(http: aiohttp.ClientSession, service: ServiceProcess, claim: str, value: str) -> int:
    """Return the status of a look-up: 200, or 404 once the revocation has expired."""
    return (await ask(http, "GET", f"{service.url}/revocations", params={"claim": claim, "value": value})).status


async def test_an_entry_is_gone_when_its_time_has_come(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """A revocation by `jti`, `sid` or `sub` is found until it expires. Then neither the service nor Redis has it.

    The service's mirror keeps it to the end of that second, because it counts in whole seconds.
    """
    async with standalone() as server:
        settings = {"REVOCATION_REDIS_URL": server.url, "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS": "2"}
        async with serving(tmp_path, settings) as service:
            made: list[dict[str, Any]] = [
                {"jti": "a", "expires_in": 1},
                {"jti": "b", "expires_in": 2},
                {"sid": "c"},
                {"sub": "d"},
            ]
            answers = [await _revoke(http, service, body) for body in made]
            assert len(await _records(server)) == len(made)

            async def gone(answer: Answer) -> None:
                """Look the revocation up until it is gone, and check that it expired neither early nor late."""
                claim, value, moment = (answer.body[name] for name in ("claim", "value", "expires_at"))
                while True:
                    began = time.time()
                    status = await _found(http, service, claim, value)
                    assert status in {200, 404}
                    assert status == 404 or began < math.ceil(moment) + 0.1, "it outlived its token"
                    if status == 404:
                        assert time.time() > moment - 0.005, "it was gone too early"
                        return
                    await asyncio.sleep(0.01)

            await asyncio.gather(*map(gone, answers))
            for body in made:
                name, value = next(iter(body.items()))
                assert (await ask(http, "POST", f"{service.url}/check", {name: value})).body["revoked"] is False
            assert await _records(server) == []
            await _all_but_log_and_state_have_an_expiry(server)


async def test_the_life_in_redis_is_the_rest_of_the_tokens_life(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """For lives from a second to weeks, PTTL is at least the token's remaining life, and at most a second more."""
    async with standalone() as server, serving(tmp_path, {"REVOCATION_REDIS_URL": server.url}) as service:
        now = time.time()
        for number, left in enumerate((1, 2.5, 59.999, 3600, 86_400.125, WEEK_SECONDS, 4 * WEEK_SECONDS)):
            exp = now + left
            await _revoke(http, service, {"jti": f"exp-{number}", "exp": exp})
            await _lives_until(server, f"exp-{number}", exp)
            await _revoke(http, service, {"token": mint(jti=f"token-{number}", exp=math.ceil(exp))})
            await _lives_until(server, f"token-{number}", math.ceil(exp))
            before = time.time()
            await _revoke(http, service, {"jti": f"in-{number}", "expires_in": left})
            await _lives_until(server, f"in-{number}", before + left)


async def _lives_until(server: Process, jti: str, exp: float) -> None:
    """Check PTTL against `exp`, with the time before and after the command. Redis has the same clock as the test."""
    began = time.time()
    left = await server.command("PTTL", f"token_blacklist:{jti}") / 1000
    ended = time.time()
    assert left > 0
    assert began + left - exp <= 1, "it lives more than a second longer"
    assert ended + left - exp >= -0.001, "it lives shorter (PTTL counts whole milliseconds)"


async def test_nothing_is_stored_for_a_token_that_is_dead(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """Revoking an expired token succeeds with the result `expired`, and stores no record."""
    async with standalone() as server, serving(tmp_path, {"REVOCATION_REDIS_URL": server.url}) as service:
        now = time.time()
        for body in ({"jti": "a", "exp": now - 1}, {"token": mint(exp=int(now) - 60)}, {"jti": "b", "expires_in": 0}):
            assert (await _revoke(http, service, body)).body["result"] == "expired"
        assert await _records(server) == []


async def test_expired_revocations_leave_nothing_behind_though_nobody_asks(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """After many short-lived revocations, only the log, the state and a few internal keys with an expiry are left."""
    async with standalone() as server, serving(tmp_path, {"REVOCATION_REDIS_URL": server.url}) as service:
        await _revoke_many(http, service, MANY, LIFE_SECONDS)
        await _none_is_left(server)
        left = set(await server.command("KEYS", "*")) - {LOG_KEY, STATE_KEY}
        assert len(left) < MANY / 10
        assert [key for key in left if "token_revocations:" not in key] == []
        await _all_but_log_and_state_have_an_expiry(server)


async def _revoke_many(http: aiohttp.ClientSession, service: ServiceProcess, count: int, expires_in: int) -> None:
    left = iter(range(count))

    async def caller() -> None:
        for number in left:
            body = {"jti": f"{number}-{'j' * 200}", "expires_in": expires_in, "reason": "r" * 250}
            assert (await _revoke(http, service, body)).body["result"] == "revoked"

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _records(server: Process) -> list[str]:
    """Return the keys of all revocations."""
    found = [await server.command("KEYS", pattern) for pattern in ("token_blacklist:*", "token_cutoff:*")]
    return [key for keys in found for key in keys]


async def _all_but_log_and_state_have_an_expiry(server: Process) -> None:
    for key in await server.command("KEYS", "*"):
        assert key in {LOG_KEY, STATE_KEY} or await server.command("PTTL", key) > 0, key


async def _none_is_left(server: Process) -> None:
    """Wait until Redis holds no revocation any more. DBSIZE, unlike KEYS, also counts expired keys."""

    async def none() -> bool:
        live = await server.command("KEYS", "*")
        return await _records(server) == [] and await server.command("DBSIZE") == len(live)

    await eventually(none, "a Redis that has removed every revocation", LIFE_SECONDS + WAIT_SECONDS)
