"""Malformed bodies, queries and tokens get a 4xx response, and the log does not repeat them."""

import gzip
import hmac
import json
import zlib
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.api.hostile import CANARY, CONFIGURATIONS, Target, assert_answered, assert_problem, assert_refused, body_of
from tests.scale import scaled
from tests.unit.reencodings import SECRET, b64url, issuer

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
BODY_ROUTES: Final = ("/revoke", "/check", "/check/batch")
QUERY_ROUTES: Final = ("/check", "/revocations")
CANARY_BYTES: Final = CANARY.encode()

fuzzed = settings(
    max_examples=scaled(50, 5000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

GOOD: Final = b'{"jti":"' + CANARY_BYTES + b'"}'
BAD_JSON: Final[dict[str, bytes]] = {
    "nothing": b" ",
    "cut off": GOOD[:-1],
    "cut off in a string": GOOD[:-4],
    "a list": b"[" + GOOD + b"]",
    "a string": b'"%s"' % CANARY_BYTES,
    "a number": b"1",
    "null": b"null",
    "true": b"true",
    "NaN": b"NaN",
    "two objects": GOOD * 2,
    "rubbish behind": GOOD + b"x",
    "single quotes": GOOD.replace(b'"', b"'"),
    "a comment": GOOD + b"// comment",
    "a comma too many": GOOD[:-1] + b",}",
    "NaN as a time": b'{"jti":"a","exp":NaN}',
    "Infinity as a time": b'{"jti":"a","exp":Infinity}',
    "-Infinity as a time": b'{"jti":"a","expires_in":-Infinity}',
    "1e400": b'{"jti":"a","exp":1e400}',
    "-1e400": b'{"jti":"a","exp":-1e400}',
    "10^400": b'{"jti":"a","exp":1%s}' % (b"0" * 400),
    "10^5000": b'{"jti":"a","exp":1%s}' % (b"0" * 5000),
    "10^60000": b'{"jti":"a","exp":1%s}' % (b"0" * 60000),
    "10^400 as a value": b'{"jti":1%s}' % (b"0" * 400),
    "10^5000 as a value": b'{"jti":1%s}' % (b"0" * 5000),
    "-10^5000 as a value": b'{"jti":-1%s}' % (b"0" * 5000),
    "1e400 as a value": b'{"jti":1e400}',
    "a member twice": b'{"jti":"a","jti":"%s"}' % CANARY_BYTES,
    "a member twice, escaped": b'{"jti":"a","\\u006ati":"b"}',
    "a member twice, within": b'{"jti":{"a":1,"a":2}}',
    "60,000 lists": b"[" * 60_000,
    "30,000 lists, closed": b"[" * 30_000 + b"]" * 30_000,
    "60,000 lists within": b'{"jti":' + b"[" * 60_000,
    "12,000 objects": b'{"a":' * 12_000,
    "a lone surrogate": b'{"jti":"\\ud800"}',
    "a lone low surrogate": b'{"jti":"x\\udc00"}',
    "surrogates the wrong way round": b'{"jti":"\\udc00\\ud800"}',
    "NUL, escaped": b'{"jti":"a\\u0000"}',
    "NUL, bare": b'{"jti":"a\x00"}',
    "a control character, bare": b'{"jti":"a\x01"}',
    "a control character, escaped": b'{"jti":"a\\u001b[31m"}',
    "a line break": b'{"jti":"a\\n%s"}' % CANARY_BYTES,
    "C1": b'{"jti":"a\\u0085"}',
    "DEL": b'{"jti":"a\\u007f"}',
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16LE": GOOD.decode().encode("utf-16-le"),
    "UTF-16BE": GOOD.decode().encode("utf-16-be"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "Latin-1": '{"jti":"é"}'.encode("latin-1"),
    "cut UTF-8": b'{"jti":"\xc3"}',
    "overlong UTF-8": b'{"jti":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"jti":"\xed\xa0\x80"}',
    "a value too long": b'{"jti":"%s"}' % (b"x" * 257),
    "a token of another type": b'{"token":["%s"]}' % CANARY_BYTES,
    "a token of surrogates": b'{"token":"\\ud800.\\ud800.\\ud800"}',
    "an unknown member": b'{"jti":"a","%s":1}' % CANARY_BYTES,
    "gzip without saying so": gzip.compress(GOOD),
    "a form": b"jti=" + CANARY_BYTES,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("path", BODY_ROUTES)
@pytest.mark.parametrize("body", BAD_JSON.values(), ids=list(BAD_JSON))
def test_bad_json(target: Target, path: str, body: bytes) -> None:
    """Malformed JSON, or JSON of the wrong shape, gets a 400 problem on every route that takes a body."""
    assert_problem(target.post(path, body), 400)


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=list(BAD_JSON))
def test_bad_json_within_a_batch(target: Target, body: bytes) -> None:
    """A bad element of a batch gets its own 400 error beside the result of a good one, or the whole body is 400."""
    raw = target.post("/check/batch", b'{"checks":[{"jti":"fine"},%s]}' % body)
    if raw.statuses != [200]:
        assert_problem(raw, 400)
        return
    fine, bad = body_of(raw)["results"]
    assert fine["revoked"] is False
    assert bad["error"]["status"] == 400
    assert CANARY_BYTES not in raw.data


BAD_FORMS: Final[dict[str, bytes]] = {
    "nothing": b"&",
    "no value": b"jti",
    "an empty value": b"jti=",
    "twice": b"jti=a&jti=%s" % CANARY_BYTES,
    "twice, encoded": b"jti=a&%6ati=b",
    "nothing between": b"jti=a&&",
    "too many fields": b"&".join(b"f%d=%s" % (number, CANARY_BYTES) for number in range(200)),
    "5,000 empty fields": b"&" * 5_000,
    "a broken escape": b"jti=%zz",
    "a percent sign": b"jti=100%",
    "a cut escape": b"jti=%4",
    "no UTF-8, encoded": b"jti=%ff%fe",
    "a surrogate, encoded": b"jti=%ed%a0%80",
    "no UTF-8": b"jti=\xff\xfe",
    "NUL, encoded": b"jti=a%00",
    "NUL": b"jti=a\x00",
    "a line break": b"jti=a%0d%0a",
    "NaN": b"iat=NaN",
    "inf": b"iat=inf",
    "1e400": b"iat=1e400",
    "negative": b"iat=-1",
    "other digits": "iat=١٢٣".encode(),
    "hex": b"iat=0x10",
    "spaces": b"iat=+12+",
    "10^5000": b"iat=1" + b"0" * 5000,
    "not true": b"all=yes",
    "JSON": GOOD,
    "PHP": b"jti[]=a",
    "unknown": b"jti=a&%s=1" % CANARY_BYTES,
    "UTF-16": "jti=a".encode("utf-16"),
}


@pytest.mark.parametrize("path", BODY_ROUTES)
@pytest.mark.parametrize("body", BAD_FORMS.values(), ids=list(BAD_FORMS))
def test_bad_forms(target: Target, path: str, body: bytes) -> None:
    """A malformed or ambiguous form gets a 400 problem."""
    assert_problem(target.post(path, body, FORM), 400)


@pytest.mark.parametrize("path", QUERY_ROUTES)
@pytest.mark.parametrize("query", [*BAD_FORMS.values(), b"jti=a#b", b"jti=a#"], ids=[*BAD_FORMS, "#", "# at the end"])
def test_bad_queries(target: Target, path: str, query: bytes) -> None:
    """A malformed or ambiguous query is 400. If it is not HTTP, aiohttp's parser sends the 400 as plain text."""
    raw = target.ask(f"GET {path}?{query.decode('utf-8', 'surrogateescape')}")
    assert_refused(raw)


def test_20000_query_parameters(target: Target) -> None:
    """20,000 query parameters exceed the limit of a request line, which is 400; 2,000 fit, and get a 400 problem."""
    assert target.ask("GET /check?" + "&".join(f"f{number}=1" for number in range(20_000))).statuses == [400]
    assert_problem(target.ask("GET /check?" + "&".join("f=1" for _ in range(2_000))), 400)


BAD_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "empty": ("Content-Type:",),
    "text": ("Content-Type: text/plain",),
    "multipart": ("Content-Type: multipart/form-data; boundary=x",),
    "XML": ("Content-Type: application/xml",),
    "made up": (f"Content-Type: {CANARY}",),
    "a list": ("Content-Type: application/json, text/plain",),
    "gzip": (f"Content-Type: {JSON}", "Content-Encoding: gzip"),
    "deflate": (f"Content-Type: {JSON}", "Content-Encoding: deflate"),
    "br": (f"Content-Type: {FORM}", "Content-Encoding: br"),
    "zstd": (f"Content-Type: {JSON}", "Content-Encoding: zstd"),
    "identity": (f"Content-Type: {JSON}", "Content-Encoding: identity"),
    "an encoding made up": (f"Content-Type: {JSON}", f"Content-Encoding: {CANARY}"),
    "two encodings": (f"Content-Type: {JSON}", "Content-Encoding: identity", "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("path", BODY_ROUTES)
@pytest.mark.parametrize("headers", BAD_TYPES.values(), ids=list(BAD_TYPES))
def test_bad_types(target: Target, path: str, headers: tuple[str, ...]) -> None:
    """A missing or unknown content type, and every Content-Encoding, is 415, whatever the body is."""
    for body in (GOOD, gzip.compress(GOOD), zlib.compress(GOOD)):
        assert_problem(target.ask(f"POST {path}", *headers, body=body), 415)


def test_40000_empty_gzip_members(target: Target) -> None:
    """A compressed body of 40,000 gzip members is 415, like any compressed body."""
    body = gzip.compress(b"") * 40_000
    headers = (f"Content-Type: {JSON}", "Content-Encoding: gzip")
    assert_problem(target.ask("POST /check/batch", *headers, body=body), 415)


@pytest.mark.parametrize("path", BODY_ROUTES)
@pytest.mark.parametrize("size", [10 << 20, 1 << 40], ids=["10 MB", "1 TB"])
def test_a_body_that_declares_itself_too_large(target: Target, path: str, size: int) -> None:
    """A body whose Content-Length is too large is 413 before the service has received all of it."""
    head = target.request(f"POST {path}", f"Content-Type: {JSON}", f"Content-Length: {size}")
    assert_problem(target.talk(head, CANARY_BYTES * 100), 413)


@pytest.mark.parametrize("path", BODY_ROUTES)
def test_a_body_of_10_mb(target: Target, path: str) -> None:
    """A body of 10 MB that is sent to its end is 413, with a Content-Length and in chunks."""
    filler, count = CANARY_BYTES * 3_449, 160
    head = target.request(f"POST {path}", f"Content-Type: {JSON}", f"Content-Length: {len(filler) * count}")
    assert_problem(target.talk(head + filler * count), 413)
    head = target.request(f"POST {path}", f"Content-Type: {JSON}", "Transfer-Encoding: chunked")
    assert_problem(target.talk(head + b"%x\r\n%s\r\n" % (len(filler), filler) * count + b"0\r\n\r\n"), 413)


def test_a_body_in_chunks_of_a_byte(target: Target) -> None:
    """A body in chunks of one byte is 413 if it exceeds the limit."""
    head = target.request("POST /check", f"Content-Type: {JSON}", "Transfer-Encoding: chunked")
    assert_problem(target.talk(head + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n"), 413)


def token(payload: bytes = b'{"jti":"a"}', header: bytes = b'{"alg":"HS256"}', secret: str = SECRET) -> str:
    """Return a token with this header and payload, which may be malformed, signed with this secret."""
    signing_input = f"{b64url(header)}.{b64url(payload)}"
    return f"{signing_input}.{b64url(hmac.digest(secret.encode(), signing_input.encode(), 'sha256'))}"


BAD_TIMES: Final[dict[str, bytes]] = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "1e400": b"1e400",
    "10^400": b"1" + b"0" * 400,
    "10^5000": b"1" + b"0" * 5000,
    "negative": b"-1",
    "a string": b'"2000000000"',
    "true": b"true",
    "a list": b"[2000000000]",
    "an object": b"{}",
}
BAD_TOKENS: Final[dict[str, str]] = {
    **{f"exp {name}": token(b'{"jti":"a","exp":%s}' % time) for name, time in BAD_TIMES.items()},
    "alg none": token(header=b'{"alg":"none"}'),
    "alg none, unsigned": token(header=b'{"alg":"none"}').rpartition(".")[0] + ".",
    "alg NoNe": token(header=b'{"alg":"NoNe"}'),
    "alg null": token(header=b'{"alg":null}'),
    "alg a list": token(header=b'{"alg":["HS256"]}'),
    "no alg": token(header=b"{}"),
    "no signature": token().rpartition(".")[0] + ".",
    "no header": "." + token().partition(".")[2],
    "no payload": token().partition(".")[0] + "..c2lnbmF0dXJl",
    "dots": "..",
    "a header of a list": token(header=b'["HS256"]'),
    "a payload of a list": token(b'["a"]'),
    "a payload of a string": token(b'"a"'),
    "no JSON": token(b"nonsense"),
    "binary": token(bytes(range(256))),
    "UTF-16": token('{"jti":"a"}'.encode("utf-16")),
    "Latin-1": token('{"jti":"é"}'.encode("latin-1")),
    "a claim twice": token(b'{"jti":"a","jti":"b"}'),
    "a header member twice": token(header=b'{"alg":"HS256","alg":"none"}'),
    "30,000 lists deep": token(b'{"jti":"a","x":%s}' % (b"[" * 30_000)),
    "15,000 lists deep, closed": token(b'{"jti":"a","x":%s%s}' % (b"[" * 15_000, b"]" * 15_000)),
    "a header 30,000 deep": token(header=b'{"alg":"HS256","x":%s' % (b"[" * 30_000)),
    "a number of 5000 digits": token(b'{"jti":"a","x":1%s}' % (b"0" * 5000)),
    "a jti of 10^5000": token(b'{"jti":1%s}' % (b"0" * 5000)),
    "a jti of 10^400": token(b'{"jti":1%s}' % (b"0" * 400)),
    "a jti of true": token(b'{"jti":true}'),
    "a jti of 1.5": token(b'{"jti":1.5}'),
    "an empty jti": token(b'{"jti":""}'),
    "a jti with a line break": token(b'{"jti":"a\\n%s"}' % CANARY_BYTES),
    "a jti with NUL": token(b'{"jti":"a\\u0000"}'),
    "a jti of a surrogate": token(b'{"jti":"\\ud800"}'),
    "a jti too long": token(b'{"jti":"%s"}' % (b"x" * 257)),
    "a sub of an object": token(b'{"jti":"a","sub":{"a":1}}'),
    "a sid of a list": token(b'{"jti":"a","sid":["a"]}'),
    "an azp of false": token(b'{"jti":"a","azp":false}'),
    "crit": token(header=b'{"alg":"HS256","crit":["exp"]}'),
    "b64 false": token(header=b'{"alg":"HS256","b64":false,"crit":["b64"]}'),
    "five parts": "a.b.c.d." + CANARY,
    "flattened JSON": json.dumps({"protected": "e30", "payload": "e30", "signature": CANARY}),
    "a header and four parts": token() + ".x",
    "a header and two parts": token().rpartition(".")[0],
    "white space": " \t\n",
    "a scheme": "Bearer ",
    "NUL": f"opaque\x00{CANARY}",
    "control characters": f"opaque\x1b[31m{CANARY}",
}
FORGERIES: Final[dict[str, str]] = {
    "another secret": token(secret="another secret"),
    "an empty secret": token(secret=""),
    "the public key as the secret": token(secret=issuer("RS256").pem),
    "the public key without its last line break": token(secret=issuer("RS256").pem.strip()),
    "a secret's signature called RS256": token(header=b'{"alg":"RS256"}'),
    "an algorithm without a key": issuer("ES256").sign({"jti": CANARY}),
    "an algorithm of another kind": token(header=b'{"alg":"HS512"}'),
    "an algorithm made up": token(header=b'{"alg":"%s"}' % CANARY_BYTES),
    "a key of its own": issuer("ES256").sign({"jti": CANARY}, {"jwk": issuer("ES256").jwk(), "jku": "http://[::1]:9/"}),
    "zeros": token().rpartition(".")[0] + "." + b64url(bytes(32)),
}


def percent_encoded(text: str) -> str:
    """Percent-encode every byte of the text."""
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def refuse_token(target: Target, path: str, raw_token: str) -> None:
    """Assert that the token is 400 on this route. The path "query" stands for `GET /check`."""
    target.forbid(*raw_token.split("."))
    if path == "query":
        assert_refused(target.ask(f"GET /check?token={percent_encoded(raw_token)}"))
    elif path == "/check/batch":
        raw = target.post(path, json.dumps({"checks": [{"token": raw_token}, {"jti": "fine"}]}).encode())
        bad, fine = body_of(raw)["results"]
        assert (bad["error"]["status"], fine["revoked"]) == (400, False)
        assert CANARY_BYTES not in raw.data
    else:
        assert_problem(target.post(path, json.dumps({"token": raw_token}).encode()), 400)


@pytest.mark.parametrize("path", [*BODY_ROUTES, "query"])
@pytest.mark.parametrize("raw_token", BAD_TOKENS.values(), ids=list(BAD_TOKENS))
def test_bad_tokens(target: Target, path: str, raw_token: str) -> None:
    """A malformed token is 400 on every route, even if its signature is right."""
    refuse_token(target, path, raw_token)


@pytest.mark.parametrize("running", [CONFIGURATIONS["keys"]], ids=["keys"], indirect=True)
@pytest.mark.parametrize("path", [*BODY_ROUTES, "query"])
@pytest.mark.parametrize("raw_token", FORGERIES.values(), ids=list(FORGERIES))
def test_forgeries(target: Target, path: str, raw_token: str) -> None:
    """If signing keys are configured, a token that none of them signed is 400 on every route."""
    refuse_token(target, path, raw_token)


@pytest.mark.parametrize("running", [CONFIGURATIONS["no keys"]], ids=["no keys"], indirect=True)
@pytest.mark.parametrize("raw_token", FORGERIES.values(), ids=list(FORGERIES))
def test_without_signing_keys_a_forgery_is_read(target: Target, raw_token: str) -> None:
    """Without signing keys, a forged token is accepted as unverified, and its parts are not printed."""
    target.forbid(*raw_token.split("."))
    raw = target.post("/check", json.dumps({"token": raw_token}).encode())
    assert (raw.statuses, body_of(raw)["verified"]) == ([200], False)


@pytest.mark.parametrize("exp", [b"1e30", b"1e308", b"9" * 300, b"4070908800", b"2000000000000"])
def test_an_absurd_exp_is_not_stored(target: Target, exp: bytes) -> None:
    """An `exp` too far in the future is 400, in a token and beside a `jti`."""
    raw = target.post("/revoke", json.dumps({"token": token(b'{"jti":"a","exp":%s}' % exp)}).encode())
    assert_problem(raw, 400)
    assert body_of(raw)["code"] == "exp_too_far"
    assert_problem(target.post("/revoke", b'{"jti":"a","exp":%s}' % exp), 400)


def test_nothing_that_is_served_is_printed(target: Target) -> None:
    """Valid requests leave no token, claim value, reason, header or query in the log."""
    good = token(json.dumps({"jti": f"prefixed-{CANARY}", "sub": f"prefixed-{CANARY}"}).encode())
    target.forbid(*good.split("."))
    headers = [f"User-Agent: {CANARY}", f"Referer: http://x/{good}", f"Cookie: a={CANARY}", f"X-Request-ID: {CANARY} x"]
    body = json.dumps({"token": good, "expires_in": 60, "reason": CANARY}).encode()
    assert target.ask("POST /revoke", f"Content-Type: {JSON}", *headers, body=body).statuses == [200]
    for claim in ("jti", "sid", "sub", "client_id"):
        value = f"prefixed-{CANARY}"
        stored = json.dumps({claim: value, "reason": CANARY}).encode()
        assert target.ask("POST /revoke", f"Content-Type: {JSON}", *headers, body=stored).statuses == [200]
        assert target.ask(f"GET /check?{claim}={value}", *headers).statuses == [200]
        assert target.ask(f"GET /revocations?claim={claim}&value={value}", *headers).statuses == [200]
    assert target.ask(f"GET /check?token={good}", *headers).statuses == [200]
    assert target.ask(f"GET /{CANARY}/{good}?{CANARY}={good}", *headers).statuses == [404]


def test_a_request_can_be_found_in_the_log(target: Target) -> None:
    """The log has the request id, route and status of a revocation, and only the first 8 characters of its value."""
    body = b'{"jti":"prefixed-%s"}' % CANARY_BYTES
    raw = target.ask("POST /revoke", f"Content-Type: {JSON}", "X-Request-ID: find-me.1", body=body)
    assert raw.headers["X-Request-ID"] == "find-me.1"
    lines = [line for line in target.printed().splitlines() if "find-me.1" in line]
    assert any("/revoke" in line and "200" in line for line in lines)
    assert any("prefixed" in line and "prefixed-" not in line for line in lines)


def test_a_wrong_key_is_not_printed(target: Target) -> None:
    """Neither the response nor the log repeats a wrong API key."""
    for value in (f"Bearer {CANARY}{CANARY}", f"Basic {CANARY}", CANARY, f"Bearer {CANARY} {CANARY}"):
        raw = target.talk(f"GET /check?jti=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: {value}\r\n\r\n".encode())
        assert raw.statuses == ([401] if target.key else [200])
        assert CANARY_BYTES not in raw.data


names = st.sampled_from(
    ["jti", "sid", "sub", "client_id", "all", "token", "exp", "expires_in", "issued_before", "reason", "iat", "checks"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(CANARY) | st.just(token()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(body=values | st.dictionaries(names, values, max_size=3), path=st.sampled_from(BODY_ROUTES))
@fuzzed
def test_any_json(running: Target, body: Any, path: str) -> None:
    """Any JSON body, even one with NaN or lone surrogates, gets a 200 or a 4xx problem."""
    assert_answered(running.post(path, json.dumps(body).encode()))
    running.assert_silent()


@given(body=st.binary(max_size=300), path=st.sampled_from(BODY_ROUTES), content_type=st.sampled_from([JSON, FORM]))
@fuzzed
def test_any_bytes(running: Target, body: bytes, path: str, content_type: str) -> None:
    """Any bytes as a body get a 200 or a 4xx problem."""
    assert_answered(running.post(path, body, content_type))


@given(
    fields=st.lists(st.tuples(names | st.just("claim") | st.just("value"), st.text(max_size=20)), max_size=4),
    path=st.sampled_from(QUERY_ROUTES),
)
@fuzzed
def test_any_query(running: Target, fields: list[tuple[str, str]], path: str) -> None:
    """Any query that a client could encode gets a 200 or a 4xx problem."""
    encoded = "&".join(f"{name}={percent_encoded(text)}" for name, text in fields)
    assert_answered(running.ask(f"GET {path}?{encoded}"))


claims = st.dictionaries(names | st.sampled_from(["iat", "azp", "iss", "aud"]), values, max_size=4)


@given(header=values, payload=claims, path=st.sampled_from(BODY_ROUTES))
@fuzzed
def test_any_claims(running: Target, header: Any, payload: Any, path: str) -> None:
    """A correctly signed token with any claims and header gets a 200 or a 4xx problem."""
    head = {"alg": "HS256", "x": header}
    raw_token = token(json.dumps(payload).encode(), json.dumps(head).encode())
    body = {"checks": [{"token": raw_token}]} if path == "/check/batch" else {"token": raw_token}
    assert_answered(running.post(path, json.dumps(body).encode()))
