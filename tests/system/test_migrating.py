"""An application moves from its in-process blacklist to the service under load, in the steps of docs/migrating.md."""

import asyncio
import contextlib
import itertools
import pathlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import aiohttp

from tests.redis_processes import HOST, Process, eventually, free_port, standalone
from tests.scale import scaled
from tests.system.service_process import ServiceProcess, ending
from tests.system.tokens import mint

KEY = "moving-key-0123456789abcdef"
ROOT = pathlib.Path(__file__).parents[2]
USERS = 4
ROUNDS = scaled(10, 500)
"""Logouts in each step of the move."""


def application(
    directory: pathlib.Path, redis: Process, stage: str, service_url: str, *options: str, **settings: str
) -> ServiceProcess:
    """Return one process of the application, at this stage of the move."""
    port = free_port()
    environment = {
        "MOVING_STAGE": stage,
        "MOVING_REDIS_URL": redis.url,
        "REVOCATION_URL": service_url,
        "REVOCATION_API_KEY": KEY,
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    where = ("tests.system.moving_app:app", "--host", HOST, "--port", str(port), "--log-level", "warning")
    return ServiceProcess(directory / f"{stage}-{port}", environment, port, ("-m", "uvicorn", *where, *options))


@dataclass
class Load:
    """Users who call the application, log out, and then try the token at all its processes."""

    urls: list[str]
    """The processes that a balancer would choose from."""
    logouts: int = 0
    accepted: list[str] = field(default_factory=list)
    """The URLs at which a token was accepted after its logout."""
    failed: list[str] = field(default_factory=list)
    _in_flight: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Run the users until cancelled."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as users:
            for number in range(USERS):
                users.create_task(self._user(http, number))

    async def _user(self, http: aiohttp.ClientSession, number: int) -> None:
        for turn in itertools.count(number):
            token = mint(jti=uuid4().hex)
            await self._expect(http, "GET", "/me", token, self._choose(turn), 200)
            await self._expect(http, "POST", "/auth/logout", token, self._choose(turn + 1), 204)
            for url in [*self.urls]:
                if await self._expect(http, "GET", "/me", token, url, 401) == 200:
                    self.accepted.append(url)
            self.logouts += 1

    def _choose(self, turn: int) -> str:
        return self.urls[turn % len(self.urls)]

    async def _expect(
        self, http: aiohttp.ClientSession, method: str, path: str, token: str, url: str, status: int
    ) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        self._in_flight[url] += 1
        try:
            async with http.request(method, url + path, headers=headers) as response:
                if response.status != status:
                    self.failed.append(f"{method} {path} at {url}: {response.status}, not {status}")
                return response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failed.append(f"{method} {path} at {url}: {type(error).__name__}")
            return 0
        finally:
            self._in_flight[url] -= 1

    async def further(self, logouts: int = ROUNDS) -> None:
        """Wait until there were `logouts` more logouts."""
        wanted = self.logouts + logouts

        async def done() -> bool:
            return self.logouts >= wanted

        await eventually(done, f"{logouts} logouts")

    async def replace(self, old: ServiceProcess, new: ServiceProcess) -> None:
        """Start a new process beside the old one, let both work for a while, then stop the old one in order."""
        await new.start("/healthz")
        self.urls = [old.url, new.url]
        await self.further()
        self.urls = [new.url]

        async def idle() -> bool:
            return self._in_flight[old.url] == 0

        await eventually(idle, "the end of the requests to the old process")
        old.signal(signal.SIGTERM)
        await old.ended()
        await self.further()


@contextlib.asynccontextmanager
async def balancer(backends: Sequence[ServiceProcess]) -> AsyncIterator[str]:
    """Run a TCP balancer that sends each connection to the first backend that accepts it. Yield its URL."""

    relays: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_relay(reader, writer, backends))
        relays.add(task)
        task.add_done_callback(relays.discard)

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, backends: Sequence[ServiceProcess]
) -> None:
    async with _closing(writer):
        for backend in backends:
            with contextlib.suppress(ConnectionRefusedError):
                far_reader, far_writer = await asyncio.open_connection(HOST, backend.port)
                async with _closing(far_writer):
                    await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
                return


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_an_application_moves_under_load_without_a_failed_request(tmp_path: pathlib.Path) -> None:
    """Each step of the move runs old and new processes. No request fails, and no logged-out token is accepted."""
    async with standalone() as redis:
        settings = {
            "REVOCATION_REDIS_URL": redis.url,
            "REVOCATION_API_KEYS": f"api={KEY}:check+revoke",
        }
        foreign = settings | {"REVOCATION_FOREIGN_WRITERS": "true"}
        ports = free_port(), free_port()
        services = [ServiceProcess(tmp_path / f"service-{port}", foreign, port) for port in ports]
        later = [ServiceProcess(tmp_path / f"later-{port}", settings, port) for port in ports]
        async with balancer(services) as url:
            stages = ("in_process", "swapped", "moved")
            apps = [application(tmp_path, redis, stage, url) for stage in stages]
            async with ending(*apps, *services, *later):
                for service in services:  # before the first foreign key, which they do not detect by themselves
                    await service.start()
                await apps[0].start("/healthz")
                load = Load([apps[0].url])
                calling = asyncio.create_task(load.run())
                try:
                    await load.further()
                    await load.replace(apps[0], apps[1])
                    await load.replace(apps[1], apps[2])
                    for old, new in zip(services, later, strict=True):
                        old.signal(signal.SIGTERM)
                        await old.ended()
                        await new.start()
                        await load.further()
                finally:
                    calling.cancel()
                    await asyncio.wait([calling])
        assert not load.accepted
        assert not load.failed


async def test_a_limit_that_stays_behind_the_gateway_counts_all_users_as_one(tmp_path: pathlib.Path) -> None:
    """An application with --no-proxy-headers and its own login limit refuses the second user (docs/migrating.md)."""
    async with standalone() as redis:
        app = application(tmp_path, redis, "in_process", "", "--no-proxy-headers", MOVING_LOGIN_LIMIT="1")
        port, admin_port = free_port(), free_port()
        gateway_settings = {
            "GATEWAY_PORT": str(port),
            "GATEWAY_ADMIN_PORT": str(admin_port),
            "GATEWAY_UPSTREAM_URL": app.url,
            "GATEWAY_TRUSTED_PROXIES": HOST,
        }
        command = ("-m", "revocation_service", "gateway")
        gateway = ServiceProcess(tmp_path / "gateway", gateway_settings, admin_port, command)
        async with ending(app, gateway):
            await app.start("/healthz")
            await gateway.start()
            async with aiohttp.ClientSession(f"http://{HOST}:{port}") as http:
                statuses = [await log_in(http, f"203.0.113.{user}") for user in (1, 2) for _ in range(5)]
    assert statuses == [200] * 5 + [429] * 5
    assert not gateway.events("login_denied")


async def log_in(http: aiohttp.ClientSession, address: str) -> int:
    async with http.post("/auth/login", headers={"X-Forwarded-For": address}) as response:
        return response.status
