"""Tests of forward auth through real gateways, configured as in docs/gateways.md, before a real application."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from revocation_service.http.serving import KEEPALIVE_SECONDS
from tests.api.serving import KEYS, Answer, Raw, Service, serving, talk_to
from tests.doors.echo import echo_application
from tests.doors.gateways import PACKAGES, Addresses, binary, running
from tests.doors.world import DOORS, token
from tests.redis_processes import Process, eventually, standalone

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEAD_SECONDS = 20.0


@dataclass(frozen=True)
class World:
    """A gateway in front of an application, and the service and Redis that the gateway relies on."""

    gateway: str
    port: int
    service: Service
    server: Process

    async def request(self, method: str, path: str = "/", **options: Any) -> Answer:
        """Send a request through the gateway, and return the response."""
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.service.session.request(method, url, allow_redirects=False, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, raw: str | None = None, path: str = "/", **headers: str) -> Answer:
        """Send GET through the gateway, with this token."""
        bearer = {} if raw is None else {"Authorization": f"Bearer {raw}"}
        return await self.request("GET", path, headers={**bearer, **headers})

    async def talk(self, *lines: str) -> Raw:
        """Send these lines unchanged, followed by Host and, if no Connection is given, `Connection: close`."""
        close = [] if any(line.startswith("Connection") for line in lines) else ["Connection: close"]
        data = "\r\n".join([*lines, f"Host: 127.0.0.1:{self.port}", *close, "", ""]).encode()
        return await talk_to("127.0.0.1", self.port, data, answers=1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_redis() -> AsyncIterator[Process]:
    """A Redis for this module alone, which a test may freeze."""
    async with standalone() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=list(PACKAGES))
async def world(
    own_redis: Process, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A running gateway. Each test runs once with every gateway that is installed."""
    name: str = request.param
    if binary(name) is None:
        pytest.skip(f"no {name} here: install {PACKAGES[name]}")
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(own_redis, "127.0.0.1", KEEPALIVE_SECONDS, **DOORS))
        app = await stack.enter_async_context(echo_application())
        addresses = Addresses(app, service.port, KEYS["checker"])
        port = await stack.enter_async_context(running(name, tmp_path_factory.mktemp(name), addresses))
        yield World(name, port, service, own_redis)


@pytest.mark.skipif(binary("nginx") is None, reason="no nginx here: install Debian's nginx")
async def test_the_example_guards_all_but_login_and_refresh(own_redis: Process, tmp_path: Path) -> None:
    """With `examples/nginx`, login and refresh need no token, other paths do, and forged identities do not arrive."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(own_redis, "127.0.0.1", KEEPALIVE_SECONDS, **DOORS))
        app = await stack.enter_async_context(echo_application())
        addresses = Addresses(app, service.port, KEYS["checker"])
        world = World(
            "nginx", await stack.enter_async_context(running("examples/nginx", tmp_path, addresses)), service, own_redis
        )
        for path, status in (("/api/v1/auth/login", 200), ("/api/v1/auth/logout", 401), ("/api/v1/users/me", 401)):
            answer = await world.request("POST", path, headers={"X-Auth-Subject": "forged"})
            assert (answer.status, b"forged" in answer.body) == (status, False), path
        for path in ("/files/../api/v1/auth/login", "/files/%2e%2e/api/v1/auth/refresh?a=b", "//api/v1/auth//login"):
            answer = await world.request("POST", path)
            assert answer.json["path"].startswith(("/api/v1/auth/login", "/api/v1/auth/refresh?a=b")), path
        assert (await world.request("POST", "/api/v1/auth/login%0a")).status == 401
        assert arrived(await world.get(token(), "/api/v1/users/me"))["x-auth-subject"] == ["alice"]


def arrived(answer: Answer) -> dict[str, list[str]]:
    """Return the header fields that reached the application. The response must be 200."""
    assert answer.status == 200, answer
    fields: dict[str, list[str]] = {}
    for name, value in answer.json["headers"]:
        fields.setdefault(name, []).append(value)
    return fields


async def test_a_good_token_passes_with_its_identity(world: World) -> None:
    """For a good token, the identity headers reach the application, and the gateway's API key does not."""
    fields = arrived(await world.get(token(scope="read write")))
    assert (fields["x-auth-subject"], fields["x-auth-scope"]) == (["alice"], ["read write"])
    assert "x-revocation-key" not in fields
    assert KEYS["checker"] not in str(fields)


async def test_no_token_is_401_with_the_challenge(world: World) -> None:
    """A request without a token, or with an expired one, gets 401 with the challenge of the service."""
    answer = await world.get()
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    answer = await world.get(token(exp=1_000_000_000))
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')


async def test_a_revoked_token_is_refused_on_the_next_request(world: World) -> None:
    """A token that passed before is refused on the first request after its revocation: no gateway caches verdicts."""
    raw = token(jti=f"soon-{world.gateway}")
    for _ in range(3):
        assert (await world.get(raw)).status == 200
    await world.service.revoke({"token": raw})
    assert (await world.get(raw)).status == 401


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize("claims", [{"sub": None}, {"sub": "alice"}])
async def test_a_clients_own_identity_never_arrives(world: World, method: str, claims: dict[str, Any]) -> None:
    """Forged identity headers never arrive, whether or not the token has the claim, and not in a preflight."""
    forged = {"X-Auth-Subject": "forged", "x-auth-scope": "forged", "X-AUTH-SUBJECT": "forged"}
    answer = await world.request(method, headers={**forged, "Authorization": f"Bearer {token(**claims)}"})
    fields = arrived(answer)
    assert "forged" not in str(fields)
    expected = ["alice"] if claims["sub"] and method == "GET" else []
    assert [value for value in fields.get("x-auth-subject", []) if value] == expected


async def test_a_name_with_underscores_is_another_header(world: World) -> None:
    """Only Traefik passes on `X_Auth_Subject`, which CGI and WSGI read as `X-Auth-Subject`. The docs warn of this."""
    raw = await world.talk("GET / HTTP/1.1", "X_Auth_Subject: forged", f"Authorization: Bearer {token()}")
    assert raw.statuses in ([200], [400])
    assert b'["x-auth-subject", "forged"]' not in raw.data
    assert (b"forged" in raw.data) == (world.gateway == "traefik")


async def test_a_preflight_passes_without_a_token(world: World) -> None:
    """OPTIONS passes without a token. A header that says OPTIONS exempts nothing.

    Gateways remove the credentials of OPTIONS: X-HTTP-Method-Override could make an application use them, unchecked.
    """
    assert (await world.request("OPTIONS", "/a")).status == 200
    expired = token(exp=1_000_000_000)
    unchecked = {"Authorization": f"Bearer {expired}", "Cookie": f"access_token={expired}"}
    fields = arrived(await world.request("OPTIONS", "/a", headers=unchecked))
    assert not {"authorization", "cookie"} & {name for name, values in fields.items() if any(values)}
    assert (await world.get(None, **{"X-Forwarded-Method": "OPTIONS"})).status == 401
    assert (await world.get(None, **{"X-HTTP-Method-Override": "OPTIONS"})).status == 401


@pytest.mark.parametrize("method", ["HEAD", "DELETE", "PATCH"])
async def test_every_method_is_guarded(world: World, method: str) -> None:
    """HEAD, DELETE and PATCH pass with a token, and get 401 without one."""
    answer = await world.request(method, headers={"Authorization": f"Bearer {token()}"})
    assert answer.status == 200
    assert method == "HEAD" or answer.json["method"] == method
    assert (await world.request(method)).status == 401


async def _pieces(body: str) -> AsyncIterator[bytes]:
    yield body[:3].encode()
    yield body[3:].encode()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [5, 300_000])
async def test_a_body_reaches_the_application_alone(world: World, size: int, chunked: bool) -> None:
    """Successive POSTs of one client reach the application with their whole bodies, also after a refused one."""
    body = "x" * size
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for good in (True, False, True, True):
            headers = {"Authorization": f"Bearer {token()}"} if good else {}
            url = f"http://127.0.0.1:{world.port}/upload"
            async with session.post(url, data=_pieces(body) if chunked else body, headers=headers) as response:
                assert response.status == (200 if good else 401)
                if good:
                    assert (await response.json())["body"] == body


@pytest.mark.parametrize("path", ["/a/b?c=d", "/a%20b/%C3%A9?x=%2F", "/optional", "/forward-auth/optional", "/a%2Fb"])
async def test_sub_paths_and_encoded_paths(world: World, path: str) -> None:
    """Sub-paths and encoded paths, also the application's own `/optional`, need a token and arrive unchanged."""
    assert (await world.get(path=path)).status == 401
    answer = await world.get(token(), path)
    assert (answer.status, answer.json["path"]) == (200, path)


@pytest.mark.parametrize("climb", ["/..", "/%2e%2e", "/..%2f", "/..;", "/a/../..", "//..", "/.%2e/."])
async def test_no_path_climbs_to_the_optional_check(world: World, climb: str) -> None:
    """No spelling of `..` leads to `/forward-auth/optional`, even if the gateway appends the path, as Envoy does."""
    for path in (f"{climb}/optional", f"{climb}/forward-auth/optional"):
        raw = await world.talk(f"GET {path} HTTP/1.1")
        assert raw.statuses in ([400], [401]), raw


async def test_two_authorization_headers_never_pass(world: World) -> None:
    """Two Authorization headers get 400 from the gateway or 401 from the service, even if one or both are good."""
    good = f"Authorization: Bearer {token()}"
    for first in (good, f"Authorization: Bearer {token(exp=1_000_000_000)}", "Authorization: Basic YTpi"):
        for fields in ([first, good], [good, first]):
            raw = await world.talk("GET / HTTP/1.1", *fields)
            assert raw.statuses in ([400], [401]), raw


async def test_a_websocket_with_its_token_in_a_cookie(world: World) -> None:
    """A WebSocket passes with a token in a cookie (browsers cannot set headers), and gets 401 without one."""
    url = f"ws://127.0.0.1:{world.port}/ws"
    session = world.service.session
    async with session.ws_connect(url, headers={"Cookie": f"access_token={token()}"}) as socket:
        fields = json.loads(await socket.receive_str())["headers"]
        assert ["x-auth-subject", "alice"] in fields
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(url)
    assert refused.value.status == 401


async def test_while_redis_is_away(world: World) -> None:
    """While Redis hangs, revoked tokens get 401. Others pass, but get 503 once the mirror is too old."""
    gone, fine = token(jti=f"gone-{world.gateway}"), token(jti=f"fine-{world.gateway}")
    await world.service.revoke({"token": gone})

    async def status(raw: str, expected: int) -> bool:
        return (await world.get(raw)).status == expected

    world.server.freeze()
    try:
        assert [answer.status for answer in await asyncio.gather(*(map(world.get, (gone, fine) * 3)))] == [401, 200] * 3
        await eventually(lambda: status(fine, 503), "the end of the mirror's staleness", DEAD_SECONDS)
        assert (await world.get(gone)).status == 401
    finally:
        world.server.thaw()
    await eventually(lambda: status(fine, 200), "Redis' return", DEAD_SECONDS)


async def test_a_token_in_the_query(world: World) -> None:
    """A token in the query passes with every gateway except Envoy, which does not send the original URI."""
    answer = await world.get(path=f"/ws?access_token={token()}")
    assert answer.status == (401 if world.gateway == "envoy" else 200)


async def test_a_client_cannot_use_or_spoil_the_gateways_key(world: World) -> None:
    """A client's own `X-Revocation-Key`, valid or not, has no effect: the gateway replaces it."""
    for key in (KEYS["ops"], "x" * 30):
        assert (await world.get(token(), **{"X-Revocation-Key": key})).status == 200
        assert (await world.get(None, **{"X-Revocation-Key": key})).status == 401


@pytest.mark.parametrize("name", ["X-Auth-Subject", "X-Revocation-Key", "Authorization"])
async def test_a_connection_field_drops_no_guard(world: World, name: str) -> None:
    """A client that lists a header in Connection (hop-by-hop) neither passes the check nor forges an identity."""
    fields = ("X-Auth-Subject: forged", f"Connection: close, {name}")
    refused = await world.talk("GET / HTTP/1.1", f"Authorization: Bearer {token(exp=1_000_000_000)}", *fields)
    assert refused.statuses in ([401], [403])
    passed = await world.talk("GET / HTTP/1.1", f"Authorization: Bearer {token()}", *fields)
    assert b"forged" not in passed.data


@pytest.mark.parametrize(("name", "expected"), [("nginx", 503), ("caddy", 502), ("traefik", 500), ("envoy", 503)])
async def test_without_the_service_nothing_passes(own_redis: Process, name: str, expected: int, tmp_path: Path) -> None:
    """Without the service, each documented configuration refuses a good token, with its own 5xx status."""
    if binary(name) is None:
        pytest.skip(f"no {name} here: install {PACKAGES[name]}")
    async with echo_application() as app, AsyncExitStack() as service_ends, aiohttp.ClientSession() as session:
        started = serving(own_redis, "127.0.0.1", KEEPALIVE_SECONDS, **DOORS)
        service = await service_ends.enter_async_context(started)
        async with running(name, tmp_path, Addresses(app, service.port, KEYS["checker"])) as port:
            await service_ends.aclose()
            headers = {"Authorization": f"Bearer {token()}"}
            async with session.get(f"http://127.0.0.1:{port}/", headers=headers) as response:
                assert response.status == expected
