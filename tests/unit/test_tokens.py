"""How tokens are read: which claims count, what is verified, and what is refused."""

import asyncio
import json
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings, strategies as st

from revocation_client.claims import Claims
from revocation_service.errors import InvalidToken, KeysUnavailable, UnsupportedToken
from revocation_service.settings import SigningSettings
from revocation_service.signing_keys import SigningKeys
from revocation_service.tokens import Token, TokenReader
from tests.unit.reencodings import LABELS, SECRET, b64url, issuer, rsa_key

HS256 = issuer("HS256")
UNVERIFIED = SigningSettings()


def reader(signing: SigningSettings = HS256.settings) -> TokenReader:
    """Return a token reader with the keys of these settings."""
    return TokenReader(SigningKeys(signing), signing)


def written(payload: str | bytes | Mapping[str, Any], header: str | bytes | Mapping[str, Any] | None = None) -> str:
    """Return a token with exactly this header and payload, valid or not, signed with the HMAC secret."""
    header = {"alg": "HS256"} if header is None else header
    parts = [part if isinstance(part, str | bytes) else json.dumps(part) for part in (header, payload)]
    signing_input = ".".join(b64url(part.encode() if isinstance(part, str) else part) for part in parts)
    signature = jwt.get_algorithm_by_name("HS256").sign(signing_input.encode(), SECRET.encode())
    return f"{signing_input}.{b64url(signature)}"


def hash_name(covered: str) -> str:
    """Return the computed name of a token whose signature covers this text."""
    return "sha256:" + sha256(covered.encode()).hexdigest()


async def said(token: str, signing: SigningSettings = HS256.settings) -> tuple[Claims, float | None, bool]:
    """Read a token. Return its claims, its expiry, and whether it was verified."""
    read = await reader(signing).read(token)
    return read.claims, read.exp, read.verified


async def claims_of(payload: str | bytes | Mapping[str, Any]) -> Claims:
    """Return the claims that the reader finds in a signed token with this payload."""
    return (await reader().read(written(payload))).claims


async def refusal(token: str, signing: SigningSettings = HS256.settings) -> str:
    """Return why the reader refuses the token as invalid."""
    with pytest.raises(InvalidToken) as refused:
        await reader(signing).read(token)
    return refused.value.detail


async def test_a_token_gives_all_that_the_rule_looks_at() -> None:
    """All claims by which tokens can be revoked are read, including `all`, and so are `iat` and `exp`."""
    payload = {"jti": "7d", "sid": "s", "sub": "alice", "client_id": "web", "azp": "no", "iat": 1.5, "exp": 2}
    claims = Claims.of(jti="7d", sid="s", sub="alice", client_id="web", iat=1.5, all="")
    assert await said(written(payload)) == (claims, 2.0, True)


async def test_what_is_absent_or_null_is_not_considered() -> None:
    """A null claim counts as absent. A token without a `jti` is named by a hash of what its signature covers."""
    for payload in ({}, dict.fromkeys(("jti", "sid", "sub", "client_id", "azp", "iat", "exp"))):
        token = written(payload)
        name = hash_name(token.rpartition(".")[0])
        assert await said(token) == (Claims.of(jti=name, all=""), None, True)


async def test_the_client_is_client_id_else_azp() -> None:
    """`azp` (OpenID Connect Core section 2) stands in where `client_id` (RFC 9068 section 2.2) is missing or null."""
    assert (await claims_of({"azp": "web"})).value_of("client_id") == "web"
    assert (await claims_of({"azp": "web", "client_id": None})).value_of("client_id") == "web"


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id", "azp"])
async def test_identifiers_are_text_or_integers(claim: str) -> None:
    """An identifier is an integer or 1 to 256 printable characters. The error for any other value names the claim."""
    for value, read in [(7, "7"), (-7, "-7"), ("é" * 256, "é" * 256), (" a b ", " a b "), (10**200, "1" + "0" * 200)]:
        found = await claims_of({claim: value})
        assert found.value_of("client_id" if claim == "azp" else claim) == read
    unfit: list[Any] = ["", "a" * 257, True, 1.0, [], {}, ["a"], "a\n", "\x00", "\x7f", "\x85", "\ud800", 10**300]
    for wrong in unfit:
        assert ("client_id" if claim == "azp" else claim) in await refusal(written({claim: wrong}))


async def test_no_token_claims_a_computed_name() -> None:
    """A token whose `jti` looks like a computed name is named by its own hash, so names cannot be forged."""
    other = hash_name("another token")
    token = written({"jti": other})
    assert (await reader().read(token)).claims.value_of("jti") == hash_name(token.rpartition(".")[0])


@pytest.mark.parametrize(
    ("exp", "read"), [("null", None), ("0", 0), ("1.5", 1.5), ("2000000000", 2e9), ("1e30", 1e30), ("1e-400", 0)]
)
async def test_exp_is_a_number_of_seconds(exp: str, read: float | None) -> None:
    """An `exp` may be an integer or a finite float (RFC 7519 section 2). Null counts as absent."""
    assert (await reader().read(written(f'{{"exp": {exp}}}'))).exp == read


@pytest.mark.parametrize("exp", ["true", '"1"', "[]", "{}", "1e400", "-1", "1" + "0" * 400])
async def test_an_exp_that_is_no_time_is_an_error(exp: str) -> None:
    """A token with an invalid `exp` is refused, because its revocation must last as long as the token."""
    assert "exp" in await refusal(written(f'{{"exp": {exp}}}'))


@pytest.mark.parametrize(
    ("iat", "read"),
    [("1", 1), ("1.5", 1.5), ("1e30", 1e30)]
    + [(wrong, None) for wrong in ("-1", "null", "true", '"1"', "[]", "1e400", "1" + "0" * 400)],
)
async def test_an_iat_that_is_no_number_is_none(iat: str, read: float | None) -> None:
    """An `iat` that cannot be compared with a cutoff is read as absent, so the token counts as old."""
    claims = await claims_of(f'{{"iat": {iat}}}')
    assert (claims.iat, type(claims.iat)) == (read, type(None) if read is None else float)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_numbers_that_are_no_json_are_refused(number: str) -> None:
    """A token with NaN or Infinity in any member is refused. PyJWT accepts them; RFC 8259 section 6 does not."""
    for member in ("exp", "iat", "other"):
        assert "JSON" in await refusal(written(f'{{"{member}": {number}}}'))


@pytest.mark.parametrize("signing", [HS256.settings, UNVERIFIED], ids=["keys", "no keys"])
async def test_white_space_and_scheme_are_dropped(signing: SigningSettings) -> None:
    """White space and one Bearer scheme, in any case (RFC 9110 section 11.1), are removed. More is refused."""
    token = written({"jti": "7d"})
    for around in ("Bearer {}", " \n bearer\t{}\n", "BEARER  {} "):
        assert (await reader(signing).read(around.format(token))).claims.value_of("jti") == "7d"
        assert (await reader(signing).read(around.format("opaque"))).claims.value_of("jti") == hash_name("opaque")
    for around in ("Bearer Bearer {}", "Basic {}", "{} {}"):
        await refusal(around.format(token, token), signing)
        await refusal(around.format("opaque", "opaque"), signing)


@pytest.mark.parametrize("empty", ["", " ", "\n", "Bearer", "bearer ", " Bearer\t", "Bearer Bearer "])
async def test_nothing_is_no_token(empty: str) -> None:
    """An empty token, with or without a scheme, is refused, and not taken for an opaque token."""
    await refusal(empty)


async def test_an_opaque_token_is_named_by_the_whole_of_it() -> None:
    """A token that is no JWT is named by the hash of its text. It has no other claims, and is unverified."""
    for opaque in ("abc", "2YotnFZFEjr1zCsicMWpAA", "a.b", "a.b.c.d", "é", "bearerabc"):
        name = hash_name(opaque)
        assert await said(opaque) == (Claims.of(jti=name, all=""), None, False)


@pytest.mark.parametrize("opaque", ["a\x00b", "a\nb", "a\x7fb", "a\x85b", "a\ud800b", "\udcffab"])
async def test_an_opaque_token_has_no_control_characters(opaque: str) -> None:
    """An opaque token with control characters or lone surrogates is refused, because no header can carry it."""
    await refusal(opaque)


@pytest.mark.parametrize("tail", ["", ".sig.", ".sig.junk", ".sig...", ".sig.a.b.c"])
@pytest.mark.parametrize("start", ["{}", "\u200b{}", " {}", "{}==", "!{}"])
async def test_what_begins_as_a_jwt_is_never_opaque(start: str, tail: str) -> None:
    """A JWT with too few or too many parts is refused, because a careless verifier may accept it."""
    header, payload, _ = written({}).split(".")
    for signing in (HS256.settings, UNVERIFIED):
        await refusal(f"{start.format(header)}.{payload}{tail}", signing)


async def test_three_parts_are_a_jwt_or_an_error() -> None:
    """Three parts that are no JWT are refused, and not taken for an opaque token."""
    for token in ("a.b.c", "..", "a..c", "e30.e30.e30", "[].[].[]"):
        await refusal(token)
        await refusal(token, UNVERIFIED)


@pytest.mark.parametrize("token", ["a.b.c.d.e", "....", '{"protected":"e30"}', ' {"a":"b.c.d"}'])
async def test_other_serializations_are_unsupported(token: str) -> None:
    """An encrypted JWT (RFC 7516 section 3.1) and a JWS in JSON (RFC 7515 section 7.2) raise UnsupportedToken."""
    with pytest.raises(UnsupportedToken):
        await reader(UNVERIFIED).read(token)


@pytest.mark.parametrize("signing", [HS256.settings, UNVERIFIED], ids=["keys", "no keys"])
@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", " none ", "", None, 1, ["HS256"], {}])
async def test_a_token_names_a_signature_algorithm(algorithm: Any, signing: SigningSettings) -> None:
    """An `alg` that is `none`, missing or no string is refused, with keys and without (RFC 8725 section 3.2)."""
    assert "algorithm" in await refusal(written({"jti": "7d"}, {"alg": algorithm}), signing)
    assert "algorithm" in await refusal(written({"jti": "7d"}, {"typ": "JWT"}), signing)


@pytest.mark.parametrize("signing", [HS256.settings, UNVERIFIED], ids=["keys", "no keys"])
async def test_a_signature_that_is_not_there_is_an_error(signing: SigningSettings) -> None:
    """A signature that is empty, padding alone or foreign characters alone is refused, with keys and without."""
    signing_input = written({"jti": "7d"}).rpartition(".")[0]
    for nothing in ("", "=", "==", "A", "!!!!"):
        assert "signature" in await refusal(f"{signing_input}.{nothing}", signing)
    await refusal(f"{signing_input}.\u200b", signing)


@pytest.mark.parametrize("signing", [HS256.settings, UNVERIFIED], ids=["keys", "no keys"])
@pytest.mark.parametrize(
    "part",
    [
        '{"alg": "HS256", "alg": "HS256"}',
        '{"alg": "HS256", "a": {"b": 1, "b": 2}}',
        '{"alg": "HS256", "\\u0061lg": "HS256"}',
        '["alg"]',
        '"alg"',
        "null",
        "",
        "{",
        '{"alg": "HS256"} {}',
        b'{"alg": "HS256", "a": "\xff"}',
        '{"alg": "HS256"}'.encode("utf-16"),
        b'{"alg": "HS256", "a": "\xed\xa0\x80"}',
        '{"alg": "HS256", "a": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"alg": "HS256", "a": ' + "9" * 5_000 + "}",
    ],
    ids=lambda part: repr(part)[:40],
)
async def test_header_and_payload_are_plain_json_objects(part: str | bytes, signing: SigningSettings) -> None:
    """A header or payload that is no JSON object, or that two parsers could read differently, is refused."""
    assert "header" in await refusal(written({}, part), signing) or isinstance(part, str)
    await refusal(written({}, part), signing)
    await refusal(written(part), signing)


@pytest.mark.parametrize("signing", [HS256.settings, UNVERIFIED], ids=["keys", "no keys"])
async def test_extensions_that_change_the_meaning_are_refused(signing: SigningSettings) -> None:
    """A header with `crit` (RFC 7515 section 4.1.11), or with a `b64` that is not true (RFC 7797), is refused."""
    extensions: list[dict[str, Any]] = [
        {"b64": False, "crit": ["b64"]},
        {"b64": False},
        {"b64": "true"},
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64", "exp"], "b64": True},
        {"crit": ["b64"]},
        {"crit": []},
        {"crit": None},
        {"crit": "b64", "b64": True},
        {"crit": ["b64"], "b64": True},
    ]
    for extension in extensions:
        assert "header" in await refusal(written({"jti": "7d"}, {"alg": "HS256", **extension}), signing)


@pytest.mark.parametrize("label", LABELS)
async def test_a_right_signature_is_verified_and_a_wrong_one_refused(label: str) -> None:
    """With every algorithm a right signature is verified, and a changed payload or signature is refused."""
    signer = issuer(label)
    tokens = reader(signer.settings)
    token = signer.sign({"jti": "7d"})
    assert (await tokens.read(token)).verified
    header, payload, signature = token.split(".")
    other = signer.sign({"jti": "7e"}).split(".")[1]
    for forged in (
        f"{header}.{other}.{signature}",
        f"{header}.{payload}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.{signature}AAAA",
        f"{header}.{payload}.{signature[:-8]}=",
        f"{header}.{payload}.{b64url(b'0')}",
    ):
        assert "signature" in await refusal(forged, signer.settings)


async def test_without_keys_claims_are_read_and_said_to_be_unverified() -> None:
    """Without keys the claims of a token are read, whatever its algorithm, and the token is not marked as verified."""
    for label in LABELS:
        token = issuer(label).sign({"jti": "7d", "exp": 5})
        assert await said(token, UNVERIFIED) == (Claims.of(jti="7d", all=""), 5.0, False)
    assert (await reader(UNVERIFIED).read(written({"jti": "7d"}, {"alg": "XX1"}))).claims.value_of("jti") == "7d"


async def test_an_algorithm_that_is_not_allowed_is_refused() -> None:
    """A token with an algorithm that the settings do not allow is refused, even if its signature is right."""
    only_512 = SigningSettings(secret=SECRET, algorithms=("HS512",))
    assert "algorithm" in await refusal(HS256.sign({}), only_512)
    assert "algorithm" in await refusal(issuer("RS256").sign({}), HS256.settings)
    assert (await reader(only_512).read(issuer("HS512").sign({}))).verified


async def test_a_public_key_is_no_secret() -> None:
    """Algorithm confusion fails: an HMAC keyed with the public key's PEM is refused (RFC 8725 section 2.1)."""
    signer = issuer("RS256")
    signing_input = written({"jti": "7d"}).rpartition(".")[0]
    signature = jwt.get_algorithm_by_name("HS256").sign(signing_input.encode(), signer.pem.encode())
    assert "algorithm" in await refusal(f"{signing_input}.{b64url(signature)}", signer.settings)
    both = SigningSettings(secret=SECRET, public_key_pem=signer.pem)
    assert "signature" in await refusal(f"{signing_input}.{b64url(signature)}", both)


async def test_a_token_brings_no_keys() -> None:
    """`jwk`, `jku`, `x5u` and `x5c` in a header are ignored: a token cannot bring its own key."""
    algorithm, stranger = jwt.get_algorithm_by_name("RS256"), rsa_key(1)
    jwk = algorithm.to_jwk(stranger.public_key(), as_dict=True)
    headers = {"jwk": jwk, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/", "x5c": ["AAAA"]}
    assert "signature" in await refusal(jwt.encode({}, stranger, "RS256", headers), issuer("RS256").settings)
    assert (await reader(issuer("RS256").settings).read(issuer("RS256").sign({}, headers))).verified


async def test_any_of_several_keys_will_do() -> None:
    """If several public keys are configured, a token signed with any of them is verified."""
    signing = SigningSettings(public_key_pem=issuer("RS256").pem + issuer("ES256").pem)
    for label in ("RS256", "PS512", "ES256"):
        assert (await reader(signing).read(issuer(label).sign({}))).verified


async def test_a_key_too_small_for_the_digest_verifies_nothing() -> None:
    """An RSA key of 512 bits, with which PyJWT raises ValueError, counts as a key that did not sign the token."""
    tiny = rsa.RSAPublicNumbers(65537, (1 << 511) + 12345).public_key()
    pem = tiny.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    forged = f"{written({}, {'alg': 'PS512'}).rpartition('.')[0]}.{b64url(bytes(range(64)))}"
    assert "signature" in await refusal(forged, SigningSettings(public_key_pem=pem))


async def test_issuer_and_audience_are_checked_where_configured() -> None:
    """If an issuer and an audience are configured, a token with others or without them is refused."""
    signing = SigningSettings(secret=SECRET, issuer="https://issuer", audience="api")
    right = {"iss": "https://issuer", "aud": "api"}
    for claims in (right, right | {"aud": ["other", "api"]}):
        assert (await reader(signing).read(written(claims))).verified
    for iss in ("https://issuer/", None, ["https://issuer"], 1):
        assert "issuer" in await refusal(written(right | {"iss": iss}), signing)
    for aud in ("API", None, [], ["other"], 1, {"api": 1}, "api api"):
        assert "audience" in await refusal(written(right | {"aud": aud}), signing)
    assert "issuer" in await refusal(written({"aud": "api"}), signing)
    assert "audience" in await refusal(written({"iss": "https://issuer"}), signing)


async def test_an_audience_does_not_matter_where_none_is_configured() -> None:
    """If no audience is configured, `aud` is not checked. PyJWT by default refuses every token that has one."""
    assert (await reader().read(written({"jti": "7d", "aud": ["anyone"], "iss": 5}))).verified


async def test_no_time_claim_is_judged() -> None:
    """A token that is expired, not yet valid or issued in the future is verified, so that it can be revoked."""
    now = time.time()
    for times in ({"exp": 1}, {"nbf": now + 500}, {"iat": now + 500}, {"nbf": "soon"}):
        assert (await reader().read(written({"jti": "7d", **times}))).verified


async def test_a_short_secret_neither_warns_nor_fails() -> None:
    """A token signed with a short secret is verified, without PyJWT's warning about the key's length."""
    signing = SigningSettings(secret="short")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = jwt.encode({"jti": "7d"}, "short", "HS256")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert (await reader(signing).read(token)).verified
    assert seen == []


async def test_a_key_set_judges_and_its_absence_is_not_the_tokens_fault() -> None:
    """A token of a key in the set is verified. While its key cannot be fetched, KeysUnavailable is raised.

    A `kid` that is no string (RFC 7515 section 4.1.4), null included, is refused.
    """

    async def key_set(_request: web.Request) -> web.Response:
        return web.json_response({"keys": [issuer("RS256").jwk(kid="a")]}) if up else web.Response(status=500)

    up = True
    app = web.Application()
    app.router.add_get("/", key_set)
    async with TestServer(app) as server:
        signing = SigningSettings(public_key_pem=issuer("ES256").pem, jwks_url=str(server.make_url("/")))
        keys = SigningKeys(signing)
        tokens = TokenReader(keys, signing)
        await keys.start()
        assert (await tokens.read(issuer("RS256").sign({}, {"kid": "a"}))).verified
        no_hints: list[Any] = [None, 7, ["a"], {}]
        for kid in no_hints:
            header = {"alg": "RS256", "kid": kid}
            signing_input = written({}, header).rpartition(".")[0]
            signature = jwt.get_algorithm_by_name("RS256").sign(signing_input.encode(), issuer("RS256").private)
            with pytest.raises(InvalidToken):
                await tokens.read(f"{signing_input}.{b64url(signature)}")
        up = False
        with pytest.raises(KeysUnavailable):
            await tokens.read(issuer("RS256").sign({}, {"kid": "b"}))
        assert (await tokens.read(issuer("ES256").sign({}, {"kid": "b"}))).verified
        await keys.close()


async def test_a_forged_token_of_the_secret_does_not_wait_for_the_key_set(unused_tcp_port: int) -> None:
    """A wrong HMAC is refused even while the key set cannot be fetched, because a key set has no HMAC keys."""
    signing = SigningSettings(secret=SECRET, jwks_url=f"http://127.0.0.1:{unused_tcp_port}/")
    assert "signature" in await refusal(written({"jti": "7d"})[:-4] + "AAAA", signing)


async def test_a_batch_has_an_outcome_for_each_token_in_order() -> None:
    """`read_many` returns an outcome for each token, in order. A bad token does not affect the others."""
    raws = [HS256.sign({"jti": str(number)}) for number in range(50)]
    raws[7], raws[20], raws[31] = "a.b.c", "a.b.c.d.e", raws[31][:-4] + "AAAA"
    outcomes = await reader().read_many(raws)
    wrong = {7: InvalidToken, 20: UnsupportedToken, 31: InvalidToken}
    for number, outcome in enumerate(outcomes):
        if number in wrong:
            assert isinstance(outcome, wrong[number])
        else:
            assert isinstance(outcome, Token)
            assert (outcome.name, outcome.verified) == (str(number), True)
    assert len(outcomes) == 50


async def test_a_large_batch_does_not_hold_the_event_loop() -> None:
    """While a thousand ES384 tokens are verified, another coroutine keeps running."""
    signer = issuer("ES384")
    raws = [signer.sign({"jti": str(number)}) for number in range(1_000)]
    batch = asyncio.create_task(reader(signer.settings).read_many(raws))
    turns = 0
    while not batch.done():
        await asyncio.sleep(0)
        turns += 1
    assert [outcome.name for outcome in batch.result() if isinstance(outcome, Token)] == [str(n) for n in range(1_000)]
    assert turns > 100


async def test_a_refusal_never_quotes_the_token() -> None:
    """The error for a refused token does not quote its header, its claims or its text."""
    for token in (
        written({"jti": "marker\n"}),
        written({"jti": "marker"}, {"alg": "marker"}),
        written('{"marker": }'),
        written({"exp": "marker"}),
        issuer("HS256").sign({"sub": "marker"})[:-2],
        "marker\x00",
    ):
        assert "marker" not in await refusal(token)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
members = st.dictionaries(
    st.sampled_from(["jti", "sub", "sid", "client_id", "azp", "iat", "exp", "iss", "aud", "alg", "kid", "crit", "b64"]),
    json_values,
)
segments = st.text() | st.text("ABCeyJ0{}.=-_+/ \n\x00", max_size=12) | st.sampled_from(written({}).split("."))
tokens_like = st.lists(segments, max_size=6).map(".".join)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | tokens_like)
@example("\ud800.\ud800.\ud800")
@example("eyJhbGciOiJIUzI1NiJ9.\ud800.AAAA")
async def test_any_text_is_a_token_or_a_stated_error(raw: str) -> None:
    """Any text is read as a token with a name, or raises InvalidToken or UnsupportedToken."""
    for signing in (HS256.settings, UNVERIFIED):
        with suppress(InvalidToken, UnsupportedToken):
            assert (await reader(signing).read(raw)).claims.value_of("jti")


@settings(max_examples=300, deadline=None)
@given(members, members)
async def test_any_json_is_read_or_refused(header: dict[str, Any], payload: dict[str, Any]) -> None:
    """A token with any JSON values in its header and payload is read, or raises InvalidToken."""
    for alg in ("HS256", header.get("alg")):
        token = written(payload, header | {"alg": alg})
        for signing in (HS256.settings, UNVERIFIED):
            with suppress(InvalidToken):
                read = await reader(signing).read(token)
                assert read.claims.value_of("jti")
                assert read.exp is None or read.exp >= 0
