"""Tests of the service's image: settings that it refuses, its health check, its metadata and its content."""

import re
import time

import pytest

from tests.docker.engine import Images, container, docker, inspect
from tests.redis_processes import HOST

pytestmark = pytest.mark.docker

KEYS = "REVOCATION_API_KEYS=main-api=the-key-of-the-one-caller-there-is:check+revoke"
REDIS = f"REVOCATION_REDIS_URL=redis://{HOST}:1"
RESOLVER = "RES_OPTIONS=timeout:1 attempts:3"
REFUSED = {
    "nothing set": ([], "set REVOCATION_API_KEYS"),
    "no keys": ([REDIS], "set REVOCATION_API_KEYS"),
    "no keys, on loopback": ([REDIS, f"REVOCATION_HOST={HOST}"], "set REVOCATION_API_KEYS"),
    "no url": ([KEYS], "set REVOCATION_REDIS_URL"),
    "embedded": ([KEYS, "REVOCATION_REDIS_URL=embedded:/tmp/redis"], "set REVOCATION_REDIS_URL"),
}


def environment(*settings: str) -> list[str]:
    """Return the settings as options of `docker run`."""
    return [word for setting in settings for word in ("--env", setting)]


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_to_start_in_one_line(image: str, case: str) -> None:
    """Without API keys or the URL of a Redis server, the container ends with one line that says what to set."""
    settings, named = REFUSED[case]
    ran = docker("run", "--rm", *environment(*settings), image, check=False)
    assert ran.returncode == 1
    (line,) = (ran.stdout + ran.stderr).splitlines()
    assert line.startswith("revocation-service: ")
    assert named in line


def test_it_runs_with_a_root_that_is_read_only_and_no_other_mount(image: str) -> None:
    """With a read-only root, no other mount, no capabilities and an unknown user, the container becomes healthy."""
    options = ["--read-only", "--cap-drop=ALL", "--user=12345:12345", "--health-interval=1s"]
    with container(image, options=[*options, *environment(KEYS, REDIS)]) as identity:
        wait_for_health(identity, "healthy")


def wait_for_health(identity: str, wanted: str) -> None:
    """Wait until the container has this health status, for at most a minute."""
    deadline = time.monotonic() + 60
    while (status := inspect(identity)["State"]["Health"]["Status"]) != wanted:
        assert time.monotonic() < deadline, (status, docker("logs", identity).stderr)
        time.sleep(0.2)


def test_a_service_that_does_not_answer_is_unhealthy(image: str) -> None:
    """The health check fails if nothing listens, with one line of output, and if the service is frozen."""
    ran = docker("run", "--rm", image, "python", "-I", "/app/healthcheck.py", check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, "/healthz: ConnectionRefusedError")
    health = ["--health-interval=1s", "--health-retries=1"]
    with container(image, options=[*health, *environment(KEYS, REDIS)]) as identity:
        wait_for_health(identity, "healthy")
        docker("kill", "--signal=STOP", identity)
        wait_for_health(identity, "unhealthy")


def test_what_the_image_says_of_itself(image: str) -> None:
    """The image sets a numeric non-root user, SIGTERM, one port, exec-form commands, and fast DNS retries."""
    config = inspect(image)["Config"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", config["User"])
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Cmd"] == ["revocation-service", "serve"]
    assert not config.get("Entrypoint")
    assert RESOLVER in config["Env"]


def test_the_main_apis_image_retries_dns_as_fast(images: Images) -> None:
    """The main API's image sets fast DNS retries, because glibc waits five seconds for a lost answer by default."""
    assert RESOLVER in inspect(images.main_api)["Config"]["Env"]


def test_only_the_service_is_in_it(image: str) -> None:
    """The image has the commands of the service, and no tests, secrets, Git repository or pip."""
    listed = docker("run", "--rm", "--network=none", image, "ls", "/app", "/opt/venv/bin").stdout.split()
    assert {"healthcheck.py", "revocation-service"} <= set(listed)
    assert not {"tests", "secrets", "setup.cfg", ".git", "pip"} & set(listed)
    found = docker("run", "--rm", "--user=0", image, "find", "/", "-xdev", "-name", "test_packaging.py")
    assert not found.stdout
    made = docker("run", "--rm", "--network=none", image, "revocation-service", "new-key", "main-api", "check").stdout
    assert re.search(r"main-api=sha256:[0-9a-f]{64}:check$", made, re.MULTILINE)
