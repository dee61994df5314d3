"""aiohttp: a cleanup context that holds the client, and a middleware that responds to the client's errors."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from revocation_client.client import RevocationClient
from revocation_client.integrations.refusals import ANSWERED, refusal

REVOCATIONS: Final = web.AppKey("REVOCATIONS", RevocationClient)
"""Where handlers find the client: `request.app[REVOCATIONS]`."""


def cleanup_ctx(client: RevocationClient) -> Callable[[web.Application], AsyncIterator[None]]:
    """Start and close the client together with the application: `app.cleanup_ctx.append(cleanup_ctx(client))`."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        app[REVOCATIONS] = client
        async with client:
            yield

    return context


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to what the client raises in a handler: `web.Application(middlewares=[middleware])`."""
    try:
        return await handler(request)
    except ANSWERED as error:
        body, status, headers = refusal(error)
        return web.json_response(body, status=status, headers=headers)
