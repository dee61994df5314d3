"""A remote JWK Set (RFC 7517 section 5): fetched, kept, and fetched anew when old or lacking a key."""

import asyncio
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from jwt import PyJWK, PyJWTError

from revocation_client.names import Names
from revocation_service.algorithms import VerifyingKey, algorithms_for
from revocation_service.errors import KeysUnavailable

_log = structlog.get_logger()

KEY_SET_TTL_SECONDS: Final = 300.0
UNKNOWN_KID_INTERVAL_SECONDS: Final = 30.0
"""An unknown `kid` costs its sender nothing, so it may make us fetch only this often."""

FETCH_TIMEOUT_SECONDS: Final = 2.0
WAIT_SECONDS: Final = 0.8
"""How long one question waits for a fetch: a check answers within a second, and the fetch goes on without it."""

MAX_BACKOFF_SECONDS: Final = 30.0
MAX_KEY_SET_BYTES: Final = 1 << 20

_PUBLIC_JWK_MEMBERS: Final = ("kty", "crv", "x", "y", "n", "e")


@dataclass(frozen=True, slots=True)
class KeysStatus:
    """What a readiness probe may say of the keys: `stale` means that a refresh fails and the last good set serves."""

    state: Literal["ok", "stale", "unavailable"]
    error: str | None = None
    """The code of the last fetch's failure; never an address."""
    age_seconds: float | None = None
    """How old the fetched key set is; None without one."""


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """One usable key of a JWK Set (RFC 7517 section 5)."""

    kid: str | None
    algorithms: frozenset[str]
    key: VerifyingKey

    def fits(self, algorithm: str, kid: str | None) -> bool:
        """Whether it may judge such a token: `kid` is but a hint (RFC 7515 section 4.1.4), without it any may."""
        return algorithm in self.algorithms and (kid is None or kid == self.kid)


class KeySetRefused(Exception):
    """What a JWKS address answered is no key set; the code says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row; the jitter keeps many processes from asking in step."""
    return min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures - 1, 8)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


class RemoteKeySet:
    """A JWK Set behind a URL: one fetch at a time, the last good set kept.

    A question fetches when the set is too old or its `kid` is new; after a failure a timer alone tries again, so that
    neither a flood of questions hammers the issuer nor a service without traffic stays without keys.
    """

    def __init__(self, url: str, clock: Callable[[], float], retry_delay: Callable[[int], float]) -> None:
        self._url = url
        self._clock = clock
        self._retry_delay = retry_delay
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keys: tuple[PublishedKey, ...] = ()
        self._fetched_at: float | None = None
        self._asked_for_kid_at = -math.inf
        self._failures = 0
        self._error: str | None = "not_fetched"

    async def start(self) -> None:
        """Open the session in the running loop and begin the first fetch."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=Names()),
            timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT_SECONDS),
            headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self._begin()

    async def close(self) -> None:
        """Cancel what is under way, and await it."""
        session, self._session = self._session, None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._timer is not None:
            self._timer.cancel()
        if session is not None:
            await session.close()

    @property
    def status(self) -> KeysStatus:
        """`unavailable` until a first set was had; from then on at worst `stale`."""
        if self._fetched_at is None:
            return KeysStatus("unavailable", self._error)
        return KeysStatus("stale" if self._failures else "ok", self._error, self._clock() - self._fetched_at)

    async def candidates(self, algorithm: str, kid: str | None) -> Sequence[VerifyingKey]:
        """The keys of the set that fit; raises KeysUnavailable where a set that cannot be had might hold another."""
        if self._due(kid):
            self._asked_for_kid_at = self._clock() if self._fresh() else self._asked_for_kid_at
            self._begin()
        if self._task is not None and self._worth_waiting(kid):
            await asyncio.wait({self._task}, timeout=WAIT_SECONDS)
        if not self._knows(kid) and (self._fetched_at is None or self._failures or self._task is not None):
            raise KeysUnavailable("The signing keys cannot be fetched just now.")
        return [published.key for published in self._keys if published.fits(algorithm, kid)]

    def _knows(self, kid: str | None) -> bool:
        """Whether the set at hand can judge a token with this `kid`, for good or ill."""
        if self._fetched_at is None:
            return False
        return kid is None or any(published.kid == kid for published in self._keys)

    def _fresh(self) -> bool:
        return self._fetched_at is not None and self._clock() - self._fetched_at < KEY_SET_TTL_SECONDS

    def _due(self, kid: str | None) -> bool:
        """Whether this question starts a fetch; while fetches fail, the timer decides instead."""
        if self._session is None or self._task is not None or self._failures:
            return False
        waited_seconds = self._clock() - self._asked_for_kid_at
        return not self._fresh() or (not self._knows(kid) and waited_seconds >= UNKNOWN_KID_INTERVAL_SECONDS)

    def _worth_waiting(self, kid: str | None) -> bool:
        """An old set is used at once only while the issuer is failing: else a withdrawn key would outlive its TTL."""
        return not self._knows(kid) or (not self._fresh() and not self._failures)

    def _begin(self) -> None:
        if self._task is None and self._session is not None:
            # in a context of its own: the fetch outlives the request that asked for it, and is not logged under its id
            self._task = asyncio.create_task(self._fetch(self._session), name="fetch-signing-keys", context=Context())

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        try:
            self._succeeded(read_key_set(await _download(session, self._url)))
        except Exception as error:  # noqa: BLE001 - policy: whatever went wrong, the last good set stands, and we retry
            self._failed(error)
        finally:
            self._task = None

    def _succeeded(self, keys: tuple[PublishedKey, ...]) -> None:
        self._keys, self._fetched_at = keys, self._clock()
        self._failures, self._error = 0, None
        _log.info("signing_keys_fetched", keys=len(keys))

    def _failed(self, error: Exception) -> None:
        """Note the failure and set the timer; the exception's own text may hold the URL, and is dropped."""
        self._failures += 1
        self._error = _failure_code(error)
        delay_seconds = self._retry_delay(self._failures)
        self._timer = asyncio.get_running_loop().call_later(delay_seconds, self._begin, context=Context())
        _log.warning(
            "signing_keys_fetch_failed",
            code=self._error,
            error_type=type(error).__name__,
            failures=self._failures,
            retry_in_seconds=round(delay_seconds, 1),
        )


async def _download(session: aiohttp.ClientSession, url: str) -> bytes:
    """The body behind the URL itself: a redirect could lead to keys that nobody configured."""
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise KeySetRefused("http_status")
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > MAX_KEY_SET_BYTES:
                raise KeySetRefused("too_large")
        return bytes(body)


def _failure_code(error: Exception) -> str:
    if isinstance(error, KeySetRefused):
        return error.code
    if isinstance(error, TimeoutError):
        return "timeout"
    return "unreachable" if isinstance(error, aiohttp.ClientError | OSError) else "internal"


def read_key_set(body: bytes) -> tuple[PublishedKey, ...]:
    """The usable keys of a JWK Set; those that are not are passed over (RFC 7517 section 5)."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise KeySetRefused("not_json") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeySetRefused("not_a_key_set")
    keys = tuple(key for key in map(_published_key, entries) if key is not None)
    if not keys:
        raise KeySetRefused("no_usable_keys")
    return keys


def _published_key(entry: object) -> PublishedKey | None:
    """One member of the set, or None if it is not a public key for signatures.

    Each goes to `PyJWK` by itself: `PyJWKSet` drops an Ed448 key without `alg`, and one key that it cannot cope with
    fails the whole set. `PyJWK` guesses one algorithm where there is no `alg`, so the key's type is asked instead.
    """
    if not isinstance(entry, dict) or not _is_for_signatures(entry):
        return None
    public_half = {name: entry[name] for name in _PUBLIC_JWK_MEMBERS if name in entry}
    try:
        key = PyJWK(public_half, "EdDSA" if entry["kty"] == "OKP" else None).key
    except (PyJWTError, UnsupportedAlgorithm):
        return None
    algorithms = frozenset(alg for alg in algorithms_for(key) if entry.get("alg") in (None, alg))
    return PublishedKey(entry.get("kid"), algorithms, key) if algorithms else None


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    """Whether `kty`, `use` and `key_ops` allow it to verify (RFC 7517 sections 4.1 to 4.3).

    `oct` is a secret (RFC 7518 section 6.4): from a public address anyone could know it, and sign with it.
    """
    operations = entry.get("key_ops")
    return (
        entry.get("kty") in ("RSA", "EC", "OKP")
        and entry.get("use") in (None, "sig")
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
    )
