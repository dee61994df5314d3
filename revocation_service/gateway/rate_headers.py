"""What a client is told of its limits: the fields, and the answer where a limit is reached. Pure.

`RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-11. `Retry-After`, `t` and
`X-RateLimit-Reset` are rounded up, so that an attempt made then is not too early.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from aiohttp import web

from revocation_service.gateway.settings import Rate
from revocation_service.http.problems import problem
from revocation_service.store.windows import Tally

RATE_HEADERS: Final = web.RequestKey("rate_headers", dict[str, str])
"""What the answer to a request carries, whoever gives it."""

OURS: Final = (
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "RateLimit",
    "RateLimit-Policy",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
)
"""The names under which a client looks for a limit; what the upstream says under them of a login is replaced."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One limit, and how an attempt fared with it."""

    limit: str
    rate: Rate
    tally: Tally

    @property
    def retry_after_seconds(self) -> int:
        """When a further attempt can be admitted, in whole seconds."""
        return max(ceil(self.tally.frees_in), 1)


def rate_headers(judged: Sequence[Judged]) -> dict[str, str]:
    """The fields for all limits that were asked; `X-RateLimit` speaks of the one that leaves least."""
    tightest = min(judged, key=lambda one: (one.tally.admitted, one.tally.remaining))
    tally = tightest.tally
    return {
        "X-RateLimit-Limit": str(tightest.rate.count),
        "X-RateLimit-Remaining": str(tally.remaining),
        "X-RateLimit-Reset": str(ceil(tally.now + tally.frees_in)),
        "RateLimit-Policy": ", ".join(f'"{one.limit}";q={one.rate.count};w={ceil(one.rate.seconds)}' for one in judged),
        "RateLimit": ", ".join(f'"{one.limit}";r={one.tally.remaining};t={one.retry_after_seconds}' for one in judged),
    }


def too_many(denied: Judged, headers: Mapping[str, str], detail: str, code: str = "too_many_attempts") -> web.Response:
    """The answer to an attempt too many (RFC 6585 section 4)."""
    told = {**headers, "Retry-After": str(denied.retry_after_seconds)}
    return problem(429, detail, code, told)
