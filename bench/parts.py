"""Run Redis and the measured servers, each as a process on loopback."""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from revocation_service.store.embedded import find_server

API_KEY = "bench-key-0123456789abcdef"
AUTH = {"Authorization": f"Bearer {API_KEY}"}


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _until_open(port: int, process: asyncio.subprocess.Process) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        if process.returncode is not None:
            break
        await asyncio.sleep(0.02)
    raise RuntimeError("a process of the benchmark did not start")


@asynccontextmanager
async def _process(port: int, *command: str, environment: dict[str, str] | None = None) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(environment or {})},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _until_open(port, process)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def redis() -> AsyncIterator[str]:
    """Run a Redis without persistence, so that the disk is not measured. Yield its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory)
        async with _process(port, find_server(None)[0], *options):
            yield f"redis://127.0.0.1:{port}"


@asynccontextmanager
async def service(url: str) -> AsyncIterator[int]:
    """Run the service with one worker and an API key. Yield its port."""
    port = free_port()
    environment = {
        "REVOCATION_REDIS_URL": url,
        "REVOCATION_PORT": str(port),
        "REVOCATION_API_KEYS": f"bench={API_KEY}:check+revoke",
        "REVOCATION_DRAIN_SECONDS": "0",
    }
    async with _process(port, sys.executable, "-m", "revocation_service", "serve", environment=environment):
        yield port


@asynccontextmanager
async def baseline(kind: str, loop: str, url: str) -> AsyncIterator[int]:
    """Run one of the servers in `baseline.py` on the given event loop. Yield its port."""
    port = free_port()
    async with _process(port, sys.executable, "-m", "bench.baseline", kind, loop, str(port), url):
        yield port


@asynccontextmanager
async def gateway(upstream: int, url: str) -> AsyncIterator[int]:
    """Run the gateway in front of an upstream. Yield its port."""
    port = free_port()
    environment = {
        "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}",
        "GATEWAY_REDIS_URL": url,
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": str(free_port()),
        "GATEWAY_DRAIN_SECONDS": "0",
    }
    async with _process(port, sys.executable, "-m", "revocation_service", "gateway", environment=environment):
        yield port


@asynccontextmanager
async def application() -> AsyncIterator[int]:
    """Run the application that `bench.gateways` puts behind other gateways. Yield its port."""
    port = free_port()
    async with _process(port, sys.executable, "-m", "bench.gateways", str(port)):
        yield port


async def fill(url: str, name: str, number: int) -> None:
    """Store revocations `token_blacklist:<name>-<n>`, with values as the service writes them, and an hour to live."""
    async with Redis.from_url(url) as client:
        value = b'{"revoked_at":1795447974.695345,"expires_at":1795451574,"revoked_by":"bench"}'
        for first in range(0, number, 10_000):
            pipeline = client.pipeline(transaction=False)
            for position in range(first, min(first + 10_000, number)):
                pipeline.set(f"token_blacklist:{name}-{position}", value, ex=3600)
            await pipeline.execute()


async def used_memory(url: str) -> int:
    """Return the memory that Redis reports as used, in bytes."""
    async with Redis.from_url(url) as client:
        info = await client.info("memory")
        return int(info["used_memory"])
