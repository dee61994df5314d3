"""An HTTP client for an ASGI application that runs in the test's own event loop."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx


@contextlib.asynccontextmanager
async def asgi(app: Any, *, lifespan: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """Yield an HTTP client for an application. With `lifespan=False`, the application's startup code does not run."""
    async with contextlib.AsyncExitStack() as stack:
        state = await stack.enter_async_context(app.router.lifespan_context(app)) if lifespan else None

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://app"))
