"""Serve until a signal: listen, then drain, then close. The limits on connections and requests are here too."""

import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from revocation_service.errors import SettingsError
from revocation_service.http.in_flight import InFlight

BACKLOG: Final = 2_048
"""Connections that may wait to be accepted. A client beyond this number retries only after a second."""

DESCRIPTORS: Final = 65_536
"""Limit on open files and sockets that the process asks for at its start."""

FINISH_SECONDS: Final = 3.0
"""How long requests in flight may still take once no new connection is accepted."""

KEEPALIVE_SECONDS: Final = 40.0
"""Time for the head of a request, and for silence between requests; the client library closes after 30 s of silence.

aiohttp's timer starts at the connection and after each response, and no data resets it.
"""

LIMITS: Final[dict[str, Any]] = {"max_line_size": 8190, "max_field_size": 4096, "max_headers": 64}
"""Limits on the head of a request: bytes of its first line, bytes of a field, number of fields."""

OPTIONS: Final[dict[str, Any]] = {
    "access_log": None,  # the middleware logs requests
    "auto_decompress": False,
    "handle_signals": False,
    "shutdown_timeout": 0.5,  # aiohttp may wait this long twice; all waits together stay below Docker's 10 s
}

GC_THRESHOLD: Final = 10_000
"""Objects between two garbage collections. With the default, 700, they take a tenth of a check."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Server:
    """An application, its address, and how it stops.

    After a signal it serves for `drain_seconds` more, then finishes the requests in flight.
    """

    runner: web.AppRunner
    host: str
    port: int
    variables: str
    """The settings that hold the address; errors name them."""
    in_flight: InFlight
    drain_seconds: float
    on_drain: Callable[[], None] = lambda: None
    on_closed: Callable[[], Awaitable[None]] | None = None
    """Called when no new connection is accepted."""


def limited_runner(app: web.Application, keepalive_seconds: float = KEEPALIVE_SECONDS, **options: Any) -> web.AppRunner:
    """Return the runner of an application, with limits on the connections and requests of every client.

    `options` are passed to aiohttp's runner and override the limits.
    """
    return web.AppRunner(app, keepalive_timeout=keepalive_seconds, **{**OPTIONS, **LIMITS, **options})


async def serve(server: Server) -> None:
    """Serve until SIGTERM or SIGINT; a second signal cuts the drain short. Raises SettingsError if the start fails."""
    serving = asyncio.create_task(_serve_and_drain(server))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await asyncio.wait([serving])
        if not serving.cancelled():
            await serving
    finally:
        await server.runner.cleanup()
    _log.info("stopped")


async def _serve_and_drain(server: Server) -> None:
    """Serve, and drain when the task is cancelled. A cancellation during the start or the drain ends the task."""
    prepare_process()
    await listen(server.runner, server.host, server.port, server.variables)
    gc.collect()
    gc.freeze()  # the collector need not walk through what lives as long as the process
    gc.set_threshold(GC_THRESHOLD)
    _log.info("serving", addresses=[_url(*address[:2]) for address in server.runner.addresses])
    with suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    _log.info("draining", seconds=server.drain_seconds)
    await _drain(server)


def prepare_process() -> None:
    """Allow many connections, and keep requests that are not HTTP out of the log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, DESCRIPTORS) if hard >= 0 else DESCRIPTORS  # below 0: no limit
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    logger = logging.getLogger("aiohttp.server")
    logger.setLevel(logging.DEBUG)  # the level of unknown methods
    logger.addFilter(_was_read)


def _was_read(record: logging.LogRecord) -> bool:
    """Return False for an error of aiohttp's parser: anyone can cause those, and they quote the request."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def listen(runner: web.AppRunner, host: str, port: int, variables: str) -> None:
    """Start an application and accept connections. If it cannot, raises a SettingsError that names `variables`."""
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that cannot be a name, such as a..b
        errno = getattr(error, "errno", None) or 0  # below 0: the resolver's
        why = os.strerror(errno) if errno > 0 else "no such address"
        detail = f"cannot listen on {host}:{port}: {why}; stop what listens there, or set {variables}"
        raise SettingsError(detail) from None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _drain(server: Server) -> None:
    server.in_flight.draining = True
    server.on_drain()
    await asyncio.sleep(server.drain_seconds)
    for site in server.runner.sites:
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(FINISH_SECONDS):
            if server.on_closed is not None:
                await server.on_closed()
            await server.in_flight.none()
