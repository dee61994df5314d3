"""Which algorithms a key may serve, by its type alone (RFC 8725 sections 3.1 and 3.10)."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

VerifyingKey = bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVE_ALGORITHMS: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
EDWARDS_ALGORITHMS: Final = ("EdDSA",)
PUBLIC_KEY_ALGORITHMS: Final = frozenset({*RSA_ALGORITHMS, *CURVE_ALGORITHMS.values(), *EDWARDS_ALGORITHMS})
KNOWN_ALGORITHMS: Final = PUBLIC_KEY_ALGORITHMS.union(HMAC_ALGORITHMS)


def algorithms_for(key: object) -> tuple[str, ...]:
    """The algorithms that a key's type allows (RFC 7518 sections 3.2 to 3.5, RFC 8037 section 3.1)."""
    if isinstance(key, bytes):
        return HMAC_ALGORITHMS
    if isinstance(key, RSAPublicKey):
        return RSA_ALGORITHMS
    if isinstance(key, EllipticCurvePublicKey):
        return tuple(alg for curve, alg in CURVE_ALGORITHMS.items() if curve == key.curve.name)
    return EDWARDS_ALGORITHMS if isinstance(key, Ed25519PublicKey | Ed448PublicKey) else ()
