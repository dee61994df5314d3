"""Acknowledged revocations survive SIGKILL of the service and of its private Redis, and no process is left running."""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import aiohttp

from tests.redis_processes import Process, eventually
from tests.scale import BUSY_SECONDS, scaled
from tests.system.service_process import ServiceProcess, ask, ending, gone, serving

REVOCATIONS = scaled(1_500, 10_000)
CALLERS = 32
KILLS = scaled(2, 8)
ATTEMPT_SECONDS = 5.0


@contextlib.contextmanager
def _seeded() -> Iterator[random.Random]:
    """Yield a random source, and add its seed as a note to any exception."""
    seed = random.SystemRandom().randrange(2**32)
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"the seed was {seed}")
        raise


class _Callers:
    """Callers that make one revocation after another. They retry after 503 or no answer until it is acknowledged."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.acknowledged: list[dict[str, Any]] = []
        self.repeated = 0
        self._http = http
        self._url = f"{url}/revoke"
        self._left = iter(range(REVOCATIONS))

    async def run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(CALLERS)))

    async def _call(self) -> None:
        for number in self._left:
            claim = ("jti", "jti", "sid", "sub")[number % 4]
            named = {claim: f"{claim}-{number}"}
            await self._until_acknowledged(named | ({"expires_in": 3600} if claim == "jti" else {}))
            self.acknowledged.append(named)

    async def _until_acknowledged(self, body: dict[str, Any]) -> None:
        while True:
            try:
                answer = await ask(
                    self._http, "POST", self._url, body, timeout=aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)
                )
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass  # nothing was promised
            else:
                if answer.status == 200:
                    return
                assert (answer.status, answer.code) in {(503, "store_unavailable"), (503, "shutting_down")}, answer
            self.repeated += 1
            await asyncio.sleep(0.02)


async def _kill_at_random_moments(
    service: ServiceProcess, callers: _Callers, source: random.Random
) -> dict[str, list[float]]:
    """Kill Redis and the service `KILLS` times each, at random moments. Return the seconds that each kill took."""
    victims = ["redis"] * KILLS + ["service"] * KILLS
    source.shuffle(victims)
    moments = sorted(source.sample(range(REVOCATIONS - CALLERS), len(victims)))
    took: dict[str, list[float]] = {"redis": [], "service": []}
    for victim, moment in zip(victims, moments, strict=True):

        async def reached(moment: int = moment) -> bool:
            return len(callers.acknowledged) >= moment

        await eventually(reached, f"{moment} acknowledged", 60)
        redis = await service.redis_pid()
        await asyncio.sleep(source.uniform(0, 0.02))
        began = time.monotonic()
        if victim == "redis":
            os.kill(redis, signal.SIGKILL)
        else:
            await _kill_service(service, source)
        took[victim].append(time.monotonic() - began)
    return took


async def _kill_service(service: ServiceProcess, source: random.Random) -> None:
    """Kill the service, sometimes again at a random moment of its start, and start it."""
    service.kill()
    if source.random() < 0.5:
        service.spawn()
        await asyncio.sleep(source.uniform(0, 1))
        service.kill()
    await service.start()


async def test_not_one_acknowledged_revocation_is_missing_after_kills(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """After random kills of Redis and service under load, all acknowledged tokens are revoked, and no others."""
    with _seeded() as source:
        async with serving(tmp_path) as service:
            callers = _Callers(http, service.url)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(callers.run())
                tasks.create_task(_kill_at_random_moments(service, callers, source))
            assert callers.repeated, "no kill was felt, so nothing was shown"
            service.kill()
            await service.start()
            assert len(callers.acknowledged) == REVOCATIONS
            assert await _not_revoked(http, service.url, callers.acknowledged) == []
            strangers = [{"jti": f"jti-{number}-not"} for number in range(1000)]
            assert await _not_revoked(http, service.url, strangers) == strangers
            service.signal(signal.SIGTERM)
            assert await service.ended() == 0
            await service.nothing_left()
            await _all_are_in_record_and_log(service, tmp_path / "copy", callers.acknowledged)


async def _not_revoked(http: aiohttp.ClientSession, url: str, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the questions to which the service answers "not revoked"."""
    missing = []
    for start in range(0, len(questions), 1000):
        part = questions[start : start + 1000]
        answer = await ask(http, "POST", f"{url}/check/batch", {"checks": part})
        assert answer.status == 200, answer
        results = answer.body["results"]
        missing += [one for one, result in zip(part, results, strict=True) if not result["revoked"]]
    return missing


async def _all_are_in_record_and_log(
    service: ServiceProcess, copy: pathlib.Path, acknowledged: list[dict[str, Any]]
) -> None:
    """Load the files into another Redis. Check that each revocation has a record with an expiry, and a log entry."""
    server = Process(copy)
    server.write_config(["appendonly yes"])
    shutil.copytree(service.state_directory / "appendonlydir", copy / "appendonlydir")
    try:
        await server.start()
        async with server.client(socket_timeout=20) as client:
            untyped: Any = client
            log = await untyped.xrange("token_revocations:log")
            entries = [json.loads(entry["r"]) for _id, entry in log if "r" in entry]  # some entries have no record
            keys = [key async for key in client.scan_iter(count=1000)]
            async with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.pttl(key)
                left = dict(zip(keys, await pipeline.execute(), strict=True))
    finally:
        server.kill()
    wanted = {(claim, value) for each in acknowledged for claim, value in each.items()}
    assert wanted <= {(entry["claim"], entry["value"]) for entry in entries}
    records = {_key(claim, value) for claim, value in wanted}
    assert records <= left.keys()
    assert {key for key, milliseconds in left.items() if milliseconds <= 0} == {
        "token_revocations:log",
        "token_revocations:state",
    }


def _key(claim: str, value: str) -> str:
    return f"token_blacklist:{value}" if claim == "jti" else f"token_cutoff:{claim}:{value}"


async def test_a_killed_redis_is_replaced(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """The service restarts its killed Redis with the data. Until then, every check answers 503 or 200."""
    async with serving(tmp_path) as service:
        assert (await ask(http, "POST", f"{service.url}/revoke", {"jti": "a", "expires_in": 600})).status == 200
        killed = await service.redis_pid()
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        answer = await ask(http, "GET", f"{service.url}/check?jti=a")
        while answer.status != 200 or not gone(killed):
            assert (answer.status, answer.code) in {(503, "store_unavailable"), (200, None)}
            assert time.monotonic() - began < 2.8 + BUSY_SECONDS, "it did not come back"
            answer = await ask(http, "GET", f"{service.url}/check?jti=a")
        assert answer.body["revoked"] is True
        assert await service.redis_pid() != killed


async def test_a_second_service_on_the_directory_is_refused_in_one_line(tmp_path: pathlib.Path) -> None:
    """A second service on a directory exits with 1 and one line that names the directory and the first's pid."""
    async with serving(tmp_path / "one") as first:
        second = ServiceProcess(tmp_path / "two", {"REVOCATION_REDIS_URL": f"embedded:{first.state_directory}"})
        async with ending(second):
            second.spawn()
            assert await second.ended() == 1
        (line,) = second.output().splitlines()
        assert line.startswith("revocation-service: embedded: ")
        assert str(first.state_directory) in line
        assert f"process {first.pid}" in line
        await first.until("/readyz")


async def test_redis_dies_with_its_service(tmp_path: pathlib.Path) -> None:
    """If the service is killed, its private Redis ends within a second, even if Redis is frozen."""
    async with serving(tmp_path / "plain") as plain, serving(tmp_path / "frozen") as frozen:
        os.kill(await frozen.redis_pid(), signal.SIGSTOP)
        for service in (plain, frozen):
            pid = await service.redis_pid()
            service.kill()
            await service.nothing_left(seconds=1)
            assert gone(pid)
