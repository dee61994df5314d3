"""Signed tokens of every algorithm, and re-encodings of them that might bypass a revocation."""

import base64
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from revocation_service.settings import SigningSettings

SECRET: Final = "a shared secret that is long enough even for the sha-512 of hs512"
LABELS: Final = (
    *("HS256", "HS384", "HS512"),
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    *("Ed25519", "Ed448"),
)
URL_SAFE: Final = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"

CURVES: Final[dict[str, ec.EllipticCurve]] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
ORDERS: Final = {
    "ES256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ES384": int("F" * 48 + "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16),
    "ES512": int("1FF" + "F" * 63 + "A51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16),
}
"""The orders n of the curves (SEC 2, sections 2.4.2, 2.5.1 and 2.6.1)."""


@dataclass(frozen=True)
class Issuer:
    """A signer of tokens: an algorithm and its key pair. For HMAC both keys are the secret."""

    algorithm: str
    private: Any
    public: Any

    def sign(self, claims: dict[str, Any], headers: dict[str, Any] | None = None) -> str:
        """Return a signed compact JWT."""
        return jwt.encode(claims, self.private, self.algorithm, headers)

    @property
    def pem(self) -> str:
        """The public key as an operator would configure it."""
        pem: bytes = self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem.decode()

    @property
    def settings(self) -> SigningSettings:
        """The settings with which this issuer's tokens are verified."""
        if isinstance(self.public, str):
            return SigningSettings(secret=self.public)
        return SigningSettings(public_key_pem=self.pem)

    def jwk(self, **members: Any) -> dict[str, Any]:
        """Return the public key as a JWK (RFC 7517), with these members added."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        return {**algorithm.to_jwk(self.public, as_dict=True), **members}


@cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """Return an RSA key, always the same for one number."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def issuer(label: str) -> Issuer:
    """Return the issuer of this label, always the same in a test run."""
    if label.startswith("HS"):
        return Issuer(label, SECRET, SECRET)
    if label.startswith("Ed"):
        edwards = ed25519.Ed25519PrivateKey.generate() if label == "Ed25519" else ed448.Ed448PrivateKey.generate()
        return Issuer("EdDSA", edwards, edwards.public_key())
    key = ec.generate_private_key(CURVES[label]) if label in CURVES else rsa_key()
    return Issuer(label, key, key.public_key())


def b64url(data: bytes) -> str:
    """Return base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(segment: str) -> bytes:
    """Decode what `b64url` returned."""
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def reencodings(token: str) -> Iterator[tuple[str, str]]:
    """Yield re-encodings of a signed JWT with their labels. Some of them are accepted by some verifiers."""
    yield from _around(token)
    yield from _segments(token)
    yield from _signatures(token)
    yield from _shapes(token)


def _around(token: str) -> Iterator[tuple[str, str]]:
    for space in (" ", "\t", "\n", "\r\n", "\u00a0", "  \n"):
        yield f"white space before {space!r}", space + token
        yield f"white space after {space!r}", token + space
    for scheme in ("Bearer ", "bearer ", "BEARER ", "bEaReR  ", "Bearer\t", " Bearer ", "Bearer bearer "):
        yield f"scheme {scheme!r}", scheme + token


def _segments(token: str) -> Iterator[tuple[str, str]]:
    """Yield the token with one of its three segments re-encoded."""
    parts = token.split(".")
    for index, name in enumerate(("header", "payload", "signature")):
        for label, written in _writings(parts[index]):
            yield f"{name} {label}", ".".join([*parts[:index], written, *parts[index + 1 :]])


def _writings(segment: str) -> Iterator[tuple[str, str]]:
    yield "padded", segment + "=" * (-len(segment) % 4)
    for pad in ("=", "==", "===", "===="):
        yield f"padded {pad}", segment + pad
    yield "standard alphabet", segment.replace("-", "+").replace("_", "/")
    yield "one left over", segment + "A"
    for last in _same_bits(segment):
        yield f"last bits {last}", segment[:-1] + last
    for foreign in (" ", "\n", "\t", "\r\n", "!", "*", "%", "\x00", "\x7f", "é", "\u200b", '"'):
        for position in (0, len(segment) // 2, len(segment)):
            yield f"foreign {foreign!r} at {position}", segment[:position] + foreign + segment[position:]


def _same_bits(segment: str) -> Iterator[str]:
    """Return other last characters with which a segment decodes to the same bytes (RFC 4648 section 3.5)."""
    unused = {2: 16, 3: 4}.get(len(segment) % 4, 1)
    value = URL_SAFE.index(segment[-1])
    return (URL_SAFE[value - value % unused + offset] for offset in range(unused) if value % unused != offset)


def _signatures(token: str) -> Iterator[tuple[str, str]]:
    signing_input, _, segment = token.rpartition(".")
    algorithm = json.loads(unb64url(token.split(".", maxsplit=1)[0]))["alg"]
    for junk in ("=junk", "==junk", "=" + segment):
        yield f"padding, then {junk}", f"{signing_input}.{segment}{junk}"
    yield "padding before and after", f"{signing_input}.={segment}=junk"
    if algorithm in ORDERS:
        signature = unb64url(segment)
        size = len(signature) // 2
        r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
        other = signature[:size] + (ORDERS[algorithm] - s).to_bytes(size)
        yield "the other s", f"{signing_input}.{b64url(other)}"
        yield "the other s, padded", f"{signing_input}.{b64url(other)}=="
        yield "DER", f"{signing_input}.{b64url(encode_dss_signature(r, s))}"


def _shapes(token: str) -> Iterator[tuple[str, str]]:
    """Yield the token with more parts, and in the JSON serializations of RFC 7515 section 7.2."""
    header, payload, signature = token.split(".")
    for more in (".", ".junk", "..", ".a.b", ".a.b.c"):
        yield f"followed by {more}", token + more
    flattened = {"protected": header, "payload": payload, "signature": signature}
    yield "flattened JSON", json.dumps(flattened)
    yield "flattened JSON in white space", f" {json.dumps(flattened)}\n"
    general = {"payload": payload, "signatures": [{"protected": header, "signature": signature}]}
    yield "general JSON", json.dumps(general)
    forged = b64url(b'{"jti":"another"}')
    yield "JSON that splits into three", json.dumps({f" {header}.{forged}.": "", **flattened})
