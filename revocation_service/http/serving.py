"""Serve until a signal: listen, then drain, then close. The limits on what clients may hold are here too."""

import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from revocation_service.errors import SettingsError
from revocation_service.http.in_flight import InFlight

BACKLOG: Final = 2_048
"""Connections that may wait to be accepted; a client beyond it retries only after a second."""

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
class Listener:
    """An application and the address that it listens on."""

    runner: web.AppRunner
    host: str
    port: int
    variables: str
    """The settings that hold the address; errors name them."""
    logged_as: str = "addresses"


@dataclass(frozen=True, slots=True)
class Drain:
    """How the process stops after a signal: it serves for `seconds` more, then finishes the requests in flight."""

    in_flight: InFlight
    seconds: float
    on_begin: Callable[[], None] | None = None
    on_closed: Callable[[], Awaitable[None]] | None = None
    """Called when no new connection is accepted."""


def limited_runner(app: web.Application, keepalive_seconds: float = KEEPALIVE_SECONDS, **options: Any) -> web.AppRunner:
    """Return the runner of an application, with the limits on what a client may hold without a key.

    `options` of aiohttp's runner override the limits.
    """
    return web.AppRunner(app, keepalive_timeout=keepalive_seconds, **{**OPTIONS, **LIMITS, **options})


async def serve(listeners: Sequence[Listener], drain: Drain) -> None:
    """Serve until SIGTERM or SIGINT; a second signal cuts the drain short.

    The drain stops the last listener alone: the others, for operators, answer until the end.
    Raises SettingsError if the start fails.
    """
    serving = asyncio.create_task(_serve_and_drain(listeners, drain))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await asyncio.wait([serving])
        if not serving.cancelled():
            await serving
    finally:
        for listener in reversed(listeners):
            await listener.runner.cleanup()
    _log.info("stopped")


async def _serve_and_drain(listeners: Sequence[Listener], drain: Drain) -> None:
    """Start, and drain when the task is cancelled. A cancellation of the start or of the drain ends it at once."""
    await _start(listeners)
    with suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    _log.info("draining", seconds=drain.seconds)
    await _drain(listeners, drain)


async def _start(listeners: Sequence[Listener]) -> None:
    prepare_process()
    for listener in listeners:
        await listener.runner.setup()
    for listener in listeners:
        await _listen(listener)
    gc.collect()
    gc.freeze()  # the collector need not walk through what lives as long as the process
    gc.set_threshold(GC_THRESHOLD)
    addresses = {each.logged_as: [_url(*address[:2]) for address in each.runner.addresses] for each in listeners}
    _log.info("serving", **addresses)


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


async def _listen(listener: Listener) -> None:
    try:
        await web.TCPSite(listener.runner, listener.host, listener.port, backlog=BACKLOG).start()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that cannot be a name, such as a..b
        errno = getattr(error, "errno", None) or 0  # below 0: the resolver's
        where, why = f"{listener.host}:{listener.port}", os.strerror(errno) if errno > 0 else "no such address"
        detail = f"cannot listen on {where}: {why}; stop what listens there, or set {listener.variables}"
        raise SettingsError(detail) from None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _drain(listeners: Sequence[Listener], drain: Drain) -> None:
    drain.in_flight.draining = True
    if drain.on_begin is not None:
        drain.on_begin()
    await asyncio.sleep(drain.seconds)
    for site in listeners[-1].runner.sites:
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(FINISH_SECONDS):
            if drain.on_closed is not None:
                await drain.on_closed()
            await drain.in_flight.none()
