"""Several instances on one Redis act as one: each knows the revocations of the others, even if its clock is wrong."""

import asyncio
import contextlib
import math
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.redis_processes import Process, standalone
from tests.scale import scaled
from tests.system.service_process import Answer, ServiceProcess, ask, ending
from tests.system.tokens import SECRET, mint

TIMES = scaled(500, 5_000)
WEEK_SECONDS = 7 * 86_400
SHIFTS = (0, -3 * WEEK_SECONDS, 90, 3 * WEEK_SECONDS)
"""The clock offsets of the instances, in seconds. The clock of the first one is right."""

# Simulates a machine whose clock is wrong: shifts every clock reading in the process, then runs the service.
SHIFTED = """
import datetime, time
from revocation_service.cli import main

SHIFT = {shift}
true_time, true_time_ns, true_datetime = time.time, time.time_ns, datetime.datetime

class Shifted(true_datetime):
    @classmethod
    def now(cls, tz=None):
        return true_datetime.now(tz) + datetime.timedelta(seconds=SHIFT)

    @classmethod
    def utcnow(cls):
        return true_datetime.utcnow() + datetime.timedelta(seconds=SHIFT)

time.time = lambda: true_time() + SHIFT
time.time_ns = lambda: true_time_ns() + SHIFT * 10**9
datetime.datetime = Shifted
main(["serve"])
"""


@contextlib.asynccontextmanager
async def _services(
    directory: pathlib.Path, shifts: tuple[int, ...] = (0, 0), **settings: str
) -> AsyncIterator[tuple[Process, list[ServiceProcess]]]:
    """Run one instance for each clock offset in `shifts`, all on one Redis. Yield Redis and the instances."""
    async with standalone() as server:
        told = {"REVOCATION_REDIS_URL": server.url} | settings
        services = [
            ServiceProcess(directory / str(number), told, arguments=("-c", SHIFTED.format(shift=shift)))
            for number, shift in enumerate(shifts)
        ]
        async with ending(*services):
            await asyncio.gather(*(service.start() for service in services))
            yield server, services


async def _revoke(http: aiohttp.ClientSession, service: ServiceProcess, body: dict[str, Any]) -> Answer:
    answer = await ask(http, "POST", f"{service.url}/revoke", body)
    assert answer.status == 200, answer.body
    return answer


async def _check(http: aiohttp.ClientSession, service: ServiceProcess, body: dict[str, Any]) -> dict[str, Any]:
    answer = await ask(http, "POST", f"{service.url}/check", body)
    assert answer.status == 200, answer.body
    assert isinstance(answer.body, dict)
    return answer.body


async def test_what_one_was_told_the_other_knows_at_the_next_request(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """Each token that one instance revokes was accepted by the other, and is refused there at the very next request."""
    async with _services(tmp_path) as (_, (one, other)):
        for number in range(TIMES):
            asked = {"jti": f"token-{number}", "sid": f"session-{number}", "sub": f"subject-{number}", "iat": 1}
            claim = ("jti", "sid", "sub")[number % 3]
            assert (await _check(http, other, asked))["revoked"] is False
            await _revoke(http, one, {claim: asked[claim]})
            assert (await _check(http, other, asked))["revoked"] is True, asked
            one, other = other, one


async def test_logging_out_everywhere_ends_what_was_issued_and_not_what_comes(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """Both instances refuse tokens issued up to the second of a cutoff, and accept those issued a second later."""
    async with _services(tmp_path, REVOCATION_JWT_SECRET=SECRET) as (_, (one, other)):
        logged_out = await _revoke(http, one, {"sub": "alice", "reason": "lost phone"})
        second = int(logged_out.body["issued_before"])
        for issued, revoked in ((second - 3600, True), (second, True), (second + 1, False), (None, True)):
            token = mint(iat=issued, jti="some") if issued else mint(iat=0, jti="some")
            for service in (one, other):
                answer = await _check(http, service, {"token": token})
                assert (answer["revoked"], answer["verified"]) == (revoked, True), issued
        assert (await _check(http, other, {"token": mint(sub="bob")}))["revoked"] is False
        earlier = await _revoke(http, other, {"sub": "alice", "issued_before": second - 3600})
        assert earlier.body["result"] == "already_revoked"
        assert (await _check(http, one, {"token": mint(iat=second)}))["revoked"] is True


async def test_services_whose_clocks_are_off_store_the_same(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """Redis' clock sets expiry and cutoffs, so instances with wrong clocks store the same as one with a right clock."""
    async with _services(tmp_path, SHIFTS, REVOCATION_JWT_SECRET=SECRET) as (server, services):
        now = time.time()
        for left in (8, 60, 3600, 3 * WEEK_SECONDS):
            exp = now + left + 0.25
            for number, service in enumerate(services):
                name = f"{left}-{number}"
                assert await _stored(http, server, service, {"jti": name, "exp": exp}) == math.ceil(exp * 1000)
                token = mint(jti=f"token-{name}", exp=int(exp))
                assert await _stored(http, server, service, {"token": token}) == int(exp) * 1000
    async with _services(tmp_path / "now", SHIFTS) as (server, services):
        for number, service in enumerate(services):
            bodies = [{"jti": f"in-{number}", "expires_in": 100}]
            bodies += [{claim: f"{claim}-{number}"} for claim in ("sub", "sid", "client_id")]
            bodies += [{"all": True}] if number == len(services) - 1 else []
            for body in bodies:
                await _counted_from_now(http, server, service, body)


async def _stored(http: aiohttp.ClientSession, server: Process, service: ServiceProcess, body: dict[str, Any]) -> int:
    """Revoke, check that Redis has the expiry of the response, and return it in epoch milliseconds."""
    answer = await _revoke(http, service, body)
    moment = int(await server.command("PEXPIRETIME", f"token_blacklist:{answer.body['value']}"))
    assert 0 <= moment - answer.body["expires_at"] * 1000 < 1
    return moment


async def _counted_from_now(
    http: aiohttp.ClientSession, server: Process, service: ServiceProcess, body: dict[str, Any]
) -> None:
    """Revoke, and check that `revoked_at`, the default cutoff and the expiry are by Redis' clock."""
    before = await _redis_time(server)
    answer = (await _revoke(http, service, body)).body
    after = await _redis_time(server)
    assert before <= answer["revoked_at"] <= after
    assert before <= answer.get("issued_before", before) <= after
    lifetime = body.get("expires_in", 30 * 86_400)
    assert before + lifetime <= answer["expires_at"] <= after + lifetime


async def _redis_time(server: Process) -> float:
    seconds, microseconds = await server.command("TIME")
    return int(seconds) + int(microseconds) / 1_000_000


async def test_services_whose_clocks_are_off_judge_the_same(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """An instance with a wrong clock judges expiry and cutoffs of tokens like one with a right clock."""
    async with _services(tmp_path, SHIFTS, REVOCATION_JWT_SECRET=SECRET) as (_, services):
        now = int(time.time())
        for number, wrong in enumerate(services[1:]):
            alive, dead = mint(jti=f"alive-{number}", exp=now + 60), mint(jti=f"dead-{number}", exp=now - 5)
            assert (await _revoke(http, wrong, {"token": alive})).body["result"] == "revoked"
            assert (await _revoke(http, wrong, {"token": dead})).body["result"] == "expired"
            cutoff = int((await _revoke(http, wrong, {"sub": f"carol-{number}"})).body["issued_before"])
            for service in (services[0], wrong):
                answer = await _check(http, service, {"token": alive})
                assert (answer["revoked"], answer["expired"]) == (True, False)
                answer = await _check(http, service, {"token": dead})
                assert (answer["revoked"], answer["expired"]) == (False, True)
                for issued, revoked in ((cutoff, True), (cutoff + 1, False), (cutoff + 1000, True)):
                    asked = {"sub": f"carol-{number}", "iat": issued}
                    assert (await _check(http, service, asked))["revoked"] is revoked, asked


async def test_without_redis_its_clock_decides_still(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """An instance whose clock is 50 s fast still knows a revocation with 20 s to live after Redis has gone away."""
    async with _services(tmp_path, shifts=(50,)) as (server, (fast,)):
        await _revoke(http, fast, {"jti": "short", "expires_in": 20})
        assert (await _check(http, fast, {"jti": "short"}))["source"] == "redis"
        server.kill()
        answer = await _check(http, fast, {"jti": "short"})
        assert (answer["revoked"], answer["source"]) == (True, "mirror")
