"""The client's defaults, and its settings in the environment. No other module of the client reads the environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from revocation_client.errors import ConfigurationError

URL, API_KEY, API_KEY_FILE = "REVOCATION_URL", "REVOCATION_API_KEY", "REVOCATION_API_KEY_FILE"

MAX_STALENESS_SECONDS: Final = 5.0
"""How long memory decides after its last proof, if the service does not answer."""

TIMEOUT_SECONDS: Final = 2.0
"""Timeout of one request to the service."""

REVOKE_TIMEOUT_SECONDS: Final = 5.0
"""Timeout of a revocation, with all its tries."""


def check_seconds(options: Mapping[str, float]) -> None:
    """Raise ConfigurationError for an option that is not a finite number of seconds above 0."""
    for option, seconds in options.items():
        if type(seconds) not in (int, float) or not 0 < seconds < float("inf"):
            raise ConfigurationError(option, "must be a number of seconds above 0")


def service_url() -> str:
    """Return the service's address. Raises ConfigurationError."""
    url = os.environ.get(URL, "").strip()
    if not url:
        raise ConfigurationError(URL, "is not set: the address of the revocation service, as http://revocation:8080")
    return url


def api_key() -> str | None:
    """Return the API key from the variable or the file; None if neither is set. Raises ConfigurationError."""
    key, path = os.environ.get(API_KEY), os.environ.get(API_KEY_FILE)
    if key is not None and path is not None:
        raise ConfigurationError(API_KEY, f"and {API_KEY_FILE} are both set")
    if path is not None:
        try:
            key = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise ConfigurationError(API_KEY_FILE, "names a file that cannot be read") from None
    if key is not None and not key.strip():
        raise ConfigurationError(API_KEY if path is None else API_KEY_FILE, "is set but empty")
    return key and key.strip()
