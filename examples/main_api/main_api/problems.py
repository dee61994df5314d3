"""The HTTP response of each error."""

import logging
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from main_api.sessions import WrongPassword
from main_api.tokens import InvalidToken
from revocation_client import RevocationError, ServiceUnavailable, TokenRevoked

RETRY_AFTER_SECONDS: Final = 1
INVALID_TOKEN: Final = 'Bearer error="invalid_token"'  # noqa: S105 - RFC 6750 section 3.1
_SAID_OF_A_MISTAKE: Final = ("type", "loc", "msg")

_log: Final = logging.getLogger("main_api")


def add_problems(app: FastAPI) -> None:
    """Register the handler of each error."""
    app.add_exception_handler(WrongPassword, _wrong_password)
    app.add_exception_handler(InvalidToken, _invalid_token)
    app.add_exception_handler(TokenRevoked, _token_revoked)
    app.add_exception_handler(RevocationError, _nothing_promised)
    app.add_exception_handler(RequestValidationError, _mistaken)


async def _wrong_password(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(401, "The user name or the password is wrong", {"WWW-Authenticate": "Bearer"})


async def _invalid_token(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(401, "The token is not valid", {"WWW-Authenticate": INVALID_TOKEN})


async def _token_revoked(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(401, "The token was revoked", {"WWW-Authenticate": INVALID_TOKEN})


async def _nothing_promised(_request: Request, error: Exception) -> JSONResponse:
    """Answer 503: the service is unavailable or refuses the API key, so no check and no logout is confirmed."""
    if not isinstance(error, ServiceUnavailable):
        _log.error("revocation_failed %s", error)
    asked = error.retry_after_seconds if isinstance(error, ServiceUnavailable) else None
    wait = max(RETRY_AFTER_SECONDS, int(asked or 0))
    return _problem(503, "Revocations are unavailable; try again", {"Retry-After": str(wait)})


async def _mistaken(_request: Request, error: Exception) -> JSONResponse:
    """Answer as FastAPI does, but without the input, which may be a password."""
    found: list[Any] = list(error.errors()) if isinstance(error, RequestValidationError) else []
    said = [{name: mistake[name] for name in _SAID_OF_A_MISTAKE} for mistake in found]
    return JSONResponse({"detail": said}, 422)


def _problem(status: int, detail: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {"Cache-Control": "no-store", **headers})
