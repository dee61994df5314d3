"""The four parts of the demo, as processes on loopback: a private Redis, the service, the main API, the gateway.

They end with the demo, on Linux also if it is killed. Each writes its log to a file.
"""

import asyncio
import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import aiohttp
from pwdlib import PasswordHash

from revocation_service.errors import SettingsError
from revocation_service.store.embedded import EmbeddedRedis
from revocation_service.store.embedded_child import dying_with_parent
from walkthrough.shell import say

HOST: Final = "127.0.0.1"
READY_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
STOP_SECONDS: Final = 10.0
LAST_LINES: Final = 8
MAIN_API: Final = pathlib.Path(__file__).parents[1] / "main_api"
OURS: Final = ("REVOCATION_", "GATEWAY_", "MAIN_API_")
PASSED_ON: Final = ("GATEWAY_LOGIN_LIMIT", "GATEWAY_LOG_LEVEL", "REVOCATION_LOG_LEVEL")
"""The only settings that are passed on from the caller's environment."""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the parts."""

    gateway: int
    admin: int
    service: int
    main_api: int


def ports_from(environment: Mapping[str, str]) -> Ports:
    """Return the ports in the environment. If a default port is in use, another one is chosen.

    Raises DemoError if a port that is set is in use.
    """
    taken: set[int] = set()
    return Ports(
        gateway=_port(environment, "GATEWAY_PORT", 8000, taken),
        admin=_port(environment, "GATEWAY_ADMIN_PORT", 8001, taken),
        service=_port(environment, "REVOCATION_PORT", 8080, taken),
        main_api=_port(environment, "MAIN_API_PORT", 8081, taken),
    )


def _port(environment: Mapping[str, str], variable: str, usual: int, taken: set[int]) -> int:
    text = environment.get(variable)
    wanted = int(text) if text and text.isascii() and text.isdigit() else usual
    if text is not None and (str(wanted) != text or not 1 <= wanted <= 65_535):
        raise DemoError(f"{variable} must be a port, a number from 1 to 65535")
    port = _free(wanted, taken)
    if port is None and text is not None:
        raise DemoError(f"{variable}={text}: the port is in use; stop what listens there, or set another port")
    found = port or _free(0, taken)
    if found is None:
        raise DemoError(f"there is no free port on {HOST}")
    taken.add(found)
    return found


def _free(port: int, taken: set[int]) -> int | None:
    """Return the port if it is free, else None. 0 stands for any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return None
        found: int = probe.getsockname()[1]
        return None if found in taken else found


@dataclass(eq=False)
class Part:
    """One process, its settings, and the URL of its probe."""

    name: str
    command: list[str]
    settings: Mapping[str, str]
    probe: str
    directory: pathlib.Path
    _process: Process | None = None

    @property
    def log(self) -> pathlib.Path:
        """The file with its log."""
        return self.directory / f"{self.name.replace(' ', '-')}.log"

    async def start(self, http: aiohttp.ClientSession) -> None:
        """Start it and wait until it is ready. Raises DemoError."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_parent([sys.executable, *self.command]),
                cwd=self.directory,
                env={**_inherited(), **self.settings},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which stops the parts in order
            )
        await self._until_ready(http, self._process)
        say(f"  {self.name:10} ready, pid {self._process.pid}, log {self.log}")

    async def _until_ready(self, http: aiohttp.ClientSession, process: Process) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + READY_SECONDS
        while now() < deadline:
            if process.returncode is not None:
                raise DemoError(f"{self.name} ended with status {process.returncode}:\n{self._last_words()}")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(self.probe) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(POLL_SECONDS)
        raise DemoError(f"{self.name} is not ready within {READY_SECONDS:g} s:\n{self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"

    async def ended(self) -> str:
        """Wait for its end, and return an error text that names it."""
        assert self._process is not None
        status = await self._process.wait()
        return f"{self.name} ended by itself with status {status}:\n{self._last_words()}"

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after `STOP_SECONDS`."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _inherited() -> dict[str, str]:
    """Return the caller's environment without the settings of these programs."""
    return {name: value for name, value in os.environ.items() if name in PASSED_ON or not name.startswith(OURS)}


@dataclass(eq=False)
class Parts:
    """All four parts. They are stopped in the order gateway, main API, service, Redis. Their secrets are random."""

    directory: pathlib.Path
    ports: Ports
    user: str = "alice"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(9), repr=False)
    _secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _operators_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _parts: list[Part] = field(default_factory=list)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def gateway_url(self) -> str:
        """The address for users."""
        return f"http://{HOST}:{self.ports.gateway}"

    @property
    def admin_url(self) -> str:
        """The address of the gateway's probes and metrics."""
        return f"http://{HOST}:{self.ports.admin}"

    @property
    def service_url(self) -> str:
        """The address of the service."""
        return f"http://{HOST}:{self.ports.service}"

    @property
    def main_api_url(self) -> str:
        """The address of the main API, behind the gateway."""
        return f"http://{HOST}:{self.ports.main_api}"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        say("Starting, each in a process of its own:")
        redis = await self._start_redis()
        self._write_files(redis)
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            for part in (self._service(redis), self._main_api(), self._gateway(redis)):
                self._parts.append(part)
                self._stack.push_async_callback(part.stop)
            starts = [asyncio.create_task(part.start(http)) for part in self._parts]
            try:
                await asyncio.gather(*starts)  # the parts need each other to work, but not to start
            finally:
                for start in starts:
                    start.cancel()
                await asyncio.wait(starts)

    async def _start_redis(self) -> EmbeddedRedis:
        try:
            redis = await self._stack.enter_async_context(EmbeddedRedis(self.directory / "redis"))
        except SettingsError as error:
            raise DemoError(error.detail) from None
        say(f"  {'redis':10} ready, pid {redis.pid}, socket {redis.socket_path}")
        return redis

    def _write_files(self, redis: EmbeddedRedis) -> None:
        """Write the files that the walk's commands read. Secrets are in private files, because arguments are public."""
        self._write("alice.password", self.password)
        self._write("redis.url", f"unix://:{redis.password}@{redis.socket_path}")
        self._write("operator.header", f"Authorization: Bearer {self._operators_key}\n")
        shutil.copy(pathlib.Path(__file__).with_name("redis_ttl.py"), self.directory)

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.touch(0o600)
        path.write_text(text)

    def _service(self, redis: EmbeddedRedis) -> Part:
        settings = {
            "REVOCATION_HOST": HOST,
            "REVOCATION_PORT": str(self.ports.service),
            "REVOCATION_REDIS_URL": f"unix://{redis.socket_path}",
            "REVOCATION_REDIS_PASSWORD": redis.password,
            "REVOCATION_JWT_SECRET": self._secret,
            "REVOCATION_DRAIN_SECONDS": "0",
            "REVOCATION_API_KEYS": f"main-api={self._key}:check+revoke,operator={self._operators_key}:admin",
        }
        command = ["-m", "revocation_service", "serve"]
        return Part("service", command, settings, f"{self.service_url}/readyz", self.directory)

    def _main_api(self) -> Part:
        settings = {
            "MAIN_API_JWT_SECRET": self._secret,
            "MAIN_API_USERS": f"{self.user}={PasswordHash.recommended().hash(self.password)}",
            "REVOCATION_URL": self.service_url,
            "REVOCATION_API_KEY": self._key,
        }
        where = ["--app-dir", str(MAIN_API), "--host", HOST, "--port", str(self.ports.main_api)]
        command = ["-m", "uvicorn", "--factory", "main_api.app:create_app", *where, "--timeout-graceful-shutdown", "4"]
        return Part("main API", command, settings, f"{self.main_api_url}/healthz", self.directory)

    def _gateway(self, redis: EmbeddedRedis) -> Part:
        settings = {
            "GATEWAY_HOST": HOST,
            "GATEWAY_PORT": str(self.ports.gateway),
            "GATEWAY_ADMIN_PORT": str(self.ports.admin),
            "GATEWAY_UPSTREAM_URL": self.main_api_url,
            "GATEWAY_REDIS_URL": f"unix://{redis.socket_path}",
            "GATEWAY_REDIS_PASSWORD": redis.password,
            "GATEWAY_DRAIN_SECONDS": "0",
        }
        command = ["-m", "revocation_service", "gateway"]
        return Part("gateway", command, settings, f"{self.admin_url}/readyz", self.directory)

    async def first_to_end(self) -> str:
        """Wait until a part ends, which none should, and return an error text that names it."""
        waiting = [asyncio.create_task(part.ended()) for part in self._parts]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
