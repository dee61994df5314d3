"""Tests of the OAuth endpoints: client credentials, parameters, errors and outages."""

import itertools
from collections.abc import Mapping

import pytest
from multidict import CIMultiDict

from revocation_service.api.dependencies import BROADCASTER
from tests.api.serving import API_KEYS, KEYS, Service, Start, bearer
from tests.doors.oauth import JWE, OPAQUE, PATHS, error, introspect, revoke
from tests.doors.world import AUDIENCE, DOORS, ISSUER, ODD_KEY, basic, token
from tests.redis_processes import free_port
from tests.unit.reencodings import SECRET, issuer

# Credentials

SECRETS = {"odd": ODD_KEY, "both": KEYS["both"]}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "places", [{"basic"}, {"encoded"}, {"bearer"}, {"body"}, {"basic", "body"}, {"encoded", "body"}, {"bearer", "body"}]
)
async def test_credentials_are_found_in_every_place(service: Service, path: str, name: str, places: set[str]) -> None:
    """Credentials are accepted as Basic (raw or form-encoded), as Bearer, in the body, and in two places that agree."""
    service.headers.clear()
    headers, body = _credentials(name, SECRETS[name], places)
    assert (await service.form(path, {"token": "x", **body}, headers=headers)).status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("places", [{"basic"}, {"encoded"}, {"bearer"}, {"body"}, {"basic", "body"}, set()])
async def test_wrong_credentials_are_refused(service: Service, path: str, places: set[str]) -> None:
    """Wrong or missing credentials get 401 `invalid_client`, with a Basic challenge if Basic was used, else Bearer."""
    service.headers.clear()
    challenge = "Basic" if places & {"basic", "encoded"} else "Bearer"
    for name, secret in (("odd", "wrong" * 6), ("both", ODD_KEY), ("unknown", ODD_KEY)):
        if places == {"bearer"} and secret == ODD_KEY:
            continue  # Bearer carries no name, so this key would be right
        headers, body = _credentials(name, secret, places)
        answer = await service.form(path, {"token": "x", **body}, headers=headers)
        assert error(answer) == (401, "invalid_client")
        assert answer.headers["WWW-Authenticate"] == f'{challenge} realm="revocation-service"'


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (basic("odd", ODD_KEY), {"client_id": "both", "client_secret": KEYS["both"]}),
        (basic("odd", ODD_KEY), {"client_id": "both"}),
        (basic("odd", ODD_KEY), {"client_secret": KEYS["both"]}),
        (bearer("both"), {"client_id": "odd"}),
        (bearer("both"), {"client_id": "odd", "client_secret": ODD_KEY}),
        (CIMultiDict([*bearer("both").items(), *basic("both", KEYS["both"]).items()]), {}),
        ({"Authorization": f"Digest {ODD_KEY}"}, {}),
    ],
)
async def test_credentials_that_differ_are_an_error(
    service: Service, path: str, headers: Mapping[str, str], body: dict[str, str]
) -> None:
    """A request with two clients, two Authorization headers or an unknown scheme gets 400 `invalid_request`."""
    service.headers.clear()
    answer = await service.form(path, {"token": "x", **body}, headers=headers)
    assert error(answer) == (400, "invalid_request")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {"client_id": "odd"}),
        ({}, {"client_secret": ODD_KEY}),
        ({}, {"client_id": "odd", "client_secret": ""}),
        ({"Authorization": "Basic"}, {}),
        ({"Authorization": "Basic !"}, {}),
        ({"Authorization": "Basic b2Rk"}, {}),
    ],
)
async def test_half_credentials_are_none(
    service: Service, path: str, headers: dict[str, str], body: dict[str, str]
) -> None:
    """A `client_id` alone, a secret alone, or a malformed Basic header gets 401 `invalid_client`."""
    service.headers.clear()
    assert error(await service.form(path, {"token": "x", **body}, headers=headers)) == (401, "invalid_client")


def _credentials(name: str, secret: str, places: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    headers = {}
    if places & {"basic", "encoded"}:
        headers = basic(name, secret, encoded="encoded" in places)
    elif "bearer" in places:
        headers = {"Authorization": f"Bearer {secret}"}
    return headers, {"client_id": name, "client_secret": secret} if "body" in places else {}


# Requests and outages


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"token=x&unknown=1&unknown=2&resource=", 200),
        (b"token=x&token_type_hint=nonsense", 200),
        (b"token=x&token_type_hint=", 200),
        (b"", 400),
        (b"token=", 400),
        (b"token_type_hint=access_token", 400),
        (b"token=x&token=x", 400),
        (b"token=x&token=", 400),
        (b"token=x&token_type_hint=a&token_type_hint=a", 400),
        (b"token=%zz", 400),
        (b"token=x" + b"y" * 65_536, 413),
    ],
)
async def test_parameters(service: Service, path: str, body: bytes, expected: int) -> None:
    """Unknown parameters are ignored, even repeated; known ones may appear once; an empty one counts as omitted."""
    answer = await service.send(path, body, "application/x-www-form-urlencoded")
    assert answer.status == expected
    if expected != 200:
        assert error(answer) == (expected, "invalid_request")


@pytest.mark.parametrize("path", PATHS)
async def test_only_a_form_is_read(service: Service, path: str) -> None:
    """JSON gets 415 with an OAuth error, GET gets 405, and a token in the query is not read."""
    answer = await service.post(path, {"token": "x"})
    assert error(answer) == (415, "invalid_request")
    assert answer.json["error_description"].startswith("send application/x-www-form-urlencoded")
    assert error(await service.send(f"{path}?token=x", b"", "application/x-www-form-urlencoded"))[0] == 400
    answer = await service.get(path, {"token": "x"})
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(("path", "key"), [("/oauth2/revoke", "checker"), ("/oauth2/introspect", "revoker")])
async def test_a_key_without_the_scope_is_forbidden(service: Service, path: str, key: str) -> None:
    """A key without the scope of the endpoint gets 403 `unauthorized_client`. A key with `admin` may use both."""
    assert error(await service.form(path, {"token": "x"}, headers=bearer(key))) == (403, "unauthorized_client")
    assert (await service.form(path, {"token": "x"}, headers=bearer("ops"))).status == 200


async def test_without_redis_nothing_is_said(start_without_redis: Start) -> None:
    """Without Redis, both endpoints answer 503 with Retry-After, for a signed token and for an opaque one."""
    service = await start_without_redis(**DOORS)
    for path, raw in itertools.product(PATHS, (token(jti="a"), OPAQUE)):
        answer = await service.form(path, {"token": raw})
        assert error(answer) == (503, "temporarily_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", PATHS)
async def test_without_signing_keys_nothing_is_said(start: Start, path: str) -> None:
    """While the JWKS cannot be fetched, a token that may be signed with its keys gets 503, and `/readyz` too."""
    given = {**DOORS, "JWKS_URL": f"http://127.0.0.1:{free_port()}/jwks"}
    del given["JWT_SECRET"]
    service = await start(**given)
    raw = issuer("ES256").sign({"jti": "a", "iss": ISSUER, "aud": AUDIENCE})
    assert error(await service.form(path, {"token": raw})) == (503, "temporarily_unavailable")
    ready = await service.get("/readyz")
    assert ready.status == 503
    assert ready.json["components"]["signing_keys"]["status"] == "unavailable"


async def test_in_protected_mode_no_credentials_are_needed(start: Start) -> None:
    """Without API keys, a client on loopback may introspect and revoke, whatever credentials it sends."""
    service = await start(JWT_SECRET=SECRET, OAUTH_REVOKE="true", OAUTH_INTROSPECT="true")
    raw = issuer("HS256").sign({"jti": "a"})
    for headers in ({}, basic("any", "thing")):
        assert (await service.form("/oauth2/introspect", {"token": raw}, headers=headers)).json["active"]
    assert (await service.form("/oauth2/revoke", {"token": raw}, headers=basic("any", "thing"))).status == 200
    assert (await service.form("/oauth2/introspect", {"token": raw})).json == {"active": False}


async def test_closed_doors_do_not_exist(start: Start) -> None:
    """The OAuth endpoints answer 404 unless a setting opens them."""
    service = await start(API_KEYS=API_KEYS, JWT_SECRET=SECRET)
    for path in PATHS:
        assert (await service.form(path, {"token": "x"})).status == 404


async def test_the_metrics_tell_the_doors_apart(service: Service) -> None:
    """The request metrics have a route label for each OAuth endpoint, and count its statuses."""
    await revoke(service, JWE)
    await introspect(service, OPAQUE)
    for route, status in (("/oauth2/revoke", 400), ("/oauth2/introspect", 200)):
        series = f'{{method="POST",route="{route}",status="{status}"}}'
        assert await service.metric(f"revocation_http_request_duration_seconds_count{series}") == 1


@pytest.mark.parametrize("expired", [False, True])
async def test_after_the_end_of_the_feed_nothing_is_acknowledged(service: Service, expired: bool) -> None:
    """Once its feed has ended, an instance answers a revocation with 503: its subscribers would not hear of it."""
    service.app[BROADCASTER].end()
    answer = await revoke(service, token(jti="a", exp=1_000_000_000 if expired else None))
    assert error(answer) == (503, "temporarily_unavailable")
