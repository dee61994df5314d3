"""Tests that the running service behaves as `/openapi.json` describes."""

import asyncio
from typing import Any

import pytest
from hypothesis import Phase, given, seed, settings as hypothesis_settings

from revocation_service.api.bodies import FORM, JSON
from tests.api.serving import KEYS, Service, Start
from tests.doors.test_openapi import DOCUMENT
from tests.doors.world import DOORS, basic, token
from tests.scale import scaled

schemathesis = pytest.importorskip("schemathesis")
CHECKS = pytest.importorskip("schemathesis.checks").CHECKS

CONFORMANCE = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
EXAMPLES = scaled(12, 1_000)
BEARER = {"Authorization": f"Bearer {KEYS['ops']}"}
GATEWAY = {"X-Revocation-Key": KEYS["checker"]}


@pytest.mark.parametrize("path", [path for path in DOCUMENT["paths"] if path != "/feed"])  # /feed never ends
async def test_generated_requests_meet_what_is_documented(service: Service, path: str) -> None:
    """Random valid and invalid requests get no 5xx, and responses that fit the document (status, headers, body)."""
    headers = {**GATEWAY, "Authorization": f"Bearer {token()}"} if path.startswith("/forward-auth") else BEARER
    statuses = await asyncio.to_thread(_generated, service, path, headers)
    assert path == "/revocations" or 200 in statuses
    assert max(statuses) < 500


def _generated(service: Service, path: str, headers: dict[str, str]) -> set[int]:
    seen: set[int] = set()
    for method, definition in DOCUMENT["paths"][path].items():
        operation = _schema(service)[path][method]
        has_input = {"parameters", "requestBody"} & definition.keys()
        for mode in schemathesis.GenerationMode if has_input else [schemathesis.GenerationMode.POSITIVE]:

            @seed(17)
            @hypothesis_settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate])
            @given(case=operation.as_strategy(generation_mode=mode))
            def generated(case: Any) -> None:
                seen.add(_call(case, headers))

            generated()
    return seen


def _schema(service: Service) -> Any:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.update(base_url=str(service.url).rstrip("/"))
    return schema


def _call(case: Any, headers: dict[str, str]) -> int:
    response = case.call(headers=headers)
    case.validate_response(response, checks=CHECKS.get_by_names(CONFORMANCE))
    status: int = response.status_code
    return status


FULL = token(
    jti="full", sid="s", client_id="web", preferred_username="al", scope=["a"], iat=1, nbf=1, cnf={"jkt": "x"}, tenant=1
)
KNOWN: list[tuple[str, str, dict[str, Any], dict[str, str], int]] = [
    ("/revoke", "POST", {"body": {"token": token(jti="a"), "reason": "logout"}}, BEARER, 200),
    ("/revoke", "POST", {"body": {"sub": "bob", "issued_before": 1000}}, BEARER, 200),
    ("/revoke", "POST", {"body": {"jti": "a", "exp": 1}}, BEARER, 200),
    ("/revoke", "POST", {"body": {"jti": "a", "exp": 1e12}}, BEARER, 400),
    ("/revoke", "POST", {"body": {"jti": "a"}}, {}, 401),
    ("/revoke", "POST", {"body": {"jti": "a"}}, {"Authorization": f"Bearer {KEYS['checker']}"}, 403),
    ("/check", "POST", {"body": {"token": token(jti="gone")}}, BEARER, 200),
    ("/check", "POST", {"body": {"sub": "carol"}}, BEARER, 200),
    ("/check", "GET", {"query": {"jti": "gone"}}, BEARER, 200),
    ("/check/batch", "POST", {"body": {"checks": [{"jti": "gone"}, {"token": "a.b.c"}, {"sid": "x"}]}}, BEARER, 200),
    ("/revocations", "GET", {"query": {"claim": "jti", "value": "gone"}}, BEARER, 200),
    ("/revocations", "GET", {"query": {"claim": "sub", "value": "carol"}}, BEARER, 200),
    ("/revocations", "GET", {"query": {"claim": "jti", "value": "none"}}, BEARER, 404),
    ("/feed", "GET", {}, {}, 401),
    ("/oauth2/introspect", "POST", {"body": {"token": FULL}}, BEARER, 200),
    ("/oauth2/introspect", "POST", {"body": {"token": token(jti="gone")}}, BEARER, 200),
    ("/oauth2/introspect", "POST", {"body": {"token": FULL}}, basic("ops", "wrong"), 401),
    ("/oauth2/revoke", "POST", {"body": {"token": "a.b.c.d.e"}}, BEARER, 400),
    ("/oauth2/revoke", "POST", {"body": {"token": FULL}}, {"Authorization": f"Bearer {KEYS['checker']}"}, 403),
    ("/forward-auth", "GET", {}, {**GATEWAY, "Authorization": f"Bearer {FULL}"}, 200),
    ("/forward-auth", "GET", {}, {**GATEWAY, "Authorization": f"Bearer {token(jti='gone')}"}, 401),
    ("/forward-auth", "GET", {}, GATEWAY, 401),
    ("/forward-auth", "GET", {}, {"Authorization": f"Bearer {FULL}"}, 403),
    ("/forward-auth/optional", "GET", {}, GATEWAY, 200),
]


def _case(schema: Any, path: str, method: str, parts: dict[str, Any]) -> Any:
    media_type = {"media_type": FORM if path.startswith("/oauth2") else JSON} if "body" in parts else {}
    return schema[path][method].Case(**parts, **media_type)


async def test_known_requests_meet_what_is_documented(service: Service) -> None:
    """Responses that random requests rarely get fit the document too: revoked, active, every member, refusals."""
    await service.revoke({"jti": "gone", "expires_in": 600, "reason": "logout"})
    await service.revoke({"sub": "carol"})
    schema = _schema(service)
    for path, method, given_parts, headers, expected in KNOWN:
        case = _case(schema, path, method, given_parts)
        assert await asyncio.to_thread(_call, case, headers) == expected, (path, given_parts)


async def test_without_redis_the_responses_are_the_documented_ones(start_without_redis: Start) -> None:
    """Without Redis, `/readyz` and requests that would otherwise succeed get 503, each in its documented form."""
    service = await start_without_redis(**DOORS)
    schema = _schema(service)
    checks = CHECKS.get_by_names([name for name in CONFORMANCE if name != "not_a_server_error"])
    good = {row[0]: row for row in KNOWN if row[4] == 200 and "optional" not in row[0]}
    for path, method, given_parts, headers, _ in good.values():
        case = _case(schema, path, method, given_parts)
        response = await asyncio.to_thread(case.call, headers=headers)
        case.validate_response(response, checks=checks)
        assert response.status_code == 503, path
    response = await asyncio.to_thread(schema["/readyz"]["GET"].Case().call)
    schema["/readyz"]["GET"].Case().validate_response(response, checks=checks)
    assert response.status_code == 503
