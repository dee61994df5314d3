"""aiohttp: a cleanup context that holds the client, and a middleware that refuses revoked tokens."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from revocation_client.client import RevocationClient
from revocation_client.errors import RevocationError
from revocation_client.integrations.refusals import Refusal, bearer_token, refusal

REVOCATIONS: Final = web.AppKey("REVOCATIONS", RevocationClient)
"""Where handlers find the client: `request.app[REVOCATIONS]`."""


def cleanup_ctx(client: RevocationClient) -> Callable[[web.Application], AsyncIterator[None]]:
    """Starts the client with the application and closes it with it: `app.cleanup_ctx.append(cleanup_ctx(client))`."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        app[REVOCATIONS] = client
        async with client:
            yield

    return context


def authorization(request: web.Request) -> str | None:
    """The bearer token of a request; None where it has none."""
    return bearer_token(request.headers.getall("Authorization", []))


def middleware(client: RevocationClient, token_of: Callable[[web.Request], str | None] = authorization) -> Middleware:
    """A middleware that answers for revoked tokens, and for what the client raises in a handler.

    A request without a token goes on: whether it needs one, and whether the token is genuine, only the application
    knows.
    """

    @web.middleware
    async def refuse_revoked(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            token = token_of(request)
            if token is not None:
                await client.ensure_active(token)
            return await handler(request)
        except RevocationError as error:
            refused = refusal(error)
            if refused is None:
                raise
            return _response(refused)

    return refuse_revoked


def _response(refused: Refusal) -> web.Response:
    return web.json_response({"detail": refused.detail}, status=refused.status, headers=refused.headers)
