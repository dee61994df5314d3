"""Problem responses, `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web

from revocation_client.schema import SchemaError, dumps
from revocation_service import errors

REALM: Final = 'Bearer realm="revocation-service"'

Known = SchemaError | errors.ServiceError | web.HTTPException
"""The errors that have a response of their own."""

_log = structlog.get_logger()


def problem(status: int, detail: str, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a problem response."""
    given = {"Content-Type": "application/problem+json", "Cache-Control": "no-store", **(headers or {})}
    return web.Response(status=status, body=dumps(_members(status, detail, code)), headers=given)


def _members(status: int, detail: str, code: str) -> dict[str, object]:
    """Return the members of a problem (RFC 9457 section 3.1); for `about:blank`, the title is the status' phrase."""
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}


def problem_members(error: errors.ServiceError) -> dict[str, object]:
    """Return the members of the problem that describes an error."""
    return _members(error.status, error.detail, error.code)


def problem_of(error: Exception) -> web.Response:
    """Return the problem response for an error. An unknown error is logged, and the response says nothing about it."""
    if isinstance(error, Known):
        return problem(*described(error))
    _log.error("internal_error", error=error)
    response = problem(500, "an unexpected error; the log has it under this X-Request-ID", "internal_error")
    response.force_close()
    return response


def described(error: Known) -> tuple[int, str, str, Mapping[str, str]]:
    """Return the status, detail, code and headers of an error response. The caller chooses the format of its body.

    The texts of aiohttp's errors may quote the request, so they are replaced. The texts of 408 and 415 are our own.
    """
    if isinstance(error, SchemaError):
        error = errors.InvalidRequest(str(error))
    if isinstance(error, errors.ServiceError):
        return error.status, error.detail, error.code, _headers(error)
    status = HTTPStatus(error.status)
    detail = (error.text if status in {408, 415} else None) or status.description
    code = "body_too_large" if status == 413 else status.phrase.lower().replace(" ", "_")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return status, detail, code, {"Allow": ", ".join(sorted(error.allowed_methods))}
    return status, detail, code, {}


def _headers(error: errors.ServiceError) -> dict[str, str]:
    """Return the headers that say when to retry or which credentials are needed (RFC 6750 section 3)."""
    if isinstance(error, errors.Unavailable):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, errors.Unauthorized):
        return {"WWW-Authenticate": REALM}
    if isinstance(error, errors.InsufficientScope):
        return {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{error.scope}"'}
    return {}
