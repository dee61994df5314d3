"""The HTTP response to a request whose token is not accepted: one table from errors to statuses. Pure."""

import math
from typing import NamedTuple

from revocation_client.errors import RequestRefused, ServiceUnavailable, TokenNeeded, TokenRevoked

ANSWERED = (TokenRevoked, TokenNeeded, ServiceUnavailable, RequestRefused)
"""Errors that may have a response."""


class Refusal(NamedTuple):
    """A response: 401 for the token, 503 where it cannot be known whether it is revoked."""

    status: int
    detail: str
    headers: dict[str, str]


def refusal(error: Exception) -> Refusal | None:
    """Return the response to a request whose token is not accepted; None for a fault of the application (a 500)."""
    if isinstance(error, TokenRevoked):
        return _invalid("The token is revoked")
    bad_token = isinstance(error, RequestRefused) and error.code in ("invalid_token", "unsupported_token")
    if isinstance(error, TokenNeeded) or bad_token:
        return _invalid("The token is not valid")
    if isinstance(error, ServiceUnavailable):
        seconds = math.ceil(error.retry_after_seconds or 1)
        return Refusal(503, "It is not known whether the token is revoked", {"Retry-After": str(seconds)})
    return None


def _invalid(detail: str) -> Refusal:
    """RFC 6750 section 3."""
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    return Refusal(401, detail, {"WWW-Authenticate": challenge})
