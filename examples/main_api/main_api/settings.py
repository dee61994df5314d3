"""The settings, from environment variables that begin with MAIN_API_. Only this module reads these variables.

The revocation client itself reads REVOCATION_URL and REVOCATION_API_KEY.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from revocation_client import OnUnavailable

PREFIX: Final = "MAIN_API_"
DAY_SECONDS: Final = 86_400
SECRET_MIN_BYTES: Final = 32
"""A key for HS256 is at least as long as its hash (RFC 7518 section 3.2)."""


class SettingsError(Exception):
    """A setting is missing or wrong. The message names it and holds no secret."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the application."""

    jwt_secret: str = field(repr=False)
    password_hashes: Mapping[str, str] = field(repr=False)
    """The hash of each user's password, by the name of the user."""
    access_lifetime_seconds: int = 900
    refresh_lifetime_seconds: int = 14 * DAY_SECONDS
    on_unavailable: OnUnavailable = "allow"
    """Whether a request with a token passes while the revocation service is unavailable. Logouts always fail then."""


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in `environment` (default: the environment of this process).

    Raises SettingsError.
    """
    given = os.environ if environment is None else environment
    return Settings(
        jwt_secret=_jwt_secret(given),
        password_hashes=_password_hashes(_secret(given, "USERS")),
        access_lifetime_seconds=_seconds(given, "ACCESS_LIFETIME_SECONDS", 900, most=DAY_SECONDS),
        refresh_lifetime_seconds=_seconds(given, "REFRESH_LIFETIME_SECONDS", 14 * DAY_SECONDS, most=30 * DAY_SECONDS),
        on_unavailable=_on_unavailable(given),
    )


def _jwt_secret(given: Mapping[str, str]) -> str:
    secret = _secret(given, "JWT_SECRET")
    if len(secret.encode()) < SECRET_MIN_BYTES:
        raise SettingsError(f"{PREFIX}JWT_SECRET must have {SECRET_MIN_BYTES} bytes or more")
    return secret


def _password_hashes(text: str) -> dict[str, str]:
    """Parse entries `name=hash`, separated by white space. `python -m main_api hash` prints such a hash."""
    users: dict[str, str] = {}
    for entry in text.split():
        name, _, password_hash = entry.partition("=")
        if not name or not password_hash.startswith("$argon2") or name in users:
            raise SettingsError(f"{PREFIX}USERS must be entries name=hash, hashes of argon2, and each name once")
        users[name] = password_hash
    return users


def _secret(given: Mapping[str, str], name: str) -> str:
    """Return the value of a required variable, or the content of the file that its variant NAME_FILE names."""
    variable = PREFIX + name
    path = given.get(f"{variable}_FILE")
    if path is not None and variable in given:
        raise SettingsError(f"{variable} and {variable}_FILE are both set; keep one")
    text = given.get(variable, "") if path is None else _read(f"{variable}_FILE", path)
    if not text.strip():
        raise SettingsError(f"{variable} or {variable}_FILE must be set")
    return text.strip()


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise SettingsError(f"{variable} names a file that cannot be read") from None


def _seconds(given: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    text = given.get(PREFIX + name, str(default)).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise SettingsError(f"{PREFIX}{name} must be a whole number from 1 to {most:,}")
    return int(text)


def _on_unavailable(given: Mapping[str, str]) -> OnUnavailable:
    text = given.get(f"{PREFIX}ON_UNAVAILABLE", "allow").strip()
    if text == "allow":
        return "allow"
    if text == "deny":
        return "deny"
    raise SettingsError(f"{PREFIX}ON_UNAVAILABLE must be allow or deny")
