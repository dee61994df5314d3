"""How often and how long the client tries again: `service_calls.py` and `follower.py` use this. Pure."""

import random
from collections.abc import Callable
from typing import Final

FIRST_BACKOFF_SECONDS: Final = 0.1
REVOKE_BACKOFF_SECONDS: Final = 1.6
"""The longest pause between two tries of a revocation, which end at `revoke_timeout_seconds`."""

FEED_BACKOFF_SECONDS: Final = 5.0
"""The longest pause between two streams of the feed."""

BATCH_BACKOFF_SECONDS: Final = 0.1
"""The longest pause between two posts of a batch whose connection broke, until all its questions are overdue."""

SENDS_WITHOUT_PAUSE: Final = 4
"""Of a batch, because a restart of the service breaks every connection in the pool."""


def backoff_seconds(
    failures: int,
    longest_seconds: float,
    retry_after_seconds: float | None = None,
    jitter: Callable[[], float] = random.random,
) -> float:
    """Return the pause after `failures` in a row: exponential with full jitter, from 0 to `longest_seconds`.

    `retry_after_seconds`, the pause that the service asks for, is added.
    """
    most: float = min(longest_seconds, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 10))
    return (retry_after_seconds or 0.0) + most * jitter()
