"""Several workers under gunicorn, as the image runs them, but as processes of this machine: no engine is needed."""

import asyncio
import contextlib
import functools
import gzip
import json
import os
import pathlib
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

import aiohttp
import pytest

from tests.redis_processes import HOST, Process, eventually, free_port, standalone
from tests.system.service_process import Answer, ServiceProcess, ask, ending, gone

REPOSITORY = pathlib.Path(__file__).parents[2]
ENTRY = "revocation_service.web.worker:worker"
CONFIGURED = ("-m", "gunicorn", "--config", str(REPOSITORY / "deploy" / "gunicorn.conf.py"), ENTRY)
KEY = "the-key-of-the-one-caller-there-is"
KEYS = f"main-api={KEY}:check+revoke"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
SECRET = "eyJhbGciOiJub25lIn0"  # the beginning of every token that these tests send


def by_hand(port: int) -> tuple[str, ...]:
    """gunicorn as somebody might start it without the configuration file."""
    worker_class = ("--worker-class", "aiohttp.GunicornUVLoopWebWorker")
    return ("-m", "gunicorn", "--no-control-socket", *worker_class, "--bind", f"{HOST}:{port}", ENTRY)


def prepared(
    directory: pathlib.Path, settings: Mapping[str, str], arguments: Sequence[str] = CONFIGURED
) -> ServiceProcess:
    """A gunicorn that is not started yet; it has two workers, its metrics in a directory of its own, and no drain."""
    usual = {"PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"), "WEB_CONCURRENCY": "2"}
    return ServiceProcess(directory, usual | {"REVOCATION_DRAIN_SECONDS": "0", **settings}, arguments=arguments)


def keyed(redis: Process) -> dict[str, str]:
    """What a deployment sets at least."""
    return {"REVOCATION_REDIS_URL": redis.url, "REVOCATION_API_KEYS": KEYS}


@contextlib.asynccontextmanager
async def serving(service: ServiceProcess, probe: str = "/readyz") -> AsyncIterator[aiohttp.ClientSession]:
    """The service, up, and a session that reaches it on a new connection each time."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with ending(service), aiohttp.ClientSession(connector=connector, headers=AUTHORIZED) as session:
        await service.start(probe)
        yield session


def workers(service: ServiceProcess) -> list[int]:
    """The worker processes that live."""
    found = pathlib.Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    return [pid for pid in map(int, found) if not gone(pid)]


async def both(service: ServiceProcess) -> tuple[int, int]:
    """The two workers, once both have answered."""

    async def two() -> list[int] | None:
        found = workers(service)
        return found if len(found) == 2 else None

    first, second = await eventually(two, "two workers")
    for other in (first, second):
        with frozen(other):
            await service.until("/healthz")
    return first, second


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Without this worker: whatever is asked now, the other one answers."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def metric(service: ServiceProcess, session: aiohttp.ClientSession, name: str, **labels: str) -> float:
    """One sample of /metrics; 0 where there is none."""
    text = (await ask(session, "GET", f"{service.url}/metrics")).body
    for line in text.splitlines():
        sample = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if sample and all(f'{label}="{value}"' in (sample[1] or "") for label, value in labels.items()):
            return float(sample[2])
    return 0.0


@pytest.fixture
async def redis() -> AsyncIterator[Process]:
    async with standalone(password="of-redis") as server:
        yield server


async def test_what_one_worker_did_the_other_knows_and_both_count(tmp_path: pathlib.Path, redis: Process) -> None:
    """A revocation through one worker is seen through the other, and /metrics of either shows the sum of both."""
    service = prepared(tmp_path, keyed(redis))
    async with serving(service) as session:
        first, second = await both(service)
        with frozen(second):
            revoked = await ask(session, "POST", f"{service.url}/revoke", {"jti": "shared", "expires_in": 600})
        with frozen(first):
            checked = await ask(session, "GET", f"{service.url}/check?jti=shared")
        assert (revoked.body["result"], checked.body["revoked"]) == ("revoked", True)
        for other in (first, second):
            with frozen(other):
                assert await metric(service, session, "revocation_revocations_total", result="revoked") == 1
                assert await metric(service, session, "revocation_checks_total", outcome="revoked") == 1


async def test_a_killed_workers_counts_stay(tmp_path: pathlib.Path, redis: Process) -> None:
    """However often a worker is killed, another takes its place, all that was counted counts, and no files pile up."""
    service = prepared(tmp_path, keyed(redis))
    async with serving(service) as session:
        await both(service)
        files = {path.name for path in (tmp_path / "metrics").iterdir()}
        for killed in range(1, 4):
            first, second = await both(service)
            with frozen(second):
                await ask(session, "POST", f"{service.url}/revoke", {"jti": f"counted-{killed}", "expires_in": 600})
            os.kill(first, signal.SIGKILL)
            await eventually(functools.partial(_replaced, service, first), "a worker in the place of the killed one")
            await both(service)
            assert await metric(service, session, "revocation_revocations_total", result="revoked") == killed
            assert await metric(service, session, "revocation_store_up") == 1
        assert {path.name for path in (tmp_path / "metrics").iterdir()} == files


async def _replaced(service: ServiceProcess, killed: int) -> bool:
    return killed not in workers(service) and len(workers(service)) == 2


async def test_what_a_worker_was_in_goes_with_it(tmp_path: pathlib.Path, redis: Process) -> None:
    """A worker that saw Redis away and is gone does not keep `revocation_store_up` at 0; its counts stay."""
    service = prepared(tmp_path, keyed(redis) | {"REVOCATION_MAX_STALENESS_SECONDS": "0"})
    async with serving(service) as session:
        _oldest, second = await both(service)
        with frozen(second):
            await ask(session, "POST", f"{service.url}/revoke", {"jti": "counted", "expires_in": 600})
            redis.freeze()
            assert (await ask(session, "GET", f"{service.url}/check?jti=any")).status == 503
            assert await metric(service, session, "revocation_store_up") == 0
            redis.thaw()
        service.signal(signal.SIGTTOU)  # one worker fewer: the oldest goes
        await eventually(functools.partial(_left, service, [second]), "one worker alone")
        assert await metric(service, session, "revocation_store_up") == 1
        assert await metric(service, session, "revocation_revocations_total", result="revoked") == 1


async def _left(service: ServiceProcess, expected: list[int]) -> bool:
    return workers(service) == expected


async def test_every_start_counts_from_nothing(tmp_path: pathlib.Path, redis: Process) -> None:
    """Metrics that a killed run left behind are not added to the next run's, and an orderly end leaves none."""
    service = prepared(tmp_path, keyed(redis))
    async with serving(service) as session:
        await ask(session, "POST", f"{service.url}/revoke", {"jti": "once", "expires_in": 600})
        service.kill()
        await service.nothing_left()
        assert list((tmp_path / "metrics").glob("*.db"))
        await service.start()
        assert await metric(service, session, "revocation_revocations_total") == 0
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        assert not (tmp_path / "metrics").exists()


async def test_the_services_own_server_settings_are_in_force(tmp_path: pathlib.Path, redis: Process) -> None:
    """Under gunicorn, too, a compressed body is refused unread, and failures are problems with a request id."""
    service = prepared(tmp_path, keyed(redis))
    async with serving(service) as session:
        packed = gzip.compress(b'{"jti": "packed", "expires_in": 600}')
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        refused = await ask(session, "POST", f"{service.url}/revoke", data=packed, headers=headers)
        assert (refused.status, refused.code) == (415, "unsupported_media_type")
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert refused.headers["X-Request-ID"]
        checked = await ask(session, "GET", f"{service.url}/check?jti=packed")
        assert checked.body["revoked"] is False


async def test_nothing_of_a_request_is_in_the_log(tmp_path: pathlib.Path, redis: Process) -> None:
    """At level debug, with gunicorn's access log asked for, each line is JSON and none has a token, key or query."""
    asked = (*CONFIGURED, "--access-logfile", "-", "--log-level", "debug")
    service = prepared(tmp_path, keyed(redis) | {"REVOCATION_LOG_LEVEL": "debug"}, asked)
    async with serving(service) as session:
        token = f"{SECRET}.e30.{'x' * 40}"
        for headers in ({}, {"Authorization": "Bearer another-key-of-somebody"}, {"Referer": f"http://x/?t={token}"}):
            await ask(session, "GET", f"{service.url}/check?token={token}", headers=headers)
            await ask(session, "POST", f"{service.url}/revoke", {"token": token}, headers=headers)
        await _broken_requests(service.port, token)
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
    written = service.output()
    assert [event["route"] for event in service.events("request")].count("/check") == 3
    for secret in (SECRET, "xxxxx", "token=", KEY, "another-key", "of-redis"):
        assert secret not in written
    plain = [line for line in written.splitlines() if not isinstance(json.loads(line), dict)]
    assert not plain


async def _broken_requests(port: int, token: str) -> None:
    """What the parser itself turns away."""
    for sent in (f"GET /check?token={token} HTTP/9.9", token, f"GET /check?token={token} x y z"):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(f"{sent}\r\n\r\n".encode())
        await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_sigterm_finishes_what_is_in_flight(tmp_path: pathlib.Path, redis: Process) -> None:
    """After SIGTERM /readyz fails first, a request that had begun is answered, and all has ended within 10 s with 0."""
    service = prepared(tmp_path, keyed(redis) | {"REVOCATION_DRAIN_SECONDS": "1"})
    async with serving(service) as session:
        await both(service)
        body = b'{"jti": "in-flight", "expires_in": 600}'
        reader, writer = await _begun(service.port, body)
        service.signal(signal.SIGTERM)
        began = time.monotonic()
        await service.until("/readyz", 503)
        checked = await ask(session, "GET", f"{service.url}/check?jti=other")
        assert checked.status == 200, "while it drains it still serves"
        writer.write(body[10:])
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"revoked"' in answer
        assert await service.ended() == 0
        assert time.monotonic() - began < 10
        await service.nothing_left()
    assert await redis.command("EXISTS", "token_blacklist:in-flight") == 1


async def _begun(port: int, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A revocation of which ten bytes of the body have been sent."""
    reader, writer = await asyncio.open_connection(HOST, port)
    head = (
        f"POST /revoke HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body[:10])
    await writer.drain()
    return reader, writer


async def test_a_request_that_never_ends_does_not_hold_the_end_up(tmp_path: pathlib.Path, redis: Process) -> None:
    """A caller that stops half way through its body cannot keep the service from ending within 10 s of SIGTERM."""
    service = prepared(tmp_path, keyed(redis))
    async with serving(service):
        await both(service)
        _, writer = await _begun(service.port, b'{"jti": "stuck", "expires_in": 600}')
        service.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await service.ended() == 0
        assert time.monotonic() - began < 10
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await service.nothing_left()


async def test_a_new_key_is_taken_up_without_an_interruption(tmp_path: pathlib.Path, redis: Process) -> None:
    """After SIGHUP the workers know the keys that the file now has, the old one is refused, and the counts go on."""
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    service = prepared(tmp_path, {"REVOCATION_REDIS_URL": redis.url, "REVOCATION_API_KEYS_FILE": str(keys)})
    new = {"Authorization": "Bearer the-key-that-comes-after-it"}
    async with serving(service) as session:
        await ask(session, "POST", f"{service.url}/revoke", {"jti": "before", "expires_in": 600})
        keys.write_text("main-api=the-key-that-comes-after-it:check+revoke")
        old_workers = await both(service)
        service.signal(signal.SIGHUP)

        async def taken_over() -> bool:
            assert (await ask(session, "GET", f"{service.url}/healthz")).status == 200
            return all(gone(pid) for pid in old_workers)

        await eventually(taken_over, "the end of the old workers")
        assert (await ask(session, "GET", f"{service.url}/check?jti=before", headers=new)).body["revoked"] is True
        assert (await ask(session, "GET", f"{service.url}/check?jti=before")).status == 401
        assert await metric(service, session, "revocation_revocations_total", result="revoked") == 1


async def test_it_waits_for_a_redis_that_comes_later(tmp_path: pathlib.Path) -> None:
    """Workers that start while Redis is away live, answer 503, and serve as soon as it is there."""
    async with standalone() as server:
        await server.stop()
        service = prepared(tmp_path, keyed(server))
        async with serving(service, "/healthz") as session:
            first = await ask(session, "GET", f"{service.url}/check?jti=early")
            assert (first.status, first.code) == (503, "store_unavailable")
            await server.start()
            await service.until("/readyz")

            async def serves() -> bool:
                answers = [await ask(session, "GET", f"{service.url}/check?jti=early") for _ in range(10)]
                return {answer.status for answer in answers} == {200}

            await eventually(serves, "all workers, each in its time")


REDIS = {"REVOCATION_REDIS_URL": "redis://127.0.0.1:1"}
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no keys": (REDIS, "REVOCATION_API_KEYS is not set"),
    "no keys, for others": (REDIS | {"REVOCATION_HOST": "0.0.0.0"}, "set REVOCATION_API_KEYS"),
    "empty keys": (REDIS | {"REVOCATION_API_KEYS": ""}, "REVOCATION_API_KEYS is set but empty"),
    "no url": ({"REVOCATION_API_KEYS": KEYS}, "set REVOCATION_REDIS_URL"),
    "embedded": ({"REVOCATION_API_KEYS": KEYS, "REVOCATION_REDIS_URL": "embedded:"}, "set REVOCATION_REDIS_URL"),
    "bad url": (
        {"REVOCATION_API_KEYS": KEYS, "REVOCATION_REDIS_URL": "redis+sentinel://127.0.0.1:1"},
        "REVOCATION_REDIS_URL: redis+sentinel:// needs the service's name",
    ),
    "bad key": (REDIS | {"REVOCATION_API_KEYS": KEYS, "REVOCATION_JWT_PUBLIC_KEY": "no PEM"}, "PUBLIC_KEY"),
    "no file": (REDIS | {"REVOCATION_API_KEYS_FILE": "/no/such/file"}, "/no/such/file"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_no_worker_could_serve_is_refused_in_one_line(tmp_path: pathlib.Path, case: str) -> None:
    """A start that cannot succeed ends by itself, before any worker, with one line that names the setting."""
    settings, named = REFUSED[case]
    service = prepared(tmp_path, settings)
    async with ending(service):
        service.spawn()
        assert await service.ended() == 1
    (line,) = service.output().splitlines()
    assert line.startswith("revocation-service: ")
    assert named in line
    assert KEY not in line
    assert not (tmp_path / "metrics").exists()


async def test_no_workers_at_all_is_refused(tmp_path: pathlib.Path) -> None:
    """WEB_CONCURRENCY=0, with which gunicorn would listen and answer nobody, ends the start and is named."""
    service = prepared(tmp_path, REDIS | {"REVOCATION_API_KEYS": KEYS, "WEB_CONCURRENCY": "0"})
    async with ending(service):
        service.spawn()
        assert await service.ended() == 1
    assert "revocation-service: WEB_CONCURRENCY must be 1 or more" in service.output().splitlines()


async def test_a_misspelt_setting_is_named(tmp_path: pathlib.Path) -> None:
    """A variable with the service's prefix that means nothing is in the log by its name."""
    service = prepared(tmp_path, REDIS | {"REVOCATION_API_KEYS": KEYS, "REVOCATION_STRICT": "true"})
    async with serving(service, "/healthz"):
        assert [event["name"] for event in service.events("unknown_setting")] == ["REVOCATION_STRICT"]


async def test_by_hand_it_does_not_start_workers_for_ever(tmp_path: pathlib.Path) -> None:
    """Without the configuration file a start that cannot succeed ends too, after one attempt, and says why."""
    port = free_port()
    service = prepared(tmp_path, {}, by_hand(port))
    async with ending(service):
        service.spawn()
        assert await service.ended() != 0
    assert service.output().count("Booting worker") <= 2
    assert "several workers need a Redis that they share: set REVOCATION_REDIS_URL" in service.output().splitlines()


NOT_LOCAL: dict[str, Callable[[int], dict[str, str]]] = {
    "through a proxy": lambda _port: {"X-Forwarded-For": "203.0.113.9"},
    "another name": lambda port: {"Host": f"rebound.example:{port}"},
    "another page": lambda _port: {"Origin": "https://page.example"},
}


async def test_by_hand_without_keys_only_plainly_local_requests_are_served(
    tmp_path: pathlib.Path, redis: Process
) -> None:
    """In protected mode gunicorn's sockets are judged like the service's own: local callers pass, all others do not."""
    port = free_port()
    service = prepared(tmp_path, {"REVOCATION_REDIS_URL": redis.url}, by_hand(port))
    service.port = port
    async with ending(service), aiohttp.ClientSession() as session:
        (tmp_path / "metrics").mkdir()
        await service.start()

        async def revoke(jti: str, headers: dict[str, str]) -> Answer:
            return await ask(session, "POST", f"{service.url}/revoke", {"jti": jti, "expires_in": 600}, headers=headers)

        assert (await revoke("local", {})).body["result"] == "revoked"
        for name, headers in NOT_LOCAL.items():
            refused = await revoke("foreign", headers(port))
            assert (refused.status, refused.code) == (403, "protected_mode"), name
    assert await redis.command("EXISTS", "token_blacklist:local") == 1
    assert await redis.command("EXISTS", "token_blacklist:foreign") == 0
