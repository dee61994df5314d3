"""Start and stop the background tasks of one owner."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def begin(name: str, *work: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
    """Start a task for each coroutine. The caller stops them with `end`."""
    return [asyncio.create_task(each, name=name) for each in work]


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel the tasks, and wait until all have ended.

    The cancellation is repeated every second: `wait_for` of Python 3.11 may swallow one.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1)
    await asyncio.gather(*tasks, return_exceptions=True)  # or asyncio logs the failed ones as never retrieved
