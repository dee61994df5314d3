"""What the operator of the gateway decides, as frozen values, read from variables that begin with GATEWAY_.

A wrong value raises `SettingsError`, one line that names the variable. Secrets do not appear in any repr.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from revocation_service.environment import Loaded, Reader, mask_url, process_environment
from revocation_service.settings import (
    CLUSTER_PREFIX,
    KNOWN_SCHEMES,
    LOG_FORMATS,
    LOG_LEVELS,
    StoreSettings,
    key_prefix,
    names_a_server,
)

PREFIX: Final = "GATEWAY_"
ACCOUNT_KEY_MIN_CHARACTERS: Final = 20
MOST_IN_A_WINDOW: Final = 10_000
LONGEST_WINDOW_SECONDS: Final = 31 * 86_400

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNITS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_RATE: Final = re.compile(r"(\d{1,9})\s*/\s*(?:(\d{1,9})\s*)?(second|minute|hour|day)s?", re.ASCII | re.IGNORECASE)
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in any window of that length."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ThrottleSettings:
    """What is counted, up to which limits, and where the counts are kept."""

    login_paths: tuple[str, ...] = ("/auth/login", "/api/v1/auth/login")
    login_limit: Rate = Rate(5, 60)
    default_limit: Rate | None = None
    account_limit: Rate | None = None
    account_key: bytes | None = field(default=None, repr=False)
    """With what account names are hashed; None: each process makes one up."""
    trusted_proxies: tuple[Network, ...] = ()
    store: StoreSettings | None = None
    """None: the counts are kept in memory."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the gateway waits, in seconds, before it gives up."""

    connect_seconds: float = 5
    """For a connection to the upstream."""
    response_seconds: float = 60
    """For the head of the upstream's answer, once the request is sent."""
    idle_seconds: float = 300
    """For the next piece of a body, in either direction."""
    head_seconds: float = 20
    """For the whole head of a request, once it has begun."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Everything `gateway` needs to know."""

    upstream_url: str
    """The origin: scheme, host and port, and nothing else."""
    host: str = "127.0.0.1"
    port: int = 8000
    admin_port: int = 8001
    throttle: ThrottleSettings = ThrottleSettings()
    timeouts: Timeouts = Timeouts()
    drain_seconds: float = 1
    log_level: str = "info"
    log_format: str = "auto"
    max_connections: int = 10_000
    """Of clients, at a time."""


def load(environment: Mapping[str, str] | None = None) -> Loaded[GatewaySettings]:
    """The gateway's settings in `environment` (default: the process's own).

    Raises SettingsError, which names the variable.
    """
    reader = Reader(PREFIX, process_environment() if environment is None else environment)
    settings = GatewaySettings(
        upstream_url=_upstream_url(reader),
        host=reader.text("HOST", "127.0.0.1", empty=False),
        port=int(reader.number("PORT", 8000, least=0, most=65_535, whole=True)),
        admin_port=int(reader.number("ADMIN_PORT", 8001, least=0, most=65_535, whole=True)),
        throttle=_throttle(reader),
        timeouts=_timeouts(reader),
        drain_seconds=reader.number("DRAIN_SECONDS", 1, least=0, most=2),
        log_level=reader.choice("LOG_LEVEL", "info", LOG_LEVELS),
        log_format=reader.choice("LOG_FORMAT", "auto", LOG_FORMATS),
        max_connections=int(reader.number("MAX_CONNECTIONS", 10_000, least=1, most=100_000, whole=True)),
    )
    if settings.port == settings.admin_port != 0:
        raise reader.wrong("ADMIN_PORT", "must be another port than GATEWAY_PORT: it is for operators alone")
    return Loaded(settings, tuple(reader.shown), reader.unknown())


def _timeouts(reader: Reader) -> Timeouts:
    return Timeouts(
        connect_seconds=reader.number("CONNECT_TIMEOUT_SECONDS", 5, least=0.05, most=600),
        response_seconds=reader.number("RESPONSE_TIMEOUT_SECONDS", 60, least=0.05, most=3_600),
        idle_seconds=reader.number("IDLE_TIMEOUT_SECONDS", 300, least=0.05, most=86_400),
        head_seconds=reader.number("HEAD_TIMEOUT_SECONDS", 20, least=0.05, most=600),
    )


def _upstream_url(reader: Reader) -> str:
    url = reader.text("UPSTREAM_URL", "")
    if not url:
        raise reader.wrong("UPSTREAM_URL", "is needed: the main API's origin, such as http://127.0.0.1:9000")
    if not _is_origin(url):
        raise reader.wrong(
            "UPSTREAM_URL", "must be an origin, http://host:port or https://host:port, without user, path or query"
        )
    return url.rstrip("/")


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and parts.path in {"", "/"}
            and url.isascii()
            and not any(character in url for character in "?#@\\ ")
        )
    except ValueError:
        return False


def _throttle(reader: Reader) -> ThrottleSettings:
    login_limit = _rate(reader, "LOGIN_LIMIT", "5/minute")
    if login_limit is None:
        raise reader.wrong("LOGIN_LIMIT", "must be a limit, such as 5/minute")
    settings = ThrottleSettings(
        login_paths=_login_paths(reader),
        login_limit=login_limit,
        default_limit=_rate(reader, "DEFAULT_LIMIT", "none"),
        account_limit=_rate(reader, "ACCOUNT_LIMIT", "none"),
        account_key=_account_key(reader),
        trusted_proxies=_networks(reader, "TRUSTED_PROXIES"),
        store=_store(reader),
    )
    if settings.account_limit and settings.store and not settings.account_key:
        raise reader.wrong(
            "ACCOUNT_KEY", "is needed: with GATEWAY_ACCOUNT_LIMIT and GATEWAY_REDIS_URL all gateways must share one key"
        )
    return settings


def _login_paths(reader: Reader) -> tuple[str, ...]:
    text = reader.text("LOGIN_PATHS", "/auth/login,/api/v1/auth/login")
    paths = tuple(path.strip() for path in text.split(",") if path.strip())
    if not paths or not all(path.startswith("/") and path.isprintable() for path in paths):
        raise reader.wrong("LOGIN_PATHS", "must be one or more paths that begin with /, separated by commas")
    return paths


def _rate(reader: Reader, name: str, default: str) -> Rate | None:
    text = reader.text(name, default, empty=False)
    if text.lower() == "none":
        return None
    found = _RATE.fullmatch(text)
    if found is None:
        raise reader.wrong(
            name, "must be a limit such as 5/minute or 5/30 seconds (second, minute, hour, day), or none"
        )
    count, seconds = int(found[1]), int(found[2] or 1) * _UNITS[found[3].lower()]
    if not (1 <= count <= MOST_IN_A_WINDOW and 1 <= seconds <= LONGEST_WINDOW_SECONDS):
        raise reader.wrong(name, f"must allow 1 to {MOST_IN_A_WINDOW:,} in a window of 1 second to 31 days")
    return Rate(count, seconds)


def _account_key(reader: Reader) -> bytes | None:
    text = reader.secret("ACCOUNT_KEY")
    if text is not None and len(text) < ACCOUNT_KEY_MIN_CHARACTERS:
        raise reader.wrong("ACCOUNT_KEY", f"must have {ACCOUNT_KEY_MIN_CHARACTERS} characters or more")
    return None if text is None else text.encode()


def _networks(reader: Reader, name: str) -> tuple[Network, ...]:
    text = reader.text(name, "none")
    if text.lower() in {"", "none"}:
        return ()
    return tuple(_network(reader, name, part.strip()) for part in text.split(",") if part.strip())


def _network(reader: Reader, name: str, text: str) -> Network:
    """One network or address; an IPv4 one in IPv6's clothes is taken out of them, as addresses are."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise reader.wrong(
            name, f"must be networks or addresses, such as 10.0.0.0/8, separated by commas; {text!r} is none"
        ) from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network


def _store(reader: Reader) -> StoreSettings | None:
    url = reader.secret("REDIS_URL", mask=mask_url)
    password = reader.secret("REDIS_PASSWORD")
    prefix = key_prefix(reader, CLUSTER_PREFIX if url and "+cluster://" in url else "")
    if url is None:
        return None
    if url.startswith("embedded:"):
        raise reader.wrong("REDIS_URL", "cannot be embedded: (gateways share a Redis, and a private one is nobody's)")
    if not names_a_server(url):
        raise reader.wrong("REDIS_URL", f"must begin with one of {KNOWN_SCHEMES}, and name a server")
    return StoreSettings(
        url, password, prefix, url_variable=f"{PREFIX}REDIS_URL", prefix_variable=f"{PREFIX}KEY_PREFIX"
    )
