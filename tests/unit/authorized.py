"""A minimal HTTP application that answers each request with the name of its caller, for tests of API keys."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from revocation_service.api.auth import authorize, caller_finder
from revocation_service.api.dependencies import FIND_CALLER
from revocation_service.errors import ServiceError
from revocation_service.settings import load
from tests.api.serving import talk_to


@dataclass(frozen=True)
class Door:
    """The application of `door`, which listens on a local port."""

    port: int

    async def ask(self, *headers: bytes, scope: str = "check", target: str = "/") -> str | None:
        """Send a request. Return the caller's name or the code of the error; "" if the HTTP parser answers 400."""
        lines = [f"GET {target}?{scope} HTTP/1.1".encode(), b"Host: localhost", *headers]
        raw = await talk_to("127.0.0.1", self.port, b"\r\n".join([*lines, b"", b""]))
        if raw.statuses != [200]:
            assert raw.statuses == [400], raw
            return ""
        answer: str | None = json.loads(raw.data.partition(b"\r\n\r\n")[2])
        return answer


@contextlib.asynccontextmanager
async def door(api_keys: str) -> AsyncIterator[Door]:
    """Run the application with these API keys, and yield it."""

    async def who(request: web.Request) -> web.Response:
        scope: Any = request.query_string
        try:
            return web.json_response(authorize(request, scope))
        except ServiceError as error:
            return web.json_response(error.code)

    app = web.Application()
    app[FIND_CALLER] = caller_finder(load({"REVOCATION_API_KEYS": api_keys}).settings.api_keys)
    app.router.add_get("/", who)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Door(runner.addresses[0][1])
    finally:
        await runner.cleanup()
