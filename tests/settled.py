"""Prepare a new Redis as if services had run on it. Otherwise each would wait three seconds for others to report."""

import asyncio
import contextlib

from redis.asyncio import Redis
from redis.exceptions import RedisError

from revocation_service.store.key_names import Keyspace
from revocation_service.store.scripts import BEAT

HANGS_SECONDS = 10.0
"""A Redis that has not answered by then hangs, as some tests want it; a busy one has answered."""


async def settle(redis: Redis, prefix: str = "") -> None:
    """Begin an epoch without the grace period, unless one exists for the server's present replication id."""
    keys = Keyspace(prefix)
    await BEAT.run(redis, [keys.state, keys.change_log], ["settled", "", "", 5000, 0, 0])


async def settle_url(url: str, prefix: str = "") -> None:
    """Settle the Redis at a URL, if a server answers there."""
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with Redis.from_url(url, protocol=2, driver_info=None) as client, asyncio.timeout(HANGS_SECONDS):
            await settle(client, prefix)
