"""`/forward-auth`: where it looks for tokens, and what gateways send. `test_gateways.py` uses real gateways."""

import re
from collections.abc import Callable

import pytest
import yaml
from structlog.testing import capture_logs
from yarl import URL

from tests.api.serving import KEYS, Service, Start, request_bytes, talk
from tests.docs.blocks import block
from tests.doors.forward_auth import BAD, BAD_TOKEN, GATEWAY, NO_TOKEN, ask, challenge, revoke
from tests.doors.world import DOORS, OWN_KEY, basic, token
from tests.unit.reencodings import SECRET, issuer

# Where the service looks for tokens


@pytest.mark.parametrize("written", ["Bearer {}", "bearer {}", "BEARER   {}"])
async def test_the_scheme_has_no_case(door: Service, written: str) -> None:
    """The scheme `Bearer` is accepted in upper and lower case (RFC 9110 section 11.1)."""
    assert (await ask(door, Authorization=written.format(token()))).status == 200


@pytest.mark.parametrize("written", ["{}", "Token {}", "DPoP {}", "Bearer\t{}", "Bearer: {}", "Bearer {}, Bearer {}"])
@pytest.mark.parametrize("path", ["/forward-auth", "/forward-auth/optional"])
async def test_what_the_application_might_read_otherwise_is_refused(door: Service, written: str, path: str) -> None:
    """Credentials of any other form are refused, even beside a good cookie: the application might accept them."""
    raw = token()
    field = written.format(raw, raw)
    assert challenge(await ask(door, path=path, Authorization=field)) == BAD_TOKEN
    assert challenge(await ask(door, path=path, Authorization=field, Cookie=f"access_token={raw}")) == BAD_TOKEN


async def test_a_cookie_or_the_original_query_may_hold_the_token(door: Service) -> None:
    """A token passes in a cookie (also beside Basic), in the original query, and in several places at once."""
    raw = token()
    for headers in (
        {"Cookie": f"a=b; access_token={raw}"},
        {"Cookie": f"access_token={raw}", **basic("al", "pw")},
        {"X-Forwarded-Uri": f"/ws?a=b&access_token={raw}"},
        {"X-Original-URI": f"/ws?access_token={raw}#x"},
        {"Cookie": f"access_token={raw}", "Authorization": f"Bearer {raw}", "X-Forwarded-Uri": f"/?access_token={raw}"},
    ):
        assert (await ask(door, **headers)).status == 200, headers


async def test_two_different_tokens_are_refused(door: Service) -> None:
    """A request with two different tokens is refused even if both are good: the application might read either."""
    one, two = token(jti="1"), token(jti="2")
    for headers in (
        {"Cookie": f"access_token={one}", "Authorization": f"Bearer {two}"},
        {"Cookie": f"access_token={one}; access_token={two}"},
        {"Cookie": f"access_token={one}", "X-Forwarded-Uri": f"/?access_token={two}"},
        {"X-Forwarded-Uri": f"/?access_token={one}&access_token={two}"},
        {"X-Forwarded-Uri": f"/?access_token={one}", "X-Original-URI": f"/?access_token={two}"},
    ):
        assert challenge(await ask(door, **headers)) == BAD_TOKEN, headers


@pytest.mark.parametrize("path", ["/forward-auth", "/forward-auth/optional"])
@pytest.mark.parametrize("before", ["a=b ", "a=b, ", "a=b,", 'a="b ', "a=b;", "a=b;\t", "a "])
@pytest.mark.parametrize("between", ["=", " = "])
async def test_every_cookie_that_an_application_might_read_counts(
    door: Service, before: str, between: str, path: str
) -> None:
    """A revoked token is refused wherever a parser might see the cookie. Some also split at commas or white space."""
    await revoke(door, jti="gone")
    bad = f"{before}access_token{between}{token(jti='gone')}"
    for field in (bad, f"{bad}; access_token={token()}", f"access_token={token()}; {bad}"):
        assert challenge(await ask(door, path=path, Cookie=field)) == BAD_TOKEN, field


@pytest.mark.parametrize("path", ["/forward-auth", "/forward-auth/optional"])
@pytest.mark.parametrize("before", ["?a=b;", "?a=b#", "?a=#&", "#?", "?access%5Ftoken={}&", "?access_token={}#&"])
async def test_every_parameter_that_an_application_might_read_counts(door: Service, before: str, path: str) -> None:
    """A bad token in the query also counts after `;` and `#`, which some frameworks or servers treat like `&`."""
    uri = f"/ws{before.format(token())}access_token={BAD['expired']}"
    assert challenge(await ask(door, path=path, X_Forwarded_Uri=uri)) == BAD_TOKEN


async def test_two_authorization_headers_are_refused(door: Service) -> None:
    """Two Authorization headers are refused: the same token twice, and Basic credentials beside a token."""
    fields = [f"Authorization: Bearer {token()}"] * 2 + [f"X-Revocation-Key: {KEYS['checker']}"]
    for first in (fields[0], basic_field := f"Authorization: {basic('al', 'pw')['Authorization']}"):
        raw = await talk(door, request_bytes("GET /forward-auth HTTP/1.1", first, *fields[1:], key=None))
        assert (raw.statuses, raw.headers["WWW-Authenticate"]) == ([401], BAD_TOKEN), basic_field


async def test_places_that_no_setting_names_hold_no_token(start: Start) -> None:
    """Without their settings, neither a cookie nor the query, of the original URI or of `/forward-auth`, is read."""
    closed = {name: value for name, value in DOORS.items() if name not in {"FORWARD_AUTH_COOKIE", "FORWARD_AUTH_QUERY"}}
    service = await start(**closed)
    service.headers = dict(GATEWAY)
    raw = token()
    assert challenge(await ask(service, Cookie=f"access_token={raw}")) == NO_TOKEN
    assert challenge(await ask(service, X_Forwarded_Uri=f"/?access_token={raw}")) == NO_TOKEN
    assert challenge(await ask(service, path=f"/forward-auth?access_token={raw}")) == NO_TOKEN


# What gateways send


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"])
async def test_every_method_and_path_is_the_same_question(door: Service, method: str) -> None:
    """Any method, at any path below `/forward-auth`, needs a token. `X-Forwarded-Method: OPTIONS` exempts nothing."""
    raw = token()
    for path in (
        "/forward-auth",
        "/forward-auth/",
        "/forward-auth/required/a/b",
        "/forward-auth/a%2Fb/..%2f?c=d&e",
        "/forward-auth/%0Aa",
    ):
        for authorized in (True, False):
            headers = {"X-Forwarded-Method": "OPTIONS", **({"Authorization": f"Bearer {raw}"} if authorized else {})}
            answer = await door.request(method, path, headers=headers)
            assert answer.status == (200 if authorized else 401), path


async def test_uncommon_methods_share_a_label(door: Service) -> None:
    """The metrics count PROPFIND as `(any)`: otherwise clients could create a series with each method they invent."""
    assert (await door.request("PROPFIND", "/forward-auth")).status == 401
    series = '{method="(any)",route="/forward-auth",status="401"}'
    assert await door.metric(f"revocation_http_request_duration_seconds_count{series}") == 1


@pytest.mark.parametrize("authorized", [True, False])
async def test_an_announced_body_is_not_waited_for(door: Service, authorized: bool) -> None:
    """If a request announces a body, the response closes the connection, and later bytes are not read as a request.

    nginx announces the length of the original body, but sends no body.
    """
    fields = [f"X-Revocation-Key: {KEYS['checker']}", "Content-Length: 5", "Expect: 100-continue"]
    fields += [f"Authorization: Bearer {token()}"] if authorized else []
    sent = request_bytes("POST /forward-auth HTTP/1.1", *fields, key=None)
    raw = await talk(door, sent, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", answers=2, half_close=True)
    assert raw.statuses == [200 if authorized else 401]
    assert (raw.headers["Connection"], raw.closed) == ("close", True)
    assert b"100 Continue" not in raw.data


def _haproxy(*fields: str) -> bytes:
    """Return a request as haproxy-auth-request sends it: header names in lower case, and no Content-Length."""
    config = block("docs/gateways.md", "haproxy").replace("the-gateways-key", KEYS["checker"])
    path, method = re.findall(r"lua\.auth-intercept revocation (\S+) (\w+) \*", config)[0]
    sent = [": ".join(re.findall(r"set-header (\S+) (\S+)", config)[0]), *fields]
    sent = [f"{name.lower()}:{value}" for name, _, value in (field.partition(":") for field in sent)]
    return request_bytes(f"{method} {path} HTTP/1.1", "connection: close", *sent, key=None)


def _apisix(*fields: str) -> bytes:
    """Return what APISIX sends for `POST /orders?id=7`: its own headers, and the `fields` that its config lists."""
    plugin = yaml.safe_load(block("docs/gateways.md", "apisix"))["plugins"]["forward-auth"]
    forwarded = {"Proto": "https", "Method": "POST", "Host": "app.example", "Uri": "/orders?id=7", "For": "203.0.113.9"}
    own = {f"X-Forwarded-{name}": value for name, value in forwarded.items()} | plugin["extra_headers"]
    sent = [f"{name}: {value}".replace("the-gateways-key", KEYS["checker"]) for name, value in own.items()]
    sent += [field for field in fields if field.startswith(tuple(plugin["request_headers"]))]
    return request_bytes(f"GET {URL(plugin['uri']).path} HTTP/1.1", "User-Agent: lua-resty-http", *sent, key=None)


@pytest.mark.parametrize("replayed", [_haproxy, _apisix])
@pytest.mark.parametrize("body", ["Transfer-Encoding: chunked", "Expect: 100-continue", "Content-Type: text/plain"])
async def test_gateways_that_are_not_run_here_are_answered(
    door: Service, replayed: Callable[..., bytes], body: str
) -> None:
    """Requests as HAProxy and APISIX send them get the right response with a good token, a revoked one, and none.

    HAProxy announces a body and sends none.
    """
    await revoke(door, jti="gone")
    common = (body, "Accept: */*", "X-Forwarded-For: 203.0.113.9", "Cookie: theme=dark")
    for raw, status, www in ((token(), 200, None), (None, 401, NO_TOKEN), (token(jti="gone"), 401, BAD_TOKEN)):
        fields = (*common, f"Authorization: Bearer {raw}") if raw else common
        answer = await talk(door, replayed(*fields), b"", half_close=True)
        assert answer.data.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert answer.headers.get("WWW-Authenticate") == www
        assert status != 200 or answer.headers["X-Auth-Subject"] == "alice"
        assert b"100 Continue" not in answer.data


async def test_the_gateway_needs_a_key_of_its_own(door: Service) -> None:
    """A gateway without exactly one API key that has the scope `check` gets 403, and a warning is logged.

    A 401 would make the user's client discard its token.
    """
    door.headers = {}
    raw = token()
    with capture_logs() as logged:
        for keys in ([], ["x" * 30], [KEYS["revoker"]], [OWN_KEY], [KEYS["checker"]] * 2):
            fields = [f"X-Revocation-Key: {key}" for key in keys] + [f"Authorization: Bearer {raw}"]
            refused = await talk(door, request_bytes("GET /forward-auth HTTP/1.1", *fields, key=None))
            assert refused.statuses == [403]
            assert b"gateway_key_refused" in refused.data
    warnings = [each for each in logged if each["log_level"] == "warning"]
    assert [each["event"] for each in warnings] == ["gateway_key_refused"]  # logged at most once a minute
    assert (await ask(door, raw, X_Revocation_Key=KEYS["ops"])).status == 200


async def test_a_keyless_gateway_may_ask(start: Start) -> None:
    """With `FORWARD_AUTH_KEYLESS`, a gateway needs no key. A wrong key is still refused, and `/check` needs one."""
    service = await start(**DOORS, FORWARD_AUTH_KEYLESS="true")
    service.headers = {}
    assert (await ask(service, token())).status == 200
    assert challenge(await ask(service)) == NO_TOKEN
    assert (await ask(service, token(), X_Revocation_Key="x" * 30)).status == 403
    assert (await service.get("/check", {"jti": "a"})).status == 401


async def test_in_protected_mode_a_gateway_on_this_machine_may_ask(start: Start) -> None:
    """In protected mode, `/forward-auth` accepts a request with headers of a proxy and a browser; `/check` does not."""
    service = await start(JWT_SECRET=SECRET, FORWARD_AUTH="true")
    relayed = {
        "X-Forwarded-For": "203.0.113.9",
        "Host": "app.example",
        "Origin": "https://a",
        "Sec-Fetch-Site": "cross-site",
    }
    raw = issuer("HS256").sign({"jti": "a"})
    assert (await service.get("/forward-auth", headers={**relayed, "Authorization": f"Bearer {raw}"})).status == 200
    assert (await service.get("/check", {"jti": "a"}, headers=relayed)).status == 403
