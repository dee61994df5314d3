"""Who may call: API keys with scopes; without any, protected mode, which serves plainly local requests alone."""

import re
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from revocation_service.api_keys import ApiKey, Scope
from revocation_service.errors import InsufficientScope, ProtectedMode, Unauthorized
from revocation_service.forwarding import is_forwarding
from revocation_service.settings import Settings, is_loopback

Authorize = Callable[[web.Request, Scope], str | None]
"""Lets a request pass that may use a scope, and says the caller's name; raises CallerError for any other."""

PROVEN_PER_KEY: Final = 4

_BEARER: Final = re.compile(r"bearer +([^\s]+)\s*", re.IGNORECASE | re.ASCII)
_LOCAL_NAMES: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_LOCAL_FETCHES: Final = {"same-origin", "none"}
_WAY_OUT: Final = "; to serve others, set REVOCATION_API_KEYS (`revocation-service new-key NAME SCOPES` makes one)"


class Callers:
    """The callers that have a key."""

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys
        self._proven: dict[str, ApiKey] = {}
        """Headers that carried a key before. Python's hash of a string is keyed (PEP 456), so that a guess is not found
        here tells nobody how much of it was right."""

    def authorize(self, request: web.Request, scope: Scope) -> str | None:
        """The name of the caller whose key the request carries (RFC 6750 section 2.1).

        Raises Unauthorized, InsufficientScope.
        """
        caller = self._caller(request.headers.getall(hdrs.AUTHORIZATION, []))
        if scope not in caller.scopes and "admin" not in caller.scopes:
            raise InsufficientScope(f"this needs a key with the scope {scope}", scope=scope)
        return caller.name

    def _caller(self, headers: list[str]) -> ApiKey:
        if len(headers) != 1:
            raise Unauthorized("send Authorization: Bearer <api key>, once")
        return self._proven.get(headers[0]) or self._prove(headers[0])

    def _prove(self, header: str) -> ApiKey:
        presented = _BEARER.fullmatch(header)
        digest = sha256(presented[1].encode("utf-8", "surrogateescape")).digest() if presented else b""
        found = None
        for key in self._keys:  # all of them, so that the time taken says nothing
            if compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthorized("this API key is not known")
        if len(self._proven) < PROVEN_PER_KEY * len(self._keys):
            self._proven[header] = found
        return found


def admit_local(request: web.Request) -> None:
    """Raise ProtectedMode unless the request plainly comes from this machine.

    A proxy that speaks HTTP/1.1, sends a local Host and adds no field of its own cannot be told from a local client.
    """
    transport = request.transport
    ends = [] if transport is None else [transport.get_extra_info(end) for end in ("peername", "sockname")]
    if not ends or not all(isinstance(end, tuple) and is_loopback(end[0]) for end in ends):
        raise ProtectedMode("there are no API keys, so only loopback is served" + _WAY_OUT)
    if any(is_forwarding(name) or name == b"via" for name in (raw.lower() for raw, _ in request.raw_headers)):
        raise ProtectedMode("there are no API keys, so nothing is taken from a proxy" + _WAY_OUT)
    if request.version < HttpVersion11:  # nginx before 1.29.7, which by default adds nothing else
        raise ProtectedMode("there are no API keys, so HTTP/1.0, which proxies speak, is refused" + _WAY_OUT)
    headers = request.headers
    if not request.raw_path.startswith("/"):  # for a proxy, and its host would count (RFC 9112 section 3.2.2)
        raise ProtectedMode("there are no API keys, so the request target must begin with /" + _WAY_OUT)
    hosts = headers.getall("Host", [])
    if len(hosts) != 1 or not _LOCAL_NAMES.fullmatch(hosts[0]):
        raise ProtectedMode("there are no API keys, so Host must be localhost, 127.0.0.1 or [::1]" + _WAY_OUT)
    origins = headers.getall("Origin", [])
    if any(origin.lower() != f"http://{hosts[0]}".lower() for origin in origins):
        raise ProtectedMode("there are no API keys, so no other web page may ask" + _WAY_OUT)
    if any(site not in _LOCAL_FETCHES for site in headers.getall("Sec-Fetch-Site", [])):
        raise ProtectedMode("there are no API keys, so no other web page may ask" + _WAY_OUT)


def authorizer(settings: Settings) -> Authorize:
    """How callers are judged: by their keys; with none configured, whoever protected mode let in may do all."""
    return _anybody if settings.protected else Callers(settings.api_keys).authorize


def _anybody(_request: web.Request, _scope: Scope) -> None:
    """Protected mode judges every request before a handler is asked, whichever route it names."""
