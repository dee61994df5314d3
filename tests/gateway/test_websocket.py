"""WebSocket through the gateway: messages, close codes, lost connections, and handshakes that fail."""

import asyncio
import contextlib
import gc
import pathlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSCloseCode, WSMsgType, web

from revocation_service.gateway.websocket import MESSAGE_MAX_BYTES
from tests.gateway.serving import Gateway, answering, bare_upstream, gateway_before, gateway_process
from tests.redis_processes import HOST, WAIT_SECONDS, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

HANDSHAKE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHED: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"


@dataclass
class Upstream:
    """A WebSocket upstream that records the messages that it receives and the codes with which connections end."""

    url: str = ""
    received: list[str] = field(default_factory=list)
    floods: int = 0
    sockets: asyncio.Queue[web.WebSocketResponse] = field(default_factory=asyncio.Queue)
    codes: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self.sockets.put_nowait(socket)
        while request.path == "/flood":
            await socket.send_bytes(b"x" * 65_536)
            self.floods += 1
        while request.path == "/stall":
            await asyncio.sleep(0.1)
        async for message in socket:
            self.received.append(message.data)
        self.codes.put_nowait(socket.close_code)
        return socket

    async def code(self) -> int | None:
        """Wait for the next connection to end, and return its close code."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.codes.get()


@contextlib.asynccontextmanager
async def websocket_upstream() -> AsyncIterator[Upstream]:
    upstream, app = Upstream(), web.Application()
    app.router.add_get("/{name}", upstream.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        upstream.url = f"http://{HOST}:{runner.addresses[0][1]}"
        yield upstream
    finally:
        await runner.cleanup()


@dataclass
class Path:
    """A client session, a gateway, and the WebSocket upstream behind it."""

    gateway: Gateway
    upstream: Upstream
    session: aiohttp.ClientSession

    async def connected(self, name: str = "ws", **options: Any) -> aiohttp.ClientWebSocketResponse:
        socket: aiohttp.ClientWebSocketResponse = await self.session.ws_connect(f"{self.gateway.url}/{name}", **options)
        return socket


@pytest_asyncio.fixture(loop_scope="module")
async def path() -> AsyncIterator[Path]:
    async with (
        websocket_upstream() as upstream,
        gateway_before(upstream.url) as gateway,
        aiohttp.ClientSession() as session,
    ):
        yield Path(gateway, upstream, session)


async def conversation(url: str) -> list[Any]:
    """Send every kind of message to the upstream application, and return everything that the client receives."""
    heard: list[Any] = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws", protocols=("chat.v1", "chat.v2"), compress=15, autoping=False) as socket,
    ):
        heard += [socket.protocol, bool(socket.compress)]
        await socket.send_str("hällo")
        await socket.send_bytes(b"\x00\xff" * 1000)
        await socket.send_str("")
        await socket.send_str("z" * 200_000)
        for _ in range(4):
            message = await socket.receive(timeout=10)
            heard.append((message.type, message.data))
        await socket.ping(b"marco")
        message = await socket.receive(timeout=10)
        heard.append((message.type, bytes(message.data)))
        await socket.send_str("close 4321")
        message = await socket.receive(timeout=10)
        heard.append((message.type, message.data, message.extra))
    return heard


async def test_a_conversation_is_the_same(upstream_url: str) -> None:
    """A client receives the same through the gateway as directly: messages, pong, close code and reason."""
    async with gateway_before(upstream_url) as gateway:
        straight = await conversation(upstream_url)
        assert await conversation(gateway.url) == straight
        assert straight[:2] == ["chat.v2", True]
        assert straight[-1] == (WSMsgType.CLOSE, 4321, "as asked")


async def test_compression_is_the_upstreams_decision(path: Path) -> None:
    """A client that offers no compression gets none, and the upstream gets none either."""
    socket = await path.connected(compress=0)
    assert not socket.compress
    assert not (await path.upstream.sockets.get()).compress
    await socket.close()


async def test_the_clients_close_code_reaches_the_upstream_and_comes_back(path: Path) -> None:
    """Each side sees the code of the client's close frame."""
    socket = await path.connected()
    await socket.close(code=4999)
    assert socket.close_code == 4999
    assert await path.upstream.code() == 4999


async def test_what_a_client_sends_last_arrives(path: Path) -> None:
    """Messages sent just before the client closes reach the upstream, in order."""
    socket = await path.connected()
    for number in range(200):
        await socket.send_str(str(number))
    await socket.close()
    assert await path.upstream.code() == WSCloseCode.OK
    assert path.upstream.received == [str(number) for number in range(200)]


async def test_a_client_that_vanishes_closes_the_upstream(path: Path) -> None:
    """If the client's connection ends without a close frame, the upstream gets close code 1001."""
    reader, writer = await asyncio.open_connection(HOST, path.gateway.port)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    assert await path.upstream.code() == WSCloseCode.GOING_AWAY


async def test_a_client_that_leaves_a_stalled_upstream_leaves_no_error(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a client disconnects while the upstream reads nothing, the gateway drops the connection and logs no error."""
    socket = await path.connected("stall")
    for _ in range(2):  # the upstream reads the first one, and then no more
        await socket.send_bytes(b"x" * (12 << 20))
    transport = (await path.upstream.sockets.get()).get_extra_info("socket")
    await asyncio.sleep(0.3)  # the gateway reads the second one in the meantime; no event shows when
    socket.get_extra_info("socket").shutdown(2)

    async def given_up() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{path.gateway.admin_url}/metrics") as response:
            return "gateway_websockets_open 0.0" in await response.text()

    await eventually(given_up, "the end of the connection")
    transport.shutdown(2)
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


async def test_an_upstream_that_vanishes_closes_the_client(path: Path) -> None:
    """If the upstream's connection ends without a close frame, the client gets close code 1011."""
    socket = await path.connected()
    transport = (await path.upstream.sockets.get()).get_extra_info("socket")
    transport.shutdown(2)
    assert (await socket.receive(timeout=WAIT_SECONDS)).data == WSCloseCode.INTERNAL_ERROR
    await socket.close()


async def test_a_message_too_large_closes_both_sides(path: Path) -> None:
    """A message above the size limit does not arrive. The sender gets close code 1009, and the upstream 1001."""
    socket = await path.connected()
    with contextlib.suppress(ConnectionError):
        await socket.send_bytes(b"x" * (MESSAGE_MAX_BYTES + 1))
    assert (await socket.receive(timeout=10)).data == WSCloseCode.MESSAGE_TOO_BIG
    assert await path.upstream.code() == WSCloseCode.GOING_AWAY
    assert path.upstream.received == []


async def test_a_message_of_the_largest_size_passes(path: Path) -> None:
    """A message one byte below the size limit arrives whole."""
    socket = await path.connected()
    await socket.send_str("x" * (MESSAGE_MAX_BYTES - 1))
    await socket.close()
    await path.upstream.code()
    assert [len(message) for message in path.upstream.received] == [MESSAGE_MAX_BYTES - 1]


async def test_a_slow_reader_slows_the_sender(path: Path) -> None:
    """If the client stops reading, the upstream can send only what fits into the buffers."""
    reader, writer = await asyncio.open_connection(HOST, path.gateway.port)
    writer.write(HANDSHAKE.replace(b"/ws", b"/flood"))
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own reader would go on for a while

    async def stalled() -> bool:
        before = path.upstream.floods
        await asyncio.sleep(0.3)
        return path.upstream.floods == before

    await eventually(stalled, "the upstream to be slowed")
    assert path.upstream.floods * 65_536 < 40 << 20, "buffers of sockets, and two of the gateway"
    writer.transport.abort()


@pytest.mark.parametrize("answers_pings", [False, True])
async def test_a_peer_that_answers_no_ping_is_gone(answers_pings: bool) -> None:
    """The gateway pings a silent client. Without a pong, the upstream's connection is closed with 1001."""
    async with (
        websocket_upstream() as upstream,
        gateway_before(upstream.url, IDLE_TIMEOUT_SECONDS="1" if answers_pings else "0.2") as gateway,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{gateway.url}/ws", autoping=False) as socket,
    ):
        for _ in range(3 if answers_pings else 1):
            message = await socket.receive(timeout=WAIT_SECONDS)
            assert message.type is WSMsgType.PING
            if answers_pings:
                await socket.pong(message.data)
        if answers_pings:
            await socket.close(code=4000)
        assert await upstream.code() == (4000 if answers_pings else WSCloseCode.GOING_AWAY)


async def test_messages_behind_the_handshake_wait_for_the_switch(path: Path) -> None:
    """A message in the same packet as the handshake reaches the upstream."""
    reader, writer = await asyncio.open_connection(HOST, path.gateway.port)
    writer.write(HANDSHAKE + b"\x81\x85\x00\x00\x00\x00early")
    await reader.readuntil(b"\r\n\r\n")

    async def arrived() -> bool:
        return path.upstream.received == ["early"]

    await eventually(arrived, "the message")
    writer.transport.abort()


async def test_open_sockets_are_counted(path: Path) -> None:
    """`gateway_websockets_open` is the number of clients with an open WebSocket."""
    sockets = [await path.connected() for _ in range(3)]
    async with path.session.get(f"{path.gateway.admin_url}/metrics") as response:
        assert "gateway_websockets_open 3.0" in await response.text()
    for socket in sockets:
        await socket.close()


async def test_a_refusal_of_the_upstream_is_passed_on(upstream_url: str) -> None:
    """If the upstream refuses a handshake with 403, the client gets 403."""
    async with gateway_before(upstream_url) as gateway, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{gateway.url}/ws/refused")
        assert refused.value.status == 403


async def test_a_handshake_follows_no_redirect() -> None:
    """If the upstream answers a handshake with a redirect, the client gets it, and the gateway does not follow it."""
    async with bare_upstream() as elsewhere:
        redirects = answering(f"HTTP/1.1 307 Moved\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\n\r\n".encode())
        async with bare_upstream(redirects) as upstream, gateway_before(upstream.url) as gateway:
            assert (await gateway.talk(HANDSHAKE)).statuses == [307]
            assert (upstream.requests, elsewhere.visits) == (1, [])


async def test_an_upstream_that_is_down_is_502() -> None:
    """If the upstream is down, a handshake is answered with 502."""
    async with gateway_before("http://127.0.0.1:1") as gateway, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{gateway.url}/ws")
        assert refused.value.status == 502


async def test_what_follows_a_refused_upgrade_is_not_run() -> None:
    """After a refused upgrade the connection is closed, and no bytes behind the handshake reach the upstream."""
    refuses = answering(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
    async with bare_upstream(refuses) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(HANDSHAKE + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", answers=2)
        assert (raw.statuses, raw.closed) == ([426], True)
        assert b"smuggled" not in upstream.received


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
        HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: h2c\r\nUpgrade: websocket"),
        HANDSHAKE.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        HANDSHAKE.replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 99"),
        HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"\xff\xff"),
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n").replace(b"websocket", b"tls/1.0"),
    ],
)
async def test_no_other_upgrade_passes(head: bytes) -> None:
    """Only a valid upgrade to WebSocket is passed on. If the upstream switches anyway, the client gets 502."""
    switches = answering(SWITCHED)
    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(head)
        assert raw.statuses == [502]
        for name in (b"\r\nUpgrade:", b"\r\nConnection:", b"\r\nSec-WebSocket"):
            assert name not in upstream.received


@pytest.mark.parametrize("switched", [SWITCHED, SWITCHED.replace(b"WebSocket", b"h2c")])
async def test_a_switch_to_something_else_is_502(switched: bytes) -> None:
    """If the upstream's 101 has no Sec-WebSocket-Accept, the client gets 502, whichever protocol the 101 names."""
    switches = answering(switched)
    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        assert (await gateway.talk(HANDSHAKE)).statuses == [502]


async def test_at_the_end_of_the_gateway_both_sides_are_told(upstream_url: str, tmp_path: pathlib.Path) -> None:
    """At SIGTERM client and upstream get close code 1001, and the process exits in time with status 0."""
    async with (
        gateway_process(tmp_path / "gateway", upstream_url, DRAIN_SECONDS="0") as gateway,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{gateway.url}/ws") as socket,
    ):
        await socket.send_str("x")
        await socket.receive(timeout=10)
        gateway.signal(signal.SIGTERM)
        message = await socket.receive(timeout=10)
        assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)
        assert await gateway.ended(10) == 0
        async with session.get(f"{upstream_url}/last-close") as response:
            assert await response.json() == {"code": WSCloseCode.GOING_AWAY}
