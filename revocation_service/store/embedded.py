"""The private Redis behind `embedded:`: started with the service, restarted if it exits, ended with the service."""

import asyncio
import contextlib
import os
import pathlib
import re
import secrets
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from typing import Final, Self

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from revocation_service.errors import SettingsError
from revocation_service.store.data_directory import check_writer, make_private, note_writer, take_lock, unusable
from revocation_service.store.embedded_child import dying_with_parent
from revocation_service.store.server_binary import find_server

SOCKET_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
"""Length of `sun_path` in unix(7), without the closing NUL."""

READY_SECONDS: Final = 30.0
"""How long a server may take to answer, counted from its last LOADING: a large file takes its time."""

PING_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 3.0
"""How long a server may take to end after SIGTERM."""

STEADY_SECONDS: Final = 30.0
"""A server that lived this long is restarted without a pause."""

LAST_LINES_BYTES: Final = 4096

_BACKOFF: Final = EqualJitterBackoff(cap=10, base=0.25)
_BACKOFF_MOST_FAILURES: Final = 16
"""More would change nothing, and overflow at last."""

_LOG_PREFIX: Final = re.compile(r"^\d+:[A-Z] .{20,30} [.*#-] ")

_log = structlog.get_logger()


class EmbeddedRedis:
    """A private Redis on a unix socket that no other user can open. Every acknowledged write is on disk."""

    def __init__(
        self, directory: pathlib.Path, *, server_bin: str | None = None, ready_seconds: float = READY_SECONDS
    ) -> None:
        self.directory = directory.absolute()
        self.password = secrets.token_hex(32)
        self.socket_path = str(self.directory / "redis.sock")
        self._server_bin = server_bin
        self._ready_seconds = ready_seconds
        self._server = ""
        self._lock: int | None = None
        self._socket_directory: str | None = None
        self._process: Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running Redis; None if there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it answers. Raises SettingsError if it cannot be started."""
        if sys.platform == "win32":
            raise SettingsError("embedded: needs Linux or macOS; set REVOCATION_REDIS_URL to a Redis elsewhere")
        server = await asyncio.to_thread(find_server, self._server_bin)
        self._server = server.path
        try:
            make_private(self.directory)
            self._lock = await take_lock(self.directory)
            check_writer(self.directory, server)
            self._choose_socket()
            self._log_path.write_bytes(b"")
            await self._launch()
            note_writer(self.directory, server)
        except OSError as error:
            await self.stop()
            raise unusable(self.directory, error) from error
        except BaseException:
            await self.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded-redis-supervisor")

    async def stop(self) -> None:
        """End the supervisor, then Redis, and release the directory. A second call does nothing."""
        try:
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is not None:
                supervisor.cancel()
                await asyncio.wait({supervisor})
            await self._end_process()
        finally:
            self._kill()  # it runs only if the wait above was cancelled
            self._release()

    @property
    def _log_path(self) -> pathlib.Path:
        return self.directory / "redis.log"

    def _choose_socket(self) -> None:
        """Put the socket into a private temporary directory if its path is too long for the kernel."""
        if len(os.fsencode(self.socket_path)) <= SOCKET_PATH_BYTES:
            return
        self._socket_directory = tempfile.mkdtemp(prefix="revocation-")
        self.socket_path = str(pathlib.Path(self._socket_directory) / "redis.sock")
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_BYTES:
            raise SettingsError(f"embedded: {self.socket_path} is too long for a socket; set TMPDIR to a short path")

    def _release(self) -> None:
        """Close the lock, and remove the directory of the socket. To unlock would also free a lock that Redis holds."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
        socket_directory, self._socket_directory = self._socket_directory, None
        if socket_directory is not None:
            shutil.rmtree(socket_directory, ignore_errors=True)
            self.socket_path = str(self.directory / "redis.sock")

    async def _launch(self) -> None:
        """Start a server and wait until it answers. Raises SettingsError after it has ended one that does not."""
        self._process = process = await self._spawn()
        try:
            await self._until_ready(process)
        except SettingsError:
            await self._end_process()
            raise

    async def _spawn(self) -> Process:
        """Start a server in a session of its own, so that Ctrl-C in a terminal reaches the service alone.

        Its configuration goes through a pipe, so that the password is in no argument and no file.
        """
        assert self._lock is not None
        with self._log_path.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *dying_with_parent([self._server, "-"]),
                stdin=PIPE,
                stdout=output,
                stderr=STDOUT,
                pass_fds=(self._lock,),
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(self._config())
        process.stdin.close()
        return process

    def _config(self) -> bytes:
        """Return a redis.conf by which acknowledged writes survive, and only this process can connect."""
        lines = (
            "port 0",
            f"unixsocket {_quoted(self.socket_path)}",
            "unixsocketperm 700",
            f"requirepass {self.password}",
            f"dir {_quoted(str(self.directory))}",
            "appendonly yes",
            "appendfsync always",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            'logfile ""',
        )
        return "".join(f"{line}\n" for line in lines).encode()

    async def _until_ready(self, process: Process) -> None:
        """Wait until the server answers; while it loads its file, for as long as that takes."""
        now = asyncio.get_running_loop().time
        deadline = now() + self._ready_seconds
        while process.returncode is None:
            try:
                return await self._ping()
            except BusyLoadingError:
                deadline = now() + self._ready_seconds
            except (RedisError, OSError) as error:
                if now() > deadline:
                    raise self._not_started(f"no answer on its socket: {error}") from error
            await asyncio.sleep(POLL_SECONDS)
        raise self._not_started(f"exit status {process.returncode}, {self._last_line()}")

    def _not_started(self, reason: str) -> SettingsError:
        return SettingsError(
            f"embedded: {self._server} could not start in {self.directory} ({reason}); see {self._log_path}"
        )

    async def _ping(self) -> None:
        client = redis.asyncio.Redis(
            unix_socket_path=self.socket_path,
            password=self.password,
            socket_timeout=None,  # with one, below Python 3.12, the library may swallow a cancellation
            socket_connect_timeout=PING_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        async with client, asyncio.timeout(PING_SECONDS):
            await client.ping()

    def _last_line(self) -> str:
        """Return the last line of the server's log, without the password: it usually says why a start failed."""
        tail = self._log_path.read_bytes()[-LAST_LINES_BYTES:].decode(errors="replace")
        lines = [_LOG_PREFIX.sub("", line.strip()) for line in tail.splitlines() if line.strip()]
        return lines[-1].replace(self.password, "***") if lines else "it said nothing"

    async def _supervise(self) -> None:
        """Restart Redis whenever it exits, without end: the service is of no use without its store."""
        now, failures = asyncio.get_running_loop().time, 0
        while process := self._process:
            since = now()
            exit_code = await process.wait()
            _log.error("embedded_redis_exited", pid=process.pid, exit_code=exit_code)
            if now() - since >= STEADY_SECONDS:
                failures = 0
            while not await self._restarted(failures):
                failures += 1
            failures += 1

    async def _restarted(self, failures: int) -> bool:
        """Pause, unless there was no failure before, and start Redis once. Return whether it answers."""
        if failures:
            await asyncio.sleep(_BACKOFF.compute(min(failures, _BACKOFF_MOST_FAILURES)))
        try:
            await self._launch()
        except (SettingsError, OSError) as error:
            why = {"detail": error.detail} if isinstance(error, SettingsError) else {"error": error}
            _log.error("embedded_redis_restart_failed", attempt=failures + 1, **why)
            return False
        _log.warning("embedded_redis_restarted", pid=self.pid, attempt=failures + 1)
        return True

    async def _end_process(self) -> None:
        """Send SIGTERM, and SIGKILL after `STOP_SECONDS`. Wait for the end."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            _log.warning("embedded_redis_killed", pid=process.pid, waited_seconds=STOP_SECONDS)
            self._kill()
            await process.wait()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _quoted(path: str) -> str:
    """Return a path as redis.conf takes it, whatever bytes it has."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(path)) + '"'
