"""The client in applications with plain aiohttp, Starlette and FastAPI, tested as their authors would test them.

The stand-in takes the real client's place. The integrations are those of `revocation_client.integrations`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import Depends, FastAPI, Header
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from revocation_client import NotStarted, RequestRefused, RevocationClient
from revocation_client.integrations.aiohttp import REVOCATIONS, cleanup_ctx, middleware
from revocation_client.integrations.starlette import exception_handlers
from revocation_client.testing import InMemoryRevocationClient
from tests.client.asgi import asgi
from tests.client.scripted import scripted
from tests.system.tokens import mint

QUICK: dict[str, Any] = {"timeout_seconds": 0.2, "revoke_timeout_seconds": 0.2}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def aiohttp_app(revocations: RevocationClient) -> web.Application:
    """Return a plain aiohttp application with the client's middleware and cleanup context, two checks and a logout."""

    async def hello(request: web.Request) -> web.Response:
        await request.app[REVOCATIONS].ensure_active(request.headers["Authorization"])
        return web.json_response({})

    async def by_claims(request: web.Request) -> web.Response:
        await request.app[REVOCATIONS].ensure_active({"jti": request.match_info["jti"], "iat": 5})
        return web.json_response({})

    async def logout(request: web.Request) -> web.Response:
        await request.app[REVOCATIONS].ensure_active(request.headers["Authorization"])
        done = await request.app[REVOCATIONS].revoke(request.headers["Authorization"])
        return web.json_response({"result": done.result})

    app = web.Application(middlewares=[middleware])
    app.cleanup_ctx.append(cleanup_ctx(revocations))
    app.add_routes([web.get("/", hello), web.get("/claims/{jti}", by_claims), web.post("/logout", logout)])
    return app


def starlette_app(revocations: RevocationClient) -> Starlette:
    """Return a Starlette application with a lifespan of its own, and the same routes."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        async with revocations:
            yield {"greeting": "hello"}

    async def hello(request: Request) -> Response:
        await revocations.ensure_active(request.headers["Authorization"])
        return JSONResponse({"greeting": request.state.greeting})

    async def by_claims(request: Request) -> Response:
        await revocations.ensure_active({"jti": request.path_params["jti"], "iat": 5})
        return JSONResponse({})

    async def logout(request: Request) -> Response:
        await revocations.ensure_active(request.headers["Authorization"])
        done = await revocations.revoke(request.headers["Authorization"])
        return JSONResponse({"result": done.result})

    routes = [Route("/", hello), Route("/claims/{jti}", by_claims), Route("/logout", logout, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={**exception_handlers})


def fastapi_app(revocations: RevocationClient) -> FastAPI:
    """Return a FastAPI application with the same routes, in which the token is a dependency."""
    app = FastAPI(lifespan=revocations.lifespan, exception_handlers={**exception_handlers})

    async def token_of(authorization: Annotated[str, Header()]) -> str:
        await revocations.ensure_active(authorization)
        return authorization

    @app.get("/")
    async def hello(token: Annotated[str, Depends(token_of)]) -> dict[str, int]:
        return {"characters": len(token)}

    @app.get("/claims/{jti}")
    async def by_claims(jti: str) -> dict[str, str]:
        await revocations.ensure_active({"jti": jti, "iat": 5})
        return {}

    @app.post("/logout")
    async def logout(token: Annotated[str, Depends(token_of)]) -> dict[str, str]:
        return {"result": (await revocations.revoke(token)).result}

    return app


class Answer:
    """The status and headers of a response, from either kind of HTTP client."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers


class Http:
    """A common interface to the HTTP clients for the three frameworks."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, method: str, path: str, headers: Any = None) -> Answer:
        response = await self._client.request(method, path, headers=headers)
        return Answer(response.status if hasattr(response, "status") else response.status_code, response.headers)


@asynccontextmanager
async def running(kind: str, revocations: RevocationClient) -> AsyncIterator[Http]:
    """Start an application of this framework, and yield an HTTP client for it."""
    if kind == "aiohttp":
        async with TestClient(TestServer(aiohttp_app(revocations))) as client:
            yield Http(client)
        return
    app = starlette_app(revocations) if kind == "starlette" else fastapi_app(revocations)
    async with asgi(app) as asgi_client:
        yield Http(asgi_client)


@pytest.fixture(params=["aiohttp", "starlette", "fastapi"])
def kind(request: pytest.FixtureRequest) -> str:
    """The framework of the application, each in turn."""
    name: str = request.param
    return name


async def test_a_logged_out_token_is_refused_on_the_next_request(kind: str) -> None:
    """A logged-out token gets 401 with a challenge; others still work. The client is closed with the application."""
    revocations = InMemoryRevocationClient()
    mine, other = mint(jti="mine"), mint(jti="other")
    async with running(kind, revocations) as http:
        assert (await http.ask("GET", "/", bearer(mine))).status == 200
        assert (await http.ask("POST", "/logout", bearer(mine))).status == 200
        for path in ("/", "/claims/mine"):
            refused = await http.ask("GET", path, bearer(mine))
            assert refused.status == 401
            assert refused.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
        assert (await http.ask("POST", "/logout", bearer(mine))).status == 401
        assert (await http.ask("GET", "/", bearer(other))).status == 200
        assert (await http.ask("GET", "/claims/other")).status == 200
    with pytest.raises(NotStarted):
        await revocations.check({"jti": "x"})


async def test_every_spelling_of_the_header_is_the_same_token(kind: str) -> None:
    """A revoked token gets 401 however the Authorization header spells it (scheme, white space, padding)."""
    revocations = InMemoryRevocationClient()
    token = mint(jti="mine")
    async with running(kind, revocations) as http:
        await revocations.revoke_jti("mine")
        for spelling in (f"bearer {token}", f"BEARER   {token}", f"Bearer\t{token}", f"Bearer {token}=", token):
            assert (await http.ask("GET", "/", {"Authorization": spelling})).status == 401


async def test_claims_without_a_name_are_401(kind: str) -> None:
    """A request gets 401 if its claims have no usable `jti` and the application did not pass the token."""
    async with running(kind, InMemoryRevocationClient()) as http:
        assert (await http.ask("GET", "/claims/sha256:0")).status == 401


async def test_a_token_that_is_none_is_401(kind: str) -> None:
    """An invalid token gets 401: it is the caller's fault, not an error of the application."""
    async with running(kind, InMemoryRevocationClient()) as http:
        for token in ("a.b.c", "a.b.c.d.e", '{"a":1}'):
            assert (await http.ask("GET", "/", bearer(token))).status == 401


async def test_an_outage_under_deny_is_503(kind: str) -> None:
    """In an outage under "deny", tokens and claims get 503 with Retry-After, not a 401 that would end a session."""
    revocations = InMemoryRevocationClient(on_unavailable="deny", **QUICK)
    async with running(kind, revocations) as http:
        with revocations.outage():
            for path in ("/", "/claims/x"):
                answer = await http.ask("GET", path, bearer(mint(jti="x")))
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await http.ask("GET", "/", bearer(mint(jti="x")))).status == 200


async def test_an_outage_under_allow_lets_in_and_no_logout_succeeds(kind: str) -> None:
    """In an outage under "allow", requests pass. A logout that cannot be stored gets 503, and its token still works."""
    revocations = InMemoryRevocationClient(**QUICK)
    headers = bearer(mint(jti="x"))
    async with running(kind, revocations) as http:
        with revocations.outage():
            assert (await http.ask("GET", "/", headers)).status == 200
            assert (await http.ask("POST", "/logout", headers)).status == 503
        assert revocations.revocations == ()
        assert (await http.ask("GET", "/", headers)).status == 200
        assert (await http.ask("POST", "/logout", headers)).status == 200


async def test_a_wrong_key_is_an_error_of_the_application(kind: str) -> None:
    """If the service refuses the API key, a request gets 500 instead of 401, and "allow" does not admit it."""

    async def refuse(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(status=401)

    async with scripted() as server, running(kind, server.client()) as http:
        server.script = refuse
        if kind == "aiohttp":
            assert (await http.ask("GET", "/", bearer(mint(jti="x")))).status == 500
        else:
            with pytest.raises(RequestRefused):  # this transport raises what a server answers with 500
                await http.ask("GET", "/", bearer(mint(jti="x")))


async def test_a_test_client_without_lifespan_is_told() -> None:
    """Without its lifespan the client is not started: a request raises NotStarted, which says how to use TestClient."""
    async with asgi(fastapi_app(InMemoryRevocationClient()), lifespan=False) as http:
        with pytest.raises(NotStarted, match=r"with TestClient\(app\)"):
            await http.get("/", headers=bearer(mint(jti="x")))
