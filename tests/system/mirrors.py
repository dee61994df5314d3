"""Helpers of the mirror tests: applications with a mirror, connections that can be cut, and watches of mirrors.

Run as a module, it is such an application: for each question, a line on stdin, it prints the answers of its client.
"""

import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from revocation_client import RevocationClient
from revocation_service.store.embedded_child import dying_with_parent
from tests.redis_processes import HOST, Process
from tests.system.service_process import Answer, ServiceProcess, ask, ending
from tests.system.slow_proxy import SlowProxy

REPOSITORY = pathlib.Path(__file__).parents[2]
KEY = "the-key-of-the-one-caller-there-is"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
ANSWER_SECONDS = 0.5
READY_SECONDS = 30.0
LIFE_SECONDS = 3600
LOOK_SECONDS = 0.005
LOOK_MOST = 1_000
BATCH = 500
AT_ONCE = 20
LINE_BYTES = 1 << 20


class Line:
    """A TCP proxy to one port, whose connections can be cut and mended.

    While it is cut, it still listens, but resets each connection at once. Closing the listener while a client
    connects would leave an unclosed transport behind on Python 3.11 (`Server._attach` fails on a closed server).
    """

    def __init__(self, target_port: int) -> None:
        self._proxy = SlowProxy(target_port)
        self._listener: asyncio.Server | None = None
        self.whole = False
        """Whether it lets connections through."""

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self._proxy.port

    async def mend(self) -> None:
        """Let connections through."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, HOST, self._proxy.port)
        self.whole = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.whole:
            await self._proxy.serve(reader, writer)
        else:
            writer.transport.abort()

    async def cut(self) -> None:
        """Cut all connections, and let none through."""
        self.whole = False
        await self._proxy.aclose()

    async def aclose(self) -> None:
        """Cut all connections, and stop listening."""
        await self.cut()
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()

    async def drop(self) -> None:
        """Cut all connections, but accept new ones."""
        await self._proxy.aclose()


@contextlib.asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    """Run and yield a line that lets connections through."""
    line = Line(port)
    await line.mend()
    try:
        yield line
    finally:
        await line.aclose()


@dataclass(frozen=True)
class Said:
    """The answers of an application about one token."""

    began: float
    """When it looked, by the monotonic clock, which all processes of this machine share."""
    revoked: bool
    source: str
    quickly: bool
    """The result of `is_revoked`."""
    at_once: bool | None
    """The result of `is_revoked_now`."""


class Application:
    """An application in a process of its own, with a client that keeps a mirror."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Said]] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            number, *said = json.loads(line)
            waiting = self._waiting.pop(number)
            if not waiting.done():  # else the question was cancelled
                waiting.set_result(Said(*said))
        for left in self._waiting.values():
            if not left.done():
                left.set_exception(AssertionError("the application has ended"))

    async def ask(self, claims: Mapping[str, object]) -> Said:
        """Ask about a token. A frozen application answers when it is thawed."""
        assert self._process.stdin is not None
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps([number, claims]).encode() + b"\n")
        return await self._waiting[number]

    def freeze(self) -> None:
        """Suspend the process (SIGSTOP)."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process (SIGCONT)."""
        self._process.send_signal(signal.SIGCONT)

    async def aclose(self) -> None:
        """Kill the process."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading


@contextlib.asynccontextmanager
async def application(url: str, max_staleness_seconds: float, api_key: str = "") -> AsyncIterator[Application]:
    """Run an application with `on_unavailable="allow"`, and yield it when its mirror is ready."""
    command = [sys.executable, "-m", "tests.system.mirrors", url, str(max_staleness_seconds)]
    process = await asyncio.create_subprocess_exec(
        *dying_with_parent(command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env=os.environ | {"REVOCATION_API_KEY": api_key},
        limit=LINE_BYTES,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"in step\n"
    running = Application(process)
    try:
        yield running
    finally:
        await running.aclose()


async def _be_one(url: str, max_staleness_seconds: float) -> None:
    client = RevocationClient(
        url,
        api_key=os.environ["REVOCATION_API_KEY"] or None,
        max_staleness_seconds=max_staleness_seconds,
        timeout_seconds=ANSWER_SECONDS,
    )
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with client, asyncio.TaskGroup() as answering:
        assert await client.mirror_ready(READY_SECONDS)
        sys.stdout.write("in step\n")
        sys.stdout.flush()
        while line := await reader.readline():
            answering.create_task(_answer(client, *json.loads(line)))


async def _answer(client: RevocationClient, number: int, claims: dict[str, object]) -> None:
    began = time.monotonic()
    at_once = client.is_revoked_now(claims)
    verdict, quickly = await asyncio.gather(client.check(claims), client.is_revoked(claims))
    sys.stdout.write(json.dumps([number, began, verdict.revoked, verdict.source, quickly, at_once]) + "\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def two_instances(
    directory: pathlib.Path, redis: Process, **settings: str
) -> AsyncIterator[list[ServiceProcess]]:
    """Start two services on one Redis; callers need `KEY`."""
    told = {
        "REVOCATION_REDIS_URL": redis.url,
        "REVOCATION_API_KEYS": f"main-api={KEY}:admin",
        "REVOCATION_DRAIN_SECONDS": "0",
        "REVOCATION_LOG_LEVEL": "warning",
    } | settings
    services = [ServiceProcess(directory / str(number), told) for number in range(2)]
    async with ending(*services):
        await asyncio.gather(*(service.start() for service in services))
        yield services


@contextlib.asynccontextmanager
async def caller() -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session that may revoke."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=AUTHORIZED) as session:
        yield session


async def revoke(http: aiohttp.ClientSession, service: ServiceProcess, claims: Mapping[str, Any]) -> Answer | None:
    """Try once to revoke what these claims name. Return None if there is no answer."""
    body = dict(claims) | ({"expires_in": LIFE_SECONDS} if "jti" in claims else {})
    try:
        return await ask(http, "POST", f"{service.url}/revoke", body)
    except (aiohttp.ClientError, TimeoutError):
        return None


async def all_revoked(http: aiohttp.ClientSession, service: ServiceProcess, claims: Sequence[Mapping[str, Any]]) -> int:
    """Return how many of these are revoked according to `/check/batch`."""
    found = 0
    for some in pieces(claims):
        answer = await ask(http, "POST", f"{service.url}/check/batch", {"checks": [dict(one) for one in some]})
        assert answer.status == 200, answer
        found += sum(result.get("revoked") is True for result in answer.body["results"])
    return found


async def stored(redis: Process, claims: Iterable[Mapping[str, Any]]) -> int:
    """Return how many of these have a record in Redis."""
    keys = [key_of(one) for one in claims]
    async with redis.client() as client:
        return sum([await client.exists(*some) for some in pieces(keys)])


def key_of(claims: Mapping[str, Any]) -> str:
    """Return the Redis key of the revocation that these claims name."""
    ((claim, value),) = [(name, value) for name, value in claims.items() if name not in {"iat", "issued_before"}]
    return f"token_blacklist:{value}" if claim == "jti" else f"token_cutoff:{claim}:{value}"


def pieces(items: Sequence[Any], size: int = BATCH) -> Iterable[Sequence[Any]]:
    """Split the items into batches."""
    return (items[first : first + size] for first in range(0, len(items), size))


def nth(number: int) -> dict[str, Any]:
    """Return the claim of the nth revocation: mostly of a token, sometimes of a session or a subject."""
    if number % 50 == 49:
        return {"sub": f"subject-{number}"}
    return {"sid": f"session-{number}"} if number % 10 == 9 else {"jti": f"token-{number}"}


def token_of(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims of a token that a revocation of `named` covers."""
    return {"jti": "any", "iat": 1} | dict(named)


class Ledger:
    """The acknowledged revocations, and when each was acknowledged."""

    def __init__(self) -> None:
        self.named: list[dict[str, Any]] = []
        self.at: list[float] = []
        self.tries = 0

    def __len__(self) -> int:
        return len(self.named)

    async def fill(self, http: aiohttp.ClientSession, services: Sequence[ServiceProcess], most: int) -> None:
        """Revoke at full speed until `most` revocations are acknowledged. Retry each until an instance accepts it."""
        numbers = itertools.takewhile(lambda number: number < most, itertools.count(len(self)))

        async def one_after_another() -> None:
            for number in numbers:
                while (answer := await revoke(http, random.choice(services), nth(number))) is None or (
                    answer.status != 200
                ):
                    assert answer is None or (answer.status, answer.code) == (503, "store_unavailable"), answer
                    self.tries += 1
                    await asyncio.sleep(0.05)
                self.named.append(nth(number))
                self.at.append(time.monotonic())

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


class Watch:
    """Polls one client's mirror for each acknowledged revocation until the mirror knows it."""

    def __init__(self, client: RevocationClient, ledger: Ledger, max_staleness_seconds: float) -> None:
        self.client = client
        self.known = 0
        self.slowest = 0.0
        """The longest time from an acknowledgement until the mirror knew the revocation, in seconds."""
        self.latest_no = 0.0
        """The longest time after an acknowledgement at which the mirror still said "not revoked", in seconds."""
        self.silences = 0
        """How often the mirror gave no verdict."""
        self.too_late: dict[int, float] = {}
        """The revocations of which the mirror said "not revoked" for too long: by number, for how many seconds."""
        self.closed = False
        """Whether the client is closed, so that it cannot be asked."""
        self._ledger = ledger
        self._max_staleness_seconds = max_staleness_seconds
        self._pending: deque[int] = deque()
        self._seen = 0

    def look(self) -> None:
        """Ask for at most `LOOK_MOST` of the pending revocations, so that the event loop is not blocked for long."""
        if self.closed:
            return
        self._pending += range(self._seen, len(self._ledger))
        self._seen = len(self._ledger)
        for _ in range(min(len(self._pending), LOOK_MOST)):
            number = self._pending.popleft()
            if not self._knows(number):
                self._pending.append(number)

    def _knows(self, number: int) -> bool:
        named, waited = self._ledger.named[number], time.monotonic() - self._ledger.at[number]
        said = self.client.is_revoked_now(token_of(named))
        if said:
            self.known += 1
            self.slowest = max(self.slowest, waited)
        elif said is False:
            self.latest_no = max(self.latest_no, waited)
            if waited > self._max_staleness_seconds:
                self.too_late[number] = waited
        else:
            self.silences += 1
        return said is True

    @property
    def wrong(self) -> list[str]:
        """A message for each revocation in `too_late`."""
        return [
            f'{self._ledger.named[number]}: "not revoked" {waited:.2f} s after its acknowledgement'
            for number, waited in self.too_late.items()
        ]

    async def knows_all(self) -> bool:
        """Look once more, and return whether no revocation is pending any more."""
        self.look()
        return not self._pending

    def missing(self) -> list[dict[str, Any]]:
        """Ask for every acknowledged revocation again, and return those that the mirror does not know."""
        return [named for named in self._ledger.named if self.client.is_revoked_now(token_of(named)) is not True]


@contextlib.asynccontextmanager
async def watching(watches: list[Watch]) -> AsyncIterator[None]:
    """Let all watches in the list look continually while the block runs. The list may change meanwhile."""

    async def look() -> None:
        while True:
            for watch in [*watches]:
                watch.look()
                await asyncio.sleep(0)
            await asyncio.sleep(LOOK_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


if __name__ == "__main__":
    asyncio.run(_be_one(sys.argv[1], float(sys.argv[2])))
