"""Leaving in good order: /readyz fails first, then nobody new is let in, then what is in flight is finished."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from aiohttp import web

from revocation_service.web.state import FEED, TRAFFIC

FINISH_SECONDS: Final = 3.0
"""How long a request may still take once nobody new is let in: it is callers that send slowly who need it."""


async def drain(server: web.AppRunner, seconds: float, hurry: Coroutine[Any, Any, object] | None = None) -> None:
    """Prepare a server for its clean-up, which would drop a body that is only half there; `hurry` ends the waiting.

    For so many seconds callers are still served, each answer telling them to come back on another connection; who
    follows the feed is told at once.
    """
    server.app[TRAFFIC].leaving = True
    server.app[FEED].end()
    hurried = asyncio.ensure_future(hurry or asyncio.Event().wait())
    try:
        await asyncio.wait({hurried}, timeout=seconds)
        for site in list(server.sites):
            await site.stop()
        await _finish(server, hurried)
    finally:
        hurried.cancel()
        await asyncio.wait({hurried})


async def _finish(server: web.AppRunner, hurried: asyncio.Future[Any]) -> None:
    over = asyncio.create_task(server.app[TRAFFIC].over(), name="traffic-over")
    try:
        await asyncio.wait({hurried, over}, timeout=FINISH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        over.cancel()
        await asyncio.wait({over})
