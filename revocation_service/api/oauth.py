"""`POST /oauth2/revoke` (RFC 7009) and `POST /oauth2/introspect` (RFC 7662).

Errors have the form of RFC 6749 section 5.2, and unknown parameters are ignored (section 3.2).
"""

import math
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote_plus

import structlog
from aiohttp import hdrs, web

from revocation_client.schema import RevokeRequest, SchemaError, issued_at_of
from revocation_service import errors
from revocation_service.api.auth import require_scope
from revocation_service.api.bodies import read_form
from revocation_service.api.dependencies import FIND_CALLER, REVOCATIONS, SETTINGS, FindCaller
from revocation_service.api.revoke import assert_acknowledging
from revocation_service.api_keys import ApiKey
from revocation_service.http.problems import Known, described
from revocation_service.http.responses import json_response
from revocation_service.tokens import Token, is_strings

_KNOWN: Final = frozenset({"token", "token_type_hint", "client_id", "client_secret"})
_UNFIT_IN_DESCRIPTION: Final = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")

_CODES: Final[dict[type[Exception], str]] = {
    errors.Unauthorized: "invalid_client",
    errors.InsufficientScope: "unauthorized_client",
    errors.NotOwnToken: "invalid_grant",
    errors.UnsupportedToken: "unsupported_token_type",
    errors.Unavailable: "temporarily_unavailable",
}
"""The OAuth code of each error; any other is `invalid_request`."""

_log = structlog.get_logger()

Form = Mapping[str, str]
Endpoint = Callable[[web.Request, Form, ApiKey | None], Awaitable[web.Response]]
"""Answers an authenticated request; the key is None in protected mode."""


def _endpoint(endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that reads the form, authenticates the client, and turns errors into OAuth error responses."""

    async def handler(request: web.Request) -> web.Response:
        try:
            form = _parameters(await read_form(request))
            caller = _authenticate(request, form)
            if "token" not in form:
                raise SchemaError("token", "is missing")
            return await endpoint(request, form, caller)
        except (errors.RequestError, errors.Unavailable, SchemaError, web.HTTPException) as error:
            return _error(request, error)

    return handler


@_endpoint
async def revoke(request: web.Request, form: Form, caller: ApiKey | None) -> web.Response:
    """Revoke a token. A malformed or forged token needs no revocation and causes no error (RFC 7009 section 2.2)."""
    only_own = caller is not None and caller.scopes.isdisjoint({"revoke", "admin"})
    if caller is not None:
        require_scope(caller, "revoke-own" if only_own else "revoke")
    name = None if caller is None else caller.name
    revocations = request.app[REVOCATIONS]
    try:
        token = await revocations.read(form["token"])
        if only_own and not (token.verified and token.claims.value_of("client_id") == name):
            raise errors.NotOwnToken("this key may revoke only tokens that were issued to its own name")
        longest = request.app[SETTINGS].limits.max_token_lifetime_seconds if token.exp is None else None
        await revocations.revoke(RevokeRequest("token", token.text, expires_in=longest), name, token)
    except errors.InvalidToken:
        _log.info("invalid_token_not_revoked", revoked_by=name)
    assert_acknowledging(request)
    return web.Response()


@_endpoint
async def introspect(request: web.Request, form: Form, caller: ApiKey | None) -> web.Response:
    """Respond with whether a token is active and, if it is, with its claims."""
    if caller is not None:
        require_scope(caller, "check")
    members: dict[str, Any] = {"active": False}
    with suppress(errors.InvalidToken, errors.UnsupportedToken):
        token = await request.app[REVOCATIONS].read(form["token"])
        if (await request.app[REVOCATIONS].check(token)).active:
            members = _members(token, request.app[SETTINGS].oauth.introspect_claims)
    return json_response(members)


def _authenticate(request: web.Request, form: Form) -> ApiKey | None:
    """Return the API key that authenticates the client; None in protected mode (RFC 6749 section 2.3).

    The name of the key is the `client_id`. Some clients send their credentials both in the header and in the body.
    Raises Unauthorized, InvalidRequest.
    """
    find_caller = request.app[FIND_CALLER]
    if find_caller is None:
        return None
    in_body = {name: form[name] for name in ("client_id", "client_secret") if name in form}
    readings = _in_header(request, find_caller) or [in_body]
    agreed = [each for each in readings if in_body.items() <= each.items()]
    if not agreed:
        raise errors.InvalidRequest("the client's credentials in the header and in the body differ; send them once")
    for credentials in agreed:
        with suppress(errors.Unauthorized):
            caller = find_caller(f"Bearer {credentials.get('client_secret', '')}")
            if caller.name == credentials.get("client_id"):
                return caller
    raise errors.Unauthorized(
        "authenticate with an API key: its name is the client_id, and the key is the client_secret"
    )


def _in_header(request: web.Request, find_caller: FindCaller) -> list[Form]:
    """Return the possible readings of the credentials in the Authorization header; none without the header.

    Some clients form-encode Basic credentials, as RFC 6749 section 2.3.1 requires, and others do not.
    Raises InvalidRequest, Unauthorized.
    """
    headers = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not headers:
        return []
    scheme, _, value = headers[0].partition(" ")
    if len(headers) > 1 or scheme.lower() not in {"basic", "bearer"}:
        raise errors.InvalidRequest("send one Authorization header, Basic or Bearer")
    if scheme.lower() == "bearer":
        return [{"client_id": find_caller(headers[0]).name, "client_secret": value.strip(" ")}]
    with suppress(ValueError):
        client_id, _, secret = b64decode(value.strip(" "), validate=True).decode().partition(":")
        raw = {"client_id": client_id, "client_secret": secret}
        return [raw, {name: unquote_plus(part) for name, part in raw.items()}]
    raise errors.Unauthorized("the Basic credentials are not base64 of client_id:client_secret")


def _members(token: Token, others: Iterable[str]) -> dict[str, Any]:
    """Return the introspection response of an active token (RFC 7662 section 2.2), without claims of a wrong type."""
    payload, value_of = token.payload, token.claims.value_of
    cnf, aud, scope = payload.get("cnf"), payload.get("aud"), payload.get("scope", payload.get("scp"))
    members = {name: payload.get(name) for name in others} | {
        "active": True,
        "token_type": "DPoP" if isinstance(cnf, dict) and "jkt" in cnf else "Bearer",  # RFC 9449 section 6.2
        "cnf": cnf if isinstance(cnf, dict) else None,
        "scope": " ".join(scope) if is_strings(scope) else _text(scope),
        "username": _text(payload.get("preferred_username")),
        "aud": aud if is_strings(aud) else _text(aud),
        "iss": _text(payload.get("iss")),
        "jti": None if payload.get("jti") is None else str(payload["jti"]),
        **{claim: value_of(claim) for claim in ("client_id", "sub", "sid")},
        **{name: _whole_seconds(payload.get(name)) for name in ("exp", "iat", "nbf")},
    }
    return {name: value for name, value in members.items() if value is not None}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole_seconds(value: object) -> int | None:
    """Return a NumericDate as an integer, rounded down, because some resource servers refuse a fraction."""
    seconds = issued_at_of(value)
    return None if seconds is None else math.floor(min(seconds, 2**53 - 1))  # RFC 8259 section 6


def _parameters(fields: Iterable[tuple[str, str]]) -> Form:
    """Return the known parameters. A parameter without a value counts as omitted (RFC 6749 section 3.2)."""
    known = [(name, value) for name, value in fields if name in _KNOWN]
    if len(dict(known)) < len(known):
        raise SchemaError("body", f"has one of {', '.join(sorted(_KNOWN))} twice")
    return {name: value for name, value in known if value}


def _error(request: web.Request, error: Known) -> web.Response:
    """Return an error response (RFC 6749 section 5.2), with the status, headers and detail of a problem response."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "invalid_request")
    status, detail, _code, headers = described(error)
    response = json_response({"error": code, "error_description": _UNFIT_IN_DESCRIPTION.sub("'", detail)}, status)
    response.headers.update(headers)
    if request.headers.get(hdrs.AUTHORIZATION, "").lower().startswith("basic") and status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Basic realm="revocation-service"'
    return response
