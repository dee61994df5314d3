"""The settings of the gateway, read from variables that begin with GATEWAY_. Secrets do not appear in any repr."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from yarl import URL

from revocation_service.environment import EMPTY, EnvReader, Loaded, filled, hidden, mask_url, number, optional, setting
from revocation_service.errors import SettingsError
from revocation_service.gateway.addresses import Network
from revocation_service.settings import (
    CLUSTER_PREFIX,
    LOG_FORMAT,
    LOG_LEVEL,
    StoreSettings,
    key_prefix,
)

MOST_IN_A_WINDOW: Final = 10_000
LONGEST_WINDOW_SECONDS: Final = 31 * 86_400

REMOVED: Final = {
    "GATEWAY_HEAD_TIMEOUT_SECONDS": "let a TLS terminator in front bound slow clients (heads are bounded to 75 s)",
    "GATEWAY_MAX_CONNECTIONS": "let a TLS terminator in front bound connections",
    **dict.fromkeys(
        ("GATEWAY_ACCOUNT_LIMIT", "GATEWAY_ACCOUNT_KEY", "GATEWAY_ACCOUNT_KEY_FILE"), "limit by account in the main API"
    ),
}
"""Settings of earlier versions, and what to do instead."""

_UNITS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_RATE: Final = re.compile(r"(\d{1,9})\s*/\s*(?:(\d{1,9})\s*)?(second|minute|hour|day)s?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` requests in any window of `seconds`."""

    count: int
    seconds: float


def _origin(text: str) -> str:
    if not text:
        raise ValueError("is needed: the main API's origin, such as http://127.0.0.1:9000")
    with suppress(ValueError):
        url = URL(text)
        if url.scheme in {"http", "https"} and url == url.origin() and url.port and text.isascii() and " " not in text:
            return str(url.origin())
    raise ValueError("must be an origin, http://host:port or https://host:port, without user, path or query")


def _login_paths(text: str) -> tuple[str, ...]:
    paths = tuple(path.strip() for path in text.split(",") if path.strip())
    if not paths or not all(path.startswith("/") and path.isprintable() for path in paths):
        raise ValueError("must be one or more paths that begin with /, separated by commas")
    return paths


def _rate(text: str) -> Rate:
    if not text:
        raise ValueError(EMPTY)
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError("must be a limit such as 5/minute or 5/30 seconds (second, minute, hour, day), or none")
    count, seconds = int(found[1]), int(found[2] or 1) * _UNITS[found[3].lower()]
    if not (1 <= count <= MOST_IN_A_WINDOW and 1 <= seconds <= LONGEST_WINDOW_SECONDS):
        raise ValueError(f"must allow 1 to {MOST_IN_A_WINDOW:,} in a window of 1 second to 31 days")
    return Rate(count, seconds)


def _rate_or_none(text: str) -> Rate | None:
    return None if text.lower() == "none" else _rate(text)


def _networks(text: str) -> tuple[Network, ...]:
    parts = [] if text.lower() == "none" else text.split(",")
    try:
        return tuple(ip_network(part.strip()) for part in parts if part.strip())
    except ValueError as error:
        detail = f"must be networks or addresses, such as 10.0.0.0/8, separated by commas ({error})"
        raise ValueError(detail) from None


def _redis_url(text: str) -> str:
    if text.startswith("embedded:"):
        raise ValueError("cannot be embedded: (gateways share a Redis, and a private one cannot be shared)")
    return text


@dataclass(frozen=True, slots=True)
class ThrottleSettings:
    """What is counted, up to which limits, and where the counts are kept."""

    login_paths: tuple[str, ...] = setting("GATEWAY_LOGIN_PATHS", "/auth/login,/api/v1/auth/login", _login_paths)
    login_limit: Rate = setting("GATEWAY_LOGIN_LIMIT", "5/minute", _rate)
    default_limit: Rate | None = setting("GATEWAY_DEFAULT_LIMIT", "none", _rate_or_none)
    trusted_proxies: tuple[Network, ...] = setting("GATEWAY_TRUSTED_PROXIES", "none", _networks)
    store: StoreSettings | None = None
    """None: the counts are kept in memory."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """All settings of `gateway`."""

    upstream_url: str
    """The origin: scheme, host and port, and nothing else."""
    host: str = setting("GATEWAY_HOST", "127.0.0.1", filled)
    port: int = setting("GATEWAY_PORT", "8000", number(int, 0, 65_535))
    admin_port: int = setting("GATEWAY_ADMIN_PORT", "8001", number(int, 0, 65_535))
    throttle: ThrottleSettings = ThrottleSettings()
    connect_seconds: float = setting("GATEWAY_CONNECT_TIMEOUT_SECONDS", "5", number(float, 0.05, 600))
    """For a connection to the upstream."""
    response_seconds: float = setting("GATEWAY_RESPONSE_TIMEOUT_SECONDS", "60", number(float, 0.05, 3_600))
    """For the head of the upstream's response, once the request is sent."""
    idle_seconds: float = setting("GATEWAY_IDLE_TIMEOUT_SECONDS", "300", number(float, 0.05, 86_400))
    """For the next piece of a body, in either direction; after such a silence a WebSocket is pinged."""
    drain_seconds: float = setting("GATEWAY_DRAIN_SECONDS", "1", number(float, 0, 2))
    log_level: str = setting("GATEWAY_LOG_LEVEL", "info", LOG_LEVEL)
    log_format: str = setting("GATEWAY_LOG_FORMAT", "auto", LOG_FORMAT)


def load(environment: Mapping[str, str] | None = None) -> Loaded[GatewaySettings]:
    """Return the settings in `environment`, by default the process's own. Raises SettingsError."""
    reader = EnvReader(environment)
    for name, instead in REMOVED.items():
        if name in reader.environment:
            raise SettingsError(f"{name} was removed: unset it, and {instead}")
    upstream_url = reader.value("GATEWAY_UPSTREAM_URL", "", _origin)
    throttle = reader.read(ThrottleSettings, store=_store(reader))
    settings = reader.read(GatewaySettings, upstream_url=upstream_url, throttle=throttle)
    if settings.port == settings.admin_port != 0:
        raise SettingsError("GATEWAY_ADMIN_PORT must be another port than GATEWAY_PORT: it is for operators only")
    return reader.loaded(settings, "GATEWAY_")


def _store(reader: EnvReader) -> StoreSettings | None:
    url = reader.value("GATEWAY_REDIS_URL", "", optional(_redis_url), mask_url)
    password = reader.value("GATEWAY_REDIS_PASSWORD", "", optional(str), hidden)
    default = CLUSTER_PREFIX if url and "+cluster://" in url else ""
    prefix = reader.value("GATEWAY_KEY_PREFIX", default, key_prefix)
    if url is None:
        return None
    return StoreSettings(url, password, prefix, url_variable="GATEWAY_REDIS_URL", prefix_variable="GATEWAY_KEY_PREFIX")
