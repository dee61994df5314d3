"""The image: what it refuses, as whom it runs, what is in it."""

import json
import re
import time

import aiohttp
import pytest

from tests.docker.engine import address, answering, container, docker, inspect
from tests.redis_processes import HOST
from tests.system.service_process import ask

pytestmark = pytest.mark.docker

KEYS = "REVOCATION_API_KEYS=main-api=the-key-of-the-one-caller-there-is:check+revoke"
REDIS = f"REVOCATION_REDIS_URL=redis://{HOST}:1"
REFUSED = {
    "nothing set": ([], "set REVOCATION_API_KEYS"),
    "no keys": ([REDIS], "set REVOCATION_API_KEYS"),
    "no keys, on loopback": ([REDIS, f"REVOCATION_HOST={HOST}"], "REVOCATION_API_KEYS is not set"),
    "no url": ([KEYS], "set REVOCATION_REDIS_URL"),
    "embedded": ([KEYS, "REVOCATION_REDIS_URL=embedded:/tmp/redis"], "set REVOCATION_REDIS_URL"),
}
ASK_INSIDE = """
import http.client
connection = http.client.HTTPConnection("127.0.0.1", 8080)
connection.request("GET", "/check?jti=any")
print(connection.getresponse().read().decode())
"""


def environment(*settings: str) -> list[str]:
    """The settings as options of `docker run`."""
    return [word for setting in settings for word in ("--env", setting)]


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_to_start_in_one_line(image: str, case: str) -> None:
    """Without keys, or without a Redis that workers can share, the container ends at once and says so in one line."""
    settings, named = REFUSED[case]
    ran = docker("run", "--rm", *environment(*settings), image, check=False)
    assert ran.returncode == 1
    (line,) = (ran.stdout + ran.stderr).splitlines()
    assert line.startswith("revocation-service: ")
    assert named in line


def test_it_runs_with_a_root_that_is_read_only_and_no_other_mount(image: str) -> None:
    """With --read-only alone, no capabilities and an unknown user it serves, and becomes healthy."""
    options = ["--read-only", "--cap-drop=ALL", "--user=12345:12345", "--health-interval=1s"]
    with container(image, options=[*options, *environment(KEYS, REDIS)]) as identity:
        wait_for_health(identity, "healthy")


def wait_for_health(identity: str, wanted: str) -> None:
    """Wait, for a minute at most, until the engine says so of the container's health."""
    deadline = time.monotonic() + 60
    while (status := inspect(identity)["State"]["Health"]["Status"]) != wanted:
        assert time.monotonic() < deadline, (status, docker("logs", identity).stderr)
        time.sleep(0.2)


def test_a_service_that_does_not_answer_is_unhealthy(image: str) -> None:
    """The health check fails, in one line, where nothing serves, or where the workers do not answer."""
    ran = docker("run", "--rm", image, "python", "-I", "/app/healthcheck.py", check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, "/healthz: ConnectionRefusedError")
    health = ["--health-interval=1s", "--health-retries=1"]
    with container(image, options=[*health, *environment(KEYS, REDIS)]) as identity:
        wait_for_health(identity, "healthy")
        docker("exec", identity, "sh", "-c", "kill -STOP $(cat /proc/1/task/1/children)")
        wait_for_health(identity, "unhealthy")


def test_what_the_image_says_of_itself(image: str) -> None:
    """A numeric user that is not root, SIGTERM, one port, a health check, and commands in exec form."""
    config = inspect(image)["Config"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", config["User"])
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Cmd"][0] == "gunicorn"
    assert not config.get("Entrypoint")


def test_only_the_service_is_in_it(image: str) -> None:
    """Neither sources, tests, secrets nor build tools went in; the commands of the service are there."""
    listed = docker("run", "--rm", "--network=none", image, "ls", "/app", "/opt/venv/bin").stdout.split()
    assert {"gunicorn.conf.py", "healthcheck.py", "gunicorn", "revocation-service"} <= set(listed)
    assert not {"tests", "secrets", "setup.cfg", ".git", "pip"} & set(listed)
    found = docker("run", "--rm", "--user=0", image, "find", "/", "-xdev", "-name", "test_packaging.py")
    assert not found.stdout
    made = docker("run", "--rm", "--network=none", image, "revocation-service", "new-key", "main-api", "check").stdout
    assert re.search(r"main-api=sha256:[0-9a-f]{64}:check$", made, re.MULTILINE)


async def test_a_gunicorn_by_hand_without_keys_serves_nobody_else(image: str) -> None:
    """Started past the configuration that refuses it, each request is judged by its socket: only from inside served."""
    by_hand = ("gunicorn", "--worker-class", "aiohttp.GunicornUVLoopWebWorker", "--bind", "0.0.0.0:8080")
    options = ["--workdir=/", "--publish", f"{HOST}::8080", *environment(REDIS, f"REVOCATION_HOST={HOST}")]
    entry = "revocation_service.web.worker:worker"
    with container(image, *by_hand, "--no-control-socket", entry, options=options) as identity:
        await answering(f"http://{address(identity)}/healthz", 403)
        async with aiohttp.ClientSession() as session:
            refused = await ask(session, "GET", f"http://{address(identity)}/check?jti=any", headers={"Host": HOST})
            assert (refused.status, refused.code) == (403, "protected_mode")
        inside = docker("exec", identity, "python", "-c", ASK_INSIDE).stdout
        assert json.loads(inside)["code"] == "store_unavailable"
