"""Pass WebSocket messages on in both directions, between a connection to the client and one to the upstream."""

import asyncio
from contextlib import suppress
from typing import Any, Final

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web
from multidict import CIMultiDict
from prometheus_client import Gauge
from yarl import URL

from revocation_service.tasks import begin, end

MESSAGE_MAX_BYTES: Final = 16 << 20
"""The default of uvicorn. A message is in memory as a whole; a longer one closes the connection with 1009."""

CLOSE_SECONDS: Final = 2.0
"""How long each side may take to answer a close frame; less than the drain of the process."""

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def is_handshake(request: web.Request) -> bool:
    """Return True if a request asks for WebSocket, the only upgrade that passes (RFC 6455 section 4.2.1)."""
    if request.method != "GET" or request.body_exists or not request.headers.get("Sec-WebSocket-Key", "").isascii():
        return False
    return web.WebSocketResponse(protocols=_offered(request)).can_prepare(request).ok


def _offered(request: web.Request) -> list[str]:
    """Return the subprotocols that a client offers."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    return [name for name in map(str.strip, offered.split(",")) if name]


class WebSockets:
    """The WebSocket connections of one gateway. A side that is silent for `idle_seconds` must answer a ping."""

    def __init__(self, idle_seconds: float, gauge: Gauge) -> None:
        self._options: dict[str, Any] = {
            "autoclose": False,
            "heartbeat": idle_seconds,
            "max_msg_size": MESSAGE_MAX_BYTES,
        }
        self._open: set[Socket] = set()
        gauge.set_function(lambda: len(self._open) // 2)

    def trace(self) -> aiohttp.TraceConfig:
        """Return the trace that makes a handshake refuse redirects, because a redirect might lead to another origin."""
        config = aiohttp.TraceConfig()
        config.on_request_redirect.append(_refuse_redirect)
        return config

    async def connect(
        self, request: web.Request, session: aiohttp.ClientSession, url: URL, fields: CIMultiDict[str]
    ) -> aiohttp.ClientWebSocketResponse | web.Response:
        """Offer the upstream what the client offers. Return the connection, or the upstream's refusal as a response."""
        compress = 15 if "permessage-deflate" in request.headers.get("Sec-WebSocket-Extensions", "") else 0
        timeout = aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS)
        try:
            socket: aiohttp.ClientWebSocketResponse = await session.ws_connect(
                url, headers=fields, protocols=_offered(request), compress=compress, timeout=timeout, **self._options
            )
            return socket
        except aiohttp.WSServerHandshakeError as refused:
            if refused.status == 101:
                raise
            return web.Response(status=refused.status)

    async def join(self, request: web.Request, upstream: aiohttp.ClientWebSocketResponse) -> web.StreamResponse:
        """Accept the client with the upstream's protocol and compression. Pass messages on until either side closes."""
        protocols = [upstream.protocol] if upstream.protocol else []
        client = web.WebSocketResponse(
            protocols=protocols, compress=bool(upstream.compress), timeout=CLOSE_SECONDS, **self._options
        )
        async with upstream:
            await client.prepare(request)
            self._open |= {client, upstream}
            passing = begin(
                "websocket",
                _pass_on(client, upstream, WSCloseCode.GOING_AWAY),
                _pass_on(upstream, client, WSCloseCode.INTERNAL_ERROR),
            )
            try:
                done, _ = await asyncio.wait(passing, return_when=asyncio.FIRST_EXCEPTION)
            except asyncio.CancelledError:  # the client left: what it sent last still reaches the upstream
                await asyncio.wait(passing, timeout=CLOSE_SECONDS)
                raise
            finally:
                self._open -= {client, upstream}
                await end(passing)
            for each in done:
                each.result()
        return client

    async def close(self) -> None:
        """Close all connections with 1001 (going away)."""
        await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in tuple(self._open)))


async def _refuse_redirect(_session: object, _context: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    """Treat a redirect as a refused handshake, because `ws_connect` has no `allow_redirects`."""
    response = redirect.response
    response.close()
    raise aiohttp.WSServerHandshakeError(response.request_info, response.history, status=response.status)


async def _pass_on(source: Socket, target: Socket, lost: WSCloseCode) -> None:
    """Pass messages on, then close both sides: with the close code of `source`, or `lost` if it sent no close frame."""
    code, reason = int(lost), ""
    with suppress(ConnectionError):
        while (message := await source.receive()).type in {WSMsgType.TEXT, WSMsgType.BINARY}:
            await (target.send_str if message.type is WSMsgType.TEXT else target.send_bytes)(message.data)
        if message.type is WSMsgType.CLOSING:
            return  # another task closes both
        if message.type is WSMsgType.CLOSE:
            code, reason = message.data or WSCloseCode.OK, message.extra or ""
    await source.close(code=code, message=reason.encode())
    await target.close(code=code, message=reason.encode())
