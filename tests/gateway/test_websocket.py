"""WebSocket through the gateway: as straight to the upstream, bounded in memory, and closed in good order."""

import asyncio
import hashlib
import pathlib
import signal
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType

from revocation_service.gateway.app import TUNNELS
from revocation_service.gateway.frames import GOING_AWAY, Frames, close_frame
from tests.gateway.serving import OK, Visit, bare_upstream, gateway_before, gateway_process
from tests.redis_processes import HOST, eventually
from tests.scale import scaled

LARGE_BYTES: Final = scaled(20_000_000, 100_000_000)
HANDSHAKE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHED: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nX-A: 1\r\n\r\n"


async def conversation(url: str) -> list[Any]:
    """All that a client hears in a conversation of every kind of message."""
    heard: list[Any] = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws", protocols=("chat.v1", "chat.v2"), compress=15, autoping=False) as socket,
    ):
        heard += [socket.protocol, socket._response.headers.get("x-from"), socket.compress]
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
    """Subprotocol, extension, own headers, text, binary, empty, large and compressed messages, ping, close code."""
    async with gateway_before(upstream_url) as gateway:
        straight = await conversation(upstream_url)
        assert await conversation(gateway.url) == straight
        assert straight[0] == "chat.v2"
        assert straight[-1] == (WSMsgType.CLOSE, 4321, "as asked")


async def test_the_clients_close_code_reaches_the_upstream(upstream_url: str) -> None:
    """Also when the client is gone in the same moment."""
    async with gateway_before(upstream_url) as gateway, aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"{gateway.url}/ws")
        await socket.close(code=4999)

        async def told() -> bool:
            async with session.get(f"{upstream_url}/last-close") as response:
                return bool(await response.json() == {"code": 4999})

        await eventually(told, "the close code at the upstream", 10)


async def test_what_a_client_says_last_arrives() -> None:
    """Bytes that it sent before it hung up are not lost with it."""

    async def switches(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED)
        await visit.to_the_end()

    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(HANDSHAKE)
        assert await reader.readuntil(b"\r\n\r\n")
        writer.write(b"last words " * 1000)
        writer.close()
        async with asyncio.timeout(5):
            await upstream.visits[0].over.wait()
        assert upstream.received.endswith(b"last words " * 1000)


async def test_large_messages_need_no_memory(upstream_url: str, tmp_path: pathlib.Path) -> None:
    """A message of any size passes both ways without growing the gateway."""
    async with (
        gateway_process(tmp_path / "gateway", upstream_url) as gateway,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{gateway.url}/ws", max_msg_size=0) as socket,
    ):
        await socket.send_str("large 1000")
        await socket.receive(timeout=10)
        before = gateway.peak_memory_bytes()
        await socket.send_str(f"large {LARGE_BYTES}")
        message = await socket.receive(timeout=60)
        assert hashlib.sha256(message.data).digest() == hashlib.sha256(b"L" * LARGE_BYTES).digest()
        assert gateway.peak_memory_bytes() - before < 8 << 20


async def test_a_refused_upgrade_is_passed_on(upstream_url: str) -> None:
    """The upstream's 403 reaches the client as that answer."""
    async with gateway_before(upstream_url) as gateway, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{gateway.url}/ws/refused")
        assert refused.value.status == 403


async def test_what_follows_a_refused_upgrade_is_not_run() -> None:
    """A client that takes the refused upgrade for a tunnel reaches nothing: no byte behind it goes to the upstream."""

    async def refuses(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
        await visit.to_the_end()

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
        HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: h2c"),
        HANDSHAKE.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n").replace(b"websocket", b"tls/1.0"),
    ],
)
async def test_no_other_upgrade_passes(head: bytes) -> None:
    """The request goes on without it; an upstream that switches all the same is 502."""

    async def switches(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED)
        await visit.to_the_end()

    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(head)
        assert raw.statuses == [502]
        assert b"\r\nUpgrade:" not in upstream.received
        assert b"\r\nConnection:" not in upstream.received


async def test_a_switch_to_something_else_is_502() -> None:
    """A 101 that is not to WebSocket joins nobody."""

    async def switches(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED.replace(b"WebSocket", b"h2c"))
        await visit.to_the_end()

    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        assert (await gateway.talk(HANDSHAKE)).statuses == [502]


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_when_one_end_goes_the_other_goes_too(side: str) -> None:
    """Neither is left behind alone."""

    async def switches(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED)
        if side == "client":
            await visit.to_the_end()

    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(5):
            if side == "client":
                writer.transport.abort()
                await upstream.visits[0].over.wait()
            else:
                assert await reader.read() == b""
        writer.close()


async def test_a_silent_socket_is_closed_and_a_talking_one_is_not() -> None:
    """The idle time is counted from the last word of either side."""

    async def ticks(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED)
        for _ in range(6):
            await asyncio.sleep(0.15)
            await visit.send(b"\x89\x00")
        await visit.to_the_end()

    async with bare_upstream(ticks) as upstream, gateway_before(upstream.url, IDLE_TIMEOUT_SECONDS="0.5") as gateway:
        raw = await gateway.talk(HANDSHAKE, answers=2)
        assert raw.closed
        assert raw.data.endswith(b"\x89\x00" * 6)


async def test_a_slow_reader_slows_the_sender() -> None:
    """What one end does not read, the gateway does not take from the other."""
    written = 0

    async def floods(visit: Visit) -> None:
        nonlocal written
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED)
        while True:
            await visit.send(b"x" * 65_536)
            written += 65_536

    async with bare_upstream(floods) as upstream, gateway_before(upstream.url) as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")

        async def stalled() -> bool:
            before = written
            await asyncio.sleep(0.3)
            return written == before

        await eventually(stalled, "the upstream to be slowed", 20)
        assert written < 40 << 20, "sockets' buffers, and two of ours"
        writer.transport.abort()


async def test_the_end_of_the_gateway_is_said(upstream_url: str, tmp_path: pathlib.Path) -> None:
    """At SIGTERM a client is told 1001, and the upstream too; the process ends in time with status 0."""
    async with (
        gateway_process(tmp_path / "gateway", upstream_url, DRAIN_SECONDS="0") as gateway,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{gateway.url}/ws") as socket,
    ):
        await socket.send_str("x")
        await socket.receive(timeout=10)
        gateway.signal(signal.SIGTERM)
        message = await socket.receive(timeout=10)
        assert (message.type, message.data) == (WSMsgType.CLOSE, GOING_AWAY)
        assert await gateway.ended(10) == 0
        async with session.get(f"{upstream_url}/last-close") as response:
            assert await response.json() == {"code": GOING_AWAY}


async def test_a_goodbye_waits_for_the_frame_under_way() -> None:
    """In the middle of a message the close frame would be taken for its contents: it comes behind it."""
    go_on = asyncio.Event()

    async def speaks(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        await visit.send(SWITCHED + b"\x82\x06abc")
        await go_on.wait()
        await visit.send(b"def")
        await visit.to_the_end()

    async with bare_upstream(speaks) as upstream, gateway_before(upstream.url) as gateway:
        reader, writer = await asyncio.open_connection(HOST, gateway.port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"abc")
        await gateway.app[TUNNELS].leave()
        go_on.set()
        assert await reader.read() == b"def" + close_frame(GOING_AWAY, masked=False)
        writer.close()


async def test_early_bytes_wait_for_the_switch() -> None:
    """What a client sends behind its handshake goes on once the upstream has agreed, whole."""

    async def switches(visit: Visit) -> None:
        await visit.until(b"\r\n\r\n")
        assert visit.received.endswith(b"\r\n\r\n")
        await visit.send(SWITCHED)
        await visit.until(b"early")
        await visit.send(OK)

    async with bare_upstream(switches) as upstream, gateway_before(upstream.url) as gateway:
        raw = await gateway.talk(HANDSHAKE + b"early", answers=2)
        assert raw.data.endswith(OK)


FRAMES = [
    (b"\x81\x00", 0),
    (b"\x81\x85maskhello", 0),
    (b"\x82\x7e\x01\x00" + b"x" * 256, 0),
    (b"\x82\x7f" + (70_000).to_bytes(8) + b"y" * 70_000, 0),
    (b"\x82\xfe\x00\x7emask" + b"z" * 126, 0),
    (b"\x89\x04ping", 0),
    (b"\x88\x02\x03\xe8", 1),
    (b"\x88\x82mask\x6e\x89", 1),
]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100_000])
def test_frames_are_followed_however_they_are_cut(step: int) -> None:
    """Between frames, and only there, the next byte begins a frame; a close frame is noticed."""
    for frame, closes in FRAMES:
        frames = Frames()
        data = frame + b"\x81\x01a" + frame
        ends = {len(frame), len(frame) + 3, len(data)}
        for at in range(0, len(data), step):
            frames.feed(data[at : at + step])
            assert frames.between == (min(at + step, len(data)) in ends)
        assert frames.closed == bool(closes)
        assert frames.between


def test_a_close_frame_is_what_the_standard_says() -> None:
    """To a client plain, to a server masked (RFC 6455 section 5.3)."""
    assert close_frame(1001, masked=False) == b"\x88\x02\x03\xe9"
    masked = close_frame(1001, masked=True)
    assert masked[:2] == b"\x88\x82"
    assert bytes(a ^ b for a, b in zip(masked[2:6], masked[6:], strict=False)) == b"\x03\xe9"
