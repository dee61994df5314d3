"""Passes requests to the upstream and its responses back, streaming in both directions. It counts no attempts."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from revocation_service.gateway.addresses import client_address, is_trusted
from revocation_service.gateway.headers import end_to_end, request_fields, text
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.settings import GatewaySettings
from revocation_service.gateway.websocket import WebSockets, is_handshake
from revocation_service.telemetry import current_request_id

T = TypeVar("T")

KEPT_SECONDS: Final = 1.5
"""How long an idle connection to the upstream is kept: shorter than common servers do, which close theirs after 2 s or
more. A POST is never sent twice, so it must not meet a connection that is about to be closed."""

_SESSION: Final[dict[str, Any]] = {
    "auto_decompress": False,
    "skip_auto_headers": ("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    "read_bufsize": 1 << 16,
    "max_field_size": 1 << 15,  # of the upstream, which is trusted
}
_ABSOLUTE: Final = re.compile(r"https?://([^/?]*)/?(.*)", re.IGNORECASE)
_TARGET: Final = re.compile(r"/[!\"$-~]*")
_HOST: Final = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ADDED: Final = web.ResponseKey("added", list[str])
"""Fields that aiohttp would add to a response of the upstream."""

_log = structlog.get_logger()


class Proxy:
    """Forwards requests to the one upstream, over the connection pool that `run` opens."""

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._session: aiohttp.ClientSession
        self.websockets = WebSockets(settings.idle_seconds, metrics.websockets)

    async def run(self, _app: web.Application) -> AsyncIterator[None]:
        """Open the connection pool, and close it at the end."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS)
        timeout = aiohttp.ClientTimeout(connect=self._settings.connect_seconds)
        own = {"cookie_jar": aiohttp.DummyCookieJar(), "trace_configs": [self.websockets.trace()], **_SESSION}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, **own) as session:
            self._session = session
            yield

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Return the upstream's response. Raises HTTPException if there is none."""
        url, fields = self._rewritten(request)
        upload = _Upload(request, self._settings)
        if is_handshake(request):
            opened = await self._answered(self.websockets.connect(request, self._session, url, fields), upload)
            return opened if isinstance(opened, web.Response) else await self.websockets.join(request, opened)
        body = upload.pieces() if request.body_exists else None
        asked = self._session.request(request.method, url, headers=fields, data=body, allow_redirects=False)
        async with await self._answered(asked, upload) as response:
            if response.status == 101:
                raise web.HTTPBadGateway
            return await self._passed(request, response)

    def _rewritten(self, request: web.Request) -> tuple[URL, CIMultiDict[str]]:
        """Return the URL and the header fields that the upstream gets (RFC 9112 section 3.2). Raises HTTPException."""
        if request.method in {"CONNECT", "TRACE"}:
            raise web.HTTPNotImplemented
        if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            raise web.HTTPBadRequest
        target, host = request.raw_path, request.headers.get("Host")
        if absolute := _ABSOLUTE.fullmatch(target):
            host, target = absolute[1], f"/{absolute[2]}"
        host = host or URL(self._settings.upstream_url).authority
        if not (_TARGET.fullmatch(target) and _HOST.fullmatch(host)):
            raise web.HTTPBadRequest
        peer, trusted = request.remote or "127.0.0.1", self._settings.throttle.trusted_proxies
        client = client_address(peer, request.headers.getall("X-Forwarded-For", []), trusted) or peer
        fields = request_fields(request.headers, host, str(client), peer, trusted=is_trusted(peer, trusted))
        fields["X-Request-ID"] = current_request_id()
        if request.content_length is not None:
            fields["Content-Length"] = str(request.content_length)
        return URL(f"{self._settings.upstream_url}{target}", encoded=True), fields

    async def _answered(self, asked: Awaitable[T], upload: "_Upload") -> T:
        """Wait for the head of the upstream's response. Raises HTTPException if it does not come."""
        try:
            async with upload.deadline:
                return await asked
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = upload.late() if isinstance(error, TimeoutError) else web.HTTPBadGateway()
            self._metrics.failures.labels(str(failure.status)).inc()
            _log.warning("request_failed", status=failure.status, error=error)
            raise failure from error
        finally:
            upload.answered = True

    async def _passed(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        fields = end_to_end(answer.headers)
        response = web.StreamResponse(status=answer.status, reason=text(answer.reason or ""), headers=fields)
        response[_ADDED] = [name for name in ("Content-Type", "Server") if name not in fields]
        try:
            await response.prepare(request)
            await self._copy(answer.content, response)
        except (aiohttp.ClientError, TimeoutError) as error:
            if request.transport is not None:
                request.transport.abort()  # so that the client cannot take the response for a whole one
            self._metrics.broken_answers.inc()
            _log.warning("answer_broken_off", method=request.method, status=answer.status, error=error)
        return response

    async def _copy(self, content: aiohttp.StreamReader, response: web.StreamResponse) -> None:
        while True:
            async with asyncio.timeout(self._settings.idle_seconds):
                if not (piece := await content.readany()):
                    return
                await response.write(piece)


class _Upload:
    """The upload of a request's body, with a deadline for the side that has to act next."""

    def __init__(self, request: web.Request, settings: GatewaySettings) -> None:
        self.deadline = asyncio.timeout(settings.response_seconds)
        self.late: type[web.HTTPException] = web.HTTPGatewayTimeout
        """The error if the deadline passes."""
        self.answered = False
        self._content = request.content
        self._settings = settings

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        idle_seconds = self._settings.idle_seconds
        self._allow(idle_seconds, web.HTTPRequestTimeout)
        while piece := await self._content.readany():
            self._allow(idle_seconds, web.HTTPGatewayTimeout)
            yield piece
            self._allow(idle_seconds, web.HTTPRequestTimeout)
        self._allow(self._settings.response_seconds, web.HTTPGatewayTimeout)

    def _allow(self, seconds: float, late: type[web.HTTPException]) -> None:
        self.late = late
        if not self.answered:
            self.deadline.reschedule(asyncio.get_running_loop().time() + seconds)


async def drop_added(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Remove the fields that aiohttp has added to a response of the upstream (`on_response_prepare`)."""
    for name in response.get(_ADDED, ()):
        response.headers.popall(name, None)
