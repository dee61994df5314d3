"""Starlette and FastAPI: a lifespan, a dependency, and the answers to what the client raises."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from revocation_client.client import RevocationClient
from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, TokenNeeded, TokenRevoked
from revocation_client.integrations.refusals import NO_TOKEN, Refusal, bearer_token, refusal

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
"""One that gives the requests a state, which may be empty."""


def lifespan(
    client: RevocationClient, own: Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]] | None = None
) -> Lifespan:
    """A lifespan for an application that has one of its `own`; else `client.lifespan` does."""

    @asynccontextmanager
    async def both(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with client, nullcontext() if own is None else own(app) as state:
            yield state or {}

    return both


def active_token(client: RevocationClient) -> Callable[[Request], Awaitable[str]]:
    """A dependency: the request's bearer token, if it is not revoked; what is in it is still to be verified.

    In FastAPI `Annotated[str, Depends(active_token(client))]`, in Starlette `await active_token(client)(request)`.
    """

    async def token_of(request: Request) -> str:
        try:
            token = bearer_token(request.headers.getlist("Authorization"))
            if token is None:
                raise _exception(NO_TOKEN)
            await client.ensure_active(token)
        except RevocationError as error:
            refused = refusal(error)
            if refused is None:
                raise
            raise _exception(refused) from None
        return token

    return token_of


def _exception(refused: Refusal) -> HTTPException:
    return HTTPException(refused.status, refused.detail, refused.headers)


async def _respond(_request: Request, error: Exception) -> Response:
    """What FastAPI would answer; what has no answer of its own stays an error of the application."""
    refused = refusal(error) if isinstance(error, RevocationError) else None
    if refused is None:
        raise error
    return JSONResponse({"detail": refused.detail}, refused.status, refused.headers)


exception_handlers: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    TokenRevoked: _respond,
    TokenNeeded: _respond,
    ServiceUnavailable: _respond,
    RequestRefused: _respond,
}
"""For an application that asks by itself: `FastAPI(exception_handlers={**exception_handlers})`."""
