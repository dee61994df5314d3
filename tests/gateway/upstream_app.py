"""The upstream of the gateway's tests: an ordinary FastAPI application with a route for each kind of response."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
CHUNK: Final = b"0123456789abcdef" * 4096
EVENTS: Final = 5
BY_THE_GATEWAY: Final = frozenset(
    {"via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "x-request-id", "connection"}
)
"""Request fields that the gateway may add or remove."""

app = FastAPI()


@app.api_route("/echo", methods=METHODS)
async def echo(request: Request) -> JSONResponse:
    """Return the request as it arrived, without the fields of BY_THE_GATEWAY."""
    body = hashlib.sha256()
    size = 0
    async for piece in request.stream():
        body.update(piece)
        size += len(piece)
    headers = [(name.decode(), value.decode("latin-1")) for name, value in request.headers.raw]
    return JSONResponse(
        {
            "method": request.method,
            "raw_path": request.scope["raw_path"].decode("latin-1"),
            "query": request.scope["query_string"].decode("latin-1"),
            "headers": sorted(field for field in headers if field[0] not in BY_THE_GATEWAY),
            "size": size,
            "sha256": body.hexdigest(),
        }
    )


@app.api_route("/bytes/{size}", methods=["GET", "HEAD"])
async def some_bytes(size: int, *, chunked: bool = False) -> StreamingResponse:
    """Return `size` bytes, with Content-Length or in chunks."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, len(CHUNK)):
            yield CHUNK[: size - start]

    return StreamingResponse(pieces(), headers={} if chunked else {"Content-Length": str(size)})


@app.api_route("/status/{status}", methods=["GET", "POST", "HEAD"])
async def status(status: int) -> Response:
    """Return a response with this status and without a body."""
    return Response(status_code=status, headers={"ETag": '"x"'})


@app.get("/cookies")
async def cookies(request: Request, user: str) -> JSONResponse:
    """Set two cookies for a user, and return the Cookie fields of the request."""
    response = JSONResponse({"got": request.headers.getlist("cookie")})
    response.set_cookie("session", user, httponly=True)
    response.set_cookie("theme", f"dark-{user}", path="/x")
    return response


@app.get("/redirect")
async def redirect(request: Request) -> RedirectResponse:
    """Redirect to `/somewhere/` on the host of the request."""
    return RedirectResponse(str(request.url_for("somewhere")), status_code=307)


@app.get("/somewhere/")
async def somewhere() -> str:
    """Return a response to a client that was redirected here."""
    return "here"


@app.get("/gzip")
async def compressed() -> Response:
    """Return a compressed response."""
    body = gzip.compress(b"a" * 10_000, mtime=0)
    return Response(body, media_type="text/plain", headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})


@app.get("/large-headers")
async def large_headers() -> Response:
    """Return a response with many large header fields."""
    return Response(b"x", headers={f"X-Large-{number}": "v" * 1000 for number in range(12)})


@app.get("/events")
async def events() -> StreamingResponse:
    """Send a stream of server-sent events, 0.1 s apart."""

    async def stream() -> AsyncIterator[bytes]:
        for number in range(EVENTS):
            yield f"id: {number}\ndata: tick\n\n".encode()
            await asyncio.sleep(0.1)

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.get("/slow")
async def slow(seconds: float) -> str:
    """Return a response after `seconds`."""
    await asyncio.sleep(seconds)
    return "slow"


@app.get("/error")
async def error() -> None:
    """Raise an error that the application does not handle."""
    raise RuntimeError("broken")


@app.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    """Echo each message. `close <code>` closes the connection, and `large <size>` returns `size` bytes."""
    offered = websocket.scope["subprotocols"]
    await websocket.accept("chat.v2" if "chat.v2" in offered else None, headers=[(b"x-from", b"upstream")])
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            websocket.app.state.last_close = message.get("code")
            return
        text = message.get("text")
        if text and text.startswith("close "):
            await websocket.close(int(text.split()[1]), "as asked")
            return
        if text and text.startswith("large "):
            await websocket.send_bytes(b"L" * int(text.split()[1]))
        elif text is not None:
            await websocket.send_text(text)
        else:
            await websocket.send_bytes(message["bytes"])


@app.get("/last-close")
async def last_close() -> JSONResponse:
    """Return the code with which the last client closed its WebSocket."""
    return JSONResponse({"code": getattr(app.state, "last_close", None)})


@app.websocket("/ws/refused")
async def refused(websocket: WebSocket) -> None:
    """Refuse the handshake."""
    await websocket.close()


_seen: list[tuple[str, str, str]] = []


async def recorder(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """An ASGI application that records method, target and body of each request; `/seen` returns and clears them."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    told = b"ok"
    if scope["path"] == "/seen":
        told = json.dumps(_seen).encode()
        _seen.clear()
    else:
        _seen.append((scope["method"], scope["raw_path"].decode(), body.decode()))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})
