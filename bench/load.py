"""A load generator with little overhead: bare connections, each with one request in flight."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import cast


@dataclass(frozen=True)
class Load:
    """The measurements of one round."""

    answers: int
    seconds: float
    latencies: list[float]
    cpu_seconds: float = 0.0
    """CPU time of this process, if the caller itself is measured."""

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds

    def latency_ms(self, share: float) -> float:
        """Return a percentile of the latencies (`share` from 0 to 1), in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


class _Caller(asyncio.Protocol):
    """One connection that sends the next request as soon as a response is complete."""

    def __init__(self, request: Callable[[], bytes], until: float, done: asyncio.Future[None]) -> None:
        self._request = request
        self._until = until
        self._done = done
        self._buffer = b""
        self._sent_at = 0.0
        self.latencies: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(rest) < _content_length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._finish(RuntimeError(f"the server answered {head[:40]!r}"))
            return
        self._buffer = b""
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        if now < self._until:
            self._send()
        else:
            self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _finish(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error) if error else self._done.set_result(None)
        self._transport.close()


def _content_length(head: bytes) -> int:
    _, _, after = head.lower().partition(b"content-length: ")
    return int(after.split(b"\r\n", 1)[0])


async def load(port: int, request: Callable[[], bytes], *, connections: int, seconds: float) -> Load:
    """Keep `connections` connections to a loopback port busy for `seconds`. Return the measured load."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    callers = []
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        _, caller = await loop.create_connection(
            lambda done=done: _Caller(request, began + seconds, done),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        callers.append((caller, done))
    await asyncio.gather(*(done for _, done in callers))
    latencies = [latency for caller, _ in callers for latency in caller.latencies]
    return Load(len(latencies), time.perf_counter() - began, latencies)


def get(path: Callable[[int], str], headers: dict[str, str]) -> Callable[[], bytes]:
    """Return a function that builds GET requests for `path(0)`, `path(1)` and so on."""
    numbers = count()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def request() -> bytes:
        return f"GET {path(next(numbers))} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode()

    return request


def post(path: str, body: Callable[[int], bytes], headers: dict[str, str]) -> Callable[[], bytes]:
    """Return a function that builds POST requests with the JSON bodies `body(0)`, `body(1)` and so on."""
    numbers = count()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{lines}"

    def request() -> bytes:
        content = body(next(numbers))
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    return request
