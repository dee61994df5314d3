"""The throttle in one gateway: what is counted, what clients are told, and what happens while Redis is away."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from aiohttp import web
from structlog.testing import capture_logs

from revocation_service.errors import SettingsError
from revocation_service.gateway.fallback_limiter import CONCURRENT_HITS
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.settings import Rate, load
from revocation_service.gateway.throttle import Throttle
from revocation_service.store.key_names import Keyspace
from revocation_service.store.windows import DEADLINE_TURNS, TURN_SECONDS
from tests.gateway.serving import bare_upstream, gateway_before
from tests.gateway.throttled import Gateway, throttled
from tests.redis_processes import Process, eventually, standalone

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy")


@dataclass
class Clock:
    """A gateway's own clock, which moves only when the test sets it."""

    seconds: float

    def __call__(self) -> float:
        return self.seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[Process]:
    async with standalone() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", params=["redis", "memory"])
async def gateway(request: pytest.FixtureRequest, redis: Process) -> AsyncIterator[Gateway]:
    """A gateway that counts in Redis or in memory, depending on the parameter."""
    async with throttled(redis.url if request.param == "redis" else None) as made:
        yield made


async def test_a_burst_passes_exactly_five(gateway: Gateway) -> None:
    """Of 100 logins at once exactly five pass. aiohttp-ratelimiter's own strategy would pass dozens."""
    told = await gateway.burst(100)
    passed = [each for each in told if each.status == 401]
    assert sorted(each.remaining for each in passed) == [0, 1, 2, 3, 4]
    assert [each.status for each in told if each not in passed] == [429] * 95
    assert len(gateway.reached) == 5
    assert gateway.counted("attempts_total", limit="login", outcome="admitted") == 5
    assert gateway.counted("attempts_total", limit="login", outcome="denied") == 95


async def test_what_every_login_is_told(gateway: Gateway) -> None:
    """Responses to admitted and to denied logins have X-RateLimit and RateLimit fields, which agree."""
    for number in range(7):
        before = time.time()
        told = await gateway.log_in()
        remaining = max(4 - number, 0)
        assert told.headers["X-RateLimit-Limit"] == "5"
        assert told.headers["RateLimit-Policy"] == '"login";q=5;w=60'
        assert told.remaining == remaining
        name, left, reset = told.headers["RateLimit"].split(";")
        assert (name, left) == ('"login"', f"r={remaining}")
        assert 55 <= int(reset.removeprefix("t=")) <= 60
        assert -1 < int(told.headers["X-RateLimit-Reset"]) - before - int(reset.removeprefix("t=")) <= 2
        assert told.headers.get("Retry-After") == (None if number < 5 else reset.removeprefix("t="))


async def test_what_is_too_many_is_a_problem(gateway: Gateway) -> None:
    """The sixth login gets 429 with Retry-After, as application/problem+json with a stable code."""
    told = (await gateway.burst(6))[-1]
    while told.status != 429:
        told = await gateway.log_in()
    assert told.headers["Content-Type"].startswith("application/problem+json")
    assert set(told.body) == {"type", "title", "status", "detail", "code"}
    assert (told.body["status"], told.code) == (429, "too_many_attempts")
    assert int(told.headers["Retry-After"]) >= 1


async def test_each_denied_attempt_is_logged(gateway: Gateway) -> None:
    """Each denied attempt is logged as a warning with address, path and limit. Admitted ones are not logged."""
    with capture_logs() as logged:
        for _ in range(8):
            await gateway.log_in("2001:db8::7", "/api/v1/auth/login?token=secret")
    denied = [event for event in logged if event["event"] == "login_denied"]
    assert (
        denied
        == [
            {
                "event": "login_denied",
                "log_level": "warning",
                "address": "2001:db8::7",
                "path": "/api/v1/auth/login",
                "limit": "login",
                "quota": 5,
                "window_seconds": 60,
            }
        ]
        * 3
    )


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/auth/login?token=secret", "/auth/login"),
        ("/auth/login%3Ftoken=secret", "/auth/login"),
        ("/auth/login%25253ftoken=secret", "/auth/login"),
        ("/auth/login;jsessionid=secret", "/auth/login"),
        ("/auth/login%3bsecret", "/auth/login"),
        ("http://alice:secret@host/auth/login?x", "/auth/login"),
        ("/../" + "x" * 2_000, "/../" + "x" * 252),
        ("/x/http://h/auth/login", "/x/http://h/auth/login"),
    ],
    ids=lambda text: text[:30],
)
async def test_the_log_has_the_path_alone(target: str, path: str) -> None:
    """The log event of a denied attempt has a path of bounded length, without query, parameters or credentials."""
    async with bare_upstream() as upstream, gateway_before(upstream.url, LOGIN_LIMIT="1/hour") as gateway:
        head = f"POST {target} HTTP/1.1\r\nHost: host\r\nContent-Length: 0\r\n\r\n".encode()
        with capture_logs() as logged:
            answers = [await gateway.talk(head) for _ in range(2)]
    assert answers[-1].statuses == [429]
    denied = [event for event in logged if event["event"] == "login_denied"]
    assert [(event["address"], event["path"]) for event in denied] == [("127.0.0.1", path)]
    assert "secret" not in str(logged)


async def test_an_attempt_after_retry_after_is_admitted() -> None:
    """A client that waits as long as it was told is admitted, and one that does not is denied."""
    clock = Clock(1_000.0)
    async with throttled(None, login_limit=Rate(2, 60), clock=clock) as gateway:
        await gateway.burst(2)
        clock.seconds += 20.5
        denied = await gateway.log_in()
        assert denied.headers["Retry-After"] == "40"
        clock.seconds += 39
        assert (await gateway.log_in()).status == 429
        clock.seconds += 1
        assert (await gateway.log_in()).status == 401


async def test_the_upstreams_own_fields_are_replaced() -> None:
    """The gateway replaces the upstream's rate limit fields in responses to logins, and keeps them in others."""

    async def boasts(_request: web.Request) -> web.StreamResponse:
        headers = [(name, "99") for name in FIELDS] + [("ratelimit", "x"), ("RateLimit-Remaining", "98")]
        return web.Response(headers=headers)

    async with throttled(None, answer=boasts) as boasting:
        told = await boasting.log_in()
        assert [told.headers.getall(name) for name in FIELDS[:2]] == [["5"], ["4"]]  # type: ignore[attr-defined]
        assert told.headers.getall("RateLimit") == [f'"login";r=4;t={60}']  # type: ignore[attr-defined]
        assert "RateLimit-Remaining" not in told.headers
        assert (await boasting.log_in(path="/users/me")).headers["X-RateLimit-Limit"] == "99"


async def test_failures_of_the_upstream_carry_the_fields_too() -> None:
    """A login that ends in 502 is counted, and its response says how many are left."""

    async def fails(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPBadGateway

    async with throttled(None, answer=fails) as failing:
        told = await failing.log_in()
        assert told.status == 502
        assert told.remaining == 4


async def test_no_address_is_exempt_and_no_forged_address_counts(redis: Process) -> None:
    """Without trusted proxies X-Forwarded-For is ignored, though aiohttp-ratelimiter's key function would use it."""
    async with throttled(redis.url, trusted_proxies=()) as gateway:
        told = [await gateway.log_in(f"127.0.0.{n}") for n in range(8)]
        assert [each.status for each in told] == [401] * 5 + [429] * 3


async def test_everything_else_has_no_limit_unless_one_is_set(gateway: Gateway) -> None:
    """Without a default limit, requests to other paths are not counted, and get no rate limit fields."""
    told = await asyncio.gather(*(gateway.log_in(path="/users/me") for _ in range(30)))
    assert [each.status for each in told] == [401] * 30
    assert not any(name in each.headers for each in told for name in FIELDS)
    assert (await gateway.log_in()).remaining == 4


@pytest.mark.parametrize("with_redis", [True, False])
async def test_the_default_limit_is_a_count_of_its_own(redis: Process, with_redis: bool) -> None:
    """With a default limit, all other requests of an address share one count, separate from that of its logins."""
    async with throttled(redis.url if with_redis else None, default_limit=Rate(10, 60)) as gateway:
        paths = [f"/path/{n}" for n in range(12)]
        told = await asyncio.gather(*(gateway.log_in(path=path, method="GET") for path in paths))
        assert sorted(each.status for each in told) == [401] * 10 + [429] * 2
        denied = next(each for each in told if each.status == 429)
        assert (denied.code, denied.headers["RateLimit-Policy"]) == ("too_many_requests", '"default";q=10;w=60')
        assert int(denied.headers["Retry-After"]) > 50
        assert (await gateway.log_in()).remaining == 4
        assert (await gateway.log_in("198.51.100.2", path="/path/1")).status == 401


async def test_gateways_whose_clocks_differ_share_one_window(redis: Process) -> None:
    """Two gateways whose clocks are two hours apart share one count: Redis' clock decides."""
    async with (
        throttled(redis.url, prefix="c:", clock=Clock(3600)) as ahead,
        throttled(redis.url, prefix="c:", clock=Clock(-3600)) as behind,
    ):
        told = [each for gateway in (ahead, behind, ahead) for each in await gateway.burst(3)]
        assert sorted(each.remaining for each in told if each.status == 401) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_gateways_clock_that_jumps_changes_nothing(redis: Process, jump: float) -> None:
    """A gateway whose own clock jumps in the middle of a window admits and denies as before."""
    clock = Clock(0)
    async with throttled(redis.url, clock=clock) as gateway:
        await gateway.burst(3)
        clock.seconds = jump
        told = [await gateway.log_in() for _ in range(3)]
        assert [each.status for each in told] == [401, 401, 429]


async def test_the_window_slides_through_the_gateway(redis: Process) -> None:
    """Only attempts of the last 60 s count: if Redis has four of them, one of ten more logins is admitted."""
    prefix = f"{secrets.token_hex(4)}:"
    async with throttled(redis.url, prefix=prefix) as gateway:
        seconds, microseconds = await redis.command("TIME")
        now = float(seconds) + float(microseconds) / 1e6
        key = Keyspace(prefix).window("198.51.100.1:login")
        for number, age in enumerate([60.5, 30, 20, 10, 5]):
            await redis.command("ZADD", key, f"{(now - age) * 1e6:.0f}", f"old{number}")
        told = await gateway.burst(10)
        assert sorted(each.status for each in told) == [401] + [429] * 9
        assert all(0 < int(each.headers["Retry-After"]) <= 30 for each in told if each.status == 429)


async def test_memory_slides_with_time_passed_in() -> None:
    """In memory the window slides too: there is room again when the oldest attempts are a minute old."""
    clock = Clock(1_000.0)
    async with throttled(None, clock=clock) as gateway:
        assert gateway.throttle.health() == "memory"
        for at, statuses in ((1_059.0, [401] * 5 + [429]), (1_060.0, [429] * 3), (1_119.0, [401] * 5 + [429])):
            clock.seconds = at
            assert [(await gateway.log_in()).status for _ in statuses] == statuses


async def test_redis_killed_and_back() -> None:
    """Without Redis, logins are counted in memory, and none fails; when it is back, the gateway returns to it."""
    async with standalone() as redis, throttled(redis.url) as gateway:
        assert gateway.throttle.health() == "ok"
        assert [(await gateway.log_in()).status for _ in range(3)] == [401] * 3
        redis.kill()
        told = await gateway.burst(20, "198.51.100.2")
        assert sorted(each.status for each in told) == [401] * 5 + [429] * 15
        assert sorted(each.remaining for each in told if each.status == 401) == [0, 1, 2, 3, 4]
        assert gateway.throttle.health() == "degraded"
        assert gateway.counted("redis_up") == 0
        assert [(await gateway.log_in()).status for _ in range(3)] == [401, 401, 429]  # Redis admitted three before
        await redis.start()
        await gateway.health("ok")
        assert gateway.counted("redis_up") == 1
        alone = gateway.counted("attempts_counted_alone_total")
        told = await gateway.burst(20, "198.51.100.3")
        assert sorted(each.remaining for each in told if each.status == 401) == [0, 1, 2, 3, 4]
        assert gateway.counted("attempts_counted_alone_total") == alone
        denied = await gateway.burst(3, "198.51.100.2")
        assert [each.status for each in denied] == [429] * 3  # only the gateway knows of the attempts in the outage
        assert all(int(each.headers["Retry-After"]) > 50 for each in denied)


async def test_redis_frozen_and_thawed() -> None:
    """While Redis is frozen, logins are counted in memory. When it runs again, the gateway returns to it by itself."""
    async with standalone() as redis, throttled(redis.url) as gateway:
        assert [each.status for each in await gateway.burst(3)] == [401] * 3
        redis.freeze()
        told = await gateway.burst(50)
        assert sorted(each.status for each in told) == [401] * 2 + [429] * 48
        assert gateway.throttle.health() == "degraded"
        redis.thaw()
        await gateway.health("ok")
        assert [each.status for each in await gateway.burst(3)] == [429] * 3
        assert (await gateway.log_in("198.51.100.3")).status == 401


async def test_a_blocked_loop_is_not_taken_for_an_absent_redis(redis: Process) -> None:
    """Redis counts a whole burst although the event loop is blocked repeatedly, each time beyond the deadline."""

    async def block(gateway: Gateway) -> None:
        while len(gateway.reached) < 5 + 5:
            await asyncio.sleep(0.005)
            time.sleep(TURN_SECONDS * (DEADLINE_TURNS + 2))

    async with throttled(redis.url) as gateway:
        await gateway.burst(50, "198.51.100.2")  # opens the connections; five of these logins reach the handler
        told, _ = await asyncio.gather(gateway.burst(50), block(gateway))
        assert sorted(each.remaining for each in told if each.status == 401) == [0, 1, 2, 3, 4]
        assert gateway.throttle.health() == "ok"
        assert gateway.counted("attempts_counted_alone_total") == 0


async def test_a_gateway_starts_without_redis() -> None:
    """A gateway that starts without Redis is degraded and counts in memory, until Redis is there."""
    async with standalone() as redis:
        redis.kill()
        async with throttled(redis.url) as gateway:
            assert gateway.throttle.health() == "degraded"
            told = await gateway.burst(8)
            assert sorted(each.status for each in told) == [401] * 5 + [429] * 3
            await redis.start()
            await gateway.health("ok")
            assert (await gateway.log_in("198.51.100.9")).remaining == 4


async def test_a_redis_that_lost_its_data_does_not_renew_the_limit(redis: Process) -> None:
    """An address that has used its five logins at this gateway is still denied after Redis lost its data."""
    async with standalone() as own, throttled(own.url) as gateway:
        await gateway.burst(5)
        await own.command("FLUSHALL")
        assert [(await gateway.log_in()).status for _ in range(3)] == [429] * 3


async def test_away_and_back_are_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The beginning and the end of an outage are each logged once, however many logins it affects."""
    async with standalone() as redis, throttled(redis.url) as gateway:
        await gateway.log_in()
        redis.kill()
        for number in range(3):
            await gateway.burst(20, f"198.51.100.{number}")
        await redis.start()
        await gateway.health("ok")
        await gateway.burst(5, "198.51.100.9")
    written = capsys.readouterr()
    text = written.out + written.err
    assert (text.count("throttle_redis_away"), text.count("throttle_redis_back")) == (1, 1)


async def test_nothing_of_the_librarys_connects_anywhere(redis: Process) -> None:
    """A burst opens at most CONCURRENT_HITS + 1 connections to Redis, and all of them are closed at the end."""
    before = len(str(await redis.command("CLIENT", "LIST", "TYPE", "normal")).strip().splitlines())
    async with throttled(redis.url) as gateway:
        await gateway.burst(50)
        clients = str(await redis.command("CLIENT", "LIST", "TYPE", "normal")).strip().splitlines()
        assert len(clients) - before <= CONCURRENT_HITS + 1

    async def closed() -> bool:
        return len(str(await redis.command("CLIENT", "LIST", "TYPE", "normal")).strip().splitlines()) <= before

    await eventually(closed, "all connections closed")


async def test_keys_are_prefixed_bounded_and_expire(redis: Process) -> None:
    """Keys are stored under the prefix, and each of them expires with its window."""
    prefix = f"{secrets.token_hex(4)}:"
    async with throttled(redis.url, prefix=prefix) as gateway:
        await gateway.burst(10)
        await gateway.burst(1, "198.51.100.2")
        async with redis.client() as client:
            keys = [key async for key in client.scan_iter(match="*") if key.startswith(prefix)]
            assert len(keys) >= 2
            for key in keys:
                assert 0 < await client.pttl(key) <= 60_001


async def test_a_url_that_cannot_be_read_names_the_gateways_variable() -> None:
    """The error for a wrong GATEWAY_REDIS_URL begins with the name of that variable."""
    loaded = load({"GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9000", "GATEWAY_REDIS_URL": "redis://127.0.0.1:99999"})
    with pytest.raises(SettingsError, match=r"^GATEWAY_REDIS_URL"):
        Throttle(loaded.settings.throttle, GatewayMetrics())
