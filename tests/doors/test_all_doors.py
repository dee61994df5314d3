"""Tests that cover all optional endpoints: several instances, the log, and requests from browsers."""

import pytest
from structlog.testing import capture_logs

from tests.api.serving import KEYS, Service, Start, bearer
from tests.doors.forward_auth import GATEWAY, ask
from tests.doors.oauth import introspect, revoke
from tests.doors.world import DOORS, ODD_KEY, basic, token


async def test_a_revocation_at_one_instance_counts_at_the_next_request_to_another(start: Start) -> None:
    """After `/oauth2/revoke` at one instance, forward auth and introspection at another refuse the token at once."""
    one = await start(**DOORS)
    other = await start(**DOORS, KEY_PREFIX=one.settings.store.key_prefix)
    for jti, revoking, asked in (("a", one, other), ("b", other, one)):
        raw = token(jti=jti)
        assert (await ask(asked, raw, **GATEWAY)).status == 200
        assert (await introspect(asked, raw))["active"]
        await revoke(revoking, raw)
        assert (await ask(asked, raw, **GATEWAY)).status == 401
        assert await introspect(asked, raw) == {"active": False}


async def test_the_start_logs_the_open_doors(start: Start) -> None:
    """The event `open_doors` at the start lists the paths of the open optional endpoints."""
    with capture_logs() as logged:
        await start(**DOORS)
    (opened,) = [each["paths"] for each in logged if each["event"] == "open_doors"]
    assert opened == (
        "/forward-auth",
        "/forward-auth/optional",
        "/oauth2/revoke",
        "/oauth2/introspect",
        "/openapi.json",
        "/docs",
    )


async def test_the_log_holds_no_token_no_key_and_no_query(start: Start) -> None:
    """Even at level debug, the log of allowed and refused requests holds no token, no API key and no query."""
    service = await start(**DOORS, LOG_LEVEL="debug")
    tokens = [
        token(jti="first-of-all"),
        token(exp=1_000_000_000),
        "eyJhbGciOiJub25lIn0.malformed-payload.malformed-signature",
        "opaque-2YotnFZFEjr1z",
    ]
    with capture_logs() as logged:
        for raw in tokens:
            headers = {**GATEWAY, "Cookie": f"access_token={raw}", "X-Forwarded-Uri": f"/?access_token={raw}"}
            await ask(service, raw, f"/forward-auth/a?secret={raw}", **headers)
            await ask(service, raw, X_Revocation_Key=ODD_KEY[:-1])
            await introspect(service, raw)
            await service.form("/oauth2/introspect", {"token": raw}, headers=basic("odd", ODD_KEY[:-1]))
            await revoke(service, raw, client_id="odd", client_secret=ODD_KEY[:-1])
            await revoke(service, raw)
    text = str(logged)
    assert {each["route"] for each in logged if each["event"] == "request"} >= {
        "/forward-auth/{path}",
        "/oauth2/introspect",
        "/oauth2/revoke",
    }
    for secret in (*(part for raw in tokens for part in raw.split(".")[1:]), tokens[-1], KEYS["checker"], ODD_KEY[:-1]):
        assert secret not in text
    assert "?" not in text


@pytest.mark.parametrize("path", ["/forward-auth", "/oauth2/revoke", "/oauth2/introspect", "/openapi.json", "/docs"])
async def test_no_door_answers_other_origins(service: Service, path: str) -> None:
    """No response to another origin has a CORS header, not even to a preflight, and none may be cached."""
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST", **GATEWAY, **bearer("both")}
    for method in ("OPTIONS", "GET", "POST"):
        answer = await service.request(method, path, headers=asked)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert answer.headers["Cache-Control"] == "no-store"
