"""The application behind the gateways. It responds with the request that reached it."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web


async def echo(request: web.Request) -> web.StreamResponse:
    """Respond with the request as JSON. On a WebSocket, send it as the first message, then echo each message."""
    arrived = {
        "method": request.method,
        "path": request.raw_path,
        "headers": [[name.lower(), value] for name, value in request.headers.items()],
        "body": (await request.read()).decode(),
    }
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return web.json_response(arrived)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json(arrived)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


@contextlib.asynccontextmanager
async def echo_application() -> AsyncIterator[int]:
    """Serve the echo application on loopback, and yield its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
