"""The settings of the service, read from variables that begin with REVOCATION_. Secrets do not appear in any repr."""

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from revocation_service.api_keys import ApiKey, mask_api_keys, parse_api_keys
from revocation_service.environment import (
    EnvReader,
    Loaded,
    filled,
    flag,
    hidden,
    mask_url,
    number,
    one_of,
    optional,
    setting,
)
from revocation_service.errors import SettingsError

DAY_SECONDS: Final = 86_400

SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
KNOWN_SCHEMES: Final = ", ".join(f"{scheme}://" for scheme in SCHEMES)
CLUSTER_PREFIX: Final = "{revocations}"
"""The default key prefix on a cluster. Its hash tag puts all keys on one master."""

LOG_LEVEL: Final = one_of("debug", "info", "warning", "error")
LOG_FORMAT: Final = one_of("auto", "json", "console")

_CLIENT_VARIABLES: Final = ("REVOCATION_URL", "REVOCATION_API_KEY", "REVOCATION_API_KEY_FILE")


def names_a_server(url: str) -> bool:
    """Return True for the URL of a Redis server, in one of the known schemes."""
    scheme, _, rest = url.partition("://")
    return scheme in SCHEMES and bool(rest)


def _store_url(text: str) -> str:
    if not text.startswith("embedded:") and not names_a_server(text):
        raise ValueError(f"must begin with embedded: or one of {KNOWN_SCHEMES}, and name a server")
    return text


def key_prefix(text: str) -> str:
    """Parse the prefix of every key in Redis."""
    if len(text) > 128 or not text.isprintable():
        raise ValueError("must be at most 128 printable characters")
    return text


def _web_url(text: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(text)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return text
    raise ValueError("must begin with https:// or http://, and name a server")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """The keys that verify tokens, and what verified tokens must have. Without a key, none is verified."""

    secret: str | None = setting("REVOCATION_JWT_SECRET", "", optional(str), hidden)
    public_key_pem: str | None = setting("REVOCATION_JWT_PUBLIC_KEY", "", optional(str), lambda _: "(PEM)")
    jwks_url: str | None = setting("REVOCATION_JWKS_URL", "", optional(_web_url), mask_url)
    algorithms: tuple[str, ...] = setting("REVOCATION_JWT_ALGORITHMS", "", _words)
    issuer: str | None = setting("REVOCATION_JWT_ISSUER", "", optional(str))
    audience: str | None = setting("REVOCATION_JWT_AUDIENCE", "", optional(str))

    @property
    def configured(self) -> bool:
        """True if there is a key, or an address to fetch keys from."""
        return bool(self.secret or self.public_key_pem or self.jwks_url)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long revocations live, and how far clocks may differ."""

    max_token_lifetime_seconds: float = setting(
        "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS", f"{30 * DAY_SECONDS}", number(float, 1, 1e9)
    )
    expiry_leeway_seconds: float = setting("REVOCATION_EXPIRY_LEEWAY_SECONDS", "0", number(float, 0, DAY_SECONDS))
    clock_skew_seconds: float = setting("REVOCATION_CLOCK_SKEW_SECONDS", "60", number(float, 0, DAY_SECONDS))


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Which Redis is used, under which keys, and when a write counts as safe."""

    url: str = field(repr=False)
    password: str | None = setting("REVOCATION_REDIS_PASSWORD", "", optional(str), hidden)
    key_prefix: str = ""
    wait_replicas: int = 0
    strict: bool = setting("REVOCATION_STRICT_STORE", "false", flag)
    change_log_max_entries: int = setting("REVOCATION_CHANGE_LOG_MAX_ENTRIES", "100000", number(int, 1_000, 1e8))
    server_bin: str | None = setting("REDIS_SERVER_BIN", "", optional(str))
    url_variable: str = "REVOCATION_REDIS_URL"
    prefix_variable: str = "REVOCATION_KEY_PREFIX"
    """Names of the variables, for errors."""

    @property
    def embedded_directory(self) -> Path | None:
        """Directory of the private Redis; None for any other Redis."""
        return Path(self.url.removeprefix("embedded:")) if self.url.startswith("embedded:") else None


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """How old the mirror may be, how often it is rescanned, and how many subscribers the feed may have."""

    max_staleness_seconds: float = setting("REVOCATION_MAX_STALENESS_SECONDS", "5", number(float, 0, DAY_SECONDS))
    """Age up to which the mirror may say "not revoked" while Redis does not answer; 0: never."""
    rescan_seconds: float = setting("REVOCATION_RESCAN_SECONDS", "300", number(float, 1, DAY_SECONDS))
    """Interval at which one of the workers restores and scans all records."""
    foreign_writers: bool = setting("REVOCATION_FOREIGN_WRITERS", "false", flag)
    """True if other applications write revocations, which do not appear in the change log."""
    feed_max_subscribers: int = setting("REVOCATION_FEED_MAX_SUBSCRIBERS", "1000", number(int, 0, 100_000))


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `serve`."""

    store: StoreSettings
    host: str = setting("REVOCATION_HOST", "127.0.0.1", filled)
    port: int = setting("REVOCATION_PORT", "8080", number(int, 0, 65_535))
    signing: SigningSettings = SigningSettings()
    limits: Limits = Limits()
    mirror: MirrorSettings = MirrorSettings()
    api_keys: tuple[ApiKey, ...] = setting("REVOCATION_API_KEYS", "", parse_api_keys, mask_api_keys)
    keys_required: bool = setting("REVOCATION_REQUIRE_API_KEYS", "false", flag)
    drain_seconds: float = setting("REVOCATION_DRAIN_SECONDS", "1", number(float, 0, 2))
    log_level: str = setting("REVOCATION_LOG_LEVEL", "info", LOG_LEVEL)
    log_format: str = setting("REVOCATION_LOG_FORMAT", "auto", LOG_FORMAT)

    @property
    def protected(self) -> bool:
        """True in protected mode: without API keys, only local requests are served."""
        return not self.api_keys


def load(environment: Mapping[str, str] | None = None) -> Loaded[Settings]:
    """Return the settings in `environment`, by default the process's own. Raises SettingsError."""
    reader = EnvReader(environment)
    signing, limits, mirror = reader.read(SigningSettings), reader.read(Limits), reader.read(MirrorSettings)
    settings = reader.read(Settings, store=_store(reader), signing=signing, limits=limits, mirror=mirror)
    if (signing.algorithms or signing.issuer or signing.audience) and not signing.configured:
        raise SettingsError(
            "REVOCATION_JWT_ALGORITHMS, _ISSUER and _AUDIENCE need a key to verify with: set REVOCATION_JWT_SECRET,"
            " REVOCATION_JWT_PUBLIC_KEY or REVOCATION_JWKS_URL too"
        )
    if settings.protected and (settings.keys_required or not is_loopback(settings.host)):
        raise SettingsError(
            f"REVOCATION_HOST={settings.host!r} requires API keys: set REVOCATION_API_KEYS (`revocation-service"
            " new-key NAME SCOPES` makes one), or bind 127.0.0.1 without REVOCATION_REQUIRE_API_KEYS"
        )
    return reader.loaded(settings, "REVOCATION_", *_CLIENT_VARIABLES)


def _store(reader: EnvReader) -> StoreSettings:
    url = reader.value("REVOCATION_REDIS_URL", "embedded:", _store_url, mask_url)
    cluster, sentinel = "+cluster://" in url, "+sentinel://" in url
    prefix = reader.value("REVOCATION_KEY_PREFIX", CLUSTER_PREFIX if cluster else "", key_prefix)
    replicas = reader.value("REVOCATION_WAIT_REPLICAS", "1" if cluster or sentinel else "0", number(int, 0, 100))
    if url.startswith("embedded:"):
        url = f"embedded:{_embedded_directory(url.removeprefix('embedded:'), reader.environment)}"
    return reader.read(StoreSettings, url=url, key_prefix=prefix, wait_replicas=replicas)


def _embedded_directory(given: str, environment: Mapping[str, str]) -> Path:
    """Return the full path of the embedded Redis' data, by default in XDG_STATE_HOME (XDG Base Directory)."""
    base = environment.get("XDG_STATE_HOME", "")
    state = Path(base if base.startswith("/") else "~/.local/state") / "revocation-service"
    try:
        return Path(given or state).expanduser().absolute()
    except RuntimeError:
        raise SettingsError(
            "REVOCATION_REDIS_URL: the home directory for embedded: cannot be found; name a full path, embedded:/path,"
            " or set XDG_STATE_HOME and leave the path out"
        ) from None


def is_loopback(host: str) -> bool:
    """Return True if a bind or socket address is this machine's own loopback."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)
    return host == "localhost"
