"""Signing keys: a shared secret, public keys in PEM, a remote JWK Set; knows no token, no claim and no HTTP of ours.

Which key may serve which algorithm follows from the key's type and the settings, never from a token: `jku`, `jwk`,
`x5u` and `x5c` (RFC 7515 sections 4.1.2 to 4.1.6) are not so much as passed in here (RFC 8725 sections 3.1 and 3.10).
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWTError, get_algorithm_by_name

from revocation_service.algorithms import (
    HMAC_ALGORITHMS,
    KNOWN_ALGORITHMS,
    PUBLIC_KEY_ALGORITHMS,
    VerifyingKey,
    algorithms_for,
)
from revocation_service.errors import SettingsError
from revocation_service.key_set import KeysStatus, RemoteKeySet, backoff_seconds
from revocation_service.settings import SigningSettings

_PEM_BLOCK: Final = re.compile(r"-----BEGIN (?P<label>[^\n-]+)-----.*?-----END (?P=label)-----", re.DOTALL)

_log = structlog.get_logger()


class SigningKeys:
    """Every key that may judge a token, by algorithm; owns the fetching of the remote ones."""

    def __init__(
        self,
        settings: SigningSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        retry_delay: Callable[[int], float] = backoff_seconds,
    ) -> None:
        self.configured: Final = settings.configured
        self._at_hand: Final = _by_algorithm(_static_keys(settings))
        self._remote: Final = RemoteKeySet(settings.jwks_url, clock, retry_delay) if settings.jwks_url else None
        self.algorithms: Final = _allowed(settings, self._at_hand)
        _warn_of_short_keys(self._at_hand)

    async def start(self) -> None:
        """Begin to fetch, where there is something to fetch; does not wait for it."""
        if self._remote is not None:
            await self._remote.start()

    async def close(self) -> None:
        """Stop fetching."""
        if self._remote is not None:
            await self._remote.close()

    @property
    def status(self) -> KeysStatus:
        """Whether tokens can be judged just now."""
        return KeysStatus("ok") if self._remote is None else self._remote.status

    def at_hand(self, algorithm: str) -> Sequence[VerifyingKey]:
        """The keys of the settings that serve this algorithm: those that no outage takes away."""
        return self._at_hand.get(algorithm, ()) if algorithm in self.algorithms else ()

    async def candidates(self, algorithm: str, kid: str | None) -> Sequence[VerifyingKey]:
        """Every key that may have signed a token with this header.

        Raises KeysUnavailable when the key set that might hold the key cannot be had just now.
        """
        at_hand = self.at_hand(algorithm)
        if self._remote is None or algorithm not in self.algorithms & PUBLIC_KEY_ALGORITHMS:
            return at_hand
        return [*at_hand, *await self._remote.candidates(algorithm, kid)]


def _by_algorithm(keys: Iterable[VerifyingKey]) -> dict[str, tuple[VerifyingKey, ...]]:
    """The keys under each algorithm that they serve; a secret and a public key never meet under one."""
    table: dict[str, tuple[VerifyingKey, ...]] = {}
    for key in keys:
        for algorithm in algorithms_for(key):
            table[algorithm] = (*table.get(algorithm, ()), key)
    return table


def _static_keys(settings: SigningSettings) -> Iterable[VerifyingKey]:
    if settings.secret is not None:
        yield _shared_secret(settings.secret)
    if settings.public_key_pem is not None:
        yield from _public_keys(settings.public_key_pem)


def _shared_secret(secret: str) -> bytes:
    """The secret as bytes; PyJWT refuses one that is empty, or is really a public key that everyone knows."""
    try:
        prepared: bytes = get_algorithm_by_name("HS256").prepare_key(secret)
    except PyJWTError:
        raise SettingsError(
            "REVOCATION_JWT_SECRET is empty, or holds a PEM, SSH or JSON Web Key: a public key belongs in "
            "REVOCATION_JWT_PUBLIC_KEY, a JSON Web Key Set behind REVOCATION_JWKS_URL."
        ) from None
    return prepared


def _public_keys(pem: str) -> list[VerifyingKey]:
    """The keys of one or several PEM blocks (RFC 7468), several while a key is being rotated."""
    if "PRIVATE KEY" in pem:
        raise SettingsError(
            "REVOCATION_JWT_PUBLIC_KEY holds a private key, which this service must not know: give it the public half "
            "(openssl pkey -in private.pem -pubout)."
        )
    blocks = list(_PEM_BLOCK.finditer(pem))
    if not blocks or len(blocks) != pem.count("-----BEGIN "):
        raise _unreadable_public_key()
    return [_public_key(block["label"], block[0].encode()) for block in blocks]


def _public_key(label: str, block: bytes) -> VerifyingKey:
    try:
        is_certificate = label.endswith("CERTIFICATE")
        key = load_pem_x509_certificate(block).public_key() if is_certificate else load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm):
        raise _unreadable_public_key() from None
    if isinstance(key, VerifyingKey) and algorithms_for(key):
        return key
    raise SettingsError(
        "REVOCATION_JWT_PUBLIC_KEY holds a key of a kind that signs no token here: "
        "use RSA, EC on P-256, P-384 or P-521, Ed25519 or Ed448."
    )


def _unreadable_public_key() -> SettingsError:
    return SettingsError(
        "REVOCATION_JWT_PUBLIC_KEY cannot be read: give whole PEM blocks (PUBLIC KEY or CERTIFICATE) with their line "
        "breaks, or the path of such a file in REVOCATION_JWT_PUBLIC_KEY_FILE."
    )


def _allowed(settings: SigningSettings, at_hand: Iterable[str]) -> frozenset[str]:
    """The algorithms that are accepted: those asked for, each of which must have a key, or all that have one."""
    servable = frozenset(at_hand) | (PUBLIC_KEY_ALGORITHMS if settings.jwks_url else frozenset())
    for name in settings.algorithms:
        if name not in KNOWN_ALGORITHMS:
            known = ", ".join(sorted(KNOWN_ALGORITHMS))
            raise SettingsError(f"REVOCATION_JWT_ALGORITHMS names {name!r}, which is not one of {known}.")
        if name not in servable:
            raise SettingsError(f"REVOCATION_JWT_ALGORITHMS names {name}, for which there is no key: {_mend(name)}.")
    return frozenset(settings.algorithms) or servable


def _mend(algorithm: str) -> str:
    """Where a key for the algorithm would be configured."""
    if algorithm in HMAC_ALGORITHMS:
        return "set REVOCATION_JWT_SECRET or take it out"
    return "give one in REVOCATION_JWT_PUBLIC_KEY or REVOCATION_JWKS_URL, or take it out"


def _warn_of_short_keys(at_hand: Mapping[str, Sequence[VerifyingKey]]) -> None:
    """Say once what PyJWT would say at every token: the key is shorter than RFC 7518 sections 3.2 and 3.3 want."""
    for name in ("HS256", "RS256"):
        if any(get_algorithm_by_name(name).check_key_length(key) for key in at_hand.get(name, ())):
            _log.warning("signing_key_too_short", algorithm=name)
