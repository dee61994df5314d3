"""Measure the longest stall of an event loop: of this process, or of a service that another process keeps asking.

`python -m bench.stalls PORT` asks the service until stdin ends, then prints the longest time that an answer took.
"""

import asyncio
import select
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection

PAUSE_SECONDS = 0.001
ASKED_EVERY_SECONDS = 0.005
"""Long enough not to slow the service down. A stall may be longer than measured by this much."""


@dataclass
class Stall:
    """The longest stall that was measured."""

    longest_seconds: float = 0.0


@asynccontextmanager
async def own_stall() -> AsyncIterator[Stall]:
    """Measure the longest stall of the running event loop while the block runs."""
    stall = Stall()
    task = asyncio.create_task(_watch(stall))
    try:
        yield stall
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(stall: Stall) -> None:
    before = time.perf_counter()
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        now = time.perf_counter()
        stall.longest_seconds = max(stall.longest_seconds, now - before - PAUSE_SECONDS)
        before = now


@asynccontextmanager
async def stall_of(service: int) -> AsyncIterator[Stall]:
    """Measure the slowest `GET /healthz` of a service while the block runs. The result is set after the block."""
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(service), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert asking.stdout is not None
    stall = Stall()
    try:
        await asking.stdout.readline()
        yield stall
        answer, _ = await asking.communicate(b"")
        stall.longest_seconds = float(answer)
    finally:
        if asking.returncode is None:
            asking.kill()
            await asking.wait()


def main() -> None:
    """Ask the service until stdin ends, then print the longest time that an answer took."""
    connection = HTTPConnection("127.0.0.1", int(sys.argv[1]))
    print("begun", flush=True)
    longest = 0.0
    while not select.select([sys.stdin], [], [], ASKED_EVERY_SECONDS)[0]:
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        longest = max(longest, time.perf_counter() - began)
    print(longest)


if __name__ == "__main__":
    main()
