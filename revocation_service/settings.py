"""What the operator decides, as frozen values.

A wrong value raises `SettingsError`, one line that names the variable. Secrets do not appear in any repr.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from revocation_service.api_keys import ApiKey, mask_api_keys, parse_api_keys
from revocation_service.environment import Loaded, Reader, mask_url, process_environment
from revocation_service.errors import SettingsError

PREFIX: Final = "REVOCATION_"
DAY_SECONDS: Final = 86_400

SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
KNOWN_SCHEMES: Final = ", ".join(f"{scheme}://" for scheme in SCHEMES)
CLUSTER_PREFIX: Final = "{revocations}"
"""The default key prefix on a cluster. Its hash tag puts all keys on one master."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "json", "console")

_CLIENTS_OWN: Final = frozenset({"REVOCATION_URL", "REVOCATION_API_KEY", "REVOCATION_API_KEY_FILE"})


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """With which keys tokens are verified, and what else must be true of them; nothing set: they are not verified."""

    secret: str | None = field(default=None, repr=False)
    public_key_pem: str | None = field(default=None, repr=False)
    jwks_url: str | None = field(default=None, repr=False)
    algorithms: tuple[str, ...] = ()
    issuer: str | None = None
    audience: str | None = None

    @property
    def configured(self) -> bool:
        """Whether there is any key, or any place to get one."""
        return bool(self.secret or self.public_key_pem or self.jwks_url)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long revocations live and how far clocks may differ, in seconds."""

    max_token_lifetime_seconds: float = 30 * DAY_SECONDS
    expiry_leeway_seconds: float = 0
    clock_skew_seconds: float = 60


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Which Redis, under which keys, and when a write counts as safe."""

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    key_prefix: str = ""
    wait_replicas: int = 0
    strict: bool = False
    change_log_max_entries: int = 100_000
    server_bin: str | None = None
    url_variable: str = "REVOCATION_REDIS_URL"
    """The variable that holds the URL; errors name it."""
    prefix_variable: str = "REVOCATION_KEY_PREFIX"
    """The variable that holds the key prefix; errors name it."""

    @property
    def embedded_directory(self) -> Path | None:
        """Directory of the private Redis; None for any other Redis."""
        return Path(self.url.removeprefix("embedded:")) if self.url.startswith("embedded:") else None


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """How old the mirror may be, how often it is rescanned, and how many subscribers it has. Times are in seconds."""

    max_staleness_seconds: float = 5
    """How old the mirror may be when it says "not revoked" while Redis does not answer; 0: it never says so."""
    rescan_seconds: float = 300
    """How often one of the workers restores and scans all records, about."""
    foreign_writers: bool = False
    """Whether other applications write revocations, which the change log then does not tell of."""
    feed_max_subscribers: int = 1_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `serve` needs to know."""

    host: str
    port: int
    store: StoreSettings
    signing: SigningSettings = SigningSettings()
    limits: Limits = Limits()
    mirror: MirrorSettings = MirrorSettings()
    api_keys: tuple[ApiKey, ...] = ()
    drain_seconds: float = 1
    log_level: str = "info"
    log_format: str = "auto"
    several_workers: bool = False
    """Whether this is one worker of several, whose metrics are added up (prometheus_client's multiprocess mode)."""

    @property
    def protected(self) -> bool:
        """Protected mode: without API keys, only requests that are plainly local are served."""
        return not self.api_keys


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """Whose feed an operator watches; the variables are those of the client library."""

    url: str
    api_key: str | None = field(repr=False)


def load_watch(environment: Mapping[str, str] | None = None) -> WatchSettings:
    """What `watch` needs from `environment` (default: the process's own).

    Raises SettingsError, which names the variable.
    """
    reader = Reader(PREFIX, process_environment() if environment is None else environment)
    url = reader.text("URL", "http://127.0.0.1:8080", empty=False).rstrip("/")
    if not _is_web_url(url):
        raise reader.wrong("URL", "must be the address of a revocation service, as http://127.0.0.1:8080")
    return WatchSettings(url, reader.secret("API_KEY"))


def load(environment: Mapping[str, str] | None = None) -> Loaded[Settings]:
    """The settings in `environment` (default: the process's own).

    Raises SettingsError, which names the variable.
    """
    reader = Reader(PREFIX, process_environment() if environment is None else environment, known=_CLIENTS_OWN)
    settings = _settings(reader)
    _refuse_open_door(settings)
    return Loaded(settings, tuple(reader.shown), reader.unknown())


def load_for_workers(environment: Mapping[str, str] | None = None) -> Loaded[Settings]:
    """As `load`, for one of several processes: the embedded Redis belongs to one process alone, and is refused.

    Raises SettingsError.
    """
    loaded = load(environment)
    if loaded.settings.store.embedded_directory is not None:
        raise SettingsError("several workers need a Redis that they share: set REVOCATION_REDIS_URL")
    return loaded


def _settings(reader: Reader) -> Settings:
    return Settings(
        host=reader.text("HOST", "127.0.0.1", empty=False),
        port=int(reader.number("PORT", 8080, least=0, most=65_535, whole=True)),
        store=_store(reader),
        signing=_signing(reader),
        limits=Limits(
            max_token_lifetime_seconds=reader.number("MAX_TOKEN_LIFETIME_SECONDS", 30 * DAY_SECONDS, least=1, most=1e9),
            expiry_leeway_seconds=reader.number("EXPIRY_LEEWAY_SECONDS", 0, least=0, most=DAY_SECONDS),
            clock_skew_seconds=reader.number("CLOCK_SKEW_SECONDS", 60, least=0, most=DAY_SECONDS),
        ),
        mirror=_mirror(reader),
        api_keys=_api_keys(reader),
        drain_seconds=reader.number("DRAIN_SECONDS", 1, least=0, most=2),
        log_level=reader.choice("LOG_LEVEL", "info", LOG_LEVELS),
        log_format=reader.choice("LOG_FORMAT", "auto", LOG_FORMATS),
        several_workers="PROMETHEUS_MULTIPROC_DIR" in reader.environment,
    )


def _store(reader: Reader) -> StoreSettings:
    url = _redis_url(reader)
    replicated = "+sentinel://" in url or "+cluster://" in url
    return StoreSettings(
        url=url,
        password=reader.secret("REDIS_PASSWORD"),
        key_prefix=key_prefix(reader, CLUSTER_PREFIX if "+cluster://" in url else ""),
        wait_replicas=int(reader.number("WAIT_REPLICAS", int(replicated), least=0, most=100, whole=True)),
        strict=reader.flag("STRICT_STORE", default=False),
        change_log_max_entries=int(
            reader.number("CHANGE_LOG_MAX_ENTRIES", 100_000, least=1_000, most=100_000_000, whole=True)
        ),
        server_bin=reader.unprefixed("REDIS_SERVER_BIN"),
    )


def _mirror(reader: Reader) -> MirrorSettings:
    return MirrorSettings(
        max_staleness_seconds=reader.number("MAX_STALENESS_SECONDS", 5, least=0, most=DAY_SECONDS),
        rescan_seconds=reader.number("RESCAN_SECONDS", 300, least=1, most=DAY_SECONDS),
        foreign_writers=reader.flag("FOREIGN_WRITERS", default=False),
        feed_max_subscribers=int(reader.number("FEED_MAX_SUBSCRIBERS", 1_000, least=0, most=100_000, whole=True)),
    )


def _redis_url(reader: Reader) -> str:
    url = reader.secret("REDIS_URL", default="embedded:", mask=mask_url) or "embedded:"
    if url.startswith("embedded:"):
        directory = url.removeprefix("embedded:") or str(_state_directory(reader.environment))
        return f"embedded:{_expanded(directory).absolute()}"
    if not names_a_server(url):
        raise reader.wrong("REDIS_URL", f"must begin with embedded: or one of {KNOWN_SCHEMES}, and name a server")
    return url


def names_a_server(url: str) -> bool:
    """Whether it is the URL of a Redis elsewhere, in one of the known schemes."""
    scheme, separator, rest = url.partition("://")
    return scheme in SCHEMES and bool(separator) and bool(rest)


def _expanded(directory: str) -> Path:
    try:
        return Path(directory).expanduser()
    except RuntimeError:
        raise SettingsError(
            "REVOCATION_REDIS_URL: the home directory for embedded: cannot be found; name a full path, embedded:/path,"
            " or set XDG_STATE_HOME and leave the path out"
        ) from None


def _state_directory(environment: Mapping[str, str]) -> Path:
    """Where a program keeps what outlives it (XDG Base Directory specification)."""
    base = environment.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path("~/.local/state")) / "revocation-service"


def key_prefix(reader: Reader, default: str = "") -> str:
    """Return what stands in front of every key. Raises SettingsError."""
    prefix = reader.text("KEY_PREFIX", default)
    if len(prefix) > 128 or not prefix.isprintable():
        raise reader.wrong("KEY_PREFIX", "must be at most 128 printable characters")
    return prefix


def _signing(reader: Reader) -> SigningSettings:
    algorithms = reader.text("JWT_ALGORITHMS", "")
    signing = SigningSettings(
        secret=reader.secret("JWT_SECRET"),
        public_key_pem=reader.secret("JWT_PUBLIC_KEY", mask=lambda _pem: "(PEM)"),
        jwks_url=reader.secret("JWKS_URL", mask=mask_url),
        algorithms=tuple(name.strip() for name in algorithms.split(",") if name.strip()),
        issuer=reader.text("JWT_ISSUER", "") or None,
        audience=reader.text("JWT_AUDIENCE", "") or None,
    )
    if signing.jwks_url and not _is_web_url(signing.jwks_url):
        raise SettingsError("REVOCATION_JWKS_URL must begin with https:// or http://, and name a server")
    if (signing.algorithms or signing.issuer or signing.audience) and not signing.configured:
        raise SettingsError(
            "REVOCATION_JWT_ALGORITHMS, _ISSUER and _AUDIENCE need a key to verify with: set REVOCATION_JWT_SECRET,"
            " REVOCATION_JWT_PUBLIC_KEY or REVOCATION_JWKS_URL too"
        )
    return signing


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _api_keys(reader: Reader) -> tuple[ApiKey, ...]:
    text = reader.secret("API_KEYS", mask=mask_api_keys)
    if text is None:
        return ()
    return parse_api_keys(text)


def _refuse_open_door(settings: Settings) -> None:
    if settings.protected and not is_loopback(settings.host):
        raise SettingsError(
            f"REVOCATION_HOST={settings.host!r} would serve others without API keys: set REVOCATION_API_KEYS"
            " (`revocation-service new-key NAME SCOPES` makes one), or bind 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a bind or socket address is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
