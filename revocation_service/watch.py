"""`revocation-service watch`: a service's feed, printed for an operator, a line an event."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from typing import Final, TextIO

import aiohttp

from revocation_client.feed import Change, Event, FeedError, Heartbeat, Parser, Reset, Snapshot, Synced, decode
from revocation_client.model import Revocation
from revocation_service.errors import WatchFailed
from revocation_service.settings import WatchSettings

SILENCE_SECONDS: Final = 5.0
"""How long the feed may say nothing; it has a heartbeat each second."""

_SHOWN_CHARACTERS: Final = 8
"""Of a `jti`, as in the log: whoever holds all of it may ask about it."""


async def watch_until_stopped(settings: WatchSettings, out: TextIO) -> None:
    """As `watch`, until SIGINT or SIGTERM, which are no failures."""
    watching = asyncio.create_task(watch(settings, out))
    for stop in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(stop, watching.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def watch(settings: WatchSettings, out: TextIO) -> None:
    """Print the feed until it ends.

    Raises WatchFailed: it cannot be had, or has ended; nothing else ends it.
    """
    try:
        async for event in _events(settings):
            at = time.strftime("%H:%M:%S")
            out.writelines(f"{at} {line}\n" for line in _lines(event))
            out.flush()
    except BrokenPipeError:
        return  # whoever read it has seen enough
    except FeedError as error:
        raise WatchFailed(f"what {settings.url} sends is no feed: {error}") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise WatchFailed(f"the feed of {settings.url} cannot be had, or broke off: {type(error).__name__}") from None
    raise WatchFailed(f"the feed of {settings.url} has ended; the service stops, or wants its followers to begin again")


async def _events(settings: WatchSettings) -> AsyncIterator[Event]:
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.get(f"{settings.url}/feed", allow_redirects=False) as answer,
    ):
        if answer.status != 200 or answer.content_type != "text/event-stream":
            raise WatchFailed(f"{settings.url} answered {answer.status}, and no feed: {_advice(answer.status)}")
        parser = Parser()
        async for chunk in answer.content.iter_any():
            for message in parser.feed(chunk):
                event = decode(message).event
                if event is not None:
                    yield event


def _advice(status: int) -> str:
    if status in {401, 403}:
        return "set REVOCATION_API_KEY to a key with the scope check"
    if status == 503:
        return "it is not in sync with Redis yet, or has as many subscribers as it takes; try again"
    return "is REVOCATION_URL that of a revocation service?"


def _lines(event: Event) -> list[str]:
    if isinstance(event, Snapshot):
        return [f"snapshot   {len(event.revocations)} revocations"]
    if isinstance(event, Synced):
        return [f"synced     {event.cursor}{'' if event.complete else '  incomplete: others write to this Redis too'}"]
    if isinstance(event, Change):
        return [f"change     {_shown(revocation)}" for revocation in event.revocations]
    if isinstance(event, Heartbeat):
        return [f"heartbeat  {event.behind_seconds:.3f} s behind Redis"]
    if isinstance(event, Reset):
        return [f"reset      {event.reason}"]
    raise AssertionError(event)


def _shown(revocation: Revocation) -> str:
    value = revocation.value
    if revocation.claim == "jti" and len(value) > _SHOWN_CHARACTERS:
        value = f"{value[:_SHOWN_CHARACTERS]}…"
    left = "" if revocation.expires_at is None else f"  for {revocation.expires_at - time.time():.0f} s"
    cutoff = "" if revocation.issued_before is None else f"  issued until {revocation.issued_before:.3f}"
    return f"{revocation.claim} {json.dumps(value, ensure_ascii=False)}{cutoff}{left}"
