"""The settings of the service, read from variables that begin with REVOCATION_. Secrets do not appear in any repr."""

import ipaddress
import re
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

CLUSTER_PREFIX: Final = "{revocations}"
"""The default key prefix on a cluster. Its hash tag puts all keys on one master."""

LOG_LEVEL: Final = one_of("debug", "info", "warning", "error")
LOG_FORMAT: Final = one_of("auto", "json", "console")

_KEY_VARIABLES: Final = "REVOCATION_JWT_SECRET, REVOCATION_JWT_PUBLIC_KEY or REVOCATION_JWKS_URL"
_CLIENT_VARIABLES: Final = ("REVOCATION_URL", "REVOCATION_API_KEY", "REVOCATION_API_KEY_FILE")


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
    """The keys that verify tokens, and what a verified token must have. Without a key, no token is verified."""

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
    """How old the mirror may be, how often all records are rescanned, and how many subscribers the feed may have."""

    max_staleness_seconds: float = setting("REVOCATION_MAX_STALENESS_SECONDS", "5", number(float, 0, DAY_SECONDS))
    """Age up to which the mirror may say "not revoked" while Redis does not answer; 0: never."""
    rescan_seconds: float = setting("REVOCATION_RESCAN_SECONDS", "300", number(float, 1, DAY_SECONDS))
    """Interval at which one of the workers restores and scans all records."""
    foreign_writers: bool = setting("REVOCATION_FOREIGN_WRITERS", "false", flag)
    """True if other applications write revocations, which do not appear in the change log."""
    feed_max_subscribers: int = setting("REVOCATION_FEED_MAX_SUBSCRIBERS", "1000", number(int, 0, 100_000))


def _identity_headers(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `X-Auth-Subject=sub,X-Auth-Scope=scope`. Only X-… and Remote-… are accepted: HTTP may define others."""
    pairs = [(name.strip(), claim.strip()) for name, _, claim in (word.partition("=") for word in _words(text))]
    names = {name.lower() for name, _ in pairs}
    if len(names) < len(pairs) or not all(_IDENTITY_HEADER.fullmatch(name) and claim for name, claim in pairs):
        raise ValueError("must be header=claim, separated by commas; each header once, named X-… or Remote-…")
    return tuple(pairs)


_IDENTITY_HEADER: Final = re.compile(r"(x|remote)-(?!request-id$)[a-z0-9-]{1,60}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ForwardAuthSettings:
    """The endpoint for gateways: whether it is open, where it finds the user's token, and what it passes on."""

    enabled: bool = setting("REVOCATION_FORWARD_AUTH", "false", flag)
    cookie: str | None = setting("REVOCATION_FORWARD_AUTH_COOKIE", "", optional(str))
    query: str | None = setting("REVOCATION_FORWARD_AUTH_QUERY", "", optional(str))
    """Names of the cookie, and of the parameter of the original URI, that may hold the token."""
    headers: tuple[tuple[str, str], ...] = setting("REVOCATION_FORWARD_AUTH_HEADERS", "", _identity_headers)
    """Names of the identity headers, each with the claim that it carries."""
    anonymous: bool = setting("REVOCATION_FORWARD_AUTH_OPTIONAL", "false", flag)
    """Whether `/forward-auth/optional` lets requests without a token through."""
    keyless: bool = setting("REVOCATION_FORWARD_AUTH_KEYLESS", "false", flag)
    """Whether a gateway needs no API key."""
    unverified: bool = setting("REVOCATION_FORWARD_AUTH_UNVERIFIED", "false", flag)
    """Whether the gateway verifies tokens itself, so that this answers only whether they are revoked."""


@dataclass(frozen=True, slots=True)
class OAuthSettings:
    """Which OAuth endpoints are open, and which claims introspection adds to those of RFC 7662."""

    revoke: bool = setting("REVOCATION_OAUTH_REVOKE", "false", flag)
    introspect: bool = setting("REVOCATION_OAUTH_INTROSPECT", "false", flag)
    introspect_claims: tuple[str, ...] = setting("REVOCATION_OAUTH_INTROSPECT_CLAIMS", "", _words)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `serve`."""

    store: StoreSettings
    host: str = setting("REVOCATION_HOST", "127.0.0.1", filled)
    port: int = setting("REVOCATION_PORT", "8080", number(int, 0, 65_535))
    signing: SigningSettings = SigningSettings()
    limits: Limits = Limits()
    mirror: MirrorSettings = MirrorSettings()
    forward_auth: ForwardAuthSettings = ForwardAuthSettings()
    oauth: OAuthSettings = OAuthSettings()
    openapi: bool = setting("REVOCATION_OPENAPI", "true", flag)
    """Whether `/openapi.json` and `/docs` are open."""
    api_keys: tuple[ApiKey, ...] = setting("REVOCATION_API_KEYS", "", parse_api_keys, mask_api_keys)
    keys_required: bool = setting("REVOCATION_REQUIRE_API_KEYS", "false", flag)
    drain_seconds: float = setting("REVOCATION_DRAIN_SECONDS", "1", number(float, 0, 2))
    log_level: str = setting("REVOCATION_LOG_LEVEL", "info", LOG_LEVEL)
    log_format: str = setting("REVOCATION_LOG_FORMAT", "auto", LOG_FORMAT)

    @property
    def protected(self) -> bool:
        """True in protected mode: without API keys, only local requests are served."""
        return not self.api_keys

    @property
    def open_doors(self) -> tuple[str, ...]:
        """The paths of the open endpoints for gateways, OAuth and documentation."""
        doors = {
            "/forward-auth": self.forward_auth.enabled,
            "/forward-auth/optional": self.forward_auth.enabled and self.forward_auth.anonymous,
            "/oauth2/revoke": self.oauth.revoke,
            "/oauth2/introspect": self.oauth.introspect,
            "/openapi.json": self.openapi,
            "/docs": self.openapi,
        }
        return tuple(path for path, is_open in doors.items() if is_open)


def load(environment: Mapping[str, str] | None = None) -> Loaded[Settings]:
    """Return the settings in `environment`, by default that of the process. Raises SettingsError."""
    reader = EnvReader(environment)
    signing, limits, mirror = reader.read(SigningSettings), reader.read(Limits), reader.read(MirrorSettings)
    doors = {"forward_auth": reader.read(ForwardAuthSettings), "oauth": reader.read(OAuthSettings)}
    settings = reader.read(Settings, store=_store(reader), signing=signing, limits=limits, mirror=mirror, **doors)
    if (signing.algorithms or signing.issuer or signing.audience) and not signing.configured:
        raise SettingsError(
            f"REVOCATION_JWT_ALGORITHMS, _ISSUER and _AUDIENCE need a key to verify with: set {_KEY_VARIABLES} too"
        )
    if settings.protected and (settings.keys_required or not is_loopback(settings.host)):
        raise SettingsError(
            f"REVOCATION_HOST={settings.host!r} requires API keys: set REVOCATION_API_KEYS (`revocation-service"
            " new-key NAME SCOPES` makes one), or bind 127.0.0.1 without REVOCATION_REQUIRE_API_KEYS"
        )
    _check_doors(settings)
    return reader.loaded(settings, "REVOCATION_", *_CLIENT_VARIABLES)


def _check_doors(settings: Settings) -> None:
    """Refuse settings that need verified tokens if there is no key to verify them. Raises SettingsError."""
    door = settings.forward_auth
    needs_keys = {
        "REVOCATION_FORWARD_AUTH=true (unless REVOCATION_FORWARD_AUTH_UNVERIFIED=true)": door.enabled
        and not door.unverified,
        "REVOCATION_FORWARD_AUTH_KEYLESS=true": door.keyless,
        "REVOCATION_OAUTH_INTROSPECT=true": settings.oauth.introspect,
        "the scope revoke-own in REVOCATION_API_KEYS": any("revoke-own" in key.scopes for key in settings.api_keys),
    }
    for what, needed in needs_keys.items():
        if needed and not settings.signing.configured:
            raise SettingsError(f"{what} needs keys that verify tokens: set {_KEY_VARIABLES}")


def _store(reader: EnvReader) -> StoreSettings:
    url = reader.value("REVOCATION_REDIS_URL", "embedded:", str, mask_url)
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
