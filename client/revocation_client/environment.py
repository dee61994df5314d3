"""The client's settings in the environment. Nothing else in the client reads it."""

import os
from pathlib import Path

from revocation_client.errors import ConfigurationError

URL, API_KEY, API_KEY_FILE = "REVOCATION_URL", "REVOCATION_API_KEY", "REVOCATION_API_KEY_FILE"


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
