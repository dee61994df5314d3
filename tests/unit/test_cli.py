"""The command line: what each command prints, and its exit status."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from revocation_service import __version__
from revocation_service.cli import main
from revocation_service.settings import load
from tests.unit.authorized import door
from tests.unit.reencodings import issuer

CANARY = "canary-4d1e7c90b52a"
SECRETS = {
    "REVOCATION_REDIS_URL": f"redis://user:{CANARY}@127.0.0.1:6379/0?client_name={CANARY}",
    "REVOCATION_REDIS_PASSWORD": CANARY,
    "REVOCATION_JWT_SECRET": f"{CANARY}-{CANARY}",
    "REVOCATION_JWT_PUBLIC_KEY": issuer("RS256").pem,
    "REVOCATION_JWKS_URL": f"https://user:{CANARY}@keys.example/jwks?key={CANARY}",
    "REVOCATION_API_KEYS": f"caller={CANARY}-aaaa:check,ops={CANARY}-bbbb:admin",
}


@dataclass(frozen=True)
class Done:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Restore logging after each test, because `serve` configures it for the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A function that runs a command in this process, with only the given settings and an empty state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith("REVOCATION_"):
            monkeypatch.delenv(name)

    def run(*arguments: str, **variables: str) -> Done:
        for name, value in variables.items():
            monkeypatch.setenv(f"REVOCATION_{name}", value)
        capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as ended:  # raised by argparse
            status = int(str(ended.code))
        return Done(status, *capsys.readouterr())

    return run


def spawn(*command: str, **variables: str) -> Done:
    """Run a command in its own process."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


CONSOLE_SCRIPT = (str(Path(sys.executable).with_name("revocation-service")),)
MODULE = (sys.executable, "-m", "revocation_service")


@pytest.mark.parametrize("arguments", [("--version",), ("check-config",), ("new-key", "x", "root")])
def test_the_module_is_the_command(arguments: tuple[str, ...]) -> None:
    """`python -m revocation_service` and `revocation-service` print the same, with the same exit status."""
    assert spawn(*CONSOLE_SCRIPT, *arguments) == spawn(*MODULE, *arguments)


def test_help_names_every_command(run: Run) -> None:
    """--help lists the commands and the prefixes of the settings, and exits with status 0."""
    done = run("--help")
    assert (done.status, done.err) == (0, "")
    for word in ("serve", "gateway", "check-config", "new-key", "REVOCATION_", "GATEWAY_"):
        assert word in done.out
    for command in ("serve", "gateway", "check-config", "new-key"):
        assert run(command, "--help").status == 0


def test_version(run: Run) -> None:
    """--version prints the name and the version of the package."""
    assert run("--version") == Done(0, f"revocation-service {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("serve", "more"),
        ("gateway", "more"),
        ("check-config", "mirror"),
        ("new-key",),
        ("new-key", "name"),
        ("--port", "1"),
    ],
)
def test_a_wrong_call_is_status_2(run: Run, arguments: tuple[str, ...]) -> None:
    """A wrong command line ends with status 2, the usage on stderr and nothing on stdout."""
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "usage: revocation-service" in done.err


def test_check_config_shows_what_is_in_force(run: Run) -> None:
    """check-config prints each setting once, on a line with its value, and marks defaults."""
    done = run("check-config", PORT="9000", MAX_TOKEN_LIFETIME_SECONDS="3600")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "REVOCATION_PORT=9000" in lines
    assert "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS=3600" in lines
    assert "REVOCATION_HOST=127.0.0.1  (default)" in lines
    assert lines.pop() == "# open doors: /openapi.json, /docs"
    names = [line.partition("=")[0] for line in lines]
    assert len(set(names)) == len(names)
    assert {name.removesuffix("_FILE") for name in SECRETS} <= set(names)


def test_check_config_shows_the_open_doors(run: Run) -> None:
    """The last line of check-config lists the optional endpoints that are enabled."""
    done = run("check-config", OAUTH_REVOKE="true", OAUTH_INTROSPECT="true", JWT_SECRET="s" * 32, OPENAPI="false")
    assert done.out.splitlines()[-1] == "# open doors: /oauth2/revoke, /oauth2/introspect"
    assert run("check-config", OAUTH_REVOKE="false", OAUTH_INTROSPECT="false").out.endswith("# open doors: none\n")


def test_check_config_masks_secrets(run: Run) -> None:
    """Keys, passwords, secrets, and the user and query of a URL are masked; names and hosts stay readable."""
    done = run("check-config", **{name.removeprefix("REVOCATION_"): value for name, value in SECRETS.items()})
    assert (done.status, done.err) == (0, "")
    assert CANARY not in done.out
    assert "BEGIN" not in done.out
    for shown in ("127.0.0.1:6379", "keys.example", "caller=***", "ops=***"):
        assert shown in done.out


def test_check_config_masks_secrets_from_files(run: Run, tmp_path: Path) -> None:
    """check-config prints no secret that it has read from a file."""
    given = {}
    for name, value in SECRETS.items():
        file = tmp_path / name
        file.write_text(value + "\n")
        given[f"{name.removeprefix('REVOCATION_')}_FILE"] = str(file)
    done = run("check-config", **given)
    assert (done.status, done.err) == (0, "")
    assert CANARY not in done.out


@pytest.mark.parametrize("password", ["pass?word", "pass/word", "pass#word", "pass@word", "p@ss?w@rd", "%40?x@y"])
def test_a_password_that_breaks_its_url_is_masked(run: Run, password: str) -> None:
    """A password with characters that should be percent-encoded is not printed, even if the URL is refused."""
    done = run("check-config", REDIS_URL=f"redis://:{CANARY}{password}{CANARY}@127.0.0.1:6379/0")
    for part in (CANARY, *re.split(r"\W+", password)):
        assert len(part) < 2 or part not in done.out + done.err


def test_check_config_warns_of_unknown_settings(run: Run) -> None:
    """check-config names a misspelt variable on stderr, and still exits with status 0."""
    done = run("check-config", PROT="9000", API_KEY_FILES="x")
    assert done.status == 0
    assert [re.findall(r"REVOCATION_\w+", line) for line in done.err.splitlines()] == [
        ["REVOCATION_API_KEY_FILES"],
        ["REVOCATION_PROT"],
    ]


def test_check_config_judges_the_server_of_the_embedded_redis() -> None:
    """check-config refuses a REDIS_SERVER_BIN that is no Redis server, except with an external Redis."""
    done = spawn(*MODULE, "check-config", REDIS_SERVER_BIN="/bin/true")
    assert done.status == 1
    assert done.err.startswith("revocation-service: REDIS_SERVER_BIN: /bin/true is not a Redis")
    elsewhere = {"REVOCATION_REDIS_URL": "redis://127.0.0.1:1", "REDIS_SERVER_BIN": "/bin/true"}
    assert spawn(*MODULE, "check-config", **elsewhere).status == 0


def test_check_config_refuses_data_that_another_server_wrote(tmp_path: Path) -> None:
    """check-config refuses a data directory of the embedded Redis that another server wrote."""
    (tmp_path / "written-by").write_text("Valkey 1.2.3\n")
    done = spawn(*MODULE, "check-config", REVOCATION_REDIS_URL=f"embedded:{tmp_path}")
    assert done.status == 1
    assert "was written by Valkey 1.2.3" in done.err


def test_the_clients_own_settings_are_known(run: Run) -> None:
    """check-config does not report REVOCATION_URL and REVOCATION_API_KEY as unknown, because the client reads them."""
    assert run("check-config", URL="http://127.0.0.1:8080", API_KEY=CANARY).err == ""


WRONG: dict[str, tuple[str, str]] = {
    "a port that is no number": ("PORT", "http"),
    "an empty port": ("PORT", ""),
    "a port too high": ("PORT", "65536"),
    "a negative port": ("PORT", "-1"),
    "half a port": ("PORT", "80.5"),
    "a host for others": ("HOST", "0.0.0.0"),
    "a host of two lines": ("HOST", f"10.0.0.1\n{CANARY}"),
    "NaN": ("CLOCK_SKEW_SECONDS", "nan"),
    "infinity": ("MAX_TOKEN_LIFETIME_SECONDS", "inf"),
    "a unit": ("MAX_TOKEN_LIFETIME_SECONDS", "30d"),
    "no lifetime": ("MAX_TOKEN_LIFETIME_SECONDS", "0"),
    "a negative leeway": ("EXPIRY_LEEWAY_SECONDS", "-1"),
    "a log level": ("LOG_LEVEL", "loud"),
    "a log format": ("LOG_FORMAT", "xml"),
    "a flag": ("STRICT_STORE", "maybe"),
    "replicas": ("WAIT_REPLICAS", "all"),
    "a change log too short": ("CHANGE_LOG_MAX_ENTRIES", "1"),
    "a prefix of a line break": ("KEY_PREFIX", "a\nb"),
    "a scheme": ("REDIS_URL", f"http://:{CANARY}@127.0.0.1"),
    "no server": ("REDIS_URL", "redis://"),
    "a port in the URL": ("REDIS_URL", f"redis://:{CANARY}@127.0.0.1:port"),
    "an option of the URL": ("REDIS_URL", f"redis://:{CANARY}@127.0.0.1:6379/0?unknown=1"),
    "an option of a Sentinel URL": ("REDIS_URL", f"redis+sentinel://:{CANARY}@127.0.0.1:26379/main?unknown=1"),
    "an option of a cluster URL": ("REDIS_URL", f"redis+cluster://:{CANARY}@127.0.0.1:7000?unknown=1"),
    "an option's value": ("REDIS_URL", "redis://127.0.0.1:6379/0?health_check_interval=often"),
    "a Sentinel URL without a service": ("REDIS_URL", "redis+sentinel://127.0.0.1:26379"),
    "a cluster URL without a port": ("REDIS_URL", f"redis+cluster://:{CANARY}@127.0.0.1"),
    "an empty URL": ("REDIS_URL", ""),
    "empty keys": ("API_KEYS", ""),
    "keys of commas": ("API_KEYS", ",,"),
    "a key alone": ("API_KEYS", f"{CANARY}{CANARY}"),
    "a key too short": ("API_KEYS", "a=short:check"),
    "a scope": ("API_KEYS", f"a={CANARY}{CANARY}:write"),
    "an empty secret": ("JWT_SECRET", " "),
    "a public key as secret": ("JWT_SECRET", issuer("RS256").pem),
    "no PEM": ("JWT_PUBLIC_KEY", CANARY),
    "a JWKS address": ("JWKS_URL", f"ftp://{CANARY}"),
    "algorithms without a key": ("JWT_ALGORITHMS", "RS256"),
    "a file that is not there": ("JWT_SECRET_FILE", "/nonexistent"),
}


@pytest.mark.parametrize("command", ["check-config", "serve"])
@pytest.mark.parametrize(("name", "value"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_is_one_line_and_status_1(run: Run, command: str, name: str, value: str) -> None:
    """A wrong value ends the command with status 1 and one line, which names the variable and quotes no secret."""
    given = {"REDIS_URL": "redis://127.0.0.1:1"} if command == "serve" and "REDIS_URL" not in name else {}
    done = run(command, **{**given, name: value})
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("revocation-service: REVOCATION_")
    assert f"REVOCATION_{name.removesuffix('_FILE')}" in done.err
    assert CANARY not in done.out + done.err or name == "HOST"


@pytest.mark.parametrize("name", ["API_KEYS", "JWT_SECRET", "REDIS_URL", "REDIS_PASSWORD"])
def test_a_secret_and_its_file_are_an_error(run: Run, tmp_path: Path, name: str) -> None:
    """A secret that is set both directly and by a file is an error, which does not quote the secret."""
    file = tmp_path / "secret"
    file.write_text(CANARY)
    done = run("check-config", **{name: CANARY, f"{name}_FILE": str(file)})
    assert done.status == 1
    assert f"REVOCATION_{name}_FILE" in done.err
    assert CANARY not in done.err


async def test_a_new_key_authorises(run: Run) -> None:
    """`new-key` prints a key and its entry. With that entry the service accepts the key, for its scopes only."""
    done = run("new-key", "main-api", "check+revoke")
    assert (done.status, done.err) == (0, "")
    key, entry = (line.rpartition(" ")[2] for line in done.out.splitlines())
    assert entry.startswith("main-api=sha256:")
    assert key not in entry
    (loaded,) = load({"REVOCATION_API_KEYS": entry}).settings.api_keys
    assert (loaded.name, sorted(loaded.scopes)) == ("main-api", ["check", "revoke"])
    async with door(entry) as opened:
        header = f"Authorization: Bearer {key}".encode()
        assert await opened.ask(header, scope="check") == "main-api"
        assert await opened.ask(header, scope="revoke") == "main-api"
        assert await opened.ask(header, scope="admin") == "insufficient_scope"
        assert await opened.ask(f"Authorization: Bearer {key[:-1]}".encode()) == "unauthorized"


def test_new_keys_are_long_and_never_the_same(run: Run) -> None:
    """Fifty new keys differ. Each is 256 bits, in characters that need no quoting in headers, shells and URLs."""
    keys = {run("new-key", "a", "check").out.split()[4] for _ in range(50)}
    assert len(keys) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", key) for key in keys)


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("", "check"),
        ("a b", "check"),
        ("a=b", "check"),
        ("a,b", "check"),
        ("é", "check"),
        ("x" * 65, "check"),
        ("a", ""),
        ("a", "root"),
        ("a", "check,revoke"),
        ("a", "check+check"),
    ],
)
def test_new_key_refuses_what_no_entry_could_hold(run: Run, name: str, scopes: str) -> None:
    """`new-key` refuses a name or scopes that no entry may have: status 1, one line on stderr, and no key."""
    done = run("new-key", name, scopes)
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1


def test_an_address_that_is_taken_is_one_line() -> None:
    """`serve` on a port in use ends with status 1 and names the settings; all earlier lines are log events."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = {"REVOCATION_PORT": port, "REVOCATION_REDIS_URL": "redis://127.0.0.1:1"}
        done = spawn(*MODULE, "serve", REVOCATION_PROT="9000", **given)
    assert (done.status, done.out) == (1, "")
    events = [json.loads(line) for line in done.err.splitlines()[:-1]]
    unknown = [(event["level"], event["name"]) for event in events if event["event"] == "unknown_setting"]
    assert unknown == [("warning", "REVOCATION_PROT")], "a misspelt setting is an event of the log"
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("revocation-service: ")
    assert all(word in last for word in ("REVOCATION_HOST", "REVOCATION_PORT", f"127.0.0.1:{port}"))
