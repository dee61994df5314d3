"""Run the service as a real process in tests: started as a user starts it, and observed only from outside.

The process and its private Redis end with the test. If pytest itself is killed, the kernel kills them.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from revocation_service.store.embedded_child import dying_with_parent
from tests.redis_processes import HOST, eventually, free_port
from tests.settled import settle_url

START_SECONDS = 40.0
END_SECONDS = 20.0
SERVE = ("-m", "revocation_service", "serve")


@dataclass(frozen=True)
class Answer:
    """The response to one request, and how long it took."""

    status: int
    headers: Mapping[str, str]
    body: Any
    seconds: float

    @property
    def code(self) -> str | None:
        """The problem's code; None for a success."""
        return self.body.get("code") if isinstance(self.body, dict) else None


async def ask(session: aiohttp.ClientSession, method: str, url: str, body: Any = None, **options: Any) -> Answer:
    """Send one request, and measure the time until the last byte of its response."""
    began = time.perf_counter()
    if body is not None:
        options["json"] = body
    async with session.request(method, url, **options) as response:
        raw = await response.read()
        seconds = time.perf_counter() - began
        form = json.loads(raw) if response.content_type.endswith("json") else raw.decode()
        return Answer(response.status, response.headers, form, seconds)


@dataclass(eq=False)
class ServiceProcess:
    """One service process; its port and its directory stay the same from one start to the next."""

    directory: pathlib.Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    arguments: Sequence[str] = SERVE
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def state_directory(self) -> pathlib.Path:
        """The default data directory of the private Redis."""
        return self.directory / "state" / "revocation-service"

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def spawn(self) -> None:
        """Start the process without waiting until it is ready."""
        assert not self.alive, "it runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._output_path.open("ab") as output:
            self._popen = subprocess.Popen(
                dying_with_parent([sys.executable, *self.arguments]),
                env=self._environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REVOCATION_")}
        own = {"XDG_STATE_HOME": str(self.directory / "state"), "REVOCATION_PORT": str(self.port)}
        return inherited | own | dict(self.settings)

    async def start(self, probe: str = "/readyz") -> None:
        """Start the process and wait until a probe answers 200. `/healthz` does so without Redis too.

        Before the first start, Redis is prepared as if services had run on it (`settle_url`). Otherwise a start on a
        new Redis takes three seconds, which tests/replication/test_newcomers.py covers.
        """
        url = self.settings.get("REVOCATION_REDIS_URL", "")
        if self._popen is None and url.startswith("redis://"):
            await settle_url(url, self.settings.get("REVOCATION_KEY_PREFIX", ""))
        self.spawn()
        await self.until(probe)

    async def until(self, probe: str, status: int = 200) -> None:
        """Wait until a probe answers with a status. If the process ends before, the error contains its output."""
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                assert self.alive, f"the service ended with {self.exit_code}:\n{self.output()}"
                async with session.get(self.url + probe) as response:
                    return response.status == status

            await eventually(answers, f"{probe} of {self.url}", START_SECONDS)

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Wait until the process ends, and return its exit code."""

        async def over() -> bool:
            return not self.alive

        await eventually(over, f"the end of the service at {self.url}; it wrote:\n{self.output()}", seconds)
        assert self.exit_code is not None
        return self.exit_code

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for the signal that killed it; None while it runs."""
        return None if self._popen is None else self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._popen is not None
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill the process (SIGKILL). It may have ended already."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(END_SECONDS)

    @property
    def _output_path(self) -> pathlib.Path:
        return self.directory / "output.log"

    def output(self) -> str:
        """Return what it wrote to stdout and stderr in all its runs."""
        return self._output_path.read_text(errors="replace") if self._output_path.exists() else ""

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return its log events with these names, in order, also those that follow on a line which a kill cut off."""
        found = []
        for line in self.output().splitlines():
            for start in {0, line.rfind('{"')}:
                with contextlib.suppress(ValueError):
                    event = json.loads(line[start:])
                    if isinstance(event, dict) and event.get("event") in names:
                        found.append(event)
        return found

    def redis_pids(self) -> list[int]:
        """Return the process ids of its private Redis: one for each start, the latest last."""
        return [event["pid"] for event in self.events("embedded_redis_started", "embedded_redis_restarted")]

    async def redis_pid(self) -> int:
        """Return the process id of its running private Redis. Wait if Redis is being started."""

        async def running() -> int | None:
            pids = self.redis_pids()
            return pids[-1] if pids and not gone(pids[-1]) else None

        return await eventually(running, "a private Redis that runs")

    async def nothing_left(self, seconds: float = 5.0) -> None:
        """Wait until the service has ended, and no process, such as its Redis, has a file in its directory open."""

        async def none() -> bool:
            return not self.alive and not holders(self.directory)

        await eventually(none, f"the end of all processes in {self.directory}, {holders(self.directory)}", seconds)

    def memory_bytes(self) -> int:
        """Return the resident memory of the process, in bytes."""
        pages = pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        """Return the number of its open file descriptors."""
        return len(list(pathlib.Path(f"/proc/{self.pid}/fd").iterdir()))


def gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie has."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def holders(directory: pathlib.Path) -> list[int]:
    """Return the processes that have a file below the directory open."""
    return [pid for pid in _processes() if pid != os.getpid() and _holds(pid, f"{directory}{os.sep}")]


def _processes() -> list[int]:
    return [int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit()]


def _holds(pid: int, below: str) -> bool:
    """Return whether a process has a file below this path open. False if it ends or belongs to another user."""
    with contextlib.suppress(OSError):
        return any(_target(link).startswith(below) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    return False


def _target(link: pathlib.Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


@contextlib.asynccontextmanager
async def ending(*services: ServiceProcess) -> AsyncIterator[None]:
    """Kill these services after the block, whatever happens in it, and make sure that no Redis of theirs is left."""
    try:
        yield
    finally:
        for service in services:
            service.kill()
        try:
            for service in services:
                await service.nothing_left()
        finally:
            for left in (pid for service in services for pid in holders(service.directory)):
                os.kill(left, signal.SIGKILL)  # the test has already failed, but no process may stay


@contextlib.asynccontextmanager
async def serving(
    directory: pathlib.Path, settings: Mapping[str, str] | None = None, *, probe: str = "/readyz"
) -> AsyncIterator[ServiceProcess]:
    """Run a service, and yield it when the probe answers 200. No process of it is left afterwards."""
    service = ServiceProcess(directory, settings or {})
    async with ending(service):
        await service.start(probe)
        yield service
