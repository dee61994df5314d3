"""A real HTTP server whose answers are scripted by a test. It records the requests."""

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
    """Return the service's answer to a revocation by jti."""
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
    """Answer as a service in which nothing is revoked: checks are "not revoked", and revocations are acknowledged."""
    if "checks" in body:
        return web.json_response({"results": [not_revoked(element) for element in body["checks"]]})
    return web.json_response(acknowledged(body))


class Scripted:
    """A server that answers every request with `script`, which may be changed at any time."""

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
        """The `jti` of each check, one list for each batch."""
        return [[element["jti"] for element in body["checks"]] for body in self.bodies]

    def client(self, **options: Any) -> RevocationClient:
        """Return a client of this server. By default it has no mirror."""
        given: dict[str, Any] = {"api_key": KEY, "mirror": False} | options
        return RevocationClient(self.url, **given)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Record the request, and answer it with the script."""
        raw = await request.read()
        self.sizes.append(len(raw))
        self.bodies.append(json.loads(raw))
        self.requests.append(request)
        self.connections.add(request.transport)
        self.came.set()
        return await self.script(request, self.bodies[-1])

    async def until_asked(self, requests: int) -> None:
        """Wait until this many requests have arrived."""
        async with asyncio.timeout(10):
            while len(self.requests) < requests:
                self.came.clear()
                await self.came.wait()


@contextlib.asynccontextmanager
async def listening(app: web.Application, port: int) -> AsyncIterator[int]:
    """Serve an application, and yield its port. With `port=0`, any free port is taken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def scripted(port: int = 0) -> AsyncIterator[Scripted]:
    """Start a scripted server. With `port=0`, it takes any free port."""
    server = Scripted()
    app = web.Application(client_max_size=1 << 22)
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with listening(app, port) as server.port:
        yield server


class Gate:
    """A script that holds back each answer until `open` is called."""

    def __init__(self) -> None:
        self.held: list[asyncio.Event] = []

    async def __call__(self, request: web.Request, body: Any) -> web.StreamResponse:
        event = asyncio.Event()
        self.held.append(event)
        await event.wait()
        return await as_the_service(request, body)

    def open(self) -> None:
        """Release all answers that are held back."""
        for event in self.held:
            event.set()
