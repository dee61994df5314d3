"""docker-compose.yml, run for real: two workers, Redis behind a password, everything kept over restarts."""

import asyncio
import functools
import json
import os
import pathlib
import re
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.docker.engine import Images, Running, Stack, answering, compose_command, docker, inspect, project, run
from tests.redis_processes import HOST, eventually
from tests.system.service_process import Answer, ask

pytestmark = pytest.mark.docker

TOKEN = "eyJhbGciOiJub25lIn0.e30." + "x" * 40
STOP_SECONDS = 10
SERVICES = ("redis", "revocation", "main-api", "gateway")
MAIN_API_SECRETS = ("main_api_key", "main_api_jwt_secret", "main_api_users")


@pytest.fixture
async def session(running: Running) -> AsyncIterator[aiohttp.ClientSession]:
    """A caller with a key, on a new connection each time."""
    headers = {"Authorization": f"Bearer {running.key}"}
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as opened:
        yield opened


async def revoke(session: aiohttp.ClientSession, stack: Stack, **members: object) -> Answer:
    """A revocation that must succeed."""
    answer = await ask(session, "POST", f"{stack.url}/revoke", members)
    assert (answer.status, answer.body["result"]) == (200, "revoked")
    return answer


async def revoked(session: aiohttp.ClientSession, stack: Stack, jti: str) -> bool:
    """What the service answers of a token."""
    answer = await ask(session, "GET", f"{stack.url}/check?jti={jti}")
    assert answer.status == 200
    found = answer.body["revoked"]
    assert isinstance(found, bool)
    return found


async def count(session: aiohttp.ClientSession, stack: Stack, sample: str) -> float:
    """One sample of /metrics, by its name and labels."""
    text = (await ask(session, "GET", f"{stack.url}/metrics")).body
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_without_secrets_it_does_not_start_and_says_which(images: Images, tmp_path: pathlib.Path) -> None:
    """`up` fails before anything runs, and names a file that is not there."""
    with project(images, tmp_path / "none") as stack:
        failed = stack.compose("up", "--detach", check=False)
        assert failed.returncode != 0
        assert f"{tmp_path}/none/" in failed.stderr
        assert not stack.compose("ps", "--quiet").stdout


def test_secrets_are_made_once(stack: Stack) -> None:
    """Secrets that are there are left as they are; the directory is its owner's alone, and holds no key in clear."""
    before = {path.name: path.read_text() for path in stack.secrets.iterdir()}
    assert run("deploy/make-secrets", environment=stack.environment, check=False).returncode == 1
    assert {path.name: path.read_text() for path in stack.secrets.iterdir()} == before
    assert stack.secrets.stat().st_mode & 0o777 == 0o700
    assert set(before) == {"redis_password", "api_keys", *MAIN_API_SECRETS}
    for name in ("redis_password", "main_api_jwt_secret"):
        assert re.fullmatch(r"[0-9a-f]{64}\n", before[name])
    hashed = "sha256:[0-9a-f]{64}"
    assert re.fullmatch(rf"main-api={hashed}:check\+revoke\nops={hashed}:admin\n", before["api_keys"])
    assert before["main_api_users"].startswith("alice=$argon2id$")


async def test_it_is_healthy_and_has_nothing_to_warn_of(stack: Stack, session: aiohttp.ClientSession) -> None:
    """All containers are healthy, and preflight finds Redis append-only, synced at every write and not evicting."""
    for service in SERVICES:
        assert inspect(stack.container(service))["State"]["Health"]["Status"] == "healthy"
    ready = await ask(session, "GET", f"{stack.url}/readyz")
    assert (ready.status, ready.body["components"]["store"]) == (200, {"status": "ok"})


async def test_what_one_worker_did_the_other_knows_and_both_count(stack: Stack, session: aiohttp.ClientSession) -> None:
    """There are two workers; what is revoked through one is revoked through the other, and /metrics sums over both."""
    first, second = stack.workers()
    samples = (
        'revocation_revocations_total{claim="jti",result="revoked"}',
        'revocation_checks_total{outcome="revoked"}',
    )
    before = [await count(session, stack, sample) for sample in samples]
    with stack.frozen(second):
        await revoke(session, stack, jti="over-two-workers", expires_in=600)
    with stack.frozen(first):
        assert await revoked(session, stack, "over-two-workers")
    for other in (first, second):
        with stack.frozen(other):
            assert [await count(session, stack, sample) for sample in samples] == [one + 1 for one in before]


async def test_a_key_is_needed(stack: Stack) -> None:
    """Who has no key learns nothing and revokes nothing."""
    async with aiohttp.ClientSession() as stranger:
        for method, path in (("POST", "/revoke"), ("GET", "/check?jti=any"), ("GET", "/revocations?claim=all")):
            answer = await ask(stranger, method, stack.url + path, {"jti": "any"} if method == "POST" else None)
            assert (answer.status, answer.code) == (401, "unauthorized")


async def test_another_caller_is_let_in_without_an_interruption(stack: Stack, session: aiohttp.ClientSession) -> None:
    """A key that is appended to the file counts after SIGHUP; the callers that were there notice nothing."""
    made = stack.compose("run", "--rm", "--no-deps", "revocation", "revocation-service", "new-key", "gateway", "check")
    key, entry = (line.split()[-1] for line in made.stdout.splitlines())
    with (stack.secrets / "api_keys").open("a") as file:
        file.write(f"{entry}\n")
    assert "gateway=***" in stack.inside("revocation", "revocation-service", "check-config")
    stack.compose("kill", "--signal", "HUP", "revocation")
    headers = {"Authorization": f"Bearer {key}"}

    async def known() -> bool:
        assert not await revoked(session, stack, "any")
        return (await ask(session, "GET", f"{stack.url}/check?jti=any", headers=headers)).status == 200

    await eventually(known, "a worker that knows the new key")
    await eventually(functools.partial(_two_workers, stack), "the end of the old workers")


async def _two_workers(stack: Stack) -> bool:
    return len(stack.workers()) == 2


async def test_redis_forgets_by_itself(stack: Stack, session: aiohttp.ClientSession) -> None:
    """The key's own time to live, in this Redis, is that of the token."""
    await revoke(session, stack, jti="short-lived", expires_in=600)
    left = int(redis_cli(stack, "PTTL", "token_blacklist:short-lived"))
    assert 590_000 < left <= 601_000


def redis_cli(stack: Stack, *words: str) -> str:
    """A command to Redis, from inside its container, with the password."""
    script = 'REDISCLI_AUTH=$(cat /run/secrets/redis_password) exec redis-cli "$@"'
    return stack.inside("redis", "sh", "-c", script, "sh", *words)


def test_no_container_may_do_more_than_it_must(stack: Stack) -> None:
    """Not root, no capabilities, none to be gained, a root that nobody can write to; what is needed can be written."""
    for service, user in zip(SERVICES, ("999", "10001", "10001", "10001"), strict=True):
        found = inspect(stack.container(service))
        assert found["HostConfig"]["ReadonlyRootfs"] is True
        assert found["HostConfig"]["CapDrop"] == ["ALL"]
        assert stack.inside(service, "id", "-u") == user
        status = stack.inside(service, "cat", "/proc/1/status")
        assert re.search(rf"^Uid:\s+{user}\s", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        as_root = docker("exec", "--user=0", stack.container(service), "touch", "/usr/new", check=False)
        assert "Read-only file system" in as_root.stderr
        stack.inside(service, "touch", "/tmp/new")


def test_redis_and_the_main_api_are_not_published(stack: Stack) -> None:
    """Neither publishes a port; Redis asks for a password, in a network that leads nowhere and lacks the main API.

    The service is published on loopback alone.
    """
    found = inspect(stack.container("redis"))
    assert not any(found["NetworkSettings"]["Ports"].values())
    (network,) = found["NetworkSettings"]["Networks"]
    (details,) = json.loads(docker("network", "inspect", network).stdout)
    assert details["Internal"] is True
    main_api = inspect(stack.container("main-api"))["NetworkSettings"]
    assert network not in main_api["Networks"]
    assert not any(main_api["Ports"].values())
    assert stack.inside("redis", "redis-cli", "DBSIZE", check=False).startswith("NOAUTH")
    published = inspect(stack.container("revocation"))["NetworkSettings"]["Ports"]["8080/tcp"]
    assert [one["HostIp"] for one in published] == [HOST]


def test_no_secret_is_where_the_engine_shows_it(stack: Stack) -> None:
    """Neither the environment, nor the commands, nor the logs have the password or a key; nor has the compose file."""
    secrets = [line for path in stack.secrets.iterdir() for line in path.read_text().splitlines()]
    for service in SERVICES:
        identity = stack.container(service)
        shown = [docker(*asked, identity).stdout for asked in (("inspect",), ("top",))]
        for text in (*shown, stack.log(service), stack.compose("config").stdout):
            assert not any(secret in text for secret in secrets)


async def test_the_log_is_json_and_has_nothing_of_a_request(
    running: Running, stack: Stack, session: aiohttp.ClientSession
) -> None:
    """Each line of the service's is JSON, gunicorn's own included; tokens, keys and queries are in none."""
    for path in (f"/check?token={TOKEN}", f"/{TOKEN}?query=asked"):
        await ask(session, "GET", stack.url + path, headers={"Referer": f"https://page.example/?token={TOKEN}"})
    await ask(session, "POST", f"{stack.url}/revoke", {"token": TOKEN, "expires_in": 600})
    written = stack.log("revocation")
    events = [json.loads(line)["event"] for line in written.splitlines()]
    assert {"gunicorn_message", "request"} <= set(events)
    for secret in (TOKEN, "xxxxx", "token=", "query=", running.key):
        assert secret not in written


async def test_revocations_outlive_redis(stack: Stack, session: aiohttp.ClientSession) -> None:
    """After Redis is restarted, and after it is killed, all is as before; the service reconnects by itself."""
    made = await revoke(session, stack, jti="kept", expires_in=6000, reason="stolen")
    await revoke(session, stack, sid="session-kept")
    service = stack.container("revocation")
    began = inspect(service)["State"]["StartedAt"]
    for end in ("restart", "kill"):
        stack.compose(end, "redis")
        stack.compose("up", "--detach", "--wait", "redis")
        await answering(f"{stack.url}/readyz")
        assert await revoked(session, stack, "kept"), end
        found = await ask(session, "GET", f"{stack.url}/revocations?claim=jti&value=kept")
        assert (found.body["expires_at"], found.body["reason"]) == (made.body["expires_at"], "stolen")
        found = await ask(session, "GET", f"{stack.url}/revocations?claim=sid&value=session-kept")
        assert found.status == 200
    assert inspect(service)["State"]["StartedAt"] == began


async def test_revocations_outlive_the_whole_project(stack: Stack, session: aiohttp.ClientSession) -> None:
    """After `down` and `up` the containers are new, and what was revoked is revoked."""
    await revoke(session, stack, jti="kept-over-all", expires_in=6000)
    old = stack.container("revocation")
    stack.compose("down")
    stack.up()
    assert stack.container("revocation") != old
    assert await revoked(session, stack, "kept-over-all")
    assert not await revoked(session, stack, "never-revoked")


async def test_an_outage_of_redis_is_told_and_does_not_make_the_service_unhealthy(
    stack: Stack, session: aiohttp.ClientSession
) -> None:
    """While Redis is away checks are 503 and /readyz says so; the health check, on which a restart hangs, passes."""
    stack.compose("stop", "redis")
    for other in stack.workers():  # each is fresh for as long as its own latest heartbeat says
        with stack.frozen(other):
            await answering(f"{stack.url}/readyz", 503)
    checked = await ask(session, "GET", f"{stack.url}/check?jti=any")
    assert (checked.status, checked.code) == (503, "store_unavailable")
    assert checked.headers["Retry-After"]
    assert stack.inside("revocation", "python", "-I", "/app/healthcheck.py") == ""
    stack.compose("start", "redis")
    await answering(f"{stack.url}/readyz")

    async def both_workers_answer() -> bool:
        answers = [await ask(session, "GET", f"{stack.url}/check?jti=any") for _ in range(20)]
        return all(answer.status == 200 for answer in answers)

    await eventually(both_workers_answer, "the other worker, whose lookup of Redis' name may have hung")
    for _ in range(20):
        assert not await revoked(session, stack, "any")


async def test_stop_finishes_what_is_in_flight(running: Running, stack: Stack) -> None:
    """`stop` waits for a revocation that has begun, takes less than 10 s, and leaves the exit code 0."""
    body = b'{"jti": "in-flight", "expires_in": 600}'
    reader, writer = await asyncio.open_connection(HOST, stack.port)
    head = (
        f"POST /revoke HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {running.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body[:10])
    await writer.drain()
    began = time.monotonic()
    stopping = asyncio.create_task(asyncio.to_thread(stack.compose, "stop", "revocation"))
    await answering(f"{stack.url}/readyz", 503)
    writer.write(body[10:])
    answer = await asyncio.wait_for(reader.read(), STOP_SECONDS)
    await stopping
    took = time.monotonic() - began
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200")
    assert took < STOP_SECONDS
    state = inspect(stack.container("revocation"))["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)
    assert redis_cli(stack, "EXISTS", "token_blacklist:in-flight") == "1"
    stack.up()


def test_an_empty_password_is_no_password(stack: Stack, tmp_path: pathlib.Path) -> None:
    """With an empty file Redis does not start open: it ends, and says which file."""
    for path in stack.secrets.iterdir():
        (tmp_path / path.name).write_text("\n")
    with project(stack.images, tmp_path) as other:
        failed = other.compose("up", "--detach", "--wait", "redis", check=False)
        assert failed.returncode != 0
        assert "redis_password is empty" in other.log("redis")


def test_the_compose_file_needs_nothing_set(stack: Stack) -> None:
    """With an empty environment the file is valid, warns of nothing, and binds 127.0.0.1:8080 for operators."""
    ours = ("REVOCATION_", "GATEWAY_", "MAIN_API_")
    environment = {name: value for name, value in stack.environment.items() if not name.startswith(ours)}
    shown = run(*compose_command(), "--env-file", os.devnull, "config", environment=environment)
    assert not shown.stderr
    assert 'published: "8080"' in shown.stdout
    assert "host_ip: 127.0.0.1" in shown.stdout
