"""`/forward-auth`: tells a gateway whether to pass a request on to the application.

nginx, Traefik, Caddy, Envoy, Istio, HAProxy and APISIX send the headers of the request to this path or to one below it,
with any method; docs/gateways.md configures them. 200 allows, 401 refuses, 403 refuses the gateway itself, and 503
means that it is unknown whether the token is revoked.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Final
from urllib.parse import parse_qsl, quote

from aiohttp import hdrs, web

from revocation_service import errors
from revocation_service.api.auth import require_scope
from revocation_service.api.dependencies import FIND_CALLER, GATEWAY_REFUSED, REVOCATIONS, SETTINGS
from revocation_service.http.problems import problem, problem_of
from revocation_service.settings import ForwardAuthSettings
from revocation_service.tokens import is_strings

PATIENCE_SECONDS: Final = 0.1
"""How long Redis may take if the mirror can answer in its place; Envoy waits 0.2 s by default."""

_CREDENTIALS: Final = re.compile(r"(bearer|basic)(?: +(.*))?", re.IGNORECASE)
_URI_FIELDS: Final = ("X-Forwarded-Uri", "X-Original-URI")
_ANY: Final = "(?s:.*)"
"""Any path, also one with a line break."""
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


def forward_auth_routes(path: str) -> list[web.RouteDef]:
    """Return the routes of a forward-auth endpoint: any method, at this path and below it."""
    handler = partial(_respond, optional=path.endswith("/optional"))
    return [web.route("*", each, handler, expect_handler=_no_continue) for each in (path, f"{path}/{{path:{_ANY}}}")]


async def _no_continue(_request: web.Request) -> None:
    """Ignore `Expect: 100-continue`: no body is read."""


async def _respond(request: web.Request, *, optional: bool) -> web.Response:
    """Respond without reading a body: nginx passes on the original body's length, but not the body."""
    try:
        response = await _decide(request, optional=optional)
    except (errors.GatewayKeyRefused, errors.Unavailable) as error:
        response = problem_of(error)
    if request.body_exists:
        response.force_close()
    return response


async def _decide(request: web.Request, *, optional: bool) -> web.Response:
    """Return the response. Raises GatewayKeyRefused, Unavailable."""
    settings, revocations = request.app[SETTINGS].forward_auth, request.app[REVOCATIONS]
    _authorize_gateway(request, settings)
    tokens = {*_tokens(request, settings)}
    if not tokens and optional:
        return _allowed(settings, {})
    if not tokens:
        return _refused("Bearer", "the request has no token", "token_required")
    if len(tokens) == 1:
        with suppress(errors.InvalidToken, errors.UnsupportedToken):
            token = await revocations.read(tokens.pop())
            verdict = await revocations.check(token, PATIENCE_SECONDS)
            if verdict.active:
                return _allowed(settings, token.payload)
            if settings.unverified and not token.verified and verdict.revocation is None:
                return _allowed(settings, {})
    detail = "the token is malformed, not valid at present or here, or revoked; or there are two tokens"
    return _refused('Bearer error="invalid_token"', detail, "invalid_token")


def _authorize_gateway(request: web.Request, settings: ForwardAuthSettings) -> None:
    """Raise GatewayKeyRefused unless the gateway's own key allows it to check."""
    find_caller, keys = request.app[FIND_CALLER], request.headers.getall("X-Revocation-Key", [])
    if find_caller is None or (settings.keyless and not keys):
        return
    try:
        require_scope(find_caller(f"Bearer {keys[0]}" if len(keys) == 1 else ""), "check")
    except (errors.Unauthorized, errors.InsufficientScope) as error:
        request.app[GATEWAY_REFUSED].occurred(code=error.code)
        detail = "the gateway must send one X-Revocation-Key, which holds an API key with the scope check"
        raise errors.GatewayKeyRefused(detail) from None


def _tokens(request: web.Request, settings: ForwardAuthSettings) -> Iterator[str]:
    """Yield every token in the request, because the application might read any of them.

    An empty string stands for credentials that the application might understand, although this function does not.
    """
    fields = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(fields) > 1:
        yield ""
    for field in filter(None, map(str.strip, fields)):
        credentials = _CREDENTIALS.fullmatch(field)
        if credentials is None or credentials[1].lower() == "bearer":
            yield (credentials and credentials[2]) or ""
    if settings.cookie:
        yield from filter(None, _cookies(";".join(request.headers.getall(hdrs.COOKIE, [])), settings.cookie))
    for uri in chain.from_iterable(request.headers.getall(name, []) for name in _URI_FIELDS):
        yield from (value for name, value in _parameters(uri) if name == settings.query)


def _parameters(uri: str) -> list[tuple[str, str]]:
    """Return the query parameters of a URI. Split at `;` too, and read on after `#`, as some applications do."""
    return parse_qsl(re.sub("[;#]", "&", uri.partition("?")[2]))


def _cookies(field: str, name: str) -> list[str]:
    """Return all values of the cookie `name`. As in `http.cookies`, a comma or white space also ends a value."""
    return re.findall(rf"(?<![^;,\s]){re.escape(name)}\s*=\s*([^;,\s]*)", field)


def _allowed(settings: ForwardAuthSettings, payload: Mapping[str, object]) -> web.Response:
    """Return a response with every identity header. If one is missing, some gateways pass on what the client sent."""
    return web.Response(headers={name: header_value(payload.get(claim)) for name, claim in settings.headers})


def _refused(challenge: str, detail: str, code: str) -> web.Response:
    """Return a refusal (RFC 6750 section 3)."""
    return problem(401, detail, code, {hdrs.WWW_AUTHENTICATE: challenge})


def header_value(value: object) -> str:
    """Return a claim as printable ASCII, other characters percent-encoded. Objects, fractions and null become empty.

    Spaces separate the elements of a list. If a string begins or ends with a space, all its spaces are encoded, because
    HTTP would drop the outer ones.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    words = value if is_strings(value) else [value] if isinstance(value, str) else []
    safe = _PRINTABLE + " " if isinstance(value, str) and value == value.strip(" ") else _PRINTABLE
    return " ".join(quote(word, safe, errors="surrogatepass") for word in words)
