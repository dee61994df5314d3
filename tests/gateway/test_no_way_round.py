"""Every login is counted, and in one count, however its path and method are written.

The tests send raw bytes through a real gateway to a real FastAPI login, which records the attempts that reach it.
"""

import contextlib
import itertools
import pathlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from tests.api.serving import Raw, talk_to
from tests.gateway.dot_resolvers import spellings
from tests.gateway.logins import LoginApplication, login_application
from tests.gateway.serving import GatewayProcess, gateway_process
from tests.redis_processes import HOST, Process, standalone

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b"username=alice&password=wrong"
FORM = b"Host: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
LAST = b"Connection: close\r\n"
MANY = 5_000

_addresses = (f"127.1.{n // 250}.{n % 250 + 1}" for n in itertools.count())


@dataclass
class Way:
    """Two gateways, the application behind them, and a client address that was not used before."""

    generous: GatewayProcess
    """A gateway that denies nothing, so that its count can be compared with the attempts that reach the application."""
    strict: GatewayProcess
    application: LoginApplication
    address: str = field(default_factory=lambda: next(_addresses))

    async def send(self, *pieces: bytes, answers: int = 1, strict: bool = False) -> Raw:
        gateway = self.strict if strict else self.generous
        return await talk_to(HOST, gateway.port, *pieces, answers=answers, source=self.address)

    async def counted(self) -> int:
        """Return how many attempts of this address `generous` has counted, without the one that this call makes."""
        answer = await self.send(request("/auth/login"))
        return MANY - 1 - int(answer.headers["X-RateLimit-Remaining"])

    async def taken(self) -> int:
        return len(await self.application.seen())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[Process]:
    async with standalone() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(
    tmp_path_factory: pytest.TempPathFactory, redis: Process
) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess, LoginApplication]]:
    directory: pathlib.Path = tmp_path_factory.mktemp("gateways")
    async with contextlib.AsyncExitStack() as stack:
        application = await stack.enter_async_context(login_application())
        started = [
            await stack.enter_async_context(
                gateway_process(
                    directory / name, application.url, REDIS_URL=redis.url, LOGIN_LIMIT=limit, KEY_PREFIX=f"{name}:"
                )
            )
            for name, limit in (("generous", f"{MANY}/hour"), ("strict", "5/hour"))
        ]
        yield started[0], started[1], application


@pytest_asyncio.fixture(loop_scope="module")
async def way(gateways: tuple[GatewayProcess, GatewayProcess, LoginApplication]) -> Way:
    await gateways[2].forget()
    return Way(*gateways)


def request(target: str, method: str = "POST", headers: bytes = b"", version: str = "1.1", body: bytes = BODY) -> bytes:
    """Return the bytes of a login, with the target unchanged."""
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return f"{method} {target} HTTP/{version}\r\n".encode() + FORM + headers + length + body


async def test_every_spelling_of_the_path_is_counted_in_one_count(way: Way) -> None:
    """All spellings of both login paths are counted in one count, among them those that FastAPI accepts."""
    left, taken, took = MANY, 0, set()
    for target in spellings():
        answer = await way.send(request(target))
        left -= 1
        assert answer.statuses, target
        assert int(answer.headers.get("X-RateLimit-Remaining", "-1")) == left, target
        if await way.taken() > taken:
            took.add(target)
            taken += 1
    assert {"/auth/login", "/auth/%6cogin", "/auth%2Flogin", "http://x/auth/login", "/auth/login?"} <= took


async def test_five_of_all_spellings_reach_the_login(way: Way) -> None:
    """With a limit of five, one attempt in each spelling reaches the login five times at most."""
    answers = [await way.send(request(target), strict=True) for target in spellings()]
    assert [answer.statuses for answer in answers[5:]] == [[429]] * (len(answers) - 5)
    assert 1 <= await way.taken() <= 5


async def test_every_method_that_may_log_in_is_counted(way: Way) -> None:
    """Logins with any other method than GET, HEAD and OPTIONS are counted, unless aiohttp refuses the method."""
    methods = ["POST", "PUT", "PATCH", "DELETE", "FOO", "PROPFIND", "QUERY", "M-SEARCH", "post", "Post", "get"]
    for number, method in enumerate(methods):
        taken = await way.taken()
        answer = await way.send(request("/auth/login", method))
        if answer.statuses == [400]:  # aiohttp's parser knows no such method, so it goes nowhere
            assert method not in methods[:4]
            assert await way.taken() == taken
        else:
            assert MANY - number - 1 <= int(answer.headers["X-RateLimit-Remaining"]) < MANY, method
    assert 1 <= await way.taken() <= await way.counted()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("target", "header"),
    [
        ("/auth/login", b"X-HTTP-Method-Override: POST\r\n"),
        ("/auth/login", b"x-http-method-override: post\r\n"),
        ("/auth/login", b"X-Method-Override: POST\r\n"),
        ("/auth/login", b"X-HTTP-Method: POST\r\n"),
        ("/auth/login?_method=POST", b""),
        ("/auth/login?a=b&%5fmethod=POST", b""),
        ("//auth/login;x?_METHOD=POST", b""),
    ],
)
async def test_an_overridden_method_is_counted(way: Way, method: str, target: str, header: bytes) -> None:
    """A GET, HEAD or OPTIONS that the application takes for a POST is counted as a login."""
    answer = await way.send(request(target, method, header + LAST))
    assert answer.headers["X-RateLimit-Remaining"] == str(MANY - 1)
    if target == "/auth/login":
        assert await way.taken() == 1


async def test_looking_at_the_login_page_is_not_counted(way: Way) -> None:
    """GET, HEAD and OPTIONS without an override are not counted, and get no rate limit fields."""
    for method in ("GET", "HEAD", "OPTIONS"):
        answer = await way.send(request("/auth/login", method, LAST, body=b""))
        assert b" 405 " in answer.data
        assert "X-RateLimit-Limit" not in answer.headers
    assert await way.counted() == 0


async def test_http_1_0_is_counted(way: Way) -> None:
    """A login over HTTP/1.0 is counted, with or without Host."""
    plain = b"POST /auth/login HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    await way.send(request("/auth/login", version="1.0"))
    await way.send(plain + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
    assert await way.taken() == 2
    assert await way.counted() == 2


async def test_chunked_logins_are_counted(way: Way) -> None:
    """A chunked login is counted once, even in chunks of one byte with extensions and a trailer."""
    head = b"POST /auth/login HTTP/1.1\r\n" + FORM + b"Transfer-Encoding: chunked\r\n\r\n"
    whole = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    each = b"".join(b"1;a=b\r\n%c\r\n" % octet for octet in BODY) + b"0\r\nX-Trailer: 1\r\n\r\n"
    answers = [await way.send(head + whole), await way.send(head, each)]
    assert [answer.statuses for answer in answers] == [[401], [401]]
    assert await way.taken() == 2
    assert await way.counted() == 2


async def test_pipelined_logins_are_counted_one_by_one(way: Way) -> None:
    """Of twenty logins that are pipelined on one connection, five are passed on."""
    answer = await way.send(request("/auth/login") * 20, answers=20, strict=True)
    assert answer.statuses == [401] * 5 + [429] * 15
    assert await way.taken() == 5


async def test_logins_on_many_connections_and_one_are_the_same_count(way: Way) -> None:
    """Logins on a kept connection, on new ones, and to both login paths share one count."""
    await way.send(request("/auth/login") + request("/api/v1/auth/login"), answers=2, strict=True)
    for _ in range(3):
        await way.send(request("/api/v1/auth/login"), strict=True)
    for path in ("/auth/login", "/api/v1/auth/login"):
        assert (await way.send(request(path), strict=True)).statuses == [429]
    assert await way.taken() == 5


async def test_a_login_that_waits_to_be_invited_is_counted(way: Way) -> None:
    """Logins with `Expect: 100-continue` are counted like any other, and the sixth gets 429."""
    for status in [401] * 5 + [429]:
        answer = await way.send(request("/auth/login", headers=b"Expect: 100-continue\r\n"), strict=True)
        assert answer.statuses == [status]
    assert await way.taken() == 5


async def test_forged_headers_of_our_own_do_not_pass(way: Way) -> None:
    """A client that sends rate limit fields and forged addresses still has only five logins."""
    for number in range(8):
        forged = f"X-RateLimit-Remaining: 99\r\nX-Forwarded-For: 9.9.9.{number}\r\nForwarded: for=9.9.9.{number}\r\n"
        answer = await way.send(request("/auth/login", headers=forged.encode()), strict=True)
        assert answer.headers["X-RateLimit-Remaining"] == str(max(4 - number, 0))
        assert answer.statuses == [401 if number < 5 else 429]
