"""`revocation-service watch`: what an operator sees of a feed, and how it ends."""

import asyncio
import contextlib
import io
import re
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from revocation_service.errors import WatchFailed
from revocation_service.settings import WatchSettings
from revocation_service.watch import watch
from tests.redis_processes import eventually, free_port
from tests.web.serving import API_KEYS, KEYS, Service, Start

ENDED_SECONDS = 20
LONG_JTI = "0123456789-and-the-rest"


def _settings(service: Service, key: str | None = KEYS["checker"]) -> WatchSettings:
    return WatchSettings(str(service.url).rstrip("/"), key)


@contextlib.asynccontextmanager
async def watched(service: Service) -> AsyncIterator[io.StringIO]:
    """What it prints, from when it is in step."""
    await eventually(lambda: _in_step(service), "a service in step")
    out = io.StringIO()
    watching = asyncio.create_task(watch(_settings(service), out))
    try:
        await eventually(lambda: _has(out, r"synced +\S+"), "a feed in step")
        yield out
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _in_step(service: Service) -> bool:
    return bool((await service.get("/readyz")).json["components"]["mirror"]["status"] == "synced")


async def _has(out: io.StringIO, pattern: str) -> bool:
    return re.search(rf"^\d\d:\d\d:\d\d {pattern}$", out.getvalue(), re.MULTILINE) is not None


async def test_each_event_is_a_line(service: Service) -> None:
    """Heartbeats, the snapshot's size and changes with claim, cutoff and remaining life; a `jti` is cut short."""
    await service.revoke({"sid": "earlier"})
    async with watched(service) as out:
        assert await _has(out, "snapshot +1 revocations"), out.getvalue()
        await service.revoke({"jti": LONG_JTI, "expires_in": 100, "reason": "not for everybody"})
        await service.revoke({"sub": "älice", "issued_before": 1_700_000_000})
        await eventually(lambda: _has(out, r'change +jti "01234567…"  for (99|100) s'), "the token's line")
        await eventually(lambda: _has(out, r'change +sub "älice"  issued until 1700000000.000  for \d+ s'), "the other")
        await eventually(lambda: _has(out, r"heartbeat +\d\.\d{3} s behind Redis"), "a heartbeat")
    assert LONG_JTI not in out.getvalue()


@pytest.mark.parametrize(
    ("key", "advice"), [(None, "answered 401.*scope check"), (KEYS["revoker"], "answered 403.*scope check")]
)
async def test_a_refusal_says_what_to_do(service: Service, key: str | None, advice: str) -> None:
    """Without a key, or with one that may not follow, the error names the setting."""
    with pytest.raises(WatchFailed, match=f"{advice}|REVOCATION_API_KEY"):
        await watch(_settings(service, key), io.StringIO())


async def test_a_service_that_is_not_in_step_is_named(start: Start) -> None:
    """While the service itself knows nothing, the operator is told to try again."""
    service = await start(API_KEYS=API_KEYS, REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(WatchFailed, match=r"answered 503.*try again"):
        await watch(_settings(service), io.StringIO())


async def test_nobody_there_is_an_error() -> None:
    """An address at which nobody listens is named."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(WatchFailed, match=f"the feed of {url} cannot be had"):
        await watch(WatchSettings(url, None), io.StringIO())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_quietly(service: Service, stop: signal.Signals) -> None:
    """As a command it prints until it is stopped, and then ends with 0 and without a traceback."""
    await eventually(lambda: _in_step(service), "a service in step")
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "revocation_service", "watch"),
        env={"REVOCATION_URL": str(service.url), "REVOCATION_API_KEY": KEYS["checker"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert command.stdout is not None
    while b"synced" not in await command.stdout.readline():
        assert command.returncode is None
    command.send_signal(stop)
    async with asyncio.timeout(ENDED_SECONDS):
        _, complaints = await command.communicate()
    assert (command.returncode, complaints) == (0, b"")


async def test_an_address_that_is_none_is_refused() -> None:
    """A wrong REVOCATION_URL is one line that names it, before anything is asked."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "revocation_service", "watch"),
        env={"REVOCATION_URL": "redis://127.0.0.1:6379"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaints = await command.communicate()
    assert command.returncode == 1
    assert complaints.startswith(b"revocation-service: REVOCATION_URL must be the address")
