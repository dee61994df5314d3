"""The header fields that tell a client about its limit. Pure.

`RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-11. Times are rounded up, so that
an attempt at that time is not too early.
"""

from math import ceil

from revocation_service.store.windows import RateLimitResult, Window


def rate_headers(name: str, window: Window, result: RateLimitResult) -> dict[str, str]:
    """Return the fields for the limit called `name`, with `Retry-After` if the attempt was denied."""
    seconds = max(ceil(result.frees_in), 1)
    headers = {
        "X-RateLimit-Limit": str(window.limit),
        "X-RateLimit-Remaining": str(result.remaining),
        "X-RateLimit-Reset": str(ceil(result.now + result.frees_in)),
        "RateLimit-Policy": f'"{name}";q={window.limit};w={ceil(window.seconds)}',
        "RateLimit": f'"{name}";r={result.remaining};t={seconds}',
    }
    return headers if result.admitted else headers | {"Retry-After": str(seconds)}
