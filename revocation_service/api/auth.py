"""Authorize requests by API keys with scopes. Without keys (protected mode), serve local requests only."""

import re
from asyncio import BaseTransport
from functools import lru_cache, partial
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from revocation_service.api.dependencies import FIND_CALLER, FindCaller
from revocation_service.api_keys import ApiKey, Scope
from revocation_service.errors import InsufficientScope, ProtectedMode, Unauthorized
from revocation_service.http.middleware import Handler
from revocation_service.settings import is_loopback

_LOCAL_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_PROXY_FIELDS: Final = ("forwarded", "x-forward", "via", "x-real-ip", "x-client-ip", "true-client-ip")
"""Beginnings of the names of header fields that proxies add."""

_REFUSED: Final = (
    "there are no API keys, so only requests from this machine are served: over HTTP/1.1, with the Host localhost,"
    " 127.0.0.1 or [::1], and neither through a proxy nor from another web page; to serve others, set"
    " REVOCATION_API_KEYS (`revocation-service new-key NAME SCOPES` makes one)"
)


def authorize(request: web.Request, scope: Scope) -> str | None:
    """Return the name of the caller's key; None in protected mode, where every admitted request may do everything.

    Raises Unauthorized, InsufficientScope.
    """
    if (find_caller := request.app[FIND_CALLER]) is None:
        return None
    headers = request.headers.getall(hdrs.AUTHORIZATION, [])
    caller = find_caller(headers[0] if len(headers) == 1 else "")
    require_scope(caller, scope)
    return caller.name


def require_scope(caller: ApiKey, scope: Scope) -> None:
    """Raise InsufficientScope unless the key has this scope, or `admin`."""
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise InsufficientScope(f"this needs a key with the scope {scope}", scope=scope)


def caller_finder(keys: tuple[ApiKey, ...]) -> FindCaller | None:
    """Return a function that finds the key in an Authorization header or raises Unauthorized; None without keys.

    Headers that held a key are cached, because finding the key takes a twelfth of the time of a check. Python's string
    hashes are keyed for each process (PEP 456), so the time of a cache lookup tells nothing about a guessed key.
    """
    return lru_cache(maxsize=4 * len(keys))(partial(_caller, keys)) if keys else None


def _caller(keys: tuple[ApiKey, ...], header: str) -> ApiKey:
    """Return the key in this header (RFC 6750 section 2.1). Compare all keys, to hide from timing which one matched."""
    scheme, _, presented = header.partition(" ")
    digest = sha256(presented.strip(" ").encode("utf-8", "surrogateescape")).digest()
    found = [key for key in keys if compare_digest(key.digest, digest)]
    if not found or scheme.lower() != "bearer":
        raise Unauthorized("send Authorization: Bearer <api key>, once, with a key that this service knows")
    return found[0]


@web.middleware
async def protected_mode(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request that may come from another machine, a proxy or another web page. Raises ProtectedMode.

    A proxy that speaks HTTP/1.1, sends a local Host and adds no field of its own looks like a local client. At
    `/forward-auth` only the connection counts.
    """
    relayed = request.path.startswith("/forward-auth")  # by a gateway on this machine, with the fields of others
    if not _over_loopback(request.transport) or not (relayed or _is_local(request)):
        raise ProtectedMode(_REFUSED)
    return await handler(request)


def _is_local(request: web.Request) -> bool:
    """Return True if no header field shows that another machine, a proxy or another web page is involved."""
    hosts = request.headers.getall(hdrs.HOST, [])
    return not (
        any(name.lower().startswith(_PROXY_FIELDS) for name in request.headers)
        or request.version < HttpVersion11  # nginx before 1.29.7, which by default adds nothing else
        or not request.raw_path.startswith("/")  # its host would replace the Host field (RFC 9112 section 3.2.2)
        or len(hosts) != 1
        or not _LOCAL_HOST.fullmatch(hosts[0])
        or any(each.lower() != f"http://{hosts[0]}".lower() for each in request.headers.getall(hdrs.ORIGIN, []))
        or any(each not in {"same-origin", "none"} for each in request.headers.getall("Sec-Fetch-Site", []))
    )


def _over_loopback(transport: BaseTransport | None) -> bool:
    ends = [] if transport is None else [transport.get_extra_info(end) for end in ("peername", "sockname")]
    return bool(ends) and all(isinstance(end, tuple) and is_loopback(end[0]) for end in ends)
