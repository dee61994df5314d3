"""One token, one name: a re-encoded token has the name of the token itself, or is refused."""

import base64
import binascii
import hmac
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from revocation_service.errors import UnsupportedToken
from revocation_service.settings import SigningSettings
from revocation_service.signing_keys import SigningKeys
from revocation_service.tokens import Token, TokenReader
from tests.unit.reencodings import LABELS, Issuer, issuer, reencodings

HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def extracted(header: str) -> str:
    """Return the token that an application takes from an Authorization header."""
    return re.sub(r"^(\s*bearer\s+)+", "", header, flags=re.IGNORECASE).strip()


def pyjwt_accepts(issuer: Issuer, token: str) -> bool:
    """Return whether PyJWT, used as in an application, accepts the token."""
    try:
        jwt.decode(token, issuer.public, [issuer.algorithm], {"verify_exp": False})
    except (jwt.PyJWTError, ValueError):
        return False
    return True


def python_decodes(segment: str) -> bytes:
    """Decode base64url as PyJWT did up to 2.12: skip foreign characters, and stop after full padding."""
    return base64.urlsafe_b64decode(segment.encode("utf-8", "surrogatepass") + b"===")


def stopping_decodes(segment: str) -> bytes:
    """Decode base64url like decoders that stop at the first padding character."""
    return python_decodes(segment.partition("=")[0])


def skipping_decodes(segment: str) -> bytes:
    """Decode base64url like decoders that skip all padding, and a single character left over at the end."""
    digits = re.sub(r"[^A-Za-z0-9+/_-]", "", segment)
    return python_decodes(digits[: len(digits) - (len(digits) % 4 == 1)])


DECODERS: tuple[Callable[[str], bytes], ...] = (python_decodes, stopping_decodes, skipping_decodes)


def holds(issuer: Issuer, signing_input: bytes, signature: bytes) -> bool:
    """Return whether the signature is right, computed without PyJWT."""
    if issuer.algorithm.startswith("HS"):
        expected = hmac.digest(issuer.public.encode(), signing_input, f"sha{issuer.algorithm[2:]}")
        return hmac.compare_digest(signature, expected)
    with suppress(InvalidSignature):
        _verify(issuer.algorithm, issuer.public, signing_input, signature)
        return True
    return False


def _verify(algorithm: str, key: Any, signing_input: bytes, signature: bytes) -> None:
    digest = HASHES.get(algorithm[2:])
    if isinstance(key, ec.EllipticCurvePublicKey):
        assert digest is not None
        size = (key.curve.key_size + 7) // 8
        if len(signature) != 2 * size:
            raise InvalidSignature
        der = encode_dss_signature(int.from_bytes(signature[:size]), int.from_bytes(signature[size:]))
        key.verify(der, signing_input, ec.ECDSA(digest))
    elif isinstance(key, rsa.RSAPublicKey):
        assert digest is not None
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        key.verify(signature, signing_input, pss if algorithm.startswith("PS") else padding.PKCS1v15(), digest)
    else:
        key.verify(signature, signing_input)


def lenient_accepts(issuer: Issuer, token: str) -> bool:
    """Return whether a verifier that ignores extra parts and decodes leniently accepts the token."""
    parts = token.split(".")
    if len(parts) < 3:
        return False
    for decode in DECODERS:
        with suppress(binascii.Error, ValueError):
            if holds(issuer, f"{parts[0]}.{parts[1]}".encode(), decode(parts[2])):
                return True
    return False


def reader(settings: SigningSettings) -> TokenReader:
    """Return a token reader with the keys of these settings."""
    return TokenReader(SigningKeys(settings), settings)


def expected_name(token: str, jti: str | None) -> str:
    """Return the right name: the `jti`, or else the hash of what the signature covers."""
    return jti or "sha256:" + sha256(token.rpartition(".")[0].encode()).hexdigest()


async def names_of(tokens: TokenReader, token: str) -> dict[str, str | None]:
    """Return the name of the token and of each re-encoding, by label; None for one that is refused."""
    writings = {"itself": token, **dict(reencodings(token))}
    outcomes = await tokens.read_many(list(writings.values()))
    return {
        way: outcome.name if isinstance(outcome, Token) else None
        for way, outcome in zip(writings, outcomes, strict=True)
    }


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("jti", ["7d2c1f", None], ids=["jti", "no jti"])
@pytest.mark.parametrize("label", LABELS)
async def test_what_a_verifier_accepts_has_the_same_name_or_is_refused(
    label: str, jti: str | None, with_keys: bool
) -> None:
    """Each re-encoding that PyJWT or a lenient verifier accepts has the name of the token, or is refused."""
    signer = issuer(label)
    token = signer.sign({"sub": "alice>>>???~~~", "exp": 2_000_000_000} | ({"jti": jti} if jti else {}))
    names = await names_of(reader(signer.settings if with_keys else SigningSettings()), token)
    writings = {"itself": token, **dict(reencodings(token))}
    by_pyjwt = {way for way, writing in writings.items() if pyjwt_accepts(signer, extracted(writing))}
    by_others = {way for way, writing in writings.items() if lenient_accepts(signer, extracted(writing))}
    assert {names[way] for way in by_pyjwt | by_others} == {expected_name(token, jti), None}
    assert names["itself"] == names["scheme 'BEARER '"] == names["white space after '\\n'"] == expected_name(token, jti)
    assert {"itself", "signature padded"} <= by_pyjwt
    assert names["signature padded"] is None or writings["signature padded"] == token
    assert {"signature padded", "padding, then =junk", "signature foreign '!' at 0", "followed by .a.b"} <= by_others
    assert ("the other s" in by_pyjwt) is label.startswith("ES")


@pytest.mark.parametrize("jti", ["7d2c1f", None], ids=["jti", "no jti"])
@pytest.mark.parametrize("label", LABELS)
async def test_with_keys_no_writing_has_another_name(label: str, jti: str | None) -> None:
    """With keys every re-encoding has the name of the token, or is refused, even if no verifier accepts it."""
    signer = issuer(label)
    token = signer.sign({"sub": "alice"} | ({"jti": jti} if jti else {}))
    names = await names_of(reader(signer.settings), token)
    assert {*names.values()} == {expected_name(token, jti), None}


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
async def test_the_json_serializations_are_refused(with_keys: bool) -> None:
    """A JWS in JSON is refused as unsupported, and not taken for an opaque token with another name."""
    signer = issuer("RS256")
    tokens = reader(signer.settings if with_keys else SigningSettings())
    written = [variant.replace(" ", "") for way, variant in reencodings(signer.sign({"sub": "alice"})) if "JSON" in way]
    assert len(written) == 4
    for variant in written:
        with pytest.raises(UnsupportedToken):
            await tokens.read(variant)


async def test_two_tokens_have_two_names() -> None:
    """Tokens without a `jti` that differ only in their `iat` have different names."""
    signer = issuer("HS256")
    tokens = reader(signer.settings)
    names = {(await tokens.read(signer.sign({"sub": "alice", "iat": iat}))).claims.value_of("jti") for iat in range(20)}
    assert len(names) == 20
