"""Graceful shutdown: /readyz fails first; then no new connections; then what is in flight ends; then the feed."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from aiohttp import web

from revocation_service.web.state import BROADCASTER, TRAFFIC

FINISH_SECONDS: Final = 3.0
"""How long a request may still take once no new connection is accepted: slow senders need it."""


async def drain(server: web.AppRunner, seconds: float, hurry: Coroutine[Any, Any, object] | None = None) -> None:
    """Prepare a server for its clean-up, which would drop requests whose body is incomplete; `hurry` ends the waiting.

    Requests are served for `seconds`, and each response closes its connection. Subscribers of the feed are told at once
    to ask the service from now on. Their streams end last, so that they get every revocation acknowledged until then.
    """
    server.app[TRAFFIC].leaving = True
    server.app[BROADCASTER].leave()
    hurried = asyncio.ensure_future(hurry or asyncio.Event().wait())
    try:
        await asyncio.wait({hurried}, timeout=seconds)
        for site in list(server.sites):
            await site.stop()
        await _finish(server, hurried)
    finally:
        server.app[BROADCASTER].end()
        hurried.cancel()
        await asyncio.wait({hurried})


async def _finish(server: web.AppRunner, hurried: asyncio.Future[Any]) -> None:
    over = asyncio.create_task(server.app[TRAFFIC].over(), name="traffic-over")
    try:
        await asyncio.wait({hurried, over}, timeout=FINISH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        over.cancel()
        await asyncio.wait({over})
