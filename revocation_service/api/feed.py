"""`GET /feed`: the live revocations, then each change, as server-sent events (WHATWG HTML section 9.2)."""

import asyncio
import socket
from contextlib import aclosing, suppress
from typing import Final

from aiohttp import web

from revocation_service.api.auth import authorize
from revocation_service.api.dependencies import BROADCASTER, IN_FLIGHT
from revocation_service.broadcaster import Subscription

WRITE_SECONDS: Final = 10.0
"""How long a subscriber may read nothing while a write waits for it."""

FINAL_WRITE_SECONDS: Final = 0.3
"""Timeout of the last write of a stream: a subscriber that reads nothing must not delay a shutdown."""

CURSOR_MAX_CHARACTERS: Final = 200

_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


async def feed(request: web.Request) -> web.StreamResponse:
    """Send a snapshot, or what was missed since `Last-Event-ID`; then changes and heartbeats, until one side leaves."""
    authorize(request, "check")
    broadcaster = request.app[BROADCASTER]
    subscription = broadcaster.subscribe(_cursor(request))
    try:
        response = web.StreamResponse(headers=_HEADERS)
        response.force_close()
        with request.app[IN_FLIGHT].not_counted():
            await _write(request, response, subscription)
        return response
    finally:
        broadcaster.unsubscribe(subscription)


def _cursor(request: web.Request) -> str | None:
    """Return the cursor to resume from; `?`, which is always unknown, replaces one that cannot be valid."""
    cursors = request.headers.getall("Last-Event-ID", [])
    if not any(cursors):
        return None
    return cursors[0] if len(cursors) == 1 and len(cursors[0]) <= CURSOR_MAX_CHARACTERS else "?"


async def _write(request: web.Request, response: web.StreamResponse, subscription: Subscription) -> None:
    """Write until the stream ends; drop a subscriber that reads nothing."""
    loop, transport = asyncio.get_running_loop(), request.transport
    try:
        async with asyncio.timeout(WRITE_SECONDS) as limit, aclosing(subscription.chunks()) as chunks:

            def shorten_timeout() -> None:
                if not limit.expired():
                    limit.reschedule(loop.time() + FINAL_WRITE_SECONDS)

            subscription.on_end = shorten_timeout
            _limit_retransmission(transport)
            await response.prepare(request)
            async for chunk in chunks:
                limit.reschedule(loop.time() + (WRITE_SECONDS if subscription.ended is None else FINAL_WRITE_SECONDS))
                await response.write(chunk)
                if subscription.ended is None:
                    limit.reschedule(None)
            await response.write_eof()
    except ConnectionError:
        pass
    except TimeoutError:
        if transport is not None:
            transport.abort()


def _limit_retransmission(transport: asyncio.Transport | None) -> None:
    """Bound how long the kernel retransmits to a peer that vanished; the default is about 15 minutes."""
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # not a TCP socket
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_SECONDS * 1000))
