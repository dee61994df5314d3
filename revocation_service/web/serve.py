"""One process that serves until it is told to stop: first /readyz fails, then what is in flight is finished."""

import asyncio
import signal
from typing import Final

import structlog
from aiohttp import web

from revocation_service.errors import SettingsError
from revocation_service.settings import Settings
from revocation_service.web.app import runner
from revocation_service.web.drain import drain
from revocation_service.web.worker import spare_the_collector

BACKLOG: Final = 2_048
"""Connections that may wait to be accepted: beyond it a caller's kernel tries again only a second later."""

_log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second signal cuts the drain short.

    Raises SettingsError where the start fails.
    """
    signals = _stop_signals()
    stopped = asyncio.create_task(signals.get(), name="stop-signal")
    server = runner(settings)
    try:
        if await _started(server, settings, stopped):
            spare_the_collector()
            await stopped
            _log.info("draining", seconds=settings.drain_seconds)
            await drain(server, settings.drain_seconds, signals.get())
    finally:
        stopped.cancel()
        await server.cleanup()
    _log.info("stopped")


async def _started(server: web.AppRunner, settings: Settings, stopped: asyncio.Task[int]) -> bool:
    """Start, unless a signal comes first: a store that takes its time to load must not hold up the end."""
    starting = asyncio.create_task(_start(server, settings), name="start")
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        return starting.done()
    finally:
        starting.cancel()
        await asyncio.wait({starting})


async def _start(server: web.AppRunner, settings: Settings) -> None:
    await server.setup()
    await _listen(server, settings)


def _stop_signals() -> asyncio.Queue[int]:
    received: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received.put_nowait, number)
    return received


async def _listen(server: web.AppRunner, settings: Settings) -> None:
    try:
        await web.TCPSite(server, settings.host, settings.port, backlog=BACKLOG).start()
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise SettingsError(
            f"cannot listen on {where}: {error.strerror or 'no such address'}; stop what listens there, or set"
            " REVOCATION_HOST and REVOCATION_PORT"
        ) from None
    addresses = [f"http://{_url_host(address[0])}:{address[1]}" for address in server.addresses]
    _log.info("serving", addresses=addresses, protected_mode=settings.protected)


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
