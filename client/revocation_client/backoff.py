"""The one backoff of the client, for revocations and for the feed. Pure."""

import random
from collections.abc import Callable
from typing import Final

FIRST_BACKOFF_SECONDS: Final = 0.1


def backoff_seconds(
    failures: int,
    longest_seconds: float,
    retry_after_seconds: float | None = None,
    jitter: Callable[[], float] = random.random,
) -> float:
    """Return the pause after so many failures in a row: exponential with full jitter, from 0 to `longest_seconds`.

    `retry_after_seconds`, what the service asks for, comes on top.
    """
    most: float = min(longest_seconds, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 10))
    return (retry_after_seconds or 0.0) + most * jitter()
