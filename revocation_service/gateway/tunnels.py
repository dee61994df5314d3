"""WebSocket connections once both ends have agreed: bytes pass both ways as they are, until either end is done.

No frame is read or made anew, so subprotocols, extensions, close codes, pings and frames of every size come through as
they were sent, and memory holds a buffer's worth of each direction. Only at the end of the gateway itself does it say a
word of its own: a close frame with 1001, between two frames.
"""

import asyncio
from contextlib import suppress
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD

from revocation_service.gateway.frames import GOING_AWAY, Frames, close_frame
from revocation_service.gateway.passed import PassedAnswer
from revocation_service.gateway.upstream import BUFFER_BYTES, Exchange

GOODBYE_SECONDS: Final = 1.0
"""How long the two ends may take over a goodbye: to finish a frame, and to answer the close."""


class _Feed:
    """What aiohttp's connections take for a parser: it hands on what comes."""

    def __init__(self, protocol: BaseProtocol) -> None:
        self.reader = StreamReader(protocol, BUFFER_BYTES, loop=asyncio.get_running_loop())

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what came; the connection rests while too much of it waits."""
        if data:
            self.reader.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        """There will be no more."""
        self.reader.feed_eof()


class _Way:
    """One direction of a tunnel."""

    def __init__(self, source: BaseProtocol, target: BaseProtocol, *, masked: bool) -> None:
        self.feed = _Feed(source)
        self._writer = StreamWriter(target, asyncio.get_running_loop())
        self._masked = masked
        self._frames = Frames()
        self._leaving = False

    async def run(self, deadline: asyncio.Timeout, idle_seconds: float) -> None:
        """Pass on what comes until there is no more; every piece puts the deadline off."""
        loop = asyncio.get_running_loop()
        while piece := await self.feed.reader.readany():
            if not self._leaving:
                deadline.reschedule(loop.time() + idle_seconds)
            self._frames.feed(piece)
            await self._writer.write(piece)
            await self._say_goodbye()

    async def leave(self) -> None:
        """Send the close frame as soon as no other is under way."""
        self._leaving = True
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        if self._leaving and self._frames.between and not self._frames.closed:
            self._frames.closed = True
            await self._writer.write(close_frame(GOING_AWAY, masked=self._masked))


class _Tunnel:
    def __init__(self, client: web.RequestHandler, exchange: Exchange) -> None:
        self._upstream = exchange.protocol
        self._down = _Way(exchange.protocol, client, masked=False)
        self._up = _Way(client, exchange.protocol, masked=True)
        self._deadline: asyncio.Timeout | None = None
        client.set_parser(self._up.feed)  # type: ignore[arg-type]  # a _Feed has what it asks of a parser
        exchange.protocol.read_timeout = None
        exchange.protocol.set_parser(self._down.feed, EMPTY_PAYLOAD)

    async def run(self, idle_seconds: float) -> None:
        """Pass bytes both ways until either end is done, or neither has said anything for so long."""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(idle_seconds) as self._deadline:
                await self._until_either_ends(self._deadline, idle_seconds)
        self._upstream.close()  # what was written still goes out

    async def _until_either_ends(self, deadline: asyncio.Timeout, idle_seconds: float) -> None:
        ways = {asyncio.create_task(way.run(deadline, idle_seconds), name="tunnel") for way in (self._down, self._up)}
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                await way
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)

    async def leave(self) -> None:
        """Tell both ends that the gateway goes; they have a moment to answer."""
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + GOODBYE_SECONDS)
        with suppress(ConnectionError):
            await asyncio.gather(self._down.leave(), self._up.leave())


class Tunnels:
    """All that are open."""

    def __init__(self) -> None:
        self._open: set[_Tunnel] = set()

    async def join(
        self, request: web.Request, answer: PassedAnswer, exchange: Exchange, *, idle_seconds: float
    ) -> None:
        """Join the client and the upstream, whose answer to the upgrade is about to be sent, until either is done.

        When the client has gone, what it sent last still reaches the upstream.
        """
        tunnel = _Tunnel(request.protocol, exchange)
        answer.send_head()
        self._open.add(tunnel)
        running = asyncio.create_task(tunnel.run(idle_seconds), name="tunnel")
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait({running}, timeout=GOODBYE_SECONDS)
            raise
        finally:
            running.cancel()
            await asyncio.wait({running})
            self._open.discard(tunnel)

    async def leave(self) -> None:
        """Close all of them in good order, as the gateway goes down."""
        await asyncio.gather(*(tunnel.leave() for tunnel in tuple(self._open)))
