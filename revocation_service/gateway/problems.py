"""How the gateway's own failures look: `application/problem+json`. What the upstream answers is none of them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

from aiohttp import web

from revocation_client.wire import dumps
from revocation_service.errors import ServiceError
from revocation_service.problem_json import CONTENT_TYPE, problem_members


class GatewayError(ServiceError):
    """A request that the gateway itself has to answer, with this status."""

    status: ClassVar[int] = 500
    keeps_connection: ClassVar[bool] = True
    """Whether the client's connection is still in step, so that its next request can be read."""


class MalformedRequest(GatewayError):
    """What came cannot be passed on as it stands."""

    code = "malformed_http"
    status = 400
    keeps_connection = False


class HeaderTooLarge(GatewayError):
    """The request's head, or a line of it, is longer than is read."""

    code = "header_too_large"
    status = 431
    keeps_connection = False


class RequestTimeout(GatewayError):
    """The client did not go on with its head or its body."""

    code = "request_timeout"
    status = 408
    keeps_connection = False


class ExpectationFailed(GatewayError):
    """The request expects what nobody here knows."""

    code = "expectation_failed"
    status = 417
    keeps_connection = False


class VersionNotSupported(GatewayError):
    """The request is of another HTTP than 1.0 and 1.1."""

    code = "http_version_not_supported"
    status = 505
    keeps_connection = False


class MethodNotImplemented(GatewayError):
    """The method is for proxies of another kind."""

    code = "method_not_implemented"
    status = 501
    keeps_connection = False


class TooManyConnections(GatewayError):
    """One more client than are served at a time."""

    code = "too_many_connections"
    status = 503
    keeps_connection = False


class UpstreamUnavailable(GatewayError):
    """The upstream cannot be reached, or broke off before it answered."""

    code = "upstream_unavailable"
    status = 502


class UpstreamTimeout(GatewayError):
    """The upstream did not answer in time."""

    code = "upstream_timeout"
    status = 504


def problem(
    status: int, detail: str, code: str, *, title: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer that tells of a failure."""
    members = problem_members(status, title or HTTPStatus(status).phrase, detail, code)
    answer = web.Response(status=status, body=dumps(members), headers=headers, content_type=CONTENT_TYPE)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def problem_of(error: GatewayError) -> web.Response:
    """The answer that tells of an error."""
    answer = problem(error.status, error.detail, error.code)
    if not error.keeps_connection:
        answer.force_close()
    return answer


def internal_problem() -> web.Response:
    """The answer where the gateway is at fault; what went wrong is in the log, under the request id."""
    answer = problem(
        500,
        "something went wrong here; the log has it under this answer's X-Request-ID",
        "internal_error",
        title="Internal error",
    )
    answer.force_close()
    return answer
