"""The gateway's settings: defaults, the error for each wrong value, and masked secrets."""

import ipaddress
import pathlib

import pytest

from revocation_service.cli import main
from revocation_service.errors import SettingsError
from revocation_service.gateway.settings import GatewaySettings, Rate, ThrottleSettings, load
from revocation_service.settings import StoreSettings, load as load_service

UPSTREAM = "http://127.0.0.1:9000"


def settings(**given: str) -> GatewaySettings:
    variables = {"UPSTREAM_URL": UPSTREAM, **given}
    return load({f"GATEWAY_{name}": value for name, value in variables.items()}).settings


def refused(**given: str) -> str:
    with pytest.raises(SettingsError) as error:
        settings(**given)
    assert "\n" not in error.value.detail
    return error.value.detail


def test_the_defaults_are_the_documented_ones() -> None:
    """With only the upstream set, the gateway listens on loopback and allows five logins a minute on two paths."""
    loaded = load({"GATEWAY_UPSTREAM_URL": f"{UPSTREAM}/"})
    assert loaded.settings == GatewaySettings(
        upstream_url=UPSTREAM,
        host="127.0.0.1",
        port=8000,
        admin_port=8001,
        throttle=ThrottleSettings(
            login_paths=("/auth/login", "/api/v1/auth/login"),
            login_limit=Rate(5, 60),
            default_limit=None,
            trusted_proxies=(),
            store=None,
        ),
        connect_seconds=5,
        response_seconds=60,
        idle_seconds=300,
        drain_seconds=1,
        log_level="info",
        log_format="auto",
    )
    assert loaded.unknown == ()


def test_every_setting_is_taken_from_its_variable() -> None:
    """Each environment variable sets its own field."""
    given = settings(
        HOST="0.0.0.0",
        PORT="80",
        ADMIN_PORT="81",
        LOGIN_PATHS=" /login , /api/login",
        LOGIN_LIMIT="3/30 seconds",
        DEFAULT_LIMIT="100/hour",
        TRUSTED_PROXIES="10.0.0.0/8, fd00::/8,192.0.2.1,172.16.0.0/12",
        REDIS_URL="rediss://redis:6379",
        REDIS_PASSWORD="secret",
        KEY_PREFIX="gw:",
        CONNECT_TIMEOUT_SECONDS="1",
        RESPONSE_TIMEOUT_SECONDS="2",
        IDLE_TIMEOUT_SECONDS="3",
        DRAIN_SECONDS="0",
        LOG_LEVEL="debug",
        LOG_FORMAT="json",
    )
    networks = ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32", "172.16.0.0/12")
    assert given == GatewaySettings(
        UPSTREAM,
        "0.0.0.0",
        80,
        81,
        ThrottleSettings(
            ("/login", "/api/login"),
            Rate(3, 30),
            Rate(100, 3600),
            tuple(map(ipaddress.ip_network, networks)),
            StoreSettings(
                "rediss://redis:6379",
                "secret",
                "gw:",
                url_variable="GATEWAY_REDIS_URL",
                prefix_variable="GATEWAY_KEY_PREFIX",
            ),
        ),
        1,
        2,
        3,
        0,
        "debug",
        "json",
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1/second", Rate(1, 1)),
        ("5/minute", Rate(5, 60)),
        (" 5 / 2 Minutes ", Rate(5, 120)),
        ("10000/31 days", Rate(10_000, 31 * 86_400)),
    ],
)
def test_a_limit_is_so_many_in_so_long(text: str, rate: Rate) -> None:
    """A limit is written as a count and a window, such as `5/minute`."""
    assert settings(LOGIN_LIMIT=text).throttle.login_limit == rate


WRONG = [
    ("UPSTREAM_URL", "", "is needed"),
    *[
        ("UPSTREAM_URL", url, "must be an origin")
        for url in (
            "127.0.0.1:9000",
            "ftp://h",
            "http://",
            "http://u:p@h",
            "http://h/path",
            "http://h?q",
            "http://h#f",
            "http://h:0",
            "http://h:x",
            "http://[::1",
            "http://h h",
            "http://h\\x",
            "unix:///run/x",
        )
    ],
    ("HOST", "", "is set but empty"),
    ("PORT", "65536", "must be a whole number"),
    ("ADMIN_PORT", "8000", "must be another port than GATEWAY_PORT"),
    ("LOGIN_PATHS", "", "must be one or more paths"),
    ("LOGIN_PATHS", "login", "must be one or more paths"),
    ("LOGIN_PATHS", "/a,b", "must be one or more paths"),
    ("LOGIN_LIMIT", "none", "must be a limit"),
    ("LOGIN_LIMIT", "", "is set but empty"),
    *[
        ("LOGIN_LIMIT", rate, "must ")
        for rate in ("5", "5/", "/minute", "five/minute", "-5/minute", "0/minute", "5/0 minutes", "5.5/minute")
    ],
    ("LOGIN_LIMIT", "10001/minute", "must allow 1 to 10,000"),
    ("DEFAULT_LIMIT", "5/32 days", "must allow"),
    ("TRUSTED_PROXIES", "10.0.0.1/8", "must be networks"),
    ("TRUSTED_PROXIES", "proxy.internal", "must be networks"),
    ("TRUSTED_PROXIES", "*", "must be networks"),
    ("REDIS_URL", "embedded:", "cannot be embedded:"),
    ("REDIS_URL", "embedded:/path", "cannot be embedded:"),
    ("KEY_PREFIX", "a\nb", "must be at most 128 printable characters"),
    ("CONNECT_TIMEOUT_SECONDS", "0", "must be a number"),
    ("RESPONSE_TIMEOUT_SECONDS", "nan", "must be a number"),
    ("IDLE_TIMEOUT_SECONDS", "-1", "must be a number"),
    ("DRAIN_SECONDS", "3", "must be a number from 0 to 2"),
    ("LOG_LEVEL", "loud", "must be one of"),
    ("LOG_FORMAT", "xml", "must be one of"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), WRONG, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG)])
def test_a_wrong_value_stops_the_start(name: str, value: str, complaint: str) -> None:
    """The error for a wrong value is one line, which names the variable and says what it must be."""
    detail = refused(**{name: value})
    assert detail.startswith(f"GATEWAY_{name} ")
    assert complaint in detail


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("HEAD_TIMEOUT_SECONDS", "TLS terminator"),
        ("MAX_CONNECTIONS", "TLS terminator"),
        ("ACCOUNT_LIMIT", "limit by account in the main API"),
        ("ACCOUNT_KEY", "limit by account in the main API"),
        ("ACCOUNT_KEY_FILE", "limit by account in the main API"),
    ],
)
def test_a_setting_that_was_removed_stops_the_start(name: str, instead: str) -> None:
    """The error for a removed setting names it, and says what to do instead."""
    detail = refused(**{name: "20"})
    assert detail.startswith(f"GATEWAY_{name} was removed: unset it, and ")
    assert instead in detail


def test_a_key_prefix_on_a_cluster_has_a_hash_tag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a cluster the default key prefix has a hash tag, and a prefix without one is refused."""
    monkeypatch.setenv("GATEWAY_UPSTREAM_URL", UPSTREAM)
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis+cluster://a:1,b:2")
    assert main(["check-config", "gateway"]) == 0
    assert "GATEWAY_KEY_PREFIX={revocations}  (default)" in capsys.readouterr().out
    monkeypatch.setenv("GATEWAY_KEY_PREFIX", "{logins}:")
    assert main(["check-config", "gateway"]) == 0
    monkeypatch.setenv("GATEWAY_KEY_PREFIX", "logins:")
    capsys.readouterr()
    assert main(["check-config", "gateway"]) == 1
    assert capsys.readouterr().err.startswith("revocation-service: GATEWAY_KEY_PREFIX needs a hash tag on a cluster")


def test_each_part_knows_only_its_own_variables() -> None:
    """The gateway and the service each list only the unknown variables that have their own prefix."""
    environment = {
        "GATEWAY_UPSTREAM_URL": UPSTREAM,
        "GATEWAY_PROT": "1",
        "REVOCATION_PROT": "1",
        "REVOCATION_REDIS_URL": "redis://r",
    }
    assert load(environment).unknown == ("GATEWAY_PROT",)
    assert load_service(environment).unknown == ("REVOCATION_PROT",)


def test_no_secret_is_shown(tmp_path: pathlib.Path) -> None:
    """No secret is in the shown settings or in a repr, even if it comes from a file."""
    (tmp_path / "password").write_text("canary\n")
    loaded = load(
        {
            "GATEWAY_UPSTREAM_URL": UPSTREAM,
            "GATEWAY_REDIS_URL": "redis://user:canary@redis:6379/0?password=canary",
            "GATEWAY_REDIS_PASSWORD_FILE": str(tmp_path / "password"),
        }
    )
    assert loaded.settings.throttle.store is not None
    assert loaded.settings.throttle.store.password == "canary"
    shown = "\n".join(loaded.shown) + repr(loaded.settings)
    assert "canary" not in shown
    assert "redis:6379" in shown


def test_check_config_shows_the_gateways_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check-config gateway` prints the gateway's settings, one a line. It fails if one is wrong, and names it."""
    monkeypatch.setenv("GATEWAY_UPSTREAM_URL", UPSTREAM)
    assert main(["check-config", "gateway"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"GATEWAY_UPSTREAM_URL={UPSTREAM}" in lines
    assert "GATEWAY_LOGIN_LIMIT=5/minute  (default)" in lines
    assert not any(line.startswith("REVOCATION_") for line in lines)
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://redis:port")
    assert main(["check-config", "gateway"]) == 1
    assert capsys.readouterr().err.startswith("revocation-service: GATEWAY_REDIS_URL cannot be read")
    monkeypatch.delenv("GATEWAY_UPSTREAM_URL")
    assert main(["check-config", "gateway"]) == 1
    assert capsys.readouterr().err.startswith("revocation-service: GATEWAY_UPSTREAM_URL is needed")
