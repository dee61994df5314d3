"""Start and end background tasks that one owner keeps."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def begin(name: str, *work: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
    """Start these coroutines as tasks of this name; the caller ends them with `end`."""
    return [asyncio.create_task(each, name=name) for each in work]


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel the tasks, and wait until all have ended.

    They are cancelled each second again: below Python 3.12, `wait_for` in a library may swallow a cancellation.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1)
    for task in tasks:
        if not task.cancelled():
            task.exception()
