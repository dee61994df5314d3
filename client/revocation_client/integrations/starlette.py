"""Starlette and FastAPI: the responses to what the client raises in a handler or a dependency."""

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from revocation_client.integrations.refusals import ANSWERED, refusal


async def _respond(_request: Request, error: Exception) -> Response:
    """Respond in the form that FastAPI uses. Raise the error if `refusal` has no response for it."""
    return JSONResponse(*refusal(error))


exception_handlers: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    **dict.fromkeys(ANSWERED, _respond)
}
"""For the application: `FastAPI(lifespan=client.lifespan, exception_handlers={**exception_handlers})`."""
