"""`GET /feed`: what is revoked, and what will be, as server-sent events (WHATWG HTML section 9.2)."""

import asyncio
import socket
from contextlib import aclosing, suppress
from typing import Final

from aiohttp import web

from revocation_service.feed import Stream
from revocation_service.telemetry import request_id
from revocation_service.web.answers import common_headers
from revocation_service.web.state import AUTHORIZE, FEED, TRAFFIC

WRITE_SECONDS: Final = 10.0
"""How long a follower may take nothing of what is written to it."""

LAST_WORDS_SECONDS: Final = 0.3
"""How long one that is told to go may take to hear it; one that reads nothing must not hold up a shutdown."""

CURSOR_MAX_CHARACTERS: Final = 200

_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


async def feed(request: web.Request) -> web.StreamResponse:
    """A snapshot, or what was missed since `Last-Event-ID`; then changes and heartbeats, until either side leaves."""
    request.app[AUTHORIZE](request, "check")
    stream = request.app[FEED].follow(_cursor(request))
    try:
        response = web.StreamResponse(headers=_HEADERS | common_headers(request_id.get() or ""))
        response.force_close()
        with request.app[TRAFFIC].streaming():
            await _tell(request, response, stream)
        return response
    finally:
        stream.close()


def _cursor(request: web.Request) -> str | None:
    """The cursor to go on from; what can be none is treated as one that is not known any more."""
    cursors = request.headers.getall("Last-Event-ID", [])
    if not any(cursors):
        return None
    return cursors[0] if len(cursors) == 1 and len(cursors[0]) <= CURSOR_MAX_CHARACTERS else "?"


async def _tell(request: web.Request, response: web.StreamResponse, stream: Stream) -> None:
    """Write until the stream ends; whoever reads nothing is cut off."""
    loop, transport = asyncio.get_running_loop(), request.transport
    try:
        async with asyncio.timeout(WRITE_SECONDS) as limit, aclosing(stream.pieces()) as pieces:

            def hurry() -> None:
                if not limit.expired():
                    limit.reschedule(loop.time() + LAST_WORDS_SECONDS)

            stream.on_end = hurry
            _give_up_dead_peers(transport)
            await response.prepare(request)
            async for piece in pieces:
                limit.reschedule(loop.time() + (WRITE_SECONDS if stream.ended is None else LAST_WORDS_SECONDS))
                await response.write(piece)
                if stream.ended is None:
                    limit.reschedule(None)
            await response.write_eof()
    except ConnectionError:
        pass
    except TimeoutError:
        if transport is not None:
            transport.abort()


def _give_up_dead_peers(transport: asyncio.Transport | None) -> None:
    """What was written to a peer that is gone without a word would wait for a quarter of an hour."""
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # what is no TCP
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_SECONDS * 1000))
