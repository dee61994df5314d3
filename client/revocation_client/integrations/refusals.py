"""The HTTP response to a request whose token is not accepted: one table from errors to statuses. Pure."""

import math

from revocation_client.errors import RequestRefused, ServiceUnavailable, TokenNeeded, TokenRevoked

ANSWERED = (TokenRevoked, TokenNeeded, ServiceUnavailable, RequestRefused)
"""Errors that may have a response."""


def refusal(error: Exception) -> tuple[dict[str, str], int, dict[str, str]]:
    """Return body, status and headers of the response. Raise the error if the application is at fault (a 500).

    The status is 401 if the token is not accepted (RFC 6750 section 3), and 503 if it may or may not be revoked.
    """
    if isinstance(error, ServiceUnavailable):
        seconds = math.ceil(error.retry_after_seconds or 1)
        return {"detail": "It is not known whether the token is revoked"}, 503, {"Retry-After": str(seconds)}
    if isinstance(error, RequestRefused) and error.code not in ("invalid_token", "unsupported_token"):
        raise error
    detail = "The token is revoked" if isinstance(error, TokenRevoked) else "The token is not valid"
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    return {"detail": detail}, 401, {"WWW-Authenticate": challenge}
