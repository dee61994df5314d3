"""An answer of the upstream on its way to the client: its head byte for byte, its body framed anew."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.http import HttpVersion11, StreamWriter
from multidict import CIMultiDict

from revocation_service.gateway.headers import Fields, head


class PassedAnswer(web.StreamResponse):
    """What the upstream answered.

    aiohttp's own way to begin an answer adds Server, Date and Content-Type, and drops the bytes of a header field that
    are not UTF-8; here nothing is added but what says how the body is framed, and nothing is lost.
    """

    def __init__(self, status: int, reason: str, fields: Fields, *, has_no_body: bool) -> None:
        super().__init__(status=status)
        self.set_status(status, reason)
        self._headers = CIMultiDict((_decoded(name), _decoded(value)) for name, value in fields)
        self._has_no_body = has_no_body

    async def _prepare_headers(self) -> None:
        request, writer = self._req, self._payload_writer
        assert request is not None
        assert isinstance(writer, StreamWriter)
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self._has_no_body:
            self._frame(writer, request.version >= HttpVersion11)
        if self.status != 101:
            self._tell_connection(request.version >= HttpVersion11)

    def _frame(self, writer: StreamWriter, chunks_are_known: bool) -> None:
        """RFC 9112 section 6.3."""
        writer.length = self.content_length
        if writer.length is None and chunks_are_known:
            writer.enable_chunking()
            self._headers["Transfer-Encoding"] = "chunked"
        elif writer.length is None:
            self._keep_alive = False  # the end of the connection is the end of the body

    def _tell_connection(self, is_http_1_1: bool) -> None:
        if self._keep_alive and not is_http_1_1:
            self._headers["Connection"] = "keep-alive"
        elif not self._keep_alive and is_http_1_1:
            self._headers["Connection"] = "close"

    async def _write_headers(self) -> None:
        """Leave the head with the writer, which sends it together with the first piece of the body."""
        assert self._req is not None
        assert isinstance(self._payload_writer, StreamWriter)
        major, minor = self._req.version
        line = f"HTTP/{major}.{minor} {self.status} ".encode() + _encoded(self.reason)
        fields = ((_encoded(name), _encoded(value)) for name, value in self._headers.items())
        self._payload_writer._headers_buf = head(line, fields)  # the only way in that keeps the bytes

    def send_head(self) -> None:
        """Send the head by itself, now."""
        assert isinstance(self._payload_writer, StreamWriter)
        self._payload_writer.send_headers()

    async def pass_body(self, first: bytes, rest: AsyncIterator[bytes], *, idle_seconds: float) -> None:
        """Write the body as it comes; a client that takes nothing for so long has left.

        Raises TimeoutError.
        """
        if first:
            await self._write_within(first, idle_seconds)
        else:
            self.send_head()
        async for piece in rest:
            await self._write_within(piece, idle_seconds)

    async def _write_within(self, piece: bytes, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await self.write(piece)

    def break_off(self, transport: asyncio.Transport | None) -> None:
        """End the connection so that the client cannot take what it has for the whole."""
        self.force_close()
        if transport is None:
            return
        if self.content_length is not None or self._headers.get("Transfer-Encoding") == "chunked":
            transport.close()  # too little of what was announced
        else:
            transport.abort()


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
