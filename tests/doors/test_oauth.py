"""What `POST /oauth2/revoke` (RFC 7009) revokes, and what `POST /oauth2/introspect` (RFC 7662) says."""

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from structlog.testing import capture_logs

from tests.api.serving import Service, Start
from tests.doors.oauth import JWE, OPAQUE, error, introspect, is_revoked, revoke
from tests.doors.world import AUDIENCE, DOORS, ISSUER, OWN_KEY, basic, token
from tests.unit.reencodings import Issuer, b64url, issuer, reencodings

# Revocation


@pytest.mark.parametrize("raw", [token(jti="a"), token(sub="bob"), token(exp=None, jti="c"), OPAQUE])
async def test_a_revoked_token_is_revoked_everywhere(service: Service, raw: str) -> None:
    """Each of two revocations gets 200 without a body. `/check` and introspection then refuse the token."""
    for _ in range(2):
        answer = await revoke(service, raw, token_type_hint="refresh_token")
        assert (answer.status, answer.body) == (200, b"")
        assert await is_revoked(service, raw)
        assert await introspect(service, raw) == {"active": False}


@pytest.mark.parametrize("raw", [token(exp=None, jti="c"), OPAQUE])
async def test_a_token_without_exp_is_revoked_for_the_longest_lifetime(start: Start, raw: str) -> None:
    """The revocation of a token without `exp` lasts for the maximum token lifetime of the settings."""
    service = await start(**DOORS, MAX_TOKEN_LIFETIME_SECONDS="1000")
    await revoke(service, raw)
    expires_at = (await service.check({"token": raw}))["revocation"]["expires_at"]
    assert expires_at == pytest.approx(time.time() + 1000, abs=20)


@pytest.mark.parametrize("raw", [token(exp=1_000_000_000), token() + "=", "a.b.c", issuer("ES256").sign({"jti": "a"})])
async def test_a_token_that_nobody_can_use_is_a_success(service: Service, raw: str) -> None:
    """Expired, malformed and forged tokens get 200, and nothing is stored. The last two kinds are logged."""
    with capture_logs() as logged:
        assert (await revoke(service, raw)).status == 200
    assert await service.stored_keys() == set()
    told = "invalid_token_not_revoked" in [each["event"] for each in logged]
    assert told == (raw != token(exp=1_000_000_000))


async def test_what_can_never_be_revoked_is_said(service: Service) -> None:
    """An encrypted token gets `unsupported_token_type`. One that would outlive any revocation gets 400 too."""
    assert error(await revoke(service, JWE)) == (400, "unsupported_token_type")
    raw = token(exp=int(time.time()) + 10**8)
    assert error(await revoke(service, raw)) == (400, "invalid_request")
    assert not await is_revoked(service, raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (token(client_id="mobile"), 200),
        (token(azp="mobile"), 200),
        (token(client_id="web", azp="mobile"), 400),
        (token(client_id="web"), 400),
        (token(), 400),
        (OPAQUE, 400),
    ],
)
async def test_revoke_own_is_limited_to_tokens_of_the_client(service: Service, raw: str, expected: int) -> None:
    """A `revoke-own` key revokes only verified tokens of its own client. Other tokens get `invalid_grant`."""
    answer = await service.form("/oauth2/revoke", {"token": raw}, headers=basic("mobile", OWN_KEY))
    assert answer.status == expected
    assert await is_revoked(service, raw) == (expected == 200)
    if expected == 400:
        assert error(answer) == (400, "invalid_grant")


async def test_revoke_own_opens_nothing_else(service: Service) -> None:
    """A `revoke-own` key is refused by `/revoke`, `/check` and introspection, and stores nothing for a forged token."""
    own = {"Authorization": f"Bearer {OWN_KEY}"}
    assert (await service.post("/revoke", {"jti": "a"}, headers=own)).status == 403
    assert (await service.get("/check", {"jti": "a"}, headers=own)).status == 403
    answer = await service.form("/oauth2/introspect", {"token": "a"}, headers=own)
    assert error(answer) == (403, "unauthorized_client")
    forged = Issuer("HS256", "f" * 64, "").sign({"client_id": "mobile", "jti": "a", "iss": ISSUER, "aud": AUDIENCE})
    assert (await service.form("/oauth2/revoke", {"token": forged}, headers=own)).status == 200
    assert await service.stored_keys() == set()


async def test_the_name_of_the_key_is_the_actor(service: Service) -> None:
    """A revocation through OAuth has the name of the client's API key as `revoked_by`."""
    raw = token(client_id="mobile")
    await service.form("/oauth2/revoke", {"token": raw}, headers=basic("mobile", OWN_KEY))
    assert (await service.check({"token": raw}))["revocation"]["revoked_by"] == "mobile"


# Introspection


async def test_an_active_token_is_described(start: Start) -> None:
    """Introspection shows only standard claims, `sid` and those that a setting names, with times in whole seconds."""
    service = await start(**DOORS, OAUTH_INTROSPECT_CLAIMS="tenant,missing")
    now = int(time.time())
    shown: dict[str, Any] = {"jti": "j", "sid": "s", "client_id": "web", "scope": "read write", "tenant": 7}
    times: dict[str, Any] = {"iat": now - 0.5, "nbf": now - 0.25, "exp": now + 60.75}
    raw = token(**shown, **times, azp="other", preferred_username="al", email="al@example.com")
    usual = {"active": True, "token_type": "Bearer", "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "username": "al"}
    whole = {"iat": now - 1, "nbf": now - 1, "exp": now + 60}
    assert await introspect(service, raw) == {**usual, **shown, **whole}


@pytest.mark.parametrize(
    ("claims", "members"),
    [
        ({"scope": ["read", "write"]}, {"scope": "read write"}),
        ({"scp": "read"}, {"scope": "read"}),
        ({"scp": ["read"]}, {"scope": "read"}),
        ({"scope": 7, "iat": "now", "preferred_username": ["x"]}, {}),
        ({"azp": "web"}, {"client_id": "web"}),
        ({"sub": "42", "jti": "sha256:mine"}, {"sub": "42", "jti": "sha256:mine"}),
        ({"aud": ["api", "other"]}, {"aud": ["api", "other"]}),
        ({"cnf": {"jkt": "x"}}, {"token_type": "DPoP", "cnf": {"jkt": "x"}}),
        ({"cnf": {"x5t#S256": "x"}}, {"cnf": {"x5t#S256": "x"}}),
        ({"active": False}, {}),
    ],
)
async def test_members_have_the_form_of_the_standard(
    service: Service, claims: dict[str, Any], members: dict[str, Any]
) -> None:
    """Introspection joins lists of scopes, omits members of a wrong type, and shows `cnf` for a bound token."""
    said = await introspect(service, token(exp=4_000_000_000, **claims))
    usual = {
        "active": True,
        "token_type": "Bearer",
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": 4_000_000_000,
    }
    assert said == {**usual, **members}


async def test_a_lone_surrogate_is_escaped_as_it_is_in_the_token(start: Start) -> None:
    """A lone surrogate in a claim, which strict UTF-8 cannot encode, comes back unchanged in the response."""
    service = await start(**DOORS, OAUTH_INTROSPECT_CLAIMS="nested")
    odd: dict[str, Any] = {"scope": "a\ud800", "preferred_username": "\udfff", "nested": {"é": ["\ud800"]}}
    said = await introspect(service, token(**odd))
    assert (said["scope"], said["username"], said["nested"]) == (*odd.values(),)


@pytest.mark.parametrize("raw", [OPAQUE, JWE, "a.b.c", "{}", "Bearer", " ", *[token()[:n] for n in (5, 40)]])
async def test_what_is_no_token_of_ours_is_inactive(service: Service, raw: str) -> None:
    """Introspection answers exactly `{"active": false}` for opaque, encrypted, malformed and truncated tokens."""
    assert await introspect(service, raw) == {"active": False}


async def test_no_reencoding_of_a_revoked_token_is_active(service: Service) -> None:
    """Introspection says that other encodings of a revoked token are inactive. The test takes every ninth one."""
    raw = token(jti="gone")
    await revoke(service, raw)
    for label, written in list(reencodings(raw))[::9]:
        assert await introspect(service, written) == {"active": False}, label


_FLAWS: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(time.time()) - 1},
    "not yet valid": {"nbf": int(time.time()) + 86_400},
    "nbf is no time": {"nbf": "0"},
    "nbf is true": {"nbf": True},
    "another issuer": {"iss": "https://other.example"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "revoked": {"jti": "gone"},
    "revoked session": {"sid": "gone"},
}
_ACCESS_TOKEN_KINDS = ("", "JWT", "at+jwt", "application/AT+JWT")  # PyJWT leaves an empty `typ` out
_OTHER_KINDS = ("logout+jwt", "secevent+jwt", "dpop+jwt", "JOSE")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.sampled_from(sorted(_FLAWS)), max_size=2),
    st.sampled_from(_ACCESS_TOKEN_KINDS + _OTHER_KINDS),
    st.sampled_from(["right", "another secret", "another algorithm", "none"]),
)
async def test_only_a_flawless_token_is_active(flawed: Service, flaws: set[str], kind: str, signed: str) -> None:
    """Introspection says `active: true` exactly for verified, unexpired, unrevoked access tokens for this service."""
    claims: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    for flaw in flaws:
        claims |= _FLAWS[flaw]
    claims = {name: value for name, value in claims.items() if value is not None}
    header = {"typ": kind}
    signer = {
        "right": issuer("HS256"),
        "another secret": Issuer("HS256", "f" * 64, ""),
        "another algorithm": issuer("ES256"),
    }.get(signed)
    raw = signer.sign(claims, header) if signer else _unsigned(claims, header)
    said = await introspect(flawed, raw)
    assert said["active"] is (not flaws and kind in _ACCESS_TOKEN_KINDS and signed == "right"), (flaws, kind, signed)
    assert said["active"] or said == {"active": False}


def _unsigned(claims: dict[str, Any], header: dict[str, Any]) -> str:
    return ".".join(b64url(json.dumps(part).encode()) for part in ({"alg": "none", **header}, claims)) + "."


@pytest.fixture
async def flawed(service: Service) -> Service:
    """A service in which the `jti` "gone" and the `sid` "gone" are revoked."""
    for claim in ("jti", "sid"):
        await service.revoke({claim: "gone", "expires_in": 3600})
    return service
