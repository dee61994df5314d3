"""The client and a real service process that is killed, frozen or restarted, refuses the key, or loses its Redis."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_client import RequestRefused, RevocationClient, ServiceUnavailable
from tests.redis_processes import Process
from tests.scale import BUSY_SECONDS
from tests.system.service_process import ServiceProcess, ending

KEY = "outage-key-0123456789abcdef"
CHECK_KEY = "check-key-0123456789abcdef"
SECONDS = 0.5
QUESTION = {"jti": "outage", "sub": "alice", "iat": 5}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(redis: Process, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceProcess]:
    """A service process with an API key for everything and one for checks only."""
    settings = {
        "REVOCATION_REDIS_URL": redis.url,
        "REVOCATION_KEY_PREFIX": "outage:",
        "REVOCATION_MAX_STALENESS_SECONDS": "0",
        "REVOCATION_API_KEYS": f"admin={KEY}:admin,checker={CHECK_KEY}:check",
    }
    running = ServiceProcess(tmp_path_factory.mktemp("outage") / "service", settings)
    async with ending(running):
        yield running


@pytest.fixture
async def service(process: ServiceProcess) -> ServiceProcess:
    """The service process, started again if the test before has ended it."""
    if not process.alive:
        await process.start()
    return process


def client_of(service: ServiceProcess, **options: object) -> RevocationClient:
    given = {"api_key": KEY, "mirror": False, "timeout_seconds": SECONDS, "revoke_timeout_seconds": SECONDS} | options
    return RevocationClient(service.url, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("disorder", ["killed", "frozen"])
async def test_an_outage_is_the_policys_and_over_when_the_service_is_back(
    service: ServiceProcess, disorder: str
) -> None:
    """In an outage, checks are decided by policy and logouts raise, both in time. Afterwards the clients work again."""
    async with client_of(service) as allows, client_of(service, on_unavailable="deny") as denies:
        await allows.revoke_jti("outage", expires_in=600)
        assert await denies.is_revoked(QUESTION)
        if disorder == "killed":
            service.kill()
        else:
            service.signal(signal.SIGSTOP)
        try:
            for client, revoked in ((allows, False), (denies, True)):
                began = time.monotonic()
                verdict = await client.check(QUESTION)
                assert (verdict.revoked, verdict.source) == (revoked, "policy")
                assert time.monotonic() - began < SECONDS + BUSY_SECONDS
            began = time.monotonic()
            with pytest.raises(ServiceUnavailable):
                await allows.revoke_jti(f"{disorder}-logout", expires_in=600)
            assert time.monotonic() - began < SECONDS + BUSY_SECONDS
        finally:
            if disorder == "killed":
                await service.start()
            else:
                service.signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            while (await allows.check(QUESTION)).source == "policy":
                await asyncio.sleep(0.01)
        assert await allows.is_revoked(QUESTION)
        assert await denies.is_revoked(QUESTION)


async def test_a_restart_under_load_loses_no_question(service: ServiceProcess) -> None:
    """During an orderly restart, no check of a revoked token says "not revoked" under "deny", and none hangs."""
    async with client_of(service, on_unavailable="deny") as client:
        await client.revoke_jti("outage", expires_in=600)
        stop = asyncio.Event()
        verdicts = []

        async def ask() -> None:
            while not stop.is_set():
                verdicts.append(await client.check(QUESTION))

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            service.signal(signal.SIGTERM)
            await service.ended()
            await service.start()
            stop.set()
        assert all(verdict.revoked for verdict in verdicts)
        assert (await client.check(QUESTION)).source == "redis"


@pytest.mark.parametrize("policy", ["allow", "deny"])
@pytest.mark.parametrize(
    ("key", "status", "code"), [("wrong-key-0123456789abcdef", 401, "unauthorized"), (None, 401, "unauthorized")]
)
async def test_a_wrong_key_admits_no_token(
    service: ServiceProcess, key: str | None, status: int, code: str, policy: str
) -> None:
    """With a wrong key or none, every call raises under either policy. The error does not contain the key."""
    async with client_of(service, api_key=key, on_unavailable=policy) as client:
        for call in (client.check(QUESTION), client.ensure_active("token"), client.revoke_jti("x", expires_in=5)):
            with pytest.raises(RequestRefused) as caught:
                await call
            assert (caught.value.status, caught.value.code) == (status, code)
            assert "wrong-key" not in str(caught.value)


async def test_a_key_without_the_scope_revokes_nothing(service: ServiceProcess) -> None:
    """With a key that may only check, a revocation gets 403 and is not stored."""
    async with client_of(service, api_key=CHECK_KEY) as client:
        assert not await client.is_revoked({"jti": "scoped"})
        with pytest.raises(RequestRefused) as caught:
            await client.revoke_jti("scoped", expires_in=5)
        assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")
        assert not await client.is_revoked({"jti": "scoped"})


async def test_a_token_too_large_for_revoke_is_refused(service: ServiceProcess) -> None:
    """A token too large for `/revoke` raises RequestRefused with 413, and is not retried."""
    async with client_of(service) as client:
        with pytest.raises(RequestRefused) as caught:
            await client.revoke("x" * 70_000, expires_in=5)
        assert (caught.value.status, client.counters.retries) == (413, 0)


async def test_a_service_without_its_redis_is_away(service: ServiceProcess, redis: Process) -> None:
    """While Redis is frozen, the policy decides checks. A logout is retried, and acknowledged once Redis is back."""
    async with client_of(service, timeout_seconds=3, revoke_timeout_seconds=20) as client:
        redis.freeze()
        try:
            assert (await client.check({"jti": "never-heard-of"})).source == "policy"
            logout = asyncio.create_task(client.revoke_jti("patient", expires_in=600))
            async with asyncio.timeout(20):
                while not client.counters.retries:
                    await asyncio.sleep(0.01)
        finally:
            redis.thaw()
        await logout
        assert await client.is_revoked({"jti": "patient"})
