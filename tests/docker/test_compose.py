"""Tests of docker-compose.yml with real containers: secrets, isolation, restarts, outages and two instances."""

import asyncio
import json
import os
import pathlib
import re
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.docker.engine import Images, Running, Stack, answering, compose_command, docker, inspect, project, run
from tests.redis_processes import HOST
from tests.system.service_process import Answer, ask

pytestmark = pytest.mark.docker

RESOLVE = "import socket; print(len({each[4] for each in socket.getaddrinfo('revocation', 8080)}))"
TOKEN = "eyJhbGciOiJub25lIn0.e30." + "x" * 40
STOP_SECONDS = 10
SERVICES = ("redis", "revocation", "main-api", "gateway")
MAIN_API_SECRETS = ("main_api_key", "main_api_jwt_secret", "main_api_users")


@pytest.fixture
async def session(running: Running) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session with the operators' API key, which opens a new connection for each request."""
    headers = {"Authorization": f"Bearer {running.key}"}
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as opened:
        yield opened


async def revoke(session: aiohttp.ClientSession, stack: Stack, **members: object) -> Answer:
    """Send a revocation, which must succeed, and return the answer."""
    answer = await ask(session, "POST", f"{stack.url}/revoke", members)
    assert (answer.status, answer.body["result"]) == (200, "revoked")
    return answer


async def revoked(session: aiohttp.ClientSession, stack: Stack, jti: str) -> bool:
    """Return whether the service says that a token is revoked."""
    answer = await ask(session, "GET", f"{stack.url}/check?jti={jti}")
    assert answer.status == 200
    found = answer.body["revoked"]
    assert isinstance(found, bool)
    return found


def test_without_secrets_it_does_not_start_and_says_which(images: Images, tmp_path: pathlib.Path) -> None:
    """Without secrets, `up` fails before any container is created, and names a missing file."""
    with project(images, tmp_path / "none") as stack:
        failed = stack.compose("up", "--detach", check=False)
        assert failed.returncode != 0
        assert f"{tmp_path}/none/" in failed.stderr
        assert not stack.compose("ps", "--quiet").stdout


def test_secrets_are_made_once(stack: Stack) -> None:
    """`deploy/make-secrets` keeps existing secrets, in a private directory, and stores the service's keys as hashes."""
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
    """All containers are healthy, and `/readyz` has no warning about the setup of Redis."""
    for service in SERVICES:
        assert inspect(stack.container(service))["State"]["Health"]["Status"] == "healthy"
    ready = await ask(session, "GET", f"{stack.url}/readyz")
    assert (ready.status, ready.body["components"]["store"]) == (200, {"status": "ok"})


async def test_two_instances_are_one_service(running: Running) -> None:
    """With `--scale revocation=2`, each instance has its own port, one name resolves to both, and both share data."""
    with project(running.stack.images, running.stack.secrets, spare_ports=9) as scaled:
        scaled.compose("up", "--detach", "--wait", "--scale", "revocation=2", "revocation")
        ports = [scaled.compose("port", "--index", number, "revocation", "8080").stdout.strip() for number in "12"]
        assert len(set(ports)) == 2
        assert all(port.startswith(f"{HOST}:") for port in ports)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {running.key}"}) as session:
            for number, (told, asked) in enumerate((ports, ports[::-1])):
                claims = {"jti": f"over-two-instances-{number}", "expires_in": 600}
                assert (await ask(session, "POST", f"http://{told}/revoke", claims)).body["result"] == "revoked"
                answer = await ask(session, "GET", f"http://{asked}/check?jti=over-two-instances-{number}")
                assert answer.body["revoked"] is True
        found = scaled.compose("exec", "--no-TTY", "--index", "1", "revocation", "python", "-c", RESOLVE)
        assert found.stdout.strip() == "2"


async def test_a_key_is_needed(stack: Stack) -> None:
    """A caller without an API key gets 401 from `/revoke`, `/check` and `/revocations`."""
    async with aiohttp.ClientSession() as stranger:
        for method, path in (("POST", "/revoke"), ("GET", "/check?jti=any"), ("GET", "/revocations?claim=all")):
            answer = await ask(stranger, method, stack.url + path, {"jti": "any"} if method == "POST" else None)
            assert (answer.status, answer.code) == (401, "unauthorized")


async def test_a_new_key_counts_after_a_restart(stack: Stack, session: aiohttp.ClientSession) -> None:
    """`check-config` shows an entry that `new-key` made. After a restart, the new key works, and an older one too."""
    made = stack.compose("run", "--rm", "--no-deps", "revocation", "revocation-service", "new-key", "gateway", "check")
    key, entry = (line.split()[-1] for line in made.stdout.splitlines())
    with (stack.secrets / "api_keys").open("a") as file:
        file.write(f"{entry}\n")
    assert "gateway=***" in stack.inside("revocation", "revocation-service", "check-config")
    stack.compose("restart", "revocation")
    await answering(f"{stack.url}/readyz")
    for headers in ({"Authorization": f"Bearer {key}"}, None):  # the new key, and the older one of the session
        assert (await ask(session, "GET", f"{stack.url}/check?jti=any", headers=headers)).status == 200


async def test_redis_forgets_by_itself(stack: Stack, session: aiohttp.ClientSession) -> None:
    """The TTL of a record in Redis is the remaining lifetime of its token."""
    await revoke(session, stack, jti="short-lived", expires_in=600)
    left = int(redis_cli(stack, "PTTL", "token_blacklist:short-lived"))
    assert 590_000 < left <= 601_000


def redis_cli(stack: Stack, *words: str) -> str:
    """Run redis-cli in the container of Redis, with the password, and return its output."""
    script = 'REDISCLI_AUTH=$(cat /run/secrets/redis_password) exec redis-cli "$@"'
    return stack.inside("redis", "sh", "-c", script, "sh", *words)


def test_no_container_may_do_more_than_it_must(stack: Stack) -> None:
    """Each container has a non-root user, no capabilities or new privileges, a read-only root and a writable /tmp."""
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
    """Redis and the main API publish no port, and the service publishes its port on loopback only.

    Redis requires a password, and its network is internal and excludes the main API.
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
    """No secret is in the output of `docker inspect`, `docker top`, `docker logs` or `docker compose config`."""
    secrets = [line for path in stack.secrets.iterdir() for line in path.read_text().splitlines()]
    for service in SERVICES:
        identity = stack.container(service)
        shown = [docker(*asked, identity).stdout for asked in (("inspect",), ("top",))]
        for text in (*shown, stack.log(service), stack.compose("config").stdout):
            assert not any(secret in text for secret in secrets)


async def test_the_log_is_json_and_has_nothing_of_a_request(
    running: Running, stack: Stack, session: aiohttp.ClientSession
) -> None:
    """Each log line of the service is JSON, and none holds a token, an API key or a query."""
    for path in (f"/check?token={TOKEN}", f"/{TOKEN}?query=asked"):
        await ask(session, "GET", stack.url + path, headers={"Referer": f"https://page.example/?token={TOKEN}"})
    await ask(session, "POST", f"{stack.url}/revoke", {"token": TOKEN, "expires_in": 600})
    written = stack.log("revocation")
    events = [json.loads(line)["event"] for line in written.splitlines()]
    assert {"serving", "request"} <= set(events)
    for secret in (TOKEN, "xxxxx", "token=", "query=", running.key):
        assert secret not in written


async def test_revocations_outlive_redis(stack: Stack, session: aiohttp.ClientSession) -> None:
    """Revocations survive a restart and a kill of Redis, and the service reconnects without a restart."""
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
    """After `down` and `up`, the container of the service is new, and a revoked token is still revoked."""
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
    """Without Redis, `/check` and `/readyz` answer 503. The health check passes: a restart would not help."""
    stack.compose("stop", "redis")
    await answering(f"{stack.url}/readyz", 503)
    checked = await ask(session, "GET", f"{stack.url}/check?jti=any")
    assert (checked.status, checked.code) == (503, "store_unavailable")
    assert checked.headers["Retry-After"]
    assert stack.inside("revocation", "python", "-I", "/app/healthcheck.py") == ""
    stack.compose("start", "redis")
    await answering(f"{stack.url}/readyz")
    assert not await revoked(session, stack, "any")


async def test_stop_finishes_what_is_in_flight(running: Running, stack: Stack) -> None:
    """`stop` completes a revocation in flight, takes less than 10 s, and gives the exit code 0."""
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
    """With an empty password file, Redis does not start without a password: it ends, and names the file."""
    for path in stack.secrets.iterdir():
        (tmp_path / path.name).write_text("\n")
    with project(stack.images, tmp_path) as other:
        failed = other.compose("up", "--detach", "--wait", "redis", check=False)
        assert failed.returncode != 0
        assert "redis_password is empty" in other.log("redis")


def test_the_compose_file_needs_nothing_set(stack: Stack) -> None:
    """Without any variable set, the compose file is valid, gives no warning, and publishes port 8080 of 127.0.0.1."""
    ours = ("REVOCATION_", "GATEWAY_", "MAIN_API_")
    environment = {name: value for name, value in stack.environment.items() if not name.startswith(ours)}
    shown = run(*compose_command(), "--env-file", os.devnull, "config", environment=environment)
    assert not shown.stderr
    assert re.search(r'published: "?8080"?$', shown.stdout, re.MULTILINE)
    assert "host_ip: 127.0.0.1" in shown.stdout
