"""One gateway process that serves until it is told to stop: /readyz fails first, then what is in flight is finished."""

import asyncio
import signal
from typing import Final

import structlog
from aiohttp import web

from revocation_service.errors import SettingsError
from revocation_service.gateway.app import TRAFFIC, TUNNELS, admin_runner, runner
from revocation_service.gateway.settings import GatewaySettings

BACKLOG: Final = 2_048
"""Connections that may wait to be accepted: beyond it a client's kernel tries again only a second later."""

ADMIN_HOST: Final = "127.0.0.1"

FINISH_SECONDS: Final = 4.0
"""How long a request may still take once nobody new is let in."""

_log = structlog.get_logger()


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT; a second signal cuts the drain short.

    Raises SettingsError where the start fails.
    """
    signals = _stop_signals()
    gateway = runner(settings)
    admin = admin_runner(gateway.app)
    try:
        await _start(gateway, admin, settings)
        await signals.get()
        _log.info("draining", seconds=settings.drain_seconds)
        await _drain(gateway, settings.drain_seconds, signals)
    finally:
        await gateway.cleanup()
        await admin.cleanup()
    _log.info("stopped")


async def _start(gateway: web.AppRunner, admin: web.AppRunner, settings: GatewaySettings) -> None:
    await gateway.setup()
    await admin.setup()
    await _listen(admin, ADMIN_HOST, settings.admin_port, "GATEWAY_ADMIN_PORT")
    await _listen(gateway, settings.host, settings.port, "GATEWAY_HOST and GATEWAY_PORT")
    _log.info("serving", addresses=_addresses(gateway), admin_addresses=_addresses(admin))


def _stop_signals() -> asyncio.Queue[int]:
    received: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received.put_nowait, number)
    return received


async def _listen(server: web.AppRunner, host: str, port: int, variables: str) -> None:
    try:
        await web.TCPSite(server, host, port, backlog=BACKLOG).start()
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or 'no such address'}; stop what listens there, or set"
            f" {variables}"
        ) from None


def _addresses(server: web.AppRunner) -> list[str]:
    return [f"http://{_url_host(address[0])}:{address[1]}" for address in server.addresses]


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _drain(gateway: web.AppRunner, seconds: float, signals: asyncio.Queue[int]) -> None:
    """For so many seconds clients are still served; then nobody new is let in, and what is in flight is finished."""
    gateway.app[TRAFFIC].leaving = True
    hurried = asyncio.create_task(signals.get(), name="second-signal")
    finishing = asyncio.create_task(_finish(gateway, seconds), name="drain")
    try:
        await asyncio.wait({hurried, finishing}, timeout=seconds + FINISH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if finishing.done():
            await finishing
    finally:
        for task in (hurried, finishing):
            task.cancel()
        await asyncio.wait({hurried, finishing})


async def _finish(gateway: web.AppRunner, seconds: float) -> None:
    await asyncio.sleep(seconds)
    for site in list(gateway.sites):
        await site.stop()
    await gateway.app[TUNNELS].leave()
    await gateway.app[TRAFFIC].over()
