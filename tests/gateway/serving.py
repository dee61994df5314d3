"""Run the gateway in this process or in its own, and upstreams: FastAPI under uvicorn, or scripted raw bytes."""

import asyncio
import contextlib
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web

from revocation_service.gateway.app import ADMIN, KEEPALIVE_SECONDS, runner
from revocation_service.gateway.settings import GatewaySettings, load
from revocation_service.http.serving import limited_runner
from revocation_service.store.embedded_child import dying_with_parent
from tests.api.serving import Raw, talk_to
from tests.redis_processes import HOST, eventually, free_port
from tests.system.service_process import START_SECONDS, ServiceProcess

ROOT: Final = pathlib.Path(__file__).parents[2]
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Gateway:
    """A gateway that runs in this process."""

    settings: GatewaySettings
    app: web.Application
    port: int
    admin_port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{HOST}:{self.admin_port}"

    async def talk(self, *pieces: bytes, answers: int = 1, seconds: float = 10.0) -> Raw:
        """Send raw bytes on a new connection. Read until `answers` responses have come, or the end, or a timeout."""
        return await talk_to(HOST, self.port, *pieces, answers=answers, seconds=seconds)


@contextlib.asynccontextmanager
async def gateway_before(upstream_url: str, **given: str) -> AsyncIterator[Gateway]:
    """Run a gateway in this process, on free ports. Settings are given without their `GATEWAY_` prefix."""
    async with impatient_gateway(KEEPALIVE_SECONDS, upstream_url, **given) as gateway:
        yield gateway


@contextlib.asynccontextmanager
async def impatient_gateway(keepalive_seconds: float, upstream_url: str, **given: str) -> AsyncIterator[Gateway]:
    """Run a gateway that waits `keepalive_seconds` for the head of a request."""
    variables = {"UPSTREAM_URL": upstream_url, **given}
    settings = load({f"GATEWAY_{name}": value for name, value in variables.items()}).settings
    gateway = runner(settings, keepalive_seconds)
    admin = limited_runner(gateway.app[ADMIN])
    await gateway.setup()
    await admin.setup()
    try:
        for each in (gateway, admin):
            await web.TCPSite(each, HOST, 0).start()
        yield Gateway(settings, gateway.app, gateway.addresses[0][1], admin.addresses[0][1])
    finally:
        await gateway.cleanup()
        await admin.cleanup()


COMMAND: Final = ("-m", "revocation_service", "gateway")


@dataclass(eq=False)
class GatewayProcess(ServiceProcess):
    """One gateway process, as a user starts it."""

    arguments: Sequence[str] = COMMAND
    admin_port: int = field(default_factory=free_port)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        own = {"GATEWAY_PORT": str(self.port), "GATEWAY_ADMIN_PORT": str(self.admin_port)}
        return inherited | own | dict(self.settings)

    @property
    def admin_url(self) -> str:
        return f"http://{HOST}:{self.admin_port}"

    async def until(self, probe: str, status: int = 200) -> None:
        """Wait until a probe on the admin port answers with `status`."""
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                assert self.alive, f"the gateway ended with {self.exit_code}:\n{self.output()}"
                async with session.get(self.admin_url + probe) as response:
                    return response.status == status

            await eventually(answers, f"{probe} of {self.admin_url}", START_SECONDS)

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of the process."""
        found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@contextlib.asynccontextmanager
async def gateway_process(
    directory: pathlib.Path, upstream_url: str, probe: str = "/readyz", arguments: Sequence[str] = COMMAND, **given: str
) -> AsyncIterator[GatewayProcess]:
    """Start a gateway process, wait until its probe answers 200, yield it, and kill it at the end."""
    variables = {"UPSTREAM_URL": upstream_url, "LOG_FORMAT": "json", **given}
    named = {f"GATEWAY_{name}": value for name, value in variables.items()}
    process = GatewayProcess(directory, named, arguments=arguments)
    try:
        await process.start(probe)
        yield process
    finally:
        process.kill()


@contextlib.asynccontextmanager
async def application(name: str = "tests.gateway.upstream_app:app", *options: str) -> AsyncIterator[str]:
    """Run an ASGI application under uvicorn in its own process, and yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", name, "--host", HOST, "--port", str(port)]
    command += ["--no-proxy-headers", "--log-level", "critical", *options]
    process = subprocess.Popen(dying_with_parent(command), cwd=ROOT, start_new_session=True)
    try:
        await eventually(lambda: _listening(port), "the upstream", START_SECONDS)
        yield f"http://{HOST}:{port}"
    finally:
        process.kill()
        process.wait(20)


async def _listening(port: int) -> bool:
    _, writer = await asyncio.open_connection(HOST, port)
    writer.close()
    await writer.wait_closed()
    return True


Behaviour = Callable[["Visit"], Awaitable[None]]


@dataclass(eq=False)
class Visit:
    """One connection to a bare upstream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytearray = field(default_factory=bytearray)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway has ended the connection."""

    async def read(self) -> bytes:
        """Read and record the next bytes. Return empty bytes at the end."""
        try:
            data = await self.reader.read(1 << 16)
        except ConnectionError:
            data = b""
        self.received += data
        if not data:
            self.over.set()
        return data

    async def until(self, mark: bytes) -> None:
        """Read until the bytes of `mark` have come."""
        while mark not in self.received:
            if not await self.read():
                raise ConnectionError("the gateway closed the connection")

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def to_the_end(self) -> None:
        """Read until the gateway ends the connection."""
        while await self.read():
            pass


@dataclass(eq=False)
class BareUpstream:
    """An upstream that records the bytes of each connection."""

    port: int = 0
    visits: list[Visit] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def received(self) -> bytes:
        """All received bytes, of all connections."""
        return b"".join(bytes(visit.received) for visit in self.visits)

    @property
    def requests(self) -> int:
        """The number of request heads received."""
        return self.received.count(b" HTTP/1.1\r\n")

    async def visit(self) -> Visit:
        """Wait for the first connection, and return it."""
        async with asyncio.timeout(10):
            await self._arrived.wait()
        return self.visits[0]

    def arrived(self, visit: Visit) -> None:
        """Record a new connection."""
        self.visits.append(visit)
        self._arrived.set()


def answering(response: bytes, mark: bytes = b"\r\n\r\n") -> Behaviour:
    """Return a behaviour that reads until `mark`, sends `response` once, and reads to the end."""

    async def behave(visit: Visit) -> None:
        await visit.until(mark)
        await visit.send(response)
        await visit.to_the_end()

    return behave


async def answers_ok(visit: Visit) -> None:
    """Answer every request head with 200 until the connection ends."""
    answered = 0
    while await visit.read():
        while answered < visit.received.count(b"\r\n\r\n"):
            answered += 1
            await visit.send(OK)


@contextlib.asynccontextmanager
async def bare_upstream(behave: Behaviour = answers_ok) -> AsyncIterator[BareUpstream]:
    """Run an upstream that handles each connection by `behave` alone, without an HTTP library."""
    upstream = BareUpstream()
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[Any]] = set()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        visit = Visit(reader, writer)
        upstream.arrived(visit)
        try:
            await behave(visit)
        except ConnectionError:
            visit.over.set()
        except Exception as error:  # noqa: BLE001 - it fails the test below
            failures.append(error)
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(visited, HOST, 0)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tuple(tasks), return_exceptions=True)
    assert failures == []


def head_of(received: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Return the start line and the fields of the first head in these bytes."""
    lines = received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    return lines[0], [(name, value.strip(" ")) for name, _, value in (line.partition(":") for line in lines[1:])]


def fields_named(received: bytes, *names: str) -> list[tuple[str, str]]:
    """Return the fields of the first head that have one of these names, with their names in lower case."""
    return [(name.lower(), value) for name, value in head_of(received)[1] if name.lower() in names]


@contextlib.contextmanager
def idle_connections(port: int, number: int) -> Iterator[None]:
    """Open `number` connections. Half of them send nothing, and half the beginning of a head."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with contextlib.ExitStack() as stack:
            for each in range(number):
                connection = stack.enter_context(socket.create_connection((HOST, port)))
                if each % 2:
                    connection.sendall(b"GET / HTTP/1.1\r\n")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
