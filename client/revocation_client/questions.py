"""Turn an application's arguments into questions and revocations for the service. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from revocation_client.claims import Claims
from revocation_client.errors import RequestRefused, TokenNeeded
from revocation_client.jwt_reader import Token, TokenError, claims_of, read_token, stated_name
from revocation_client.schema import SchemaError, check_value, dumps, parse_revoke


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """One question."""

    form: dict[str, Any]
    """The question as the members of its JSON."""
    max_bytes: int
    """Upper bound on the size of that JSON. An estimate for claims: to encode them took a fifth of a check."""
    claims: Claims
    token: Token | None = None
    """The token, if the question is a whole token."""


def check_request(question: str | Mapping[str, object], token: str | None = None) -> CheckRequest:
    """Return the question about a whole token, or about verified claims. Claims without a usable `jti` need `token`.

    Raises TokenNeeded if such claims come without `token`, and RequestRefused for what the service would refuse.
    """
    try:
        if isinstance(question, str) and token is None:
            read = read_token(question)
            form: dict[str, Any] = {"token": read.text}
            return CheckRequest(form, len(dumps(form)), read.claims, read)
        if not isinstance(question, Mapping):
            raise TypeError(
                "a question is a token (str), or its claims (a mapping), perhaps with the token beside them"
            )
        name = None if question.get("jti") == "" else stated_name(question)
        if name is None and token is not None:
            name = read_token(token).name
        if name is None:
            raise TokenNeeded
        claims = claims_of(question, name)
    except (TokenError, SchemaError) as error:
        raise _refused(error, "invalid_token") from None
    form = {name: value for name, value in claims.identifiers if value}
    form["iat"] = claims.iat  # so that revocations of every token are considered
    return CheckRequest(form, _max_bytes(claims), claims)


def check_request_by_jti(jti: str) -> CheckRequest:
    """Return the question about a token of which only the `jti` is known. Raises RequestRefused."""
    try:
        claims = Claims.of(jti=check_value("jti", jti))
    except SchemaError as error:
        raise _refused(error, "invalid_token") from None
    return CheckRequest({"jti": jti}, _max_bytes(claims), claims)


def _max_bytes(claims: Claims) -> int:
    size = 64
    for _claim, value in claims.identifiers:
        size += 32 + 4 * len(value)
    return size


def revoke_target(form: Mapping[str, object]) -> tuple[str, str]:
    """Return the claim and the value that a request revokes. Raises RequestRefused if the request is invalid."""
    try:
        asked = parse_revoke(form)
        return ("jti", read_token(asked.value).name) if asked.claim == "token" else (asked.claim, asked.value)
    except (TokenError, SchemaError) as error:
        raise _refused(error, "invalid_request") from None


def _refused(error: TokenError | SchemaError, code: str) -> RequestRefused:
    return RequestRefused(400, error.code if isinstance(error, TokenError) else code, str(error))
