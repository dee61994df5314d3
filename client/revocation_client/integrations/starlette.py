"""Starlette and FastAPI: the responses to what the client raises in a handler or a dependency."""

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from revocation_client.integrations.refusals import ANSWERED, refusal


async def _respond(_request: Request, error: Exception) -> Response:
    """Respond as FastAPI would. An error without a response of its own stays an error of the application."""
    return JSONResponse(*refusal(error))


exception_handlers: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    **dict.fromkeys(ANSWERED, _respond)
}
"""For the application: `FastAPI(lifespan=client.lifespan, exception_handlers={**exception_handlers})`."""
