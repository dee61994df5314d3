"""How a request is refused over HTTP when its token is; the one table from an error to a status. Pure."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, TokenNeeded, TokenRevoked

BAD_TOKEN: Final = frozenset({"invalid_token", "unsupported_token"})
"""Codes with which the service refuses the token itself, and not its caller."""

RETRY_AFTER_SECONDS: Final = 1.0

_BEARER: Final = re.compile(r"\s*bearer\s+(.*\S)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response: 401 for the token, 503 where it cannot be known whether it is revoked."""

    status: int
    detail: str
    headers: dict[str, str]


NO_TOKEN: Final = Refusal(401, "A bearer token is needed", {"WWW-Authenticate": "Bearer"})
"""What answers a request without a token (RFC 6750 section 3.1: no error code)."""


def refusal(error: RevocationError) -> Refusal | None:
    """Return the response to a request whose token is not accepted; None for a fault of the application (a 500)."""
    if isinstance(error, TokenRevoked):
        return _invalid("The token is revoked")
    if isinstance(error, TokenNeeded) or (isinstance(error, RequestRefused) and error.code in BAD_TOKEN):
        return _invalid("The token is not valid")
    if isinstance(error, ServiceUnavailable):
        seconds = math.ceil(error.retry_after_seconds or RETRY_AFTER_SECONDS)
        return Refusal(503, "Whether the token is revoked cannot be told just now", {"Retry-After": str(seconds)})
    return None


def _invalid(detail: str) -> Refusal:
    """RFC 6750 section 3."""
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    return Refusal(401, detail, {"WWW-Authenticate": challenge})


def bearer_token(headers: Sequence[str]) -> str | None:
    """The token in a request's Authorization headers (RFC 6750 section 2.1); None where there is none.

    Raises RequestRefused where there are several headers: another reader might take another one.
    """
    if len(headers) > 1:
        raise RequestRefused(400, "invalid_token", "there is more than one Authorization header")
    found = _BEARER.match(headers[0]) if headers else None
    return found[1] if found else None
