"""Failures of the gateway itself, with their statuses. The responses of the upstream are none of these."""

from revocation_service.http.problems import HttpError


class MalformedRequest(HttpError):
    """What came cannot be passed on as it stands."""

    code = "malformed_http"
    status = 400
    keeps_connection = False


class HeaderTooLarge(HttpError):
    """The request's head, or a line of it, is longer than is read."""

    code = "header_too_large"
    status = 431
    keeps_connection = False


class RequestTimeout(HttpError):
    """The client did not go on with its head or its body."""

    code = "request_timeout"
    status = 408
    keeps_connection = False


class ExpectationFailed(HttpError):
    """The request expects what nobody here knows."""

    code = "expectation_failed"
    status = 417
    keeps_connection = False


class VersionNotSupported(HttpError):
    """The request is of another HTTP than 1.0 and 1.1."""

    code = "http_version_not_supported"
    status = 505
    keeps_connection = False


class MethodNotImplemented(HttpError):
    """The method is for proxies of another kind."""

    code = "method_not_implemented"
    status = 501
    keeps_connection = False


class TooManyConnections(HttpError):
    """One more client than are served at a time."""

    code = "too_many_connections"
    status = 503
    keeps_connection = False


class UpstreamUnavailable(HttpError):
    """The upstream cannot be reached, or broke off before it answered."""

    code = "upstream_unavailable"
    status = 502


class UpstreamTimeout(HttpError):
    """The upstream did not answer in time."""

    code = "upstream_timeout"
    status = 504
