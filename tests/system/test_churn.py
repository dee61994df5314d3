"""A leak test: after an hour's worth of connects and disconnects, compressed, resource use is as before.

The service is a separate process, started as a user starts it, but a signal makes its clocks jump, because expired
revocations are forgotten only minutes later. The clients run in this process, and their clock jumps too.
"""

import asyncio
import contextlib
import gc
import logging
import os
import pathlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import aiohttp
import pytest

from revocation_client import RevocationClient
from tests.redis_processes import HOST, eventually, standalone
from tests.scale import scaled
from tests.system.mirrors import Line, line_to, pieces
from tests.system.service_process import ServiceProcess, ask, ending

WARM_UP: Final = scaled(4, 20)
ROUNDS: Final = scaled(6, 150)
STEADY: Final = 3
"""The number of clients that stay for the whole test, although their connections are cut in each round."""

KEPT: Final = 300
"""The number of revocations that do not expire during the test."""

SHORT_LIVED: Final = 150
"""The number of short-lived revocations in each round."""

SHORT_LIFE_SECONDS: Final = 1

FOLLOWERS: Final = 25
"""The number of followers in each round; each connects twice."""

CLIENTS: Final = 10
"""The number of clients in each round; half of them are closed without waiting for their mirrors."""

AT_ONCE: Final = 50
FEED_BYTES: Final = 1 << 20
LATER_SECONDS: Final = 2 * 86_400.0
"""How far the clocks jump. Redis' clock does not jump, and it delays forgetting by up to a day if it is behind."""

SETTLED_SECONDS: Final = 40.0
NOTICED_SECONDS: Final = 15.0
MORE_FILES: Final = 3
"""Allowed growth: a busy moment may have opened more connections to Redis than any before."""

MORE_TASKS: Final = 3
MORE_OBJECTS: Final = scaled(400, 1_500)
"""Allowed growth of the objects that the garbage collector tracks. One for each revocation would be more."""

MORE_BYTES: Final = scaled(16, 24) << 20
"""Allowed growth: the service buffers its last changes, up to 8 MiB, and the allocator may keep freed memory."""

Record = Callable[[str, object], None]

SERVE: Final = f"""
import asyncio, gc, json, signal, sys, time

real, uptime, ahead = time.time, time.clock_gettime, [0.0]
time.time = lambda: real() + ahead[0]
time.clock_gettime = lambda clock: uptime(clock) + ahead[0]

def later(*_):
    ahead[0] += {LATER_SECONDS}

def tell(*_):
    gc.collect()
    told = {{"event": "told", "tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}}
    sys.stderr.write(json.dumps(told) + "\\n")
    sys.stderr.flush()

signal.signal(signal.SIGUSR1, later)
signal.signal(signal.SIGUSR2, tell)

from revocation_service.cli import main
main(["serve"])
"""


class Clock:
    """The wall clock of the clients in this process."""

    ahead_seconds = 0.0

    @classmethod
    def now(cls) -> float:
        """Return epoch seconds."""
        return time.time() + cls.ahead_seconds


class Client(RevocationClient):
    """A client whose wall clock and uptime are those of `Clock`."""

    _wall = _uptime = staticmethod(Clock.now)


@dataclass(frozen=True)
class Seen:
    """The resources in use: by the service, and by this process with its clients."""

    service_files: int
    service_tasks: int
    service_objects: int
    service_bytes: int
    subscribers: int
    files: int
    tasks: int
    objects: int
    bytes: int


@dataclass
class Ground:
    """What stays for the whole test."""

    service: ServiceProcess
    lines: list[Line]
    clients: list[Client]
    revoked: int = 0

    async def revoke(self, http: aiohttp.ClientSession, count: int, expires_in: int) -> None:
        """Make `count` new revocations."""
        numbers = range(self.revoked, self.revoked + count)
        self.revoked += count
        for some in pieces(numbers, AT_ONCE):
            bodies = [{"jti": f"token-{number}", "expires_in": expires_in} for number in some]
            answers = await asyncio.gather(*(ask(http, "POST", f"{self.service.url}/revoke", body) for body in bodies))
            assert {answer.status for answer in answers} == {200}

    async def metric(self, name: str) -> int:
        """Return the value of a metric of the service."""
        async with aiohttp.ClientSession() as http:
            text = (await ask(http, "GET", f"{self.service.url}/metrics")).body
        return int(next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")))

    async def streams(self) -> dict[str, int]:
        """Return how many feed streams have begun, by kind. `dropped` counts those of the steady clients."""
        kinds = ("begun", "resumed", "reset")
        counts = [await self.metric(f'revocation_feed_streams_total{{kind="{kind}"}}') for kind in kinds]
        return dict(zip(kinds, counts, strict=True)) | {
            "dropped": sum(client.counters.streams for client in self.clients)
        }

    async def told(self) -> dict[str, Any]:
        """Let the service count its tasks and objects, which only it can, and return the counts."""
        before = len(self.service.events("told"))
        self.service.signal(signal.SIGUSR2)

        async def more() -> dict[str, Any] | None:
            events = self.service.events("told")
            return events[-1] if len(events) > before else None

        return await eventually(more, "what the service tells", SETTLED_SECONDS)

    async def seen(self) -> Seen:
        """Return the resources in use now."""
        told = await self.told()
        gc.collect()
        return Seen(
            service_files=self.service.open_files(),
            service_tasks=told["tasks"],
            service_objects=told["objects"],
            service_bytes=self.service.memory_bytes(),
            subscribers=await self.metric("revocation_feed_subscribers"),
            files=len(list(pathlib.Path("/proc/self/fd").iterdir())),
            tasks=len(asyncio.all_tasks()),
            objects=len(gc.get_objects()),
            bytes=_own_bytes(),
        )

    async def settle(self) -> None:
        """Wait until the service has noticed all disconnects, and the steady clients are in sync."""
        await eventually(self._settled, "what has gone is noticed, and who stays is in step", SETTLED_SECONDS)

    async def _settled(self) -> bool:
        statuses = [client.mirror_status for client in self.clients]
        connected = [status is not None and status.last_error is None for status in statuses]
        steady = [client.is_revoked_now({"jti": "unknown"}) is False for client in self.clients]
        return all(connected + steady) and await self.metric("revocation_feed_subscribers") == STEADY

    async def forget(self) -> None:
        """Move the clocks ahead, and wait until all expired revocations are forgotten."""
        await asyncio.sleep(SHORT_LIFE_SECONDS)  # until the last revocations have expired by Redis' clock too
        self.service.signal(signal.SIGUSR1)
        Clock.ahead_seconds += LATER_SECONDS
        await eventually(self._forgotten, "what has ended is forgotten", SETTLED_SECONDS)

    async def _forgotten(self) -> bool:
        held = [await self.metric("revocation_mirror_entries"), *map(_entries, self.clients)]
        return held == [KEPT] * (1 + STEADY)


def _entries(client: Client) -> int:
    assert client.mirror_status is not None
    return client.mirror_status.entries


def _own_bytes() -> int:
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def _ground(directory: pathlib.Path) -> AsyncIterator[Ground]:
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(standalone())
        settings = {
            "REVOCATION_REDIS_URL": redis.url,
            "REVOCATION_LOG_LEVEL": "warning",
            "REVOCATION_CHANGE_LOG_MAX_ENTRIES": "1000",
            "REVOCATION_RESCAN_SECONDS": "2",
            "REVOCATION_DRAIN_SECONDS": "0",
        }
        service = ServiceProcess(directory, settings, arguments=("-c", SERVE))
        await stack.enter_async_context(ending(service))
        await service.start()
        lines = [await stack.enter_async_context(line_to(service.port)) for _ in range(STEADY)]
        clients = [await stack.enter_async_context(Client(f"http://{HOST}:{line.port}")) for line in lines]
        assert all([await client.mirror_ready(SETTLED_SECONDS) for client in clients])
        yield Ground(service, lines, clients)


async def _churn(ground: Ground, rounds: int) -> tuple[int, int]:
    """Run the rounds. Return the most entries that the service, and that a steady client, held after a round."""
    most_of_service = most_of_client = 0
    async with aiohttp.ClientSession() as http:
        for number in range(rounds):
            await asyncio.gather(
                ground.revoke(http, SHORT_LIVED, SHORT_LIFE_SECONDS),
                *(_drop_or_cut(line, cut=(number + each) % 3 == 0) for each, line in enumerate(ground.lines)),
                *(_follow(ground.service.port, each) for each in range(FOLLOWERS)),
                *(_come_and_go(ground.service.url, each) for each in range(CLIENTS)),
            )
            most_of_service = max(most_of_service, await ground.metric("revocation_mirror_entries"))
            most_of_client = max(most_of_client, *map(_entries, ground.clients))
    return most_of_service, most_of_client


async def _drop_or_cut(line: Line, *, cut: bool) -> None:
    if cut:
        await line.cut()
        await asyncio.sleep(0.05)
        await line.mend()
    else:
        await line.drop()


async def _follow(port: int, number: int) -> None:
    """Follow the feed twice, and abort the connection each time. Some read nothing, others resume at their cursor."""
    cursor = b"of-another.1" if number % 3 == 0 else None
    for _ in range(2):
        reader, writer = await asyncio.open_connection(HOST, port, limit=FEED_BYTES)
        header = b"" if cursor is None else b"Last-Event-ID: " + cursor + b"\r\n"
        writer.write(b"GET /feed HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n")
        if number % 5:
            await reader.readuntil(b"event: synced\nid: ")
            cursor = (await reader.readline()).strip()
        else:
            await asyncio.sleep(0.005 * number)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _come_and_go(url: str, number: int) -> None:
    """Start a client, use it, and close it."""
    async with Client(url) as client:
        if number % 2:
            assert await client.mirror_ready(SETTLED_SECONDS)
            assert not await client.is_revoked({"jti": "unknown"})
        else:
            await asyncio.sleep(0.005 * number)
            assert (await client.revoke_jti(f"kept-{KEPT - 1}", expires_in=1)).result == "already_revoked"


async def test_an_hour_of_coming_and_going_leaves_nothing_behind(
    tmp_path: pathlib.Path, record_property: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """Service and clients have no more memory, tasks, descriptors and subscribers than before, within a margin."""
    caplog.set_level(logging.CRITICAL, "revocation_client")  # else pytest keeps a record of each disconnection
    async with _ground(tmp_path) as ground:
        async with aiohttp.ClientSession() as http:
            for number in range(KEPT):
                body = {"jti": f"kept-{number}", "expires_in": 20 * 86_400}
                assert (await ask(http, "POST", f"{ground.service.url}/revoke", body)).status == 200
        await _churn(ground, WARM_UP)
        await ground.settle()
        before = await ground.seen()
        streams = await ground.streams()
        held = await _churn(ground, ROUNDS)
        await ground.settle()
        await ground.forget()
        after = await _seen_as_before(ground, before)
        churned = {kind: count - streams[kind] for kind, count in (await ground.streams()).items()}
        for name, value in {"revocations": SHORT_LIVED * ROUNDS, "most_entries": held, **churned}.items():
            record_property(name, value)
        for name, was in asdict(before).items():
            record_property(name, f"{was} -> {asdict(after)[name]}")
        assert held[0] > KEPT + SHORT_LIVED * ROUNDS / 4, "hardly anything was to be forgotten"
        assert held[1] > KEPT + SHORT_LIVED / 4
        assert churned["resumed"] > FOLLOWERS * ROUNDS / 2
        assert churned["reset"] > FOLLOWERS * ROUNDS / 4
        assert churned["begun"] > FOLLOWERS * ROUNDS / 2
        assert churned["dropped"] >= STEADY
        assert _grown(before, after) == []


async def _seen_as_before(ground: Ground, before: Seen) -> Seen:
    """Return the resources in use at the end. Wait if they have grown, because disconnects may be noticed late."""
    until = time.monotonic() + NOTICED_SECONDS
    while _grown(before, after := await ground.seen()) and time.monotonic() < until:
        await asyncio.sleep(0.5)
    return after


def _grown(before: Seen, after: Seen) -> list[str]:
    """Return a message for each resource that has grown by more than its margin."""
    may = {"files": MORE_FILES, "tasks": MORE_TASKS, "objects": MORE_OBJECTS, "bytes": MORE_BYTES, "subscribers": 0}
    was, now = asdict(before), asdict(after)
    return [
        f"{name}: {was[name]} -> {now[name]}"
        for name in was
        if now[name] > was[name] + may[name.removeprefix("service_")]
    ]
