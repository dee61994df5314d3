"""Limit the size of every request's body before it is parsed."""

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_MAX_BYTES: Final = 16 * 1024


class BodyLimit:
    """An ASGI middleware that answers 413 if Content-Length or the body itself is too long."""

    def __init__(self, app: ASGIApp, most_bytes: int = BODY_MAX_BYTES) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._says_too_long(Headers(scope=scope)):
            await JSONResponse({"detail": "The body is too long"}, 413)(scope, receive, send)
        else:
            await self._app(scope, self._counting(receive), send)

    def _says_too_long(self, headers: Headers) -> bool:
        length = headers.get("content-length", "0")
        return not length.isdigit() or len(length) > 9 or int(length) > self._most_bytes

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most_bytes:
                raise HTTPException(413, "The body is too long")
            return message

        return counted
