"""The private Redis behind `embedded:`, started, watched and stopped with the service.

It knows nothing of what is stored in it.
"""

import asyncio
import contextlib
import os
import pathlib
import random
import re
import secrets
import shutil
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Iterator
from typing import Self

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from revocation_service.errors import SettingsError
from revocation_service.store.data_directory import LOCK_NAME, check_writer, make_private, note_writer, unusable
from revocation_service.store.embedded_child import dying_with_parent
from revocation_service.store.server_binary import find_server

SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # sun_path in unix(7), less the closing NUL

LOCK_SECONDS = 2.0  # what a service that is just dying gets to let go

READY_SECONDS = 30.0  # counted from the last LOADING: a large file may take its time

PING_SECONDS = 1.0

POLL_SECONDS = 0.02

STOP_SECONDS = 3.0

STEADY_SECONDS = 30.0  # having lived this long, a Redis that dies is restarted at once again

BACKOFF_BASE_SECONDS = 0.25

BACKOFF_MAX_SECONDS = 10.0

LAST_WORDS_BYTES = 4096

_LOG_PREFIX = re.compile(r"^\d+:[A-Z] .{20,30} [.*#-] ")

_log = structlog.get_logger()


class EmbeddedRedis:
    """A private Redis on a unix socket that no other user can open; every acknowledged write is on disk."""

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
        """The process id of the Redis that runs now, if one does."""
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
        make_private(self.directory)
        self._lock = await _take_lock(self.directory)
        try:
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
        """End the supervisor, then Redis, then let go of the directory; a second call finds nothing to do."""
        try:
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is not None:
                supervisor.cancel()
                await asyncio.wait({supervisor})
            await self._end_process()
        finally:
            self._kill()  # nothing to kill unless the waiting above was cancelled
            self._let_go()

    @property
    def _log_path(self) -> pathlib.Path:
        return self.directory / "redis.log"

    def _choose_socket(self) -> None:
        """Move the socket to a private directory of a short name where the kernel would refuse the path."""
        if len(os.fsencode(self.socket_path)) <= SOCKET_PATH_BYTES:
            return
        self._socket_directory = tempfile.mkdtemp(prefix="revocation-")
        self.socket_path = str(pathlib.Path(self._socket_directory) / "redis.sock")
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_BYTES:
            raise SettingsError(f"embedded: {self.socket_path} is too long for a socket; set TMPDIR to a short path")

    def _let_go(self) -> None:
        """Release the lock by closing only: an explicit unlock would take it from a Redis that still lives."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
        socket_directory, self._socket_directory = self._socket_directory, None
        if socket_directory is not None:
            shutil.rmtree(socket_directory, ignore_errors=True)
            self.socket_path = str(self.directory / "redis.sock")

    async def _launch(self) -> None:
        """Start one server and wait for it; if it does not come up it is gone before the error is raised."""
        self._process = process = await self._spawn()
        try:
            await self._until_ready(process)
        except SettingsError:
            await self._end_process()
            raise

    async def _spawn(self) -> Process:
        """Redis in a session of its own, so that a terminal's Ctrl-C reaches the service and not its store."""
        assert self._lock is not None
        with _readable(self._config()) as config, self._log_path.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *dying_with_parent([self._server, "-"]),
                stdin=config,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(self._lock,),
                start_new_session=True,
            )

    def _config(self) -> bytes:
        """What makes an acknowledged write survive, and the server unreachable but for us."""
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
        """Wait for an answer; one that is still loading its file is given as long as it needs."""
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
        raise self._not_started(f"exit status {process.returncode}, {self._last_words()}")

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

    def _last_words(self) -> str:
        """The last line that Redis wrote, for the error that says why it did not start."""
        tail = self._log_path.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace")
        lines = [_LOG_PREFIX.sub("", line.strip()) for line in tail.splitlines() if line.strip()]
        return lines[-1].replace(self.password, "***") if lines else "it said nothing"

    async def _supervise(self) -> None:
        """As long as the service lives its Redis is brought back, on the same socket with the same password."""
        attempt = 0
        while True:
            if await self._lifetime() >= STEADY_SECONDS:
                attempt = 0
            attempt = await self._restart(attempt)

    async def _lifetime(self) -> float:
        """Wait until the running Redis is gone, and say how many seconds that took."""
        assert self._process is not None
        now = asyncio.get_running_loop().time
        since = now()
        exit_code = await self._process.wait()
        _log.error("embedded_redis_exited", pid=self._process.pid, exit_code=exit_code)
        return now() - since

    async def _restart(self, attempt: int) -> int:
        """Try without end, for the service is no use without its store; returns the number of the next attempt."""
        while True:
            await asyncio.sleep(_delay_seconds(attempt))
            attempt += 1
            try:
                await self._launch()
            except (SettingsError, OSError) as error:
                why = {"detail": error.detail} if isinstance(error, SettingsError) else {"error": error}
                _log.error("embedded_redis_restart_failed", attempt=attempt, **why)
            else:
                _log.warning("embedded_redis_restarted", pid=self.pid, attempt=attempt)
                return attempt

    async def _end_process(self) -> None:
        """Ask politely, wait a bounded time, then insist."""
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


async def _take_lock(directory: pathlib.Path) -> int:
    """Take the directory's lock and return its descriptor, which Redis inherits: it is held while either lives."""
    try:
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(directory, error) from error
    try:
        await _hold(lock, directory)
    except BaseException:
        os.close(lock)
        raise
    return lock


async def _hold(lock: int, directory: pathlib.Path) -> None:
    """Take the lock, given that the service before this one may still be dying, and leave our pid in it."""
    now = asyncio.get_running_loop().time
    deadline = now() + LOCK_SECONDS
    while not _locked(lock):
        if now() > deadline:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise SettingsError(
                f"embedded: {directory} is in use by another service (process {holder}); "
                "stop that one, or name another directory in REVOCATION_REDIS_URL"
            )
        await asyncio.sleep(POLL_SECONDS)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _locked(lock: int) -> bool:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _readable(content: bytes) -> Iterator[int]:
    """A pipe that holds a few hundred bytes already, so that the password is in no argument and no file."""
    reader, writer = os.pipe()
    try:
        os.write(writer, content)
    finally:
        os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)


def _quoted(path: str) -> str:
    """A path as redis.conf reads it, whatever bytes are in it."""
    return '"' + "".join(_escaped(byte) for byte in os.fsencode(path)) + '"'


def _escaped(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b'"\\'
    return chr(byte) if plain else f"\\x{byte:02x}"


def _delay_seconds(attempt: int) -> float:
    """The first restart comes at once; those after it are spread, so that a crash loop does not eat the machine."""
    if attempt == 0:
        return 0.0
    longest = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2 ** min(attempt, 16))
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter is no secret
