"""How failures look: `application/problem+json` (RFC 9457). The one table from an error to its status is here."""

from http import HTTPStatus
from typing import Final

from aiohttp import web

from revocation_client.wire import dumps
from revocation_service.errors import (
    ClocksDiffer,
    ExpRequired,
    ExpTooFar,
    FeedUnavailable,
    InsufficientScope,
    InvalidRequest,
    InvalidToken,
    IssuedBeforeTooFar,
    KeysUnavailable,
    NoSuchRevocation,
    ProtectedMode,
    ServiceError,
    ShuttingDown,
    StoreUnavailable,
    TooManySubscribers,
    Unauthorized,
    Unavailable,
    UnsupportedToken,
)
from revocation_service.problem_json import CONTENT_TYPE, problem_members
from revocation_service.web.answers import Answer

REALM: Final = 'Bearer realm="revocation-service"'

_STATUS: Final[dict[type[ServiceError], tuple[int, str]]] = {
    InvalidRequest: (400, "The request is malformed"),
    InvalidToken: (400, "The token is not valid"),
    UnsupportedToken: (400, "The token is of an unsupported kind"),
    ExpRequired: (400, "The token's expiry is needed"),
    ExpTooFar: (400, "The token's expiry is too far away"),
    IssuedBeforeTooFar: (400, "The cutoff is too far ahead"),
    Unauthorized: (401, "An API key is needed"),
    InsufficientScope: (403, "The API key lacks the scope"),
    ProtectedMode: (403, "Protected mode serves this machine alone"),
    NoSuchRevocation: (404, "There is no such revocation"),
    StoreUnavailable: (503, "The store is unavailable"),
    ClocksDiffer: (503, "The clocks differ too much"),
    KeysUnavailable: (503, "The signing keys are unavailable"),
    ShuttingDown: (503, "This instance is shutting down"),
    FeedUnavailable: (503, "The feed is unavailable"),
    TooManySubscribers: (503, "There are too many subscribers"),
}

_HTTP_CODES: Final = {
    400: "malformed_http",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    417: "expectation_failed",
}


def problem_form(error: ServiceError) -> dict[str, object]:
    """Return the members of an error's problem (RFC 9457 section 3.1)."""
    status, title = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    return problem_members(status, title, error.detail, error.code)


def problem(error: ServiceError) -> Answer:
    """The answer that tells of an error."""
    return _answer(problem_form(error), _headers(error))


def _headers(error: ServiceError) -> dict[str, str] | None:
    """What goes with an error beside its problem: when to come back, or how to ask for what is lacking (RFC 6750)."""
    if isinstance(error, Unavailable):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": REALM}
    if isinstance(error, InsufficientScope):
        return {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{error.scope}"'}
    return None


def http_problem(error: web.HTTPException, detail: str | None = None) -> Answer:
    """The answer for what aiohttp itself refuses: no such route, a method that is not there, a body too large."""
    status = HTTPStatus(error.status)
    members = problem_members(
        status, status.phrase, detail or status.description, _HTTP_CODES.get(status, "http_error")
    )
    if isinstance(error, web.HTTPMethodNotAllowed):
        return _answer(members, {"Allow": ", ".join(sorted(error.allowed_methods))})
    return _answer(members)


def internal_problem() -> Answer:
    """The answer where this service is at fault; what went wrong is in the log, under the request id."""
    detail = "something went wrong here; the log has it under this answer's X-Request-ID"
    return _answer(problem_members(500, "Internal error", detail, "internal_error"))


def _answer(form: dict[str, object], headers: dict[str, str] | None = None) -> Answer:
    status = form["status"]
    assert isinstance(status, int)
    return Answer(dumps(form), status, CONTENT_TYPE, headers)
