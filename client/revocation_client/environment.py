"""The client's settings in the environment; nothing else of the client reads it."""

import os
from collections.abc import Mapping
from pathlib import Path

from revocation_client.errors import ConfigurationError

URL = "REVOCATION_URL"
API_KEY = "REVOCATION_API_KEY"
API_KEY_FILE = "REVOCATION_API_KEY_FILE"


def url_and_key(environment: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """Where the service is, and the key for it: by default from the process's environment.

    Raises ConfigurationError.
    """
    given = os.environ if environment is None else environment
    url = given.get(URL, "").strip()
    if not url:
        raise ConfigurationError(URL, "is not set: the address of the revocation service, as http://revocation:8080")
    return url, api_key(given)


def api_key(environment: Mapping[str, str] | None = None) -> str | None:
    """The key, from the variable or from the file that the other variable names; None where neither is set.

    Raises ConfigurationError.
    """
    given = os.environ if environment is None else environment
    if API_KEY in given and API_KEY_FILE in given:
        raise ConfigurationError(API_KEY, f"and {API_KEY_FILE} are both set")
    name = API_KEY_FILE if API_KEY_FILE in given else API_KEY
    key = _read(given[name]) if name == API_KEY_FILE else given.get(name)
    if key is not None and not key.strip():
        raise ConfigurationError(name, "is set but empty")
    return None if key is None else key.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise ConfigurationError(API_KEY_FILE, "names a file that cannot be read") from None
