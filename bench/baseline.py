"""Run a baseline server: `python -m bench.baseline bare|redis asyncio|uvloop PORT REDIS_URL`.

bare   an aiohttp handler that answers a constant: the most that the framework alone can do
redis  the same handler with one Redis command per request, by redis-py's default client, with hiredis installed

asyncio is the default of `web.run_app`; uvloop is the event loop of the service.
"""

import asyncio
import sys
from typing import Final

import uvloop
from aiohttp import web
from redis.asyncio import Redis

ANSWER: Final = b'{"revoked":false}'
CLIENT: Final = web.AppKey("client", Redis)


async def bare(_request: web.Request) -> web.Response:
    """Answer a constant."""
    return web.Response(body=ANSWER, content_type="application/json")


async def with_redis(request: web.Request) -> web.Response:
    """Send one Redis command, then answer."""
    revoked = await request.app[CLIENT].exists(f"token_blacklist:{request.query['jti']}")
    return web.Response(body=b'{"revoked":true}' if revoked else ANSWER, content_type="application/json")


def main() -> None:
    """Serve one baseline."""
    kind, loop, port, url = sys.argv[1:]
    app = web.Application()
    app[CLIENT] = Redis.from_url(url)
    app.router.add_get("/check", bare if kind == "bare" else with_redis)
    made = (uvloop if loop == "uvloop" else asyncio).new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=lambda _line: None, loop=made)


if __name__ == "__main__":
    main()
