"""Signing keys: which key serves which algorithm, and what happens while the JWKS URL does not answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from structlog.testing import capture_logs

from revocation_service.errors import InvalidToken, KeysUnavailable, SettingsError
from revocation_service.settings import SigningSettings
from revocation_service.signing_keys import (
    KEY_SET_TTL_SECONDS,
    MAX_BACKOFF_SECONDS,
    MAX_KEY_SET_BYTES,
    MAX_KEYS_TRIED,
    UNKNOWN_KID_INTERVAL_SECONDS,
    KeysStatus,
    SigningKeys,
    refresh_delay,
)
from tests.redis_processes import WAIT_SECONDS
from tests.unit.reencodings import LABELS, SECRET, issuer, rsa_key

NEVER = 3600.0
"""A delay until the next fetch that is longer than any test."""


class Clock:
    """A monotonic clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class KeySetServer:
    """A JWKS URL. It answers `answer` while `gate` is open, and counts the requests."""

    answer: web.Response | bytes | list[dict[str, Any]]
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    requests: int = 0
    arrived: asyncio.Queue[web.Request] = field(default_factory=asyncio.Queue)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.arrived.put_nowait(request)
        await self.gate.wait()
        if isinstance(self.answer, web.Response):
            return web.Response(status=self.answer.status, headers=self.answer.headers)
        body = self.answer if isinstance(self.answer, bytes) else json.dumps({"keys": self.answer}).encode()
        return web.Response(body=body, content_type="application/jwk-set+json")


@pytest.fixture
def clock() -> Clock:
    """The clock of the keys under test."""
    return Clock()


@pytest.fixture
async def served() -> AsyncIterator[KeySetServer]:
    """A JWKS URL with one RSA key, whose `kid` is `first`."""
    place = KeySetServer([issuer("RS256").jwk(kid="first")])
    place.gate.set()
    app = web.Application()
    app.router.add_get("/keys", place.handle)
    app.router.add_get("/elsewhere", place.handle)
    async with TestServer(app) as server:
        place.url = str(server.make_url("/keys"))
        yield place


@pytest.fixture
async def keys(served: KeySetServer, clock: Clock) -> AsyncIterator[SigningKeys]:
    """Signing keys from the JWKS URL, not started yet. Only an unknown `kid` causes a second fetch."""
    keys = SigningKeys(SigningSettings(jwks_url=served.url), clock=clock, delay=lambda _failures: NEVER)
    yield keys
    await keys.close()


async def candidates(keys: SigningKeys, algorithm: str, kid: str | None) -> list[Any]:
    """Return the keys to try for a token with this header. If they are unavailable, refresh once, like TokenReader."""
    try:
        return [candidate.key for candidate in keys.candidates(algorithm, kid)]
    except KeysUnavailable:
        await keys.refresh()
    return [candidate.key for candidate in keys.candidates(algorithm, kid)]


async def first_fetch(keys: SigningKeys) -> None:
    """Wait for the first fetch."""
    await candidates(keys, "RS256", None)


def secondary(kid: str) -> dict[str, Any]:
    """Return a second RSA key, different from that of `issuer`, as a JWK."""
    public = rsa_key(1).public_key()
    return {**jwt.get_algorithm_by_name("RS256").to_jwk(public, as_dict=True), "kid": kid}


@pytest.mark.parametrize(
    ("label", "algorithms"),
    [
        ("HS256", {"HS256", "HS384", "HS512"}),
        ("RS256", {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        *((label, {label}) for label in ("ES256", "ES384", "ES512")),
        *((label, {"EdDSA"}) for label in ("Ed25519", "Ed448")),
    ],
)
async def test_the_type_of_a_key_says_which_algorithms_it_serves(label: str, algorithms: set[str]) -> None:
    """Without a setting for algorithms, each kind of key serves the algorithms of its type, and no other."""
    keys = SigningKeys(issuer(label).settings)
    assert keys.algorithms == algorithms
    for algorithm in algorithms:
        assert len(await candidates(keys, algorithm, None)) == 1
    for algorithm in {"HS256", "RS256", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA", "none"} - algorithms:
        with pytest.raises(InvalidToken, match="algorithm"):
            await candidates(keys, algorithm, None)


async def test_a_secret_and_public_keys_never_serve_the_same_algorithm() -> None:
    """With a secret and public keys together, the secret serves only HMAC algorithms, and public keys the others."""
    pem = "\n".join(issuer(label).pem for label in ("RS256", "ES256", "ES384", "ES512", "Ed25519", "Ed448"))
    keys = SigningKeys(SigningSettings(secret=SECRET, public_key_pem=pem))
    assert keys.algorithms == {*LABELS[:-2], "EdDSA"}
    for algorithm in keys.algorithms:
        found = await candidates(keys, algorithm, None)
        assert found
        assert all(isinstance(key, bytes) is algorithm.startswith("HS") for key in found)


async def test_several_pem_blocks_are_several_keys() -> None:
    """Each PEM block in the setting is a key, as a rotation needs. Text between the blocks is ignored."""
    second = rsa_key(1).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    pem = f"the old one\n{issuer('RS256').pem}\nthe new one\n{second}"
    keys = SigningKeys(SigningSettings(public_key_pem=pem))
    assert await candidates(keys, "RS256", None) == [issuer("RS256").public, rsa_key(1).public_key()]


async def test_algorithms_restrict_what_a_key_may_serve() -> None:
    """If algorithms are set, a key serves those and none of its others."""
    keys = SigningKeys(SigningSettings(secret=SECRET, algorithms=("HS512",)))
    assert keys.algorithms == {"HS512"}
    assert await candidates(keys, "HS512", None) == [SECRET.encode()]
    with pytest.raises(InvalidToken, match="algorithm"):
        await candidates(keys, "HS256", None)


def _private_pem(key: Any) -> str:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def _public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


@pytest.mark.parametrize(
    ("settings", "variable", "mend"),
    [
        (lambda: SigningSettings(secret=SECRET, algorithms=("HS257",)), "REVOCATION_JWT_ALGORITHMS", "'HS257'"),
        (lambda: SigningSettings(secret=SECRET, algorithms=("none",)), "REVOCATION_JWT_ALGORITHMS", "'none'"),
        (
            lambda: SigningSettings(secret=SECRET, algorithms=("HS256", "RS256")),
            "REVOCATION_JWT_ALGORITHMS",
            "only HS256, HS384, HS512 have a key",
        ),
        (
            lambda: SigningSettings(jwks_url="http://127.0.0.1:1/", algorithms=("HS256",)),
            "REVOCATION_JWT_ALGORITHMS",
            "RS256",
        ),
        (
            lambda: SigningSettings(public_key_pem=issuer("ES256").pem, algorithms=("ES384",)),
            "REVOCATION_JWT_ALGORITHMS",
            "ES384",
        ),
        (
            lambda: SigningSettings(public_key_pem=_private_pem(issuer("ES256").private)),
            "REVOCATION_JWT_PUBLIC_KEY",
            "-pubout",
        ),
        (lambda: SigningSettings(public_key_pem="a key"), "REVOCATION_JWT_PUBLIC_KEY", "PEM"),
        (
            lambda: SigningSettings(public_key_pem=issuer("ES256").pem.replace("M", "N")),
            "REVOCATION_JWT_PUBLIC_KEY",
            "PEM",
        ),
        (
            lambda: SigningSettings(public_key_pem=issuer("ES256").pem + issuer("RS256").pem[:-30]),
            "REVOCATION_JWT_PUBLIC_KEY",
            "PEM",
        ),
        (
            lambda: SigningSettings(public_key_pem=_public_pem(x25519.X25519PrivateKey.generate())),
            "REVOCATION_JWT_PUBLIC_KEY",
            "P-256, P-384 or P-521, Ed25519, Ed448",
        ),
        (
            lambda: SigningSettings(public_key_pem=_public_pem(ec.generate_private_key(ec.SECP256K1()))),
            "REVOCATION_JWT_PUBLIC_KEY",
            "P-256, P-384 or P-521, Ed25519, Ed448",
        ),
        (
            lambda: SigningSettings(public_key_pem=issuer("ES256").pem * (MAX_KEYS_TRIED + 1)),
            "REVOCATION_JWT_PUBLIC_KEY",
            "1 to 10",
        ),
        (lambda: SigningSettings(secret=""), "REVOCATION_JWT_SECRET", "empty"),
        (lambda: SigningSettings(secret=issuer("RS256").pem), "REVOCATION_JWT_SECRET", "REVOCATION_JWT_PUBLIC_KEY"),
    ],
)
def test_a_wrong_setting_stops_the_start(settings: Any, variable: str, mend: str) -> None:
    """A setting that could never verify a token raises an error that names the variable and what to do."""
    with pytest.raises(SettingsError) as refusal:
        SigningKeys(settings())
    assert variable in refusal.value.detail
    assert mend in refusal.value.detail
    assert "BEGIN" not in refusal.value.detail


async def test_a_short_secret_is_accepted() -> None:
    """A secret that is shorter than its hash is accepted, although RFC 7518 section 3.2 forbids it."""
    assert await candidates(SigningKeys(SigningSettings(secret="short")), "HS256", None) == [b"short"]


async def test_no_keys_is_a_state_of_its_own() -> None:
    """Without settings there are no keys and no algorithms, and the status is `ok`."""
    keys = SigningKeys(SigningSettings())
    await keys.start()
    assert (keys.configured, keys.algorithms, keys.status) == (False, frozenset(), KeysStatus("ok"))
    await keys.close()


async def test_a_kid_picks_its_key(served: KeySetServer, keys: SigningKeys) -> None:
    """A `kid` selects one key of the set. Without a `kid`, every key that fits the algorithm is tried."""
    served.answer = [issuer("RS256").jwk(kid="first"), secondary("second"), issuer("ES256").jwk(kid="curve")]
    await keys.start()
    first, second = issuer("RS256").public, rsa_key(1).public_key()
    assert await candidates(keys, "RS256", "first") == [first]
    assert await candidates(keys, "PS384", "second") == [second]
    assert await candidates(keys, "RS256", None) == [first, second]
    assert await candidates(keys, "ES256", "curve") == [issuer("ES256").public]
    assert await candidates(keys, "RS256", "curve") == []
    assert (keys.status, served.requests) == (KeysStatus("ok"), 1)


async def test_the_alg_of_a_jwk_binds_it(served: KeySetServer, keys: SigningKeys) -> None:
    """A JWK with an `alg` (RFC 7517 section 4.4) serves that algorithm and no other of its type."""
    served.answer = [issuer("RS256").jwk(kid="first", alg="PS256")]
    await keys.start()
    assert await candidates(keys, "PS256", "first") == [issuer("RS256").public]
    assert await candidates(keys, "RS256", "first") == []


async def test_what_is_no_public_signing_key_is_passed_over(served: KeySetServer, keys: SigningKeys) -> None:
    """Shared secrets, encryption keys and malformed members of a set are ignored. The good key is still used."""
    served.answer = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "first"},
        {"kty": "oct"},
        issuer("RS256").jwk(kid="first", use="enc"),
        issuer("RS256").jwk(kid="first", alg="RSA-OAEP"),
        issuer("RS256").jwk(kid="first", alg=["RS256"]),
        issuer("RS256").jwk(kid="first") | {"n": 7},
        issuer("ES256").jwk(kid="first") | {"y": "AAAA"},
        {"kty": "OKP", "crv": "X25519", "x": "AAAA", "kid": "first"},
        {"kty": ["RSA"]},
        {},
        "a key",  # type: ignore[list-item]
        issuer("Ed448").jwk(kid="first"),
    ]
    await keys.start()
    assert await candidates(keys, "EdDSA", "first") == [issuer("Ed448").public]
    for algorithm in ("RS256", "ES256"):
        assert await candidates(keys, algorithm, "first") == []
    with pytest.raises(InvalidToken, match="algorithm"):
        await candidates(keys, "HS256", "first")


async def test_a_private_half_in_the_set_is_not_taken_in(served: KeySetServer, keys: SigningKeys) -> None:
    """If a set publishes a private key by mistake, only its public half is used."""
    algorithm = jwt.get_algorithm_by_name("RS256")
    private = algorithm.to_jwk(issuer("RS256").private, as_dict=True)
    served.answer = [private | {"kid": "first"}]
    await keys.start()
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]


async def test_a_rotated_set_replaces_the_old(served: KeySetServer, clock: Clock) -> None:
    """A periodic fetch replaces a withdrawn key by the new one, without a token that asks for it."""

    def delay(_failures: int) -> float:
        served.answer = [secondary("second")]
        return 0 if served.requests == 1 else NEVER

    keys = SigningKeys(SigningSettings(jwks_url=served.url), clock=clock, delay=delay)
    await keys.start()
    for _ in range(2):
        await served.arrived.get()
    assert await candidates(keys, "RS256", "second") == [rsa_key(1).public_key()]
    assert await candidates(keys, "RS256", None) == [rsa_key(1).public_key()]
    assert await candidates(keys, "RS256", "first") == []
    await keys.close()


async def test_the_last_good_set_survives_an_outage(served: KeySetServer, clock: Clock) -> None:
    """While fetches fail, known keys still serve, an unknown `kid` is unavailable, and the status is `stale`."""

    def delay(_failures: int) -> float:
        served.answer = web.Response(status=500)
        return 0 if served.requests == 1 else NEVER

    keys = SigningKeys(SigningSettings(jwks_url=served.url), clock=clock, delay=delay)
    await keys.start()
    for _ in range(2):
        await served.arrived.get()
    for _ in range(50):
        with pytest.raises(KeysUnavailable):
            await candidates(keys, "RS256", "second")
        assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]
        assert await candidates(keys, "RS256", None) == [issuer("RS256").public]
    assert served.requests == 2
    assert keys.status == KeysStatus("stale", "unreachable")
    await keys.close()


async def test_an_unknown_kid_fetches_and_not_too_often(served: KeySetServer, keys: SigningKeys, clock: Clock) -> None:
    """A new `kid` causes a fetch at once. Further unknown ones cause at most one in thirty seconds."""
    await keys.start()
    await first_fetch(keys)
    served.answer = [issuer("RS256").jwk(kid="first"), secondary("second")]
    assert await candidates(keys, "RS256", "second") == [rsa_key(1).public_key()]
    for number in range(50):
        assert await candidates(keys, "RS256", f"made up {number}") == []
    assert served.requests == 2
    clock.now += UNKNOWN_KID_INTERVAL_SECONDS
    assert await candidates(keys, "RS256", "made up") == []
    assert served.requests == 3


async def test_an_unknown_kid_that_meets_an_outage_is_unavailable(served: KeySetServer, keys: SigningKeys) -> None:
    """If the fetch for an unknown `kid` fails, KeysUnavailable is raised, because the key may exist."""
    await keys.start()
    await first_fetch(keys)
    served.answer = web.Response(status=503)
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", "second")
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]


async def test_an_unknown_kid_whose_fetch_hangs_is_unavailable(served: KeySetServer, keys: SigningKeys) -> None:
    """While the fetch for an unknown `kid` hangs, KeysUnavailable is raised, because the key may still arrive."""
    await keys.start()
    await first_fetch(keys)
    served.gate.clear()
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", "second")
    served.gate.set()
    assert await candidates(keys, "RS256", "second") == []


async def test_keys_never_had_are_unavailable(served: KeySetServer, keys: SigningKeys) -> None:
    """Until a first fetch succeeds, KeysUnavailable is raised, without another fetch for each caller."""
    served.answer = web.Response(status=500)
    await keys.start()
    for kid in ("first", None) * 25:
        with pytest.raises(KeysUnavailable):
            await candidates(keys, "RS256", kid)
    assert served.requests == 1
    assert keys.status == KeysStatus("unavailable", "unreachable")


async def test_before_the_start_keys_are_unavailable(keys: SigningKeys) -> None:
    """Before the start KeysUnavailable is raised, and the status is `not_fetched`."""
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", "first")
    assert keys.status == KeysStatus("unavailable", "not_fetched")


async def test_a_failed_fetch_is_retried_without_being_asked(served: KeySetServer, clock: Clock) -> None:
    """A failed fetch is retried without any caller, because a service that is not ready gets no traffic."""
    failures = []

    def delay(count: int) -> float:
        failures.append(count)
        if count == 3:
            served.answer = [issuer("RS256").jwk(kid="first")]
        return 0 if count else NEVER

    served.answer = b"nonsense"
    keys = SigningKeys(SigningSettings(jwks_url=served.url), clock=clock, delay=delay)
    await keys.start()
    for _ in range(4):
        await asyncio.wait_for(served.arrived.get(), WAIT_SECONDS)
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]
    assert failures == [1, 2, 3, 0]
    assert keys.status == KeysStatus("ok")
    await keys.close()


async def test_a_slow_address_does_not_hold_a_check_up(served: KeySetServer, keys: SigningKeys) -> None:
    """A caller gets KeysUnavailable before a slow fetch ends. The fetch continues, and serves later callers."""
    served.gate.clear()
    await keys.start()
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", "first")
    served.gate.set()
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]
    assert served.requests == 1


async def test_known_keys_do_not_wait_for_the_search_of_an_unknown_one(served: KeySetServer, keys: SigningKeys) -> None:
    """While a made-up `kid` keeps a fetch under way, tokens of known keys are verified at once."""
    await keys.start()
    await first_fetch(keys)
    served.gate.clear()
    stranger = asyncio.create_task(candidates(keys, "RS256", "made up"))
    await served.arrived.get()
    await served.arrived.get()
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]
    assert not stranger.done()
    served.gate.set()
    assert list(await stranger) == []


async def test_known_keys_do_not_wait_for_a_retry_that_hangs(served: KeySetServer, clock: Clock) -> None:
    """While a retry hangs, the keys of the last good set serve at once."""

    def delay(failures: int) -> float:
        if failures:
            served.gate.clear()
        served.answer = web.Response(status=500)
        return 0

    keys = SigningKeys(SigningSettings(jwks_url=served.url), clock=clock, delay=delay)
    await keys.start()
    for _ in range(3):
        await served.arrived.get()
    assert keys.status.state == "stale"
    asked = asyncio.create_task(candidates(keys, "RS256", "first"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked.done(), "it waits for something"
    assert await asked == [issuer("RS256").public]
    served.gate.set()
    await keys.close()


async def test_fifty_callers_share_one_fetch(served: KeySetServer, keys: SigningKeys) -> None:
    """Concurrent callers share one fetch, whatever their `kid`."""
    served.gate.clear()
    await keys.start()
    callers = [asyncio.create_task(candidates(keys, "RS256", kid)) for kid in ("first", None) * 25]
    await served.arrived.get()
    served.gate.set()
    assert [list(found) for found in await asyncio.gather(*callers)] == [[issuer("RS256").public]] * 50
    assert served.requests == 1
    await asyncio.gather(*(candidates(keys, "RS256", kid) for kid in ("first", None, "new") * 17))
    assert served.requests == 2


async def test_a_cancelled_caller_takes_no_one_with_it(served: KeySetServer, keys: SigningKeys) -> None:
    """A cancelled caller does not cancel the fetch that another caller waits for."""
    served.gate.clear()
    await keys.start()
    one, other = (asyncio.create_task(candidates(keys, "RS256", "first")) for _ in range(2))
    await served.arrived.get()
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    served.gate.set()
    assert list(await other) == [issuer("RS256").public]
    assert served.requests == 1


def key_set_of(size: int) -> bytes:
    """Return a usable key set of `size` bytes."""
    return json.dumps({"keys": [issuer("RS256").jwk(kid="first")]}).encode().ljust(size)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (web.Response(status=302, headers={"Location": "/elsewhere"}), "not_a_key_set"),
        (web.Response(status=404), "unreachable"),
        (key_set_of(MAX_KEY_SET_BYTES + 1), "not_a_key_set"),
        (b"<html>", "not_a_key_set"),
        (b"\xff\xff", "not_a_key_set"),
        (b"[" * 100_000, "not_a_key_set"),
        (b"[]", "not_a_key_set"),
        (b'{"keys": {"kty": "RSA"}}', "not_a_key_set"),
        (b'{"keys": null}', "not_a_key_set"),
        (b'{"keys": []}', "not_a_key_set"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "not_a_key_set"),
    ],
)
async def test_a_bad_answer_is_a_failure_with_a_code(
    served: KeySetServer, keys: SigningKeys, answer: web.Response | bytes, code: str
) -> None:
    """A redirect, an error status, a body over a mebibyte and a body that is no key set are failures with a code."""
    served.answer = answer
    await keys.start()
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", "first")
    assert keys.status == KeysStatus("unavailable", code)
    assert served.requests == 1


async def test_the_largest_key_set_is_read(served: KeySetServer, keys: SigningKeys) -> None:
    """A key set of exactly the maximum size is used."""
    served.answer = key_set_of(MAX_KEY_SET_BYTES)
    await keys.start()
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]


async def test_nobody_there_is_unreachable(unused_tcp_port: int) -> None:
    """If nothing listens at the JWKS URL, KeysUnavailable is raised, and the status is `unreachable`."""
    keys = SigningKeys(SigningSettings(jwks_url=f"http://127.0.0.1:{unused_tcp_port}/"))
    await keys.start()
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", None)
    assert keys.status == KeysStatus("unavailable", "unreachable")
    await keys.close()


async def test_configured_keys_serve_while_the_set_is_away(served: KeySetServer) -> None:
    """A configured secret and public key serve while the fetch of the key set hangs."""
    served.gate.clear()
    keys = SigningKeys(SigningSettings(secret=SECRET, public_key_pem=issuer("ES256").pem, jwks_url=served.url))
    await keys.start()
    assert await candidates(keys, "HS256", "any") == [SECRET.encode()]
    assert next(keys.candidates("ES256", "any")).key == issuer("ES256").public
    served.gate.set()
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]
    await keys.close()


async def test_algorithms_restrict_the_set_too(served: KeySetServer) -> None:
    """A key of the set serves only the algorithms that the operator allows."""
    keys = SigningKeys(SigningSettings(jwks_url=served.url, algorithms=("PS256",)))
    await keys.start()
    assert await candidates(keys, "PS256", "first") == [issuer("RS256").public]
    with pytest.raises(InvalidToken, match="algorithm"):
        await candidates(keys, "RS256", "first")
    await keys.close()


async def test_the_environment_and_cookies_do_not_matter(
    served: KeySetServer, keys: SigningKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetches ignore the proxies that the environment configures."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    monkeypatch.delenv("no_proxy", raising=False)
    await keys.start()
    assert await candidates(keys, "RS256", "first") == [issuer("RS256").public]


async def test_close_ends_a_fetch_and_its_retries(served: KeySetServer, clock: Clock) -> None:
    """Closing ends a fetch under way and leaves no task behind. It may be repeated."""
    served.gate.clear()
    keys = SigningKeys(SigningSettings(jwks_url=served.url), clock=clock, delay=lambda _failures: 0)
    await keys.start()
    await served.arrived.get()
    await keys.close()
    await keys.close()
    assert "fetch-signing-keys" not in {task.get_name() for task in asyncio.all_tasks()}
    with pytest.raises(KeysUnavailable):
        await candidates(keys, "RS256", "first")
    assert served.requests == 1
    served.gate.set()


async def test_the_log_tells_the_code_and_not_the_address(served: KeySetServer, keys: SigningKeys) -> None:
    """A failed fetch is logged with a code and the type of the error, but without the URL: it may hold credentials."""
    served.answer = web.Response(status=500)
    with capture_logs() as logs:
        await keys.start()
        with pytest.raises(KeysUnavailable):
            await candidates(keys, "RS256", "first")
    assert [(entry["event"], entry["code"], entry["error_type"]) for entry in logs] == [
        ("signing_keys_fetch_failed", "unreachable", "ClientResponseError")
    ]
    assert "127.0.0.1" not in repr(logs)


def test_the_backoff_grows_to_a_bound_with_jitter() -> None:
    """A good set is fetched again after its time to live; after failures the delay grows, with jitter, to a bound."""
    assert refresh_delay(0) == KEY_SET_TTL_SECONDS
    for failures, most in [(1, 0.1), (2, 0.2), (6, 3.2), (10_000, MAX_BACKOFF_SECONDS)]:
        delays = [refresh_delay(failures) for _ in range(200)]
        assert 0 <= min(delays) < max(delays) <= most
        assert len(set(delays)) > 100


async def test_the_number_of_keys_tried_for_one_token_is_bounded(served: KeySetServer, keys: SigningKeys) -> None:
    """A `kid` selects one of a hundred keys. A token without a `kid` is refused if more than ten keys fit it."""
    same = [issuer("RS256").jwk(kid=f"key {number}") for number in range(100 - MAX_KEYS_TRIED)]
    served.answer = [*same, *(issuer("ES384").jwk(kid=f"curve {number}") for number in range(MAX_KEYS_TRIED))]
    await keys.start()
    assert len(await candidates(keys, "RS256", "key 7")) == 1
    assert len(await candidates(keys, "ES384", None)) == MAX_KEYS_TRIED
    with pytest.raises(InvalidToken, match="kid"):
        await candidates(keys, "RS256", None)


async def test_keys_of_one_kid_are_bounded_too(served: KeySetServer, keys: SigningKeys) -> None:
    """A token is refused if more than ten keys have its `kid`."""
    served.answer = [issuer("RS256").jwk(kid="first")] * (MAX_KEYS_TRIED + 1)
    await keys.start()
    with pytest.raises(InvalidToken, match="kid"):
        await candidates(keys, "RS256", "first")
