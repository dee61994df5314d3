"""Logouts while the service and its Redis fail at random: each one is acknowledged and holds, or raises an error."""

import asyncio
import contextlib
import pathlib
import random
import signal
import time

from revocation_client import RevocationClient, ServiceUnavailable
from tests.redis_processes import Process
from tests.scale import BUSY_SECONDS, scaled
from tests.system.service_process import ServiceProcess, ending

LOGOUTS = scaled(120, 1000)
AT_ONCE = 10
DEADLINE_SECONDS = 1.5
KEY = "logout-key-0123456789abcdef"


class Disorder:
    """Kills or freezes the service, or freezes its Redis, again and again. Each time, both run again afterwards."""

    def __init__(self, service: ServiceProcess, redis: Process) -> None:
        self.kills = self.freezes = 0
        self._service, self._redis = service, redis
        self._random = random.Random(7)

    async def reign(self, until: asyncio.Event) -> None:
        acts = [self._freeze, self._kill, self._freeze_redis]
        coming = list(acts)  # each once, with a long freeze first; then at random
        while not until.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), self._random.uniform(0.05, 0.2))
            await (coming.pop(0) if coming else self._random.choice(acts))()

    async def _kill(self) -> None:
        self.kills += 1
        self._service.kill()
        await self._service.start()

    async def _freeze(self) -> None:
        self.freezes += 1
        self._service.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(0.1, 2.5) if self.freezes > 1 else DEADLINE_SECONDS + 0.5)
        finally:
            self._service.signal(signal.SIGCONT)

    async def _freeze_redis(self) -> None:
        self._redis.freeze()
        try:
            await asyncio.sleep(self._random.uniform(0.1, 1.5))
        finally:
            self._redis.thaw()


async def test_a_logout_is_acknowledged_and_holds_or_raises_in_time(redis: Process, tmp_path: pathlib.Path) -> None:
    """Whatever happens to the service, each logout is acknowledged or raises in time. No acknowledged one is lost."""
    settings = {
        "REVOCATION_REDIS_URL": redis.url,
        "REVOCATION_KEY_PREFIX": "logouts:",
        "REVOCATION_API_KEYS": f"app={KEY}:check+revoke",
    }
    service = ServiceProcess(tmp_path / "service", settings)
    acknowledged, raised, slowest = [], [], 0.0
    numbers = iter(range(LOGOUTS))
    done = asyncio.Event()
    client = RevocationClient(service.url, api_key=KEY, timeout_seconds=0.5, revoke_timeout_seconds=DEADLINE_SECONDS)

    async def log_out() -> None:
        nonlocal slowest
        for number in numbers:
            jti = f"logout-{number}"
            began = time.monotonic()
            try:
                await client.revoke_jti(jti, expires_in=3600)
            except ServiceUnavailable:
                raised.append(jti)
            else:
                acknowledged.append(jti)
                verdict = await client.check({"jti": jti})
                assert verdict.revoked or verdict.source == "policy", jti
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.1)  # to spread the logouts over all failures, instead of all before the first

    async with ending(service):
        await service.start()
        disorder = Disorder(service, redis)
        async with client:
            reign = asyncio.create_task(disorder.reign(done))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(log_out())
            finally:
                done.set()
                await reign
        assert len(acknowledged) + len(raised) == LOGOUTS
        assert min(len(acknowledged), len(raised), disorder.kills, disorder.freezes) > 0
        assert slowest < DEADLINE_SECONDS + 0.5 + 0.8 + BUSY_SECONDS, (
            "the deadline of a logout, a check's, and what a busy machine adds"
        )
        async with RevocationClient(service.url, api_key=KEY, timeout_seconds=20, on_unavailable="deny") as judge:
            found = await judge.check_many([{"jti": jti} for jti in acknowledged])
    assert [verdict.source for verdict in found] == ["redis"] * len(acknowledged)
    assert all(verdict.revoked for verdict in found)
