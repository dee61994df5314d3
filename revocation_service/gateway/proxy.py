"""Passes requests on to the upstream and its answers back, streaming both ways; it counts and refuses no attempt."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog
from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion10, HttpVersion11, RawResponseMessage

from revocation_service.gateway.accounts import BUFFERED_BODY
from revocation_service.gateway.addresses import client_address, is_trusted
from revocation_service.gateway.headers import (
    Fields,
    Hop,
    answer_fields,
    asks_for_websocket,
    first,
    head,
    request_fields,
    request_target,
)
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.passed import PassedAnswer
from revocation_service.gateway.problems import (
    MalformedRequest,
    MethodNotImplemented,
    RequestTimeout,
    UpstreamTimeout,
    UpstreamUnavailable,
    VersionNotSupported,
)
from revocation_service.gateway.settings import GatewaySettings
from revocation_service.gateway.tunnels import Tunnels
from revocation_service.gateway.upstream import Exchange, Upstream, pieces
from revocation_service.telemetry import current_request_id

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger()

REFUSED_METHODS: Final = frozenset({"CONNECT", "TRACE"})
_BODILESS: Final = frozenset({204, 304})


class Proxy:
    """The way to the upstream and back."""

    def __init__(
        self, settings: GatewaySettings, upstream: Upstream, tunnels: Tunnels, metrics: GatewayMetrics
    ) -> None:
        self._upstream = upstream
        self._idle_seconds = settings.timeouts.idle_seconds
        self._trusted = settings.throttle.trusted_proxies
        self._tunnels = tunnels
        self._metrics = metrics

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """The upstream's answer to a request.

        Raises GatewayError where there is none.
        """
        _refuse(request)
        upgrading = asks_for_websocket(request.method, request.raw_headers) and not request.body_exists
        sent = self._head(request, upgrading=upgrading)
        try:
            exchange = await self._upstream.connect()
            try:
                return await self._exchanged(request, sent, exchange, upgrading=upgrading)
            finally:
                await exchange.aclose()
        except (UpstreamTimeout, UpstreamUnavailable) as error:
            self._metrics.upstream_failures.labels(error.code).inc()
            raise

    def _head(self, request: web.Request, *, upgrading: bool) -> bytes:
        target, host = request_target(request.method, request.raw_path)
        if host is None:
            host = first(request.raw_headers, b"host")
        if not host:
            host = self._upstream.authority.encode()
        fields = request_fields(request.raw_headers, host, self._hop(request))
        fields = [field for field in fields if field[0].lower() != b"x-request-id"]
        fields.append((b"X-Request-ID", current_request_id().encode()))
        if upgrading:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        return head(request.method.encode() + b" " + target + b" HTTP/1.1", fields + _framing(request))

    def _hop(self, request: web.Request) -> Hop:
        peer = peer_of(request)
        client = client_address(peer, request.headers.getall("X-Forwarded-For", []), self._trusted)
        return Hop(peer.partition("%")[0], str(client or peer), is_trusted(peer, self._trusted))

    async def _exchanged(
        self, request: web.Request, sent: bytes, exchange: Exchange, *, upgrading: bool
    ) -> web.StreamResponse:
        body = self._body(request)
        exchange.send(sent, body, chunked=_is_chunked(request), has_no_answer_body=request.method == "HEAD")
        message, content = await exchange.answer()
        while message.code < 200 and message.code != 101:
            await _pass_interim(request, message)
            message, content = await exchange.answer()
        if message.code == 101:
            return await self._switched(request, message, exchange, upgrading=upgrading)
        return await self._passed(request, message, content)

    def _body(self, request: web.Request) -> AsyncIterator[bytes] | None:
        return self._pieces_of(request.content, request.get(BUFFERED_BODY)) if request.body_exists else None

    async def _pieces_of(self, content: StreamReader, read_already: bytes | None) -> AsyncIterator[bytes]:
        """The body as the client sends it, after what the throttle has read of it.

        Raises RequestTimeout and MalformedRequest.
        """
        if read_already:
            yield read_already
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    piece = await content.readany()
            except TimeoutError as error:
                raise RequestTimeout("the rest of the body did not come in time") from error
            except (web.RequestPayloadError, ConnectionError) as error:
                raise MalformedRequest("the body is not valid HTTP") from error
            if not piece:
                return
            yield piece

    async def _switched(
        self, request: web.Request, message: RawResponseMessage, exchange: Exchange, *, upgrading: bool
    ) -> web.StreamResponse:
        if not upgrading or (first(message.raw_headers, b"upgrade") or b"").lower() != b"websocket":
            raise UpstreamUnavailable("the upstream switched to a protocol that nobody asked for")
        fields = [*answer_fields(message.raw_headers), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        answer = PassedAnswer(101, message.reason, fields, has_no_body=True)
        answer.force_close()  # what comes after is not HTTP
        await answer.prepare(request)
        self._metrics.websockets.inc()
        try:
            await self._tunnels.join(request, answer, exchange, idle_seconds=self._idle_seconds)
        finally:
            self._metrics.websockets.dec()
        return answer

    async def _passed(
        self, request: web.Request, message: RawResponseMessage, content: StreamReader
    ) -> web.StreamResponse:
        has_no_body = request.method == "HEAD" or message.code in _BODILESS
        fields = _without_length(answer_fields(message.raw_headers), message.code)
        answer = PassedAnswer(message.code, message.reason, fields, has_no_body=has_no_body)
        await answer.prepare(request)
        try:
            if not has_no_body:
                ready = content.read_nowait() if content.total_bytes else b""
                await answer.pass_body(ready, pieces(content), idle_seconds=self._idle_seconds)
            await answer.write_eof()
        except (UpstreamUnavailable, ConnectionError, TimeoutError) as error:
            answer.break_off(request.transport)
            _log.warning("answer_broken_off", method=request.method, status=message.code)
            if isinstance(error, UpstreamUnavailable):
                self._metrics.broken_answers.inc()
        return answer


def _refuse(request: web.Request) -> None:
    """Turn away what the parser lets pass, and the upstream might understand in another way."""
    if request.method in REFUSED_METHODS:
        raise MethodNotImplemented("this gateway passes on neither CONNECT nor TRACE")
    if request.version not in {HttpVersion10, HttpVersion11}:
        raise VersionNotSupported("this gateway speaks HTTP/1.0 and HTTP/1.1")
    codings = request.headers.getall("Transfer-Encoding", None)
    if codings is not None and (
        [coding.lower() for coding in codings] != ["chunked"] or request.version < HttpVersion11
    ):
        raise MalformedRequest("the only transfer coding that is known is chunked, and that in HTTP/1.1 alone")


def peer_of(request: web.BaseRequest) -> str:
    """The address of the other end of the connection."""
    return request.remote or "127.0.0.1"


def _is_chunked(request: web.Request) -> bool:
    return "Transfer-Encoding" in request.headers


def _framing(request: web.Request) -> Fields:
    """How the body that follows is framed; nothing for a request that has none."""
    if _is_chunked(request):
        return [(b"Transfer-Encoding", b"chunked")]
    length = request.content_length
    return [] if length is None else [(b"Content-Length", b"%d" % length)]


def _without_length(fields: Fields, status: int) -> Fields:
    """RFC 9110 section 8.6: a 204 says nothing of a length."""
    return [field for field in fields if field[0].lower() != b"content-length"] if status == 204 else fields


async def _pass_interim(request: web.Request, message: RawResponseMessage) -> None:
    """RFC 9110 section 15.2; a 100 is for the gateway, which has answered Expect itself."""
    if message.code == 100 or request.version < HttpVersion11:
        return
    line = f"HTTP/1.1 {message.code} {message.reason}".encode("utf-8", "surrogateescape")
    await request.writer.write(head(line, answer_fields(message.raw_headers)))
    request.writer.output_size = 0  # the answer itself has not begun
