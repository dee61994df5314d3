"""The keys that verify tokens: a shared secret, public keys in PEM, and a JWK Set behind a URL.

To add an algorithm that PyJWT knows, add its name here. What a key may verify follows from its type and the settings,
never from a token: `jku`, `jwk`, `x5u`, `x5c` (RFC 7515 section 4.1) are ignored (RFC 8725 sections 3.1 and 3.10).
"""

import asyncio
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import aiohttp
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from jwt import InsecureKeyLengthWarning, PyJWK, PyJWTError, get_algorithm_by_name

from revocation_client.retry import backoff_seconds
from revocation_service.errors import InvalidToken, KeysUnavailable, SettingsError
from revocation_service.settings import SigningSettings
from revocation_service.tasks import begin, end

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
PUBLIC_KEY_ALGORITHMS: Final = (*RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA")

MAX_KEYS_TRIED: Final = 10
"""Limit on the public keys in the settings, and on the keys of the JWK Set that are tried for one token."""
UNKNOWN_KID_INTERVAL_SECONDS: Final = 30.0
"""Shortest time between fetches for an unknown `kid`, which anyone can make up."""
KEY_SET_TTL_SECONDS: Final = 300.0
MAX_BACKOFF_SECONDS: Final = 30.0
FETCH_TIMEOUT_SECONDS: Final = 2.0
WAIT_SECONDS: Final = 0.8
"""How long a check waits for a fetch, because it is answered within a second. The fetch goes on."""
MAX_KEY_SET_BYTES: Final = 1 << 20

_log = structlog.get_logger()

Clock = Callable[[], float]
Delay = Callable[[int], float]
"""Seconds until the next fetch, after so many failures in a row."""


class VerifyingKey(NamedTuple):
    """A key for one algorithm. For a token with a `kid`, a key of the JWK Set must have that `kid` too."""

    algorithm: str
    key: Any
    kid: object = None


class KeysStatus(NamedTuple):
    """The state of the keys, and the code of the last failure. `stale` means that an older key set is still in use."""

    state: Literal["ok", "stale", "unavailable"]
    error: str | None = None


def refresh_delay(failures: int) -> float:
    """Return the seconds until the next fetch: the time to live, or a backoff with jitter after failures in a row."""
    return backoff_seconds(failures, MAX_BACKOFF_SECONDS) if failures else KEY_SET_TTL_SECONDS


class SigningKeys:
    """All keys that may verify a token: those in the settings, and those of the JWK Set, which one task fetches.

    The set is fetched again after its time to live, and earlier for an unknown `kid`. While fetches fail, the last good
    set stays in use, and only the backoff decides when to fetch again. Thus many checks cannot overload the issuer.
    """

    def __init__(self, settings: SigningSettings, clock: Clock = time.monotonic, delay: Delay = refresh_delay) -> None:
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # PyJWT would warn with every token
        self.configured: Final = settings.configured
        self.configured_keys: Final = list(_configured_keys(settings))
        self.algorithms: Final = _allowed(settings, self.configured_keys)
        self.fetched_keys: Sequence[VerifyingKey] = ()
        self.status = KeysStatus("unavailable", "not_fetched") if settings.jwks_url else KeysStatus("ok")
        self._url = settings.jwks_url
        self._clock = clock
        self._delay = delay
        self._next_kid_fetch_at = 0.0
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()  # not set while a fetch is wanted or under way
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to fetch the key set, if there is one. Does not wait for it."""
        if self._url is not None:
            self._tasks = begin("fetch-signing-keys", self._keep_fetching(self._url))

    async def close(self) -> None:
        """End the fetch task, and wait until it has ended."""
        await end(self._tasks)

    def candidates(self, algorithm: str, kid: object) -> Iterator[VerifyingKey]:
        """Yield the keys that may have signed a token with this header, those in the settings first.

        Then raises KeysUnavailable if the JWK Set has no key for this `kid` and may be out of date. Raises
        InvalidToken if the algorithm is not allowed, or if more than MAX_KEYS_TRIED keys of the set fit the token.
        """
        if algorithm not in self.algorithms or not isinstance(kid, str | None):
            raise InvalidToken("The token's algorithm is not allowed here, or its kid is not a string.")
        yield from (key for key in self.configured_keys if key.algorithm == algorithm)
        if self._url is None or algorithm in HMAC_ALGORITHMS:
            return
        named = [key for key in self.fetched_keys if kid in (None, key.kid)]
        if not named and (self.status.error or not self._settled.is_set() or self._clock() >= self._next_kid_fetch_at):
            raise KeysUnavailable("The signing keys cannot be fetched at present.")
        fitting = [key for key in named if key.algorithm == algorithm]
        if len(fitting) > MAX_KEYS_TRIED:
            raise InvalidToken("Too many keys may have signed the token: it must name its key by kid.")
        yield from fitting

    async def refresh(self) -> None:
        """Begin a fetch if one is allowed now, then wait up to WAIT_SECONDS for the fetch under way."""
        if self._settled.is_set() and self.status.state == "ok" and self._clock() >= self._next_kid_fetch_at:
            self._next_kid_fetch_at = self._clock() + UNKNOWN_KID_INTERVAL_SECONDS
            self._settled.clear()
            self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await self._settled.wait()

    async def _keep_fetching(self, url: str) -> None:
        """Keep the set up to date until cancelled. Messages of errors may contain the URL, so they are not logged."""
        failures = 0
        while True:
            self._settled.clear()
            try:
                self.fetched_keys = await asyncio.to_thread(read_key_set, await _download(url))
                failures, self.status = 0, KeysStatus("ok")
                _log.info("signing_keys_fetched", keys=len(self.fetched_keys))
            except Exception as error:  # noqa: BLE001 - policy: keep the last good set, and try again
                code = "unreachable" if isinstance(error, aiohttp.ClientError | OSError) else "not_a_key_set"
                failures, self.status = failures + 1, KeysStatus("stale" if self.fetched_keys else "unavailable", code)
                _log.warning("signing_keys_fetch_failed", code=code, error_type=type(error).__name__)
            self._wanted.clear()
            self._settled.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._delay(failures)):
                    await self._wanted.wait()


async def _download(url: str) -> bytes:
    """Return the body at the URL. Follow no redirect: it could lead to keys that the operator did not configure."""
    timeout, body = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_SECONDS), bytearray()
    async with aiohttp.request("GET", url, timeout=timeout, allow_redirects=False, raise_for_status=True) as response:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_KEY_SET_BYTES:
                raise ValueError("the key set is too large")
    return bytes(body)


def read_key_set(body: bytes) -> list[VerifyingKey]:
    """Return the public keys of a JWK Set that may verify signatures (RFC 7517 section 5). Raises if there are none.

    An `oct` key is ignored: at a public URL anyone could read it, and sign with it.
    """
    keys: list[VerifyingKey] = []  # PyJWKSet would refuse the whole set for one malformed member
    for entry in json.loads(body)["keys"]:
        if isinstance(entry, dict) and entry.get("use") in (None, "sig"):
            public_half = {name: entry[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in entry}
            names = [name for name in PUBLIC_KEY_ALGORITHMS if entry.get("alg") in (None, name)]
            keys += _keys_for(names, public_half, entry.get("kid"))
    if not keys:
        raise ValueError("the key set has no usable keys")
    return keys


def _keys_for(names: Iterable[str], source: str | dict[str, Any], kid: object = None) -> Iterator[VerifyingKey]:
    """Yield the key (a secret, PEM or JWK) for each algorithm that fits its type and curve: PyJWT refuses others."""
    for name in names:
        with suppress(PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
            key = PyJWK(source, name).key if isinstance(source, dict) else source
            yield VerifyingKey(name, get_algorithm_by_name(name).prepare_key(key), kid)


def _configured_keys(settings: SigningSettings) -> Iterator[VerifyingKey]:
    """Yield the keys in the settings. A rotation needs several PEM blocks (RFC 7468). Raises SettingsError."""
    if settings.secret is not None:
        keys = list(_keys_for(HMAC_ALGORITHMS, settings.secret))
        if not keys:
            raise SettingsError(
                "REVOCATION_JWT_SECRET is empty, or holds a PEM, SSH or JSON Web Key: a public key belongs in "
                "REVOCATION_JWT_PUBLIC_KEY, a JSON Web Key Set behind REVOCATION_JWKS_URL."
            )
        yield from keys
    if settings.public_key_pem is not None:
        blocks = settings.public_key_pem.split("-----BEGIN ")[1:]
        usable = [list(_keys_for(PUBLIC_KEY_ALGORITHMS, f"-----BEGIN {block}")) for block in blocks]
        if "PRIVATE KEY" in settings.public_key_pem or not all(usable) or not 1 <= len(usable) <= MAX_KEYS_TRIED:
            raise SettingsError(
                "REVOCATION_JWT_PUBLIC_KEY must hold 1 to 10 whole PEM blocks, with line breaks, of public keys (RSA, "
                "EC on P-256, P-384 or P-521, Ed25519, Ed448): openssl pkey -in private.pem -pubout prints one."
            )
        yield from chain.from_iterable(usable)


def _allowed(settings: SigningSettings, keys: Iterable[VerifyingKey]) -> frozenset[str]:
    """Return the accepted algorithms: those in the settings, else all that have a key."""
    usable = {key.algorithm for key in keys}.union(PUBLIC_KEY_ALGORITHMS if settings.jwks_url else ())
    if unusable := sorted({*settings.algorithms} - usable):
        raise SettingsError(
            f"REVOCATION_JWT_ALGORITHMS names {unusable[0]!r}, and only {', '.join(sorted(usable))} have a key here."
        )
    return frozenset(settings.algorithms or usable)
