"""`GET /feed`: the live revocations, then each change, as server-sent events (WHATWG HTML section 9.2)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from aiohttp import web

from revocation_service.api.auth import authorize
from revocation_service.api.dependencies import BROADCASTER, IN_FLIGHT

WRITE_SECONDS: Final = 10.0
"""How long a subscriber may read nothing while a write waits for it."""

_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


async def feed(request: web.Request) -> web.StreamResponse:
    """Send a snapshot or the events since `Last-Event-ID`, then changes and heartbeats until one side closes."""
    authorize(request, "check")
    cursor = ", ".join(request.headers.getall("Last-Event-ID", []))  # of two, neither is known
    response = web.StreamResponse(headers=_HEADERS)
    response.force_close()
    with request.app[BROADCASTER].subscription(cursor or None) as stream, request.app[IN_FLIGHT].not_counted():
        await _write(request, response, stream)
    return response


async def _write(request: web.Request, response: web.StreamResponse, stream: AsyncGenerator[bytes, None]) -> None:
    """Write until the stream ends; drop a subscriber that reads nothing."""
    try:
        await response.prepare(request)
        async with aclosing(stream):
            async for chunk in stream:
                async with asyncio.timeout(WRITE_SECONDS):
                    await response.write(chunk)
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write_eof()
    except ConnectionError:
        pass
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
