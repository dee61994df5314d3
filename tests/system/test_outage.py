"""If Redis is down, suspended, slow or refuses, every caller gets 503 within a second, or an answer that is right."""

import asyncio
import contextlib
import pathlib
import resource
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from revocation_service.replication.epoch import GRACE_SECONDS
from tests.redis_processes import Process, eventually, free_port, standalone
from tests.scale import CAMPAIGN, scaled
from tests.settled import settle_url
from tests.system.service_process import Answer, ServiceProcess, ask, ending, serving
from tests.system.slow_proxy import slow_proxy

AT_ONCE = 20
IN_A_ROW = scaled(2, 20)
A_SECOND = 1.0 if CAMPAIGN else 5.0
"""The promised second. The campaign runs alone on the machine and measures it. Everyday tests share the machine, so
this bound only detects calls that hang.
"""

TOLD_WITHIN_SECONDS = A_SECOND
BACK_WITHIN_SECONDS = A_SECOND
SLOW_SECONDS = 3.0

LITTLE_DISK = """
import resource
from revocation_service.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (32_000, 32_000))
main(["serve"])
"""
"""Runs the service with a file size limit of 32 kB, which its Redis inherits. This simulates a full disk."""

BATCH = {"checks": [{"jti": f"batch-{number}"} for number in range(100)]}
ROUTES: dict[str, tuple[str, str, Any]] = {
    "revoke": ("POST", "/revoke", {"jti": "during", "expires_in": 600}),
    "revoke a subject": ("POST", "/revoke", {"sub": "during"}),
    "GET check": ("GET", "/check?jti=unknown", None),
    "POST check": ("POST", "/check", {"jti": "unknown", "sub": "someone", "iat": 1}),
    "batch": ("POST", "/check/batch", BATCH),
    "look up": ("GET", "/revocations?claim=jti&value=unknown", None),
}


NOT_FROM_MEMORY = {"REVOCATION_MAX_STALENESS_SECONDS": "0"}
"""With this setting the mirror never says "not revoked" by itself. `test_outage_matrix` covers the other case."""


@dataclass(frozen=True)
class Outage:
    """The URL of a Redis, and functions that begin and end its outage."""

    url: str
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def _refused() -> AsyncIterator[Outage]:
    async with standalone() as server:
        yield Outage(server.url, server.stop, server.start)


@contextlib.asynccontextmanager
async def _frozen() -> AsyncIterator[Outage]:
    async with standalone() as server:

        async def freeze() -> None:
            server.freeze()

        async def thaw() -> None:
            server.thaw()

        yield Outage(server.url, freeze, thaw)


@contextlib.asynccontextmanager
async def _slow() -> AsyncIterator[Outage]:
    async with standalone() as server, slow_proxy(server.port) as proxy:

        async def slow() -> None:
            proxy.delay_seconds = SLOW_SECONDS

        async def quick() -> None:
            proxy.delay_seconds = 0

        yield Outage(proxy.url, slow, quick)


@pytest.fixture(params=[_refused, _frozen, _slow], ids=["refused", "frozen", "slow"])
async def outage(request: pytest.FixtureRequest) -> AsyncIterator[Outage]:
    """A Redis with an outage by parameter: it is stopped, frozen or slowed down."""
    async with request.param() as made:
        yield made


def _is_told(answer: Answer) -> None:
    """Check that the answer is a 503 problem with `Retry-After`, and came in time."""
    assert (answer.status, answer.code) == (503, "store_unavailable"), answer
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.headers["Retry-After"] == "1"
    assert answer.seconds < TOLD_WITHIN_SECONDS, answer


async def _all_are_told(http: aiohttp.ClientSession, service: ServiceProcess, in_a_row: int = IN_A_ROW) -> None:
    """Check that every route answers 503 in time, concurrently and in sequence, and that both probes are right."""

    async def one_after_another(route: str, times: int) -> None:
        method, path, body = ROUTES[route]
        for _ in range(times):
            _is_told(await ask(http, method, service.url + path, body))

    for routes in [[route] for route in ROUTES] if CAMPAIGN else [list(ROUTES)]:
        at_once = AT_ONCE // len(routes) + 1
        await asyncio.gather(*(one_after_another(route, 1) for route in routes for _ in range(at_once)))
    chains = (one_after_another(route, in_a_row) for route in ROUTES)
    await asyncio.gather(*chains, _probes_tell(http, service))


async def _probes_tell(http: aiohttp.ClientSession, service: ServiceProcess) -> None:
    health = await ask(http, "GET", f"{service.url}/healthz")
    assert health.status == 200
    assert health.seconds < A_SECOND / 2
    ready = await ask(http, "GET", f"{service.url}/readyz")
    assert (ready.status, ready.body["components"]["store"]) == (503, {"status": "unavailable"})


async def _seconds_until_back(http: aiohttp.ClientSession, service: ServiceProcess) -> float:
    """Return the seconds until a revocation and a check are answered 200 again."""
    began = time.monotonic()
    left = ["POST check", "revoke"]
    while left and time.monotonic() - began < 10:
        method, path, body = ROUTES[left[-1]]
        if (await ask(http, method, service.url + path, body)).status == 200:
            left.pop()
    assert not left, f"{left}: never answered 200 again"
    return time.monotonic() - began


async def _is_back(
    http: aiohttp.ClientSession, service: ServiceProcess, within_seconds: float = BACK_WITHIN_SECONDS
) -> None:
    """Check that all routes but the look-up answer 200 again in time, and that the service gets ready."""

    async def ready() -> bool:
        return (await ask(http, "GET", f"{service.url}/readyz")).status == 200

    assert await _seconds_until_back(http, service) < within_seconds
    for method, path, body in ROUTES.values():
        if path.startswith("/revocations"):
            continue
        answers = await asyncio.gather(*(ask(http, method, service.url + path, body) for _ in range(AT_ONCE)))
        assert {answer.status for answer in answers} == {200}
    await eventually(ready, "a ready service")


async def test_an_outage_is_told_within_a_second_and_over_within_a_second(
    outage: Outage, tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """In an outage every route answers 503 in time. Then the same process works again and knows what was revoked."""
    async with serving(tmp_path, {"REVOCATION_REDIS_URL": outage.url} | NOT_FROM_MEMORY) as service:
        before = {"jti": "before", "expires_in": 600}
        assert (await ask(http, "POST", f"{service.url}/revoke", before)).status == 200
        assert (await ask(http, "POST", f"{service.url}/revoke", {"sub": "alice", "expires_in": 600})).status == 200
        pid = service.pid
        await outage.begin()
        await _all_are_told(http, service)
        known = await ask(http, "GET", f"{service.url}/check?jti=before")
        assert (known.status, known.body["revoked"], known.body["source"]) == (200, True, "mirror")
        subject = await ask(http, "GET", f"{service.url}/check?sub=alice")
        assert (subject.body["revoked"], subject.body["source"], subject.body["iat_unusable"]) == (True, "mirror", True)
        assert [event["claim"] for event in service.events("iat_unusable")] == ["sub"]
        await outage.end()
        await _is_back(http, service)
        found = await ask(http, "GET", f"{service.url}/check?jti=before")
        assert (found.status, found.body["revoked"]) == (200, True)
        assert (service.alive, service.pid) == (True, pid)
        assert not service.events("internal_error", "library_message")


async def test_a_service_may_start_before_its_redis(
    outage: Outage, tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """A service that starts without Redis answers 503 in time, logs `store_away`, and works soon after Redis returns.

    A restarted Redis adds the grace of three seconds, in which other workers may report what it lost.
    """
    await settle_url(outage.url)
    await outage.begin()
    async with serving(tmp_path, {"REVOCATION_REDIS_URL": outage.url} | NOT_FROM_MEMORY, probe="/healthz") as service:
        assert service.events("store_away")
        await _all_are_told(http, service, in_a_row=0)
        await outage.end()
        await _is_back(http, service, BACK_WITHIN_SECONDS + GRACE_SECONDS)


@contextlib.asynccontextmanager
async def _unwilling(
    directory: pathlib.Path, http: aiohttp.ClientSession, config: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Process, ServiceProcess]]:
    """Run a Redis and a service on it, both healthy, and make one revocation. Yield both."""
    async with (
        standalone(config=config) as server,
        serving(directory, {"REVOCATION_REDIS_URL": server.url} | NOT_FROM_MEMORY) as service,
    ):
        before = {"jti": "before", "expires_in": 600}
        assert (await ask(http, "POST", f"{service.url}/revoke", before)).status == 200
        yield server, service
        assert not service.events("internal_error", "library_message")


async def _revoke(http: aiohttp.ClientSession, service: ServiceProcess, name: str) -> Answer:
    return await ask(http, "POST", f"{service.url}/revoke", {"jti": name, "expires_in": 600})


async def _is_revoked(http: aiohttp.ClientSession, service: ServiceProcess, name: str) -> bool:
    answer = await ask(http, "GET", f"{service.url}/check?jti={name}")
    assert answer.status == 200, answer
    return bool(answer.body["revoked"])


async def _writes_again(http: aiohttp.ClientSession, service: ServiceProcess, seconds: float) -> None:
    """Check that a revocation succeeds within `seconds` and takes effect."""

    async def taken() -> bool:
        return (await _revoke(http, service, "after")).status == 200

    await eventually(taken, "a revocation that is taken", seconds)
    assert await _is_revoked(http, service, "after")


async def test_a_full_redis_refuses_revocations_with_503_and_still_answers_checks(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """While Redis is out of memory (noeviction), /revoke answers 503 and checks work. With more memory both work."""
    async with _unwilling(tmp_path, http) as (server, service):
        await server.command("CONFIG", "SET", "maxmemory", 1)
        for answer in await asyncio.gather(*(_revoke(http, service, f"full-{n}") for n in range(AT_ONCE))):
            _is_told(answer)
        assert await _is_revoked(http, service, "before")
        assert not await _is_revoked(http, service, "full-0")
        await server.command("CONFIG", "SET", "maxmemory", 0)
        await _writes_again(http, service, BACK_WITHIN_SECONDS)


async def test_a_redis_demoted_to_replica_refuses_revocations_with_503(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """While Redis is a replica (READONLY), /revoke answers 503. After its promotion /revoke works again."""
    async with _unwilling(tmp_path, http) as (server, service):
        await server.command("REPLICAOF", "127.0.0.1", free_port())
        for answer in await asyncio.gather(*(_revoke(http, service, "demoted") for _ in range(AT_ONCE))):
            _is_told(answer)
        found = await ask(http, "GET", f"{service.url}/check?jti=before")
        assert found.status == 503 or found.body["revoked"] is True
        await server.command("REPLICAOF", "NO", "ONE")
        await _writes_again(http, service, BACK_WITHIN_SECONDS)


async def test_a_stale_replica_that_will_not_answer_is_503(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """While a stale replica answers MASTERDOWN (replica-serve-stale-data no), every route answers 503."""
    async with _unwilling(tmp_path, http, ("replica-serve-stale-data no",)) as (server, service):
        await server.command("REPLICAOF", "127.0.0.1", free_port())
        await _all_are_told(http, service, in_a_row=0)
        await server.command("REPLICAOF", "NO", "ONE")
        await _writes_again(http, service, BACK_WITHIN_SECONDS)


async def test_a_wrong_password_is_503_until_it_is_right(tmp_path: pathlib.Path, http: aiohttp.ClientSession) -> None:
    """With a wrong password the service starts and every route answers 503. The password is in no output."""
    async with standalone(password="right-password") as server:
        settings = {"REVOCATION_REDIS_URL": server.url, "REVOCATION_REDIS_PASSWORD": "wrong-password"}
        async with serving(tmp_path, settings, probe="/healthz") as service:
            await _all_are_told(http, service, in_a_row=0)
            await server.command("CONFIG", "SET", "requirepass", "wrong-password")
            await _writes_again(http, service, BACK_WITHIN_SECONDS)
            assert "wrong-password" not in service.output()


async def test_a_disk_that_is_full_is_503_until_there_is_room(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """While Redis cannot append to its file (MISCONF), /revoke answers 503 and checks work. With room both work."""
    async with _unwilling(tmp_path, http, ("appendfsync everysec", "auto-aof-rewrite-percentage 0")) as (
        server,
        service,
    ):
        written = sum(file.stat().st_size for file in (server.directory / "appendonlydir").glob("*.incr.aof"))
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (written + 1, resource.RLIM_INFINITY))

        async def refused() -> bool:
            return (await _revoke(http, service, "full")).status == 503

        await eventually(refused, "a refusal")
        for answer in await asyncio.gather(*(_revoke(http, service, "full") for _ in range(AT_ONCE))):
            _is_told(answer)
        assert await _is_revoked(http, service, "before")
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))
        await _writes_again(http, service, 5)


async def test_a_snapshot_that_fails_is_503_until_it_succeeds(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """While Redis refuses writes because a snapshot failed (MISCONF), /revoke answers 503 and checks work."""
    data = tmp_path / "data"
    data.mkdir()
    config = ("appendonly no", f"dir {data}", "save 3600 1")
    async with _unwilling(tmp_path / "service", http, config) as (server, service):
        shutil.rmtree(data)
        await server.command("BGSAVE")

        async def failed() -> bool:
            return bool((await server.info("persistence"))["rdb_last_bgsave_status"] == "err")

        await eventually(failed, "the failure of the snapshot")
        _is_told(await _revoke(http, service, "refused"))
        assert await _is_revoked(http, service, "before")
        await server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        await _writes_again(http, service, BACK_WITHIN_SECONDS)


async def test_a_private_redis_whose_disk_is_full_loses_nothing_that_was_acknowledged(
    tmp_path: pathlib.Path, http: aiohttp.ClientSession
) -> None:
    """Each revocation that was answered 200 stays revoked, although Redis dies at each write that it cannot append."""
    service = ServiceProcess(tmp_path, {"REVOCATION_LOG_LEVEL": "error"}, arguments=("-c", LITTLE_DISK))
    async with ending(service):
        await service.start()
        acknowledged = []
        for number in range(400):
            answer = await _revoke(http, service, f"little-{number}")
            if answer.status == 200:
                acknowledged.append(f"little-{number}")
            else:
                _is_told(answer)
                if len(acknowledged) < number:
                    break
        assert 10 < len(acknowledged) < 398, "the disk was never full"

        async def all_revoked() -> bool:
            body = {"checks": [{"jti": name} for name in acknowledged]}
            answer = await ask(http, "POST", f"{service.url}/check/batch", body)
            assert answer.status in {200, 503}, answer
            return answer.status == 200 and all(bool(result["revoked"]) for result in answer.body["results"])

        await eventually(all_revoked, "an answer about all that was acknowledged")
