"""The one origin, the connections to it that are kept, and one exchange over one of them.

It stands on aiohttp's connector and parser, and not on its ClientSession: that rewrites targets, drops bytes of header
fields that are not UTF-8, and sends a request again when a kept connection turns out to be dead. Here each request's
head goes out as the bytes given, once, to the configured origin and to no other; there is nothing that could follow a
redirect, keep a cookie, decompress or ask the environment for a proxy.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import (
    ClientConnectionError,
    ClientPayloadError,
    ClientRequest,
    ClientTimeout,
    ServerTimeoutError,
    StreamReader,
    TCPConnector,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from revocation_service.gateway.problems import UpstreamTimeout, UpstreamUnavailable
from revocation_service.gateway.settings import Timeouts

KEPT_SECONDS: Final = 1.5
"""How long an idle connection is kept: less than any common server does (2 s and more), so that a request, which is
never sent twice, does not meet one that is just being closed."""

BUFFER_BYTES: Final = 1 << 16
LINE_MAX_BYTES: Final = 1 << 14
FIELD_MAX_BYTES: Final = 1 << 15
FIELDS_MAX: Final = 200

_AWAY: Final = (ClientConnectionError, ClientPayloadError, HttpProcessingError, OSError)


class Upstream:
    """The origin, as one that requests are sent to."""

    def __init__(self, url: str, timeouts: Timeouts) -> None:
        self._url = URL(url)
        self._timeouts = timeouts
        self._connector: TCPConnector | None = None
        self._key: ClientRequest | None = None
        self._open: set[Exchange] = set()
        self.authority = self._url.host_port_subcomponent or ""

    async def start(self) -> None:
        """Be ready for requests; nothing is connected yet."""
        self._connector = TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS)
        self._key = ClientRequest("GET", self._url, loop=asyncio.get_running_loop())

    async def aclose(self) -> None:
        """Close every connection; where an exchange is under way, what it still has to send is not waited for."""
        for exchange in self._open:
            exchange.abort()
        if self._connector is not None:
            await self._connector.close()

    async def connect(self) -> "Exchange":
        """A connection for one exchange.

        Raises UpstreamUnavailable and UpstreamTimeout.
        """
        assert self._connector is not None, "not started"
        assert self._key is not None
        seconds = self._timeouts.connect_seconds
        try:
            connection = await self._connector.connect(self._key, [], ClientTimeout(total=None, connect=seconds))
        except TimeoutError as error:
            raise UpstreamTimeout("the upstream did not take the connection in time") from error
        except (ClientConnectionError, OSError) as error:
            raise UpstreamUnavailable("the upstream cannot be reached") from error
        return Exchange(connection, self._timeouts, self._open)

    async def reachable(self) -> bool:
        """Whether the upstream takes a connection."""
        host, port = self._url.host, self._url.port
        assert host is not None, "the settings require one"
        assert port is not None
        try:
            async with asyncio.timeout(min(self._timeouts.connect_seconds, 1)):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
        except OSError:  # TimeoutError is one
            return False
        return True


class Exchange:
    """One request and its answer; `aclose` must follow, whatever happens."""

    def __init__(self, connection: Connection, timeouts: Timeouts, among: "set[Exchange]") -> None:
        assert connection.protocol is not None
        self._among = among
        among.add(self)
        self._connection = connection
        self._timeouts = timeouts
        self.protocol: ResponseHandler = connection.protocol
        self._writer = StreamWriter(self.protocol, asyncio.get_running_loop())
        self._pump: asyncio.Task[None] | None = None
        self._content: StreamReader | None = None

    def send(self, head: bytes, body: AsyncIterator[bytes] | None, *, chunked: bool, has_no_answer_body: bool) -> None:
        """Send a request; its body, where it has one, goes out while the answer is awaited."""
        self.protocol.set_response_params(
            skip_payload=has_no_answer_body,
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=self._timeouts.response_seconds,
            read_bufsize=BUFFER_BYTES,
            max_line_size=LINE_MAX_BYTES,
            max_field_size=FIELD_MAX_BYTES,
            max_headers=FIELDS_MAX,
        )
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            raise UpstreamUnavailable("the upstream closed the connection")
        transport.write(head)
        if body is None:
            self.protocol.start_timeout()
            return
        if chunked:
            self._writer.enable_chunking()
        self._pump = asyncio.create_task(self._send_body(body), name="request-body")
        self._pump.add_done_callback(self._pumped)

    async def _send_body(self, body: AsyncIterator[bytes]) -> None:
        async for piece in body:
            try:
                async with asyncio.timeout(self._timeouts.idle_seconds):
                    await self._writer.write(piece)
            except TimeoutError as error:
                raise UpstreamTimeout("the upstream did not take the request's body in time") from error
        await self._writer.write_eof()
        self.protocol.start_timeout()

    def _pumped(self, pump: asyncio.Task[None]) -> None:
        """Wake whoever awaits the answer of a request that could not be sent whole."""
        error = None if pump.cancelled() else pump.exception()
        if error is not None:
            self.protocol.set_exception(error)
            self.abort()

    async def answer(self) -> tuple[RawResponseMessage, StreamReader]:
        """The next head that the upstream sends, and the body that follows; interim answers come first, one by one.

        Raises UpstreamUnavailable and UpstreamTimeout, and what reading the client's body raised.
        """
        try:
            message, content = await self.protocol.read()
        except ServerTimeoutError as error:
            raise UpstreamTimeout("the upstream did not answer in time") from error
        except _AWAY as error:
            raise UpstreamUnavailable("the upstream broke off before it answered") from error
        if message.code < 200 and message.code != 101:
            if self._pump is None or self._pump.done():
                self.protocol.start_timeout()
        else:
            self.protocol.read_timeout = self._timeouts.idle_seconds
            if not content.is_eof():
                self.protocol.start_timeout()  # the one that runs is the answer's
            self._content = content
        return message, content

    @property
    def connection(self) -> Connection:
        """The connection itself, for what is no longer HTTP."""
        return self._connection

    async def aclose(self) -> None:
        """Give the connection back, or break it where the exchange did not come to its end."""
        over = False
        try:
            over = await self._is_over()
        finally:  # also when cancelled a second time
            self._among.discard(self)
            if over:
                self._connection.release()
            else:
                self.abort()
                self._connection.close()

    async def _is_over(self) -> bool:
        if self._pump is not None and not self._pump.done():
            self.abort()
            self._pump.cancel()
            await asyncio.wait({self._pump})
            return False
        sent = self._pump is None or self._pump.exception() is None
        content = self._content
        return sent and content is not None and content.is_eof() and content.exception() is None

    def abort(self) -> None:
        """Break the connection, so that the upstream takes what it has of the request for no whole one."""
        if self._connection.transport is not None:
            self._connection.transport.abort()


async def pieces(content: StreamReader) -> AsyncIterator[bytes]:
    """The body of an answer, as it comes.

    Raises UpstreamUnavailable where it ends too early or stalls.
    """
    try:
        while piece := await content.readany():
            yield piece
    except (*_AWAY, TimeoutError) as error:
        raise UpstreamUnavailable("the upstream broke off in the middle of its answer") from error
