"""Tasks that belong together: begun, watched and ended by one owner."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def begin(name: str, *work: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
    """Start what shall run side by side; whoever calls this ends it."""
    return [asyncio.create_task(each, name=name) for each in work]


async def until_one_ends(name: str, *work: Coroutine[Any, Any, None]) -> None:
    """Run side by side what should never end; when one does, the others are ended, and its error is raised."""
    tasks = begin(name, *work)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(tasks)


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them until they have ended: below Python 3.12 `wait_for`, in the library, may swallow a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1)
    for task in tasks:
        if not task.cancelled():
            task.exception()
