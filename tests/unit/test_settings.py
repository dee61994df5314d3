"""The settings: defaults, the error for each wrong value, and masked secrets."""

import dataclasses
import pathlib
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pytest

from revocation_service.api_keys import ApiKey
from revocation_service.environment import mask_url
from revocation_service.errors import SettingsError
from revocation_service.settings import (
    DAY_SECONDS,
    ForwardAuthSettings,
    Limits,
    MirrorSettings,
    OAuthSettings,
    Settings,
    SigningSettings,
    StoreSettings,
    is_loopback,
    load,
)

KEY = "k" * 20
OTHER_KEY = "0123456789abcdef-._~+/="
SECRETS = {
    "REVOCATION_REDIS_URL": "redis://user:url-password@redis.internal:6379/0?password=query-password",
    "REVOCATION_REDIS_PASSWORD": "redis-password",
    "REVOCATION_JWT_SECRET": "jwt-secret-of-32-characters-or-more",
    "REVOCATION_JWT_PUBLIC_KEY": "-----BEGIN PUBLIC KEY-----\nMFkw-the-pem\n-----END PUBLIC KEY-----",
    "REVOCATION_JWKS_URL": "https://jwks-user:jwks-password@keys.internal/set?token=jwks-token",
    "REVOCATION_API_KEYS": f"main-api={OTHER_KEY}:check+revoke, ops={'s' * 30}:admin",
}
SECRET_TEXTS = [
    "user:",
    "url-password",
    "query-password",
    "redis-password",
    "jwt-secret",
    "MFkw",
    "jwks-user",
    "jwks-password",
    "jwks-token",
    OTHER_KEY,
    "s" * 30,
    sha256(OTHER_KEY.encode()).hexdigest(),
]


def settings(**environment: str) -> Settings:
    """Return the settings for these variables, named without the prefix."""
    return load({f"REVOCATION_{name}": value for name, value in environment.items()}).settings


def refused(environment: Mapping[str, str]) -> str:
    """Return the error for these variables. It must be one line."""
    with pytest.raises(SettingsError) as error:
        load(environment)
    assert "\n" not in error.value.detail
    assert error.value.detail == str(error.value)
    return error.value.detail


def test_the_defaults_serve_loopback_with_a_private_redis(tmp_path: pathlib.Path) -> None:
    """Without variables the service listens on loopback without keys, and has an embedded Redis and default limits."""
    loaded = load({"XDG_STATE_HOME": str(tmp_path)})
    assert loaded.settings == Settings(
        host="127.0.0.1",
        port=8080,
        store=StoreSettings(
            url=f"embedded:{tmp_path}/revocation-service",
            password=None,
            key_prefix="",
            wait_replicas=0,
            strict=False,
            change_log_max_entries=100_000,
            server_bin=None,
        ),
        signing=SigningSettings(None, None, None, (), None, None),
        limits=Limits(30 * DAY_SECONDS, 0, 60),
        mirror=MirrorSettings(5, 300, foreign_writers=False, feed_max_subscribers=1_000),
        forward_auth=ForwardAuthSettings(
            enabled=False, cookie=None, query=None, headers=(), anonymous=False, keyless=False, unverified=False
        ),
        openapi=True,
        oauth=OAuthSettings(revoke=False, introspect=False, introspect_claims=()),
        api_keys=(),
        keys_required=False,
        drain_seconds=1,
        log_level="info",
        log_format="auto",
    )
    assert loaded.settings.protected
    assert not loaded.settings.signing.configured
    assert loaded.settings.store.embedded_directory == tmp_path / "revocation-service"
    assert loaded.unknown == ()
    assert all(line.endswith("  (default)") for line in loaded.shown)


def test_the_state_directory_is_in_the_home_directory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state directory is ~/.local/state, unless XDG_STATE_HOME is an absolute path (XDG Base Directory)."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for environment in ({}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "state"}):
        expected = pathlib.Path("/home/somebody/.local/state/revocation-service")
        assert load(environment).settings.store.embedded_directory == expected
    assert settings(REDIS_URL="embedded:~/data").store.embedded_directory == pathlib.Path("/home/somebody/data")


def test_every_setting_is_taken_from_its_variable() -> None:
    """Each variable sets its own field. White space around a value is removed."""
    loaded = load(
        {
            "REVOCATION_HOST": " 0.0.0.0 ",
            "REVOCATION_PORT": "9000",
            "REVOCATION_REDIS_URL": " redis+sentinel://a:1,b:2/main ",
            "REVOCATION_REDIS_PASSWORD": " pass word ",
            "REVOCATION_KEY_PREFIX": "one:",
            "REVOCATION_WAIT_REPLICAS": "2",
            "REVOCATION_STRICT_STORE": "True",
            "REVOCATION_CHANGE_LOG_MAX_ENTRIES": "5000",
            "REVOCATION_JWT_SECRET": "s",
            "REVOCATION_JWT_PUBLIC_KEY": "p",
            "REVOCATION_JWKS_URL": "https://keys",
            "REVOCATION_JWT_ALGORITHMS": "HS256, ES256,",
            "REVOCATION_JWT_ISSUER": "me",
            "REVOCATION_JWT_AUDIENCE": "you",
            "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS": "3600.5",
            "REVOCATION_EXPIRY_LEEWAY_SECONDS": "5",
            "REVOCATION_CLOCK_SKEW_SECONDS": "0",
            "REVOCATION_MAX_STALENESS_SECONDS": "2.5",
            "REVOCATION_RESCAN_SECONDS": "60",
            "REVOCATION_FOREIGN_WRITERS": "true",
            "REVOCATION_FEED_MAX_SUBSCRIBERS": "7",
            "REVOCATION_FORWARD_AUTH": "true",
            "REVOCATION_FORWARD_AUTH_COOKIE": "access_token",
            "REVOCATION_FORWARD_AUTH_QUERY": "token",
            "REVOCATION_FORWARD_AUTH_HEADERS": "X-Auth-Subject=sub, Remote-Groups=groups",
            "REVOCATION_FORWARD_AUTH_OPTIONAL": "true",
            "REVOCATION_FORWARD_AUTH_KEYLESS": "true",
            "REVOCATION_FORWARD_AUTH_UNVERIFIED": "false",
            "REVOCATION_OPENAPI": "false",
            "REVOCATION_OAUTH_REVOKE": "true",
            "REVOCATION_OAUTH_INTROSPECT": "true",
            "REVOCATION_OAUTH_INTROSPECT_CLAIMS": "tenant, roles",
            "REVOCATION_REQUIRE_API_KEYS": "true",
            "REVOCATION_DRAIN_SECONDS": "0.5",
            "REVOCATION_LOG_LEVEL": "debug",
            "REVOCATION_LOG_FORMAT": "json",
            "REVOCATION_API_KEYS": f"a={KEY}:check",
            "REDIS_SERVER_BIN": "/usr/bin/valkey-server",
        }
    )
    assert loaded.settings == Settings(
        host="0.0.0.0",
        port=9000,
        store=StoreSettings(
            "redis+sentinel://a:1,b:2/main",
            "pass word",
            "one:",
            2,
            strict=True,
            change_log_max_entries=5000,
            server_bin="/usr/bin/valkey-server",
        ),
        signing=SigningSettings("s", "p", "https://keys", ("HS256", "ES256"), "me", "you"),
        limits=Limits(3600.5, 5, 0),
        mirror=MirrorSettings(2.5, 60, foreign_writers=True, feed_max_subscribers=7),
        forward_auth=ForwardAuthSettings(
            enabled=True,
            cookie="access_token",
            query="token",
            headers=(("X-Auth-Subject", "sub"), ("Remote-Groups", "groups")),
            anonymous=True,
            keyless=True,
            unverified=False,
        ),
        openapi=False,
        oauth=OAuthSettings(revoke=True, introspect=True, introspect_claims=("tenant", "roles")),
        api_keys=(ApiKey("a", sha256(KEY.encode()).digest(), frozenset({"check"})),),
        keys_required=True,
        drain_seconds=0.5,
        log_level="debug",
        log_format="json",
    )
    assert not loaded.settings.protected
    assert loaded.settings.store.embedded_directory is None
    assert not any(line.endswith("(default)") for line in loaded.shown)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_no_replica_is_waited_for_with_a_single_server(scheme: str) -> None:
    """By default a write to a single server waits for no replica."""
    assert settings(REDIS_URL=f"{scheme}://somewhere").store.wait_replicas == 0
    assert settings(REDIS_URL=f"{scheme}://somewhere", WAIT_REPLICAS="1").store.wait_replicas == 1


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"])
def test_where_there_are_replicas_one_is_waited_for(scheme: str) -> None:
    """By default a write to Sentinel or Cluster waits for one replica."""
    assert settings(REDIS_URL=f"{scheme}://a:1/main").store.wait_replicas == 1
    assert settings(REDIS_URL=f"{scheme}://a:1/main", WAIT_REPLICAS="0").store.wait_replicas == 0


WRONG = [
    ("PORT", "", "must be a whole number from 0 to 65,535"),
    ("PORT", "http", "must be a whole number"),
    ("PORT", "80.5", "must be a whole number"),
    ("PORT", "-1", "must be a whole number"),
    ("PORT", "65536", "must be a whole number"),
    ("WAIT_REPLICAS", "-1", "must be a whole number from 0 to 100"),
    ("WAIT_REPLICAS", "101", "must be a whole number"),
    ("WAIT_REPLICAS", "one", "must be a whole number"),
    ("CHANGE_LOG_MAX_ENTRIES", "999", "must be a whole number from 1,000 to 1e+08"),
    ("CHANGE_LOG_MAX_ENTRIES", "1e5", "must be a whole number"),
    ("MAX_TOKEN_LIFETIME_SECONDS", "0", "must be a number from 1 to 1e+09"),
    ("MAX_TOKEN_LIFETIME_SECONDS", "nan", "must be a number"),
    ("MAX_TOKEN_LIFETIME_SECONDS", "inf", "must be a number"),
    ("MAX_TOKEN_LIFETIME_SECONDS", "30 days", "must be a number"),
    ("EXPIRY_LEEWAY_SECONDS", "-1", "must be a number from 0 to 86,400"),
    ("CLOCK_SKEW_SECONDS", "86401", "must be a number from 0 to 86,400"),
    ("CLOCK_SKEW_SECONDS", "", "must be a number"),
    ("DRAIN_SECONDS", "2.1", "must be a number from 0 to 2"),
    ("MAX_STALENESS_SECONDS", "-1", "must be a number from 0 to 86,400"),
    ("MAX_STALENESS_SECONDS", "inf", "must be a number"),
    ("RESCAN_SECONDS", "0", "must be a number from 1 to 86,400"),
    ("FOREIGN_WRITERS", "perhaps", "must be true or false"),
    ("FEED_MAX_SUBSCRIBERS", "-1", "must be a whole number from 0 to 100,000"),
    ("STRICT_STORE", "yes", "must be true or false"),
    ("STRICT_STORE", "", "must be true or false"),
    ("LOG_LEVEL", "verbose", "must be one of debug, info, warning, error"),
    ("LOG_LEVEL", "INFO", "must be one of debug"),
    ("LOG_FORMAT", "xml", "must be one of auto, json, console"),
    ("KEY_PREFIX", "a\nb", "must be at most 128 printable characters"),
    ("KEY_PREFIX", "x" * 129, "must be at most 128 printable characters"),
    ("REDIS_URL", "", "is set but empty"),
    ("REDIS_URL", "embedded:~no-such-user-here/x", ": the home directory for embedded: cannot be found"),
    ("REDIS_PASSWORD", " ", "is set but empty"),
    ("JWT_SECRET", "", "is set but empty"),
    ("JWT_PUBLIC_KEY", "\n", "is set but empty"),
    ("JWKS_URL", "", "is set but empty"),
    ("JWKS_URL", "keys.internal/set", "must begin with https:// or http://"),
    ("JWKS_URL", "file:///etc/passwd", "must begin with https:// or http://"),
    ("JWKS_URL", "https://[::1", "must begin with https:// or http://, and name a server"),
    ("JWKS_URL", "https:///set", "must begin with https:// or http://, and name a server"),
    ("JWKS_URL", "https://h:port/set", "must begin with https:// or http://, and name a server"),
    ("API_KEYS", "", "is set but empty"),
    ("API_KEYS", " , ,", "is set and holds no key"),
    ("API_KEYS", "# a comment", "is set and holds no key"),
    ("API_KEYS", KEY, ", entry 1: it is not name=key:scopes"),
    ("API_KEYS", f"a={KEY}", ", entry 1: it is not name=key:scopes"),
    ("API_KEYS", "a=:check", ", entry 1: it is not name=key:scopes"),
    ("API_KEYS", f"={KEY}:check", ", entry 1, its name: must be 1 to 64 characters of"),
    ("API_KEYS", f"a b={KEY}:check", ", entry 1, its name: must be 1 to 64 characters of"),
    ("API_KEYS", f"{'n' * 65}={KEY}:check", ", entry 1, its name: must be 1 to 64 characters of"),
    ("API_KEYS", "a=short:check", ", entry 1: a key is 20 or more characters"),
    ("API_KEYS", f"a={KEY}é:check", ", entry 1: a key is 20 or more characters"),
    ("API_KEYS", f"a=sha256:{'0' * 63}:check", ", entry 1: a key is 20 or more characters"),
    ("API_KEYS", f"a={KEY}:", ", entry 1: scopes are one or more of check, revoke, revoke-own, admin"),
    ("API_KEYS", f"a={KEY}:read", ", entry 1: scopes are one or more of check, revoke, revoke-own, admin"),
    ("API_KEYS", f"a={KEY}:check+check", ", entry 1: scopes are one or more of"),
    ("API_KEYS", f"a={KEY}:check+", ", entry 1: scopes are one or more of"),
    ("API_KEYS", f"{KEY}==:check", ", entry 1: a key is 20 or more characters"),
    ("API_KEYS", f"# who calls\n\na={OTHER_KEY}:check\n{KEY}={KEY}:read", ", entry 2: scopes are one or more of"),
    ("API_KEYS", f"a={KEY}:check,b={KEY}:admin", "has one key twice"),
    ("FORWARD_AUTH_HEADERS", "X-Auth-Subject", "must be header=claim"),
    ("FORWARD_AUTH_HEADERS", "X-Auth-Subject=", "must be header=claim"),
    ("FORWARD_AUTH_HEADERS", "Content-Length=sub", "must be header=claim"),
    ("FORWARD_AUTH_HEADERS", "X-Request-ID=sub", "must be header=claim"),
    ("FORWARD_AUTH_HEADERS", "X-Auth_Subject=sub", "must be header=claim"),
    ("FORWARD_AUTH_HEADERS", "X-Auth-A=sub,x-auth-a=scope", "must be header=claim"),
    ("API_KEYS", f"a={KEY}:check,a={KEY}:admin", "has one key twice"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), WRONG, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG)])
def test_a_wrong_value_stops_the_start(name: str, value: str, complaint: str) -> None:
    """A wrong value raises a one-line error that names the variable, says what it must be, and quotes no key."""
    detail = refused({f"REVOCATION_{name}": value})
    assert detail.startswith(f"REVOCATION_{name}")
    assert complaint in detail
    assert KEY not in detail


NEED_KEYS: dict[str, dict[str, str]] = {
    "REVOCATION_FORWARD_AUTH=true": {"FORWARD_AUTH": "true"},
    "REVOCATION_FORWARD_AUTH_KEYLESS": {"FORWARD_AUTH_UNVERIFIED": "true", "FORWARD_AUTH_KEYLESS": "true"},
    "REVOCATION_OAUTH_INTROSPECT": {"OAUTH_INTROSPECT": "true"},
    "revoke-own": {"API_KEYS": f"a={KEY}:revoke-own"},
}


@pytest.mark.parametrize("named", NEED_KEYS)
def test_what_needs_verified_tokens_needs_signing_keys(named: str) -> None:
    """A setting that needs verified tokens is refused without signing keys. The error names it and JWT_SECRET."""
    given = {f"REVOCATION_{name}": value for name, value in NEED_KEYS[named].items()}
    assert named in refused(given)
    assert "REVOCATION_JWT_SECRET" in refused(given)
    load({**given, "REVOCATION_JWT_SECRET": "s"})


def test_a_gateway_that_verifies_needs_no_keys_here() -> None:
    """With `FORWARD_AUTH_UNVERIFIED`, /forward-auth is open without signing keys."""
    unverified = settings(FORWARD_AUTH="true", FORWARD_AUTH_UNVERIFIED="true", OPENAPI="false")
    assert unverified.open_doors == ("/forward-auth",)


def test_a_key_given_as_its_digest_is_the_same_key_twice() -> None:
    """Two entries may not have the same key, even if one of them gives only its SHA-256."""
    digest = sha256(KEY.encode()).hexdigest()
    assert "one key twice" in refused({"REVOCATION_API_KEYS": f"a={KEY}:check,b=sha256:{digest}:check"})
    (given,) = settings(API_KEYS=f"a=sha256:{digest.upper()}:check").api_keys
    assert given.digest == sha256(KEY.encode()).digest()


def test_api_keys_are_a_list_of_entries() -> None:
    """Names may repeat, keys may contain = and :, and comments and empty lines are skipped."""
    text = f"\n# who calls\nmain-api={OTHER_KEY}:check+revoke\r\nops={KEY}:admin\n\nops={KEY}x:admin,c={KEY}y:check\n"
    keys = settings(API_KEYS=text).api_keys
    assert [(key.name, sorted(key.scopes)) for key in keys] == [
        ("main-api", ["check", "revoke"]),
        ("ops", ["admin"]),
        ("ops", ["admin"]),
        ("c", ["check"]),
    ]
    expected = [OTHER_KEY, KEY, f"{KEY}x", f"{KEY}y"]
    assert [key.digest for key in keys] == [sha256(key.encode()).digest() for key in expected]


@pytest.mark.parametrize("name", sorted(name.removeprefix("REVOCATION_") for name in SECRETS))
def test_a_secret_may_stand_in_a_file(tmp_path: pathlib.Path, name: str) -> None:
    """NAME_FILE names a file with the value. It is an error if NAME is set too, or the file is empty or unreadable."""
    variable, value = f"REVOCATION_{name}", SECRETS[f"REVOCATION_{name}"]
    path = tmp_path / "secret"
    path.write_text(f"{value}\n", encoding="utf-8")
    from_file = load({f"{variable}_FILE": str(path)})
    assert from_file.settings == load({variable: value}).settings
    assert from_file.unknown == ()
    both = refused({f"{variable}_FILE": str(path), variable: value})
    assert both == f"{variable} and {variable}_FILE are both set; keep one"
    path.write_text(" \n")
    assert refused({f"{variable}_FILE": str(path)}).startswith(f"{variable} is set but empty")
    path.write_bytes(b"\xff\xfe\x00")
    assert refused({f"{variable}_FILE": str(path)}) == f"{variable}_FILE names {path}, which cannot be read: not text"
    for wrong, why in ((tmp_path / "missing", "No such file or directory"), (tmp_path, "Is a directory")):
        complaint = refused({f"{variable}_FILE": str(wrong)})
        assert complaint == f"{variable}_FILE names {wrong}, which cannot be read: {why}"
    assert refused({f"{variable}_FILE": ""}).startswith(f"{variable}_FILE names ")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.example.com", "10.0.0.1"])
def test_without_keys_only_loopback_is_served(host: str) -> None:
    """An address that is not loopback requires API keys. The error names both variables."""
    detail = refused({"REVOCATION_HOST": host})
    assert detail.startswith("REVOCATION_HOST=")
    assert "REVOCATION_API_KEYS" in detail
    assert settings(HOST=host, API_KEYS=f"a={KEY}:check").host == host


def test_keys_may_be_required_on_loopback_too() -> None:
    """With REVOCATION_REQUIRE_API_KEYS, as in the image, API keys are required on loopback, too."""
    detail = refused({"REVOCATION_REQUIRE_API_KEYS": "true"})
    assert "REVOCATION_API_KEYS" in detail
    assert not settings(REQUIRE_API_KEYS="true", API_KEYS=f"a={KEY}:check").protected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1", "::1%lo"])
def test_loopback_needs_no_keys(host: str) -> None:
    """Every form of the loopback address counts as loopback, which requires no API keys."""
    assert is_loopback(host)
    assert settings(HOST=host).protected


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "2130706433", "0", "::ffff:10.0.0.1", "fe80::1%lo", "*"])
def test_what_only_looks_like_loopback_is_not(host: str) -> None:
    """A name or a number that some resolver might map to loopback does not count."""
    assert not is_loopback(host)


@pytest.mark.parametrize("name", ["ALGORITHMS", "ISSUER", "AUDIENCE"])
def test_what_is_verified_needs_a_key(name: str) -> None:
    """An issuer, an audience or algorithms without a key would verify nothing, so the start is refused."""
    assert refused({f"REVOCATION_JWT_{name}": "x"}).startswith("REVOCATION_JWT_ALGORITHMS, _ISSUER and _AUDIENCE need")
    for key in ("JWT_SECRET", "JWT_PUBLIC_KEY"):
        assert load({f"REVOCATION_JWT_{name}": "x", f"REVOCATION_{key}": "y"}).settings.signing.configured
    assert settings(JWKS_URL="http://keys").signing.configured


def test_an_unknown_variable_is_listed() -> None:
    """A variable with our prefix that is no setting is listed; those of the client are not."""
    loaded = load(
        {
            "REVOCATION_REDIS_ULR": "x",
            "REVOCATION_PORT_FILE": "x",
            "REVOCATION_URL": "x",
            "REVOCATION_API_KEY": "x",
            "REVOCATIONS": "x",
            "HOME": "x",
        }
    )
    assert loaded.unknown == ("REVOCATION_PORT_FILE", "REVOCATION_REDIS_ULR")


def test_no_secret_is_in_any_repr_or_description() -> None:
    """Neither `shown`, which check-config prints, nor the repr of any settings holds a secret or a part of one."""
    loaded = load(SECRETS)
    shown = "\n".join([*loaded.shown, repr(loaded.settings), str(loaded.settings.store)])
    for secret in SECRET_TEXTS:
        assert secret not in shown, secret
    assert "REVOCATION_REDIS_URL=redis://***@redis.internal:6379/0?***" in shown
    assert "REVOCATION_JWKS_URL=https://***@keys.internal/set?***" in shown
    assert "REVOCATION_API_KEYS=main-api=***, ops=***" in shown
    assert "REVOCATION_REDIS_PASSWORD=***" in shown
    assert "REVOCATION_JWT_SECRET=***" in shown
    assert "REVOCATION_JWT_PUBLIC_KEY=(PEM)" in shown


def test_a_description_says_what_is_in_force() -> None:
    """Each setting has a line, which says whether the value is the default."""
    lines = load({"REVOCATION_PORT": "9000", "REVOCATION_JWT_SECRET": "x"}).shown
    assert "REVOCATION_PORT=9000" in lines
    assert "REVOCATION_HOST=127.0.0.1  (default)" in lines
    assert "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS=2592000  (default)" in lines
    assert "REVOCATION_WAIT_REPLICAS=0  (default)" in lines
    assert "REVOCATION_STRICT_STORE=false  (default)" in lines
    names = [line.partition("=")[0] for line in lines]
    assert len(set(names)) == len(names) == len(SETTINGS)
    assert set(names) == SETTINGS


SETTINGS = {
    *("REVOCATION_HOST", "REVOCATION_PORT", "REVOCATION_DRAIN_SECONDS", "REVOCATION_API_KEYS"),
    "REVOCATION_REQUIRE_API_KEYS",
    *("REVOCATION_REDIS_URL", "REVOCATION_REDIS_PASSWORD", "REVOCATION_KEY_PREFIX", "REVOCATION_WAIT_REPLICAS"),
    *("REVOCATION_STRICT_STORE", "REVOCATION_CHANGE_LOG_MAX_ENTRIES", "REDIS_SERVER_BIN"),
    *("REVOCATION_JWT_SECRET", "REVOCATION_JWT_PUBLIC_KEY", "REVOCATION_JWKS_URL"),
    *("REVOCATION_JWT_ALGORITHMS", "REVOCATION_JWT_ISSUER", "REVOCATION_JWT_AUDIENCE"),
    *("REVOCATION_MAX_TOKEN_LIFETIME_SECONDS", "REVOCATION_EXPIRY_LEEWAY_SECONDS", "REVOCATION_CLOCK_SKEW_SECONDS"),
    *("REVOCATION_MAX_STALENESS_SECONDS", "REVOCATION_RESCAN_SECONDS", "REVOCATION_FOREIGN_WRITERS"),
    *("REVOCATION_FEED_MAX_SUBSCRIBERS", "REVOCATION_LOG_LEVEL", "REVOCATION_LOG_FORMAT"),
    *("REVOCATION_FORWARD_AUTH", "REVOCATION_FORWARD_AUTH_COOKIE", "REVOCATION_FORWARD_AUTH_QUERY"),
    *("REVOCATION_FORWARD_AUTH_HEADERS", "REVOCATION_FORWARD_AUTH_OPTIONAL"),
    *("REVOCATION_FORWARD_AUTH_KEYLESS", "REVOCATION_FORWARD_AUTH_UNVERIFIED"),
    "REVOCATION_OPENAPI",
    *("REVOCATION_OAUTH_REVOKE", "REVOCATION_OAUTH_INTROSPECT", "REVOCATION_OAUTH_INTROSPECT_CLAIMS"),
}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@h:1/0", "redis://***@h:1/0"),
        ("redis://user:secret@h:1/0", "redis://***@h:1/0"),
        ("redis://secret@h:1/0", "redis://***@h:1/0"),
        ("redis://:sec@ret@h:1/0", "redis://***@h:1/0"),
        ("redis://h:1/0?password=secret", "redis://h:1/0?***"),
        ("redis+sentinel://:secret@a:1,b:2/main?sentinel_password=secret", "redis+sentinel://***@a:1,b:2/main?***"),
        ("redis+cluster://u:secret@a:1,b:2", "redis+cluster://***@a:1,b:2"),
        ("unix://:secret@/run/redis.sock?db=2", "unix://***@/run/redis.sock?***"),
        ("redis://:sec?ret@h:1", "redis://***"),
        ("redis://h:1?password=sec@ret", "redis://***"),
        ("embedded:/var/lib/x", "embedded:/var/lib/x"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    """User, password and query are masked, also in a URL that is malformed."""
    assert mask_url(url) == shown


def test_settings_cannot_be_changed() -> None:
    """The settings, and their parts for the store, signing and limits, are frozen."""
    frozen: list[Any] = [settings(), settings().store, settings().signing, settings().limits]
    for each in frozen:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(each, dataclasses.fields(each)[0].name, "x")


def test_an_empty_host_is_an_error() -> None:
    """An empty host is refused, because it would mean every address."""
    with pytest.raises(SettingsError, match="REVOCATION_HOST is set but empty"):
        load({"REVOCATION_HOST": "", "REVOCATION_API_KEYS": "main-api=0123456789abcdefghij:check"})
