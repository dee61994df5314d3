"""A TCP proxy between service and Redis that can delay every reply."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.redis_processes import HOST, free_port

CHUNK_BYTES = 65536
CLOSE_SECONDS = 10.0


class SlowProxy:
    """A TCP proxy to one port. It delays each piece of a reply by `delay_seconds`, and keeps their order."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.delay_seconds = 0.0
        self.asked = asyncio.Event()
        """Set whenever a command passes. To wait for the next one, clear it first."""
        self._target_port = target_port
        self._transports: set[asyncio.WriteTransport] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """The URL of Redis through the proxy."""
        return f"redis://{HOST}:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until either side closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        transports = {writer.transport}
        self._transports |= transports
        try:
            behind_reader, behind_writer = await asyncio.open_connection(HOST, self._target_port)
            transports.add(behind_writer.transport)
            self._transports |= transports
            await asyncio.gather(self._pass_on(reader, behind_writer), self._hold_back(behind_reader, writer))
        except OSError:
            pass  # Redis is away: the service sees its connection end
        finally:
            for each in transports:
                each.abort()
            self._transports -= transports
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
                self.asked.set()
        writer.transport.abort()

    async def _hold_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read replies as they arrive, and pass each on when its delay is over."""
        now = asyncio.get_running_loop().time
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        handing = asyncio.create_task(_hand_over(waiting, writer))
        try:
            while data := await reader.read(CHUNK_BYTES):
                waiting.put_nowait((now() + self.delay_seconds, data))
        except OSError:
            pass
        finally:
            handing.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await handing
            writer.transport.abort()

    async def aclose(self) -> None:
        """Cut every connection and wait for its end."""
        for transport in self._transports:
            transport.abort()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=CLOSE_SECONDS)


async def _hand_over(waiting: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    now = asyncio.get_running_loop().time
    while True:
        due, data = await waiting.get()
        await asyncio.sleep(max(0.0, due - now()))
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def slow_proxy(target_port: int) -> AsyncIterator[SlowProxy]:
    """Run and yield a proxy, which delays nothing until `delay_seconds` is set."""
    proxy = SlowProxy(target_port)
    listener = await asyncio.start_server(proxy.serve, HOST, proxy.port)
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.aclose()
        await listener.wait_closed()
