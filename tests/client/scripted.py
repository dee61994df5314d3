"""A real HTTP server that answers as a test says: it holds answers back, breaks off, and tells what it was asked."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from revocation_client import RevocationClient
from tests.redis_processes import HOST

KEY = "scripted-key-0123456789abcdef"

Script = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


def not_revoked(element: dict[str, Any]) -> dict[str, Any]:
    """Return the service's answer about a token that is not revoked."""
    order = ["jti", "sid", "sub", "client_id"]
    considered = ["jti", "all"] if "token" in element else [name for name in order if name in element]
    if "iat" in element:
        considered.append("all")
    return {"revoked": False, "considered": considered, "verified": False, "source": "redis"}


def acknowledged(body: dict[str, Any]) -> dict[str, Any]:
    """The service's answer to a revocation by jti."""
    times = {"revoked_at": 1.0, "expires_at": 2.0}
    return {
        "result": "revoked",
        "claim": "jti",
        "value": body.get("jti", "x"),
        **times,
        "reason": None,
        "verified": False,
    }


async def as_the_service(_request: web.Request, body: Any) -> web.StreamResponse:
    """What a service with nothing in it says."""
    if "checks" in body:
        return web.json_response({"results": [not_revoked(element) for element in body["checks"]]})
    return web.json_response(acknowledged(body))


class Scripted:
    """The server; `script` may be changed at any time."""

    def __init__(self) -> None:
        self.script: Script = as_the_service
        self.bodies: list[Any] = []
        self.sizes: list[int] = []
        self.requests: list[web.Request] = []
        self.connections: set[Any] = set()
        self.came = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def asked(self) -> list[list[str]]:
        """The jti of each question, batch by batch."""
        return [[element["jti"] for element in body["checks"]] for body in self.bodies]

    def client(self, **options: Any) -> RevocationClient:
        """A client of it, without a feed."""
        given: dict[str, Any] = {"api_key": KEY, "mirror": False} | options
        return RevocationClient(self.url, **given)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note the request, and answer it as the script says."""
        raw = await request.read()
        self.sizes.append(len(raw))
        self.bodies.append(json.loads(raw))
        self.requests.append(request)
        self.connections.add(request.transport)
        self.came.set()
        return await self.script(request, self.bodies[-1])

    async def until_asked(self, requests: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(10):
            while len(self.requests) < requests:
                self.came.clear()
                await self.came.wait()


@contextlib.asynccontextmanager
async def listening(app: web.Application, port: int) -> AsyncIterator[int]:
    """The port on which it is served: this one or, for 0, any."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def scripted(port: int = 0) -> AsyncIterator[Scripted]:
    """One that runs, on this port or on any."""
    server = Scripted()
    app = web.Application(client_max_size=1 << 22)
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with listening(app, port) as server.port:
        yield server


class Gate:
    """A script that keeps each answer until it is told to let it go."""

    def __init__(self) -> None:
        self.held: list[asyncio.Event] = []

    async def __call__(self, request: web.Request, body: Any) -> web.StreamResponse:
        event = asyncio.Event()
        self.held.append(event)
        await event.wait()
        return await as_the_service(request, body)

    def open(self) -> None:
        """Let all go."""
        for event in self.held:
            event.set()
