"""Raw token -> claims: its name, its times, and whether a signature proves them; knows no HTTP, no Redis and no clock.

A token is judged as leniently as any verifier may read it, for what a verifier elsewhere takes must have the same name
here, however it is written. Leniency opens nothing: where keys are configured, the signature must hold over the signing
input as it stands.
"""

import binascii
import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWTError, get_algorithm_by_name

from revocation_client.model import Claims
from revocation_client.wire import WireError, check_seconds, check_value, hash_name, token_issued_at, token_name
from revocation_service.algorithms import VerifyingKey
from revocation_service.errors import InvalidToken, UnsupportedToken
from revocation_service.keys import SigningKeys
from revocation_service.settings import SigningSettings

_SCHEME: Final = re.compile(r"(?:\s*bearer(?:\s+|$))*\s*", re.IGNORECASE)
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BASE64_CHARACTERS: Final = (string.ascii_letters + string.digits + "+/-_").encode()
_FOREIGN_BYTES: Final = bytes(set(range(256)).difference(_BASE64_CHARACTERS))
_ONE_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says of itself."""

    claims: Claims
    """All that the rule looks at; `jti` is the token's name, which may be computed."""
    exp: float | None
    verified: bool
    """Whether a signature was checked; else the caller's word stands for the token's."""


@dataclass(frozen=True, slots=True)
class _Jws:
    """A JWS in compact serialization, taken apart (RFC 7515 section 7.1)."""

    header: Mapping[str, Any]
    payload: Mapping[str, Any]
    signing_input: bytes
    signature: bytes
    padded: bool


class TokenReader:
    """Reads tokens, and proves them where there are keys."""

    def __init__(self, keys: SigningKeys, signing: SigningSettings) -> None:
        self._keys = keys
        self._issuer = signing.issuer
        self._audience = signing.audience

    async def read(self, raw: str) -> Token:
        """The claims of a token in any of its writings.

        Raises InvalidToken, UnsupportedToken, or KeysUnavailable where its signature cannot be judged just now.
        """
        text = _bare(raw)
        _refuse_json(text)
        parts = text.split(".")
        if len(parts) != 3:
            return _opaque(text, parts)
        jws = _jws(*parts)
        if self._keys.configured:
            await self._prove(jws)
        return _token(jws, verified=self._keys.configured)

    async def _prove(self, jws: _Jws) -> None:
        """Check signature, algorithm, issuer and audience; times are not: also tomorrow's token can be logged out."""
        if jws.header["alg"] not in self._keys.algorithms:
            raise InvalidToken("The token's algorithm is not allowed here.")
        if not await self._is_signed(jws):
            raise InvalidToken("The token's signature is wrong.")
        if self._issuer is not None and jws.payload.get("iss") != self._issuer:
            raise InvalidToken("The token's issuer is missing or another.")
        if self._audience is not None and not _is_meant_for(self._audience, jws.payload):
            raise InvalidToken("The token's audience is missing or another.")

    async def _is_signed(self, jws: _Jws) -> bool:
        """Whether any key holds; the keys at hand go first, so that they serve while a key set is unreachable."""
        at_hand = self._keys.at_hand(jws.header["alg"])
        if any(_verifies(key, jws) for key in at_hand):
            return True
        kid = jws.header.get("kid")
        candidates = await self._keys.candidates(jws.header["alg"], kid if isinstance(kid, str) else None)
        return any(_verifies(key, jws) for key in candidates if key not in at_hand)


def _bare(raw: str) -> str:
    """The token without white space around it and without its scheme, in any case (RFC 9110 section 11.1)."""
    scheme = _SCHEME.match(raw)
    text = raw[scheme.end() if scheme else 0 :].rstrip()
    if not text:
        raise InvalidToken("The token is empty.")
    return text


def _refuse_json(text: str) -> None:
    """Refuse the JSON serializations of a JWS (RFC 7515 section 7.2), which are other writings of a compact one.

    They come before any split: one can be made that has three parts and a forged header in them (CVE-2022-39227).
    """
    if text.startswith("{"):
        raise UnsupportedToken("The token is JSON: only the compact serialization is read here.")


def _opaque(text: str, parts: list[str]) -> Token:
    """A token that only its issuer can read, named by the whole of it; what might pass for a JWT is refused.

    Five parts are a JWE (RFC 7516 section 3.1); a JOSE header with too few or too many parts may satisfy a verifier
    that splits carelessly.
    """
    if len(parts) == 5:
        raise UnsupportedToken("The token has five parts: the claims of an encrypted JWT cannot be read here.")
    if len(parts) > 1 and _is_jose_header(parts[0]):
        raise InvalidToken("The token begins as a JWT does and has not three parts.")
    if _UNPRINTABLE.search(text):
        raise InvalidToken("The token holds control characters.")
    return Token(Claims(jti=hash_name(text.encode()), considers_all=True), exp=None, verified=False)


def _is_jose_header(segment: str) -> bool:
    try:
        return "alg" in _json_object(_lenient(segment), "header")
    except InvalidToken:
        return False


def _jws(header: str, payload: str, signature: str) -> _Jws:
    """Take a compact JWS apart; three parts are a JWT or an error, so nothing falls back to opaque from here."""
    jose = _json_object(_lenient(header), "header")
    _check_header(jose)
    decoded = _lenient(signature)
    if not decoded:
        raise InvalidToken("The token has no signature.")
    return _Jws(
        header=jose,
        payload=_json_object(_lenient(payload), "payload"),
        signing_input=_as_it_stands(f"{header}.{payload}"),
        signature=decoded,
        padded="=" in signature,
    )


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse `none` in any case (RFC 8725 section 3.2) and what is critical and unknown (RFC 7515 section 4.1.11).

    Of extensions only `b64` is known, and only to be true (RFC 7797 section 6).
    """
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm.strip().lower() in ("", "none"):
        raise InvalidToken("The token's header names no signature algorithm.")
    if header.get("b64", True) is not True or header.get("crit", ["b64"]) != ["b64"]:
        raise InvalidToken("The token's header demands an extension that is not understood here.")
    if "crit" in header and "b64" not in header:
        raise InvalidToken("The token's header calls a parameter critical that it lacks.")


def _lenient(segment: str) -> bytes:
    """Base64 in either alphabet, padded or not, foreign characters dropped, last bits ignored.

    Stricter than any one verifier would be a way round a revocation (RFC 7515 section 2 allows one writing only, RFC
    4648 section 3.3 tells how decoders differ).
    """
    digits = segment.encode("ascii", "ignore").translate(_ONE_ALPHABET, _FOREIGN_BYTES)
    whole = digits[: len(digits) - (len(digits) % 4 == 1)]
    return binascii.a2b_base64(whole + b"=" * (-len(whole) % 4))


def _as_it_stands(signing_input: str) -> bytes:
    try:
        return signing_input.encode()
    except UnicodeEncodeError:
        raise InvalidToken("The token holds characters that cannot be encoded.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names must be unique (RFC 7515 section 4, RFC 7519 section 4): two readers may take two different ones."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidToken("The token holds a JSON member twice.")
    return members


_JSON: Final = json.JSONDecoder(object_pairs_hook=_unique)


def _json_object(data: bytes, part: str) -> dict[str, Any]:
    """A JSON object in UTF-8; too deep, or a number of thousands of digits, is as wrong as no JSON."""
    try:
        value = _JSON.decode(data.decode())
    except (ValueError, RecursionError):
        raise InvalidToken(f"The token's {part} is not JSON.") from None
    if not isinstance(value, dict):
        raise InvalidToken(f"The token's {part} is not a JSON object.")
    return value


def _verifies(key: VerifyingKey, jws: _Jws) -> bool:
    """Whether the key signed it; asks PyJWT's algorithm, for `jwt.decode` is stricter about the writing than others.

    Some decoders stop at a padding character, whatever follows it: then the signature counts by its proper length.
    """
    algorithm = jws.header["alg"]
    signature = jws.signature[: _signature_bytes(key, algorithm)] if jws.padded else jws.signature
    try:
        return bool(get_algorithm_by_name(algorithm).verify(jws.signing_input, key, signature))
    except (PyJWTError, ValueError):  # an RSA key too small for the digest
        return False


def _signature_bytes(key: VerifyingKey, algorithm: str) -> int:
    """How long a signature by this key is (RFC 7518 sections 3.2 to 3.5, RFC 8032 sections 5.1.6 and 5.2.6)."""
    if isinstance(key, bytes):
        return int(algorithm[2:]) // 8
    if isinstance(key, RSAPublicKey):
        return (key.key_size + 7) // 8
    if isinstance(key, EllipticCurvePublicKey):
        return 2 * ((key.curve.key_size + 7) // 8)
    return 64 if isinstance(key, Ed25519PublicKey) else 114


def _is_meant_for(audience: str, payload: Mapping[str, Any]) -> bool:
    """`aud` is one string or an array of them (RFC 7519 section 4.1.3)."""
    aud = payload.get("aud")
    return audience in aud if isinstance(aud, list) else audience == aud


def _token(jws: _Jws, *, verified: bool) -> Token:
    payload = jws.payload
    client_id = _identifier(payload, "client_id")
    claims = Claims(
        jti=_name(jws, _identifier(payload, "jti")),
        sid=_identifier(payload, "sid"),
        sub=_identifier(payload, "sub"),
        client_id=_identifier(payload, "azp") if client_id is None else client_id,
        iat=token_issued_at(payload.get("iat")),
        considers_all=True,
    )
    return Token(claims, _expiry(payload.get("exp")), verified)


def _identifier(payload: Mapping[str, Any], claim: str) -> str | None:
    """A claim by which tokens are revoked; null is as good as absent."""
    value = payload.get(claim)
    if value is None:
        return None
    try:
        return check_value(claim, value)
    except WireError as error:
        raise InvalidToken(f"The token's {error}.") from None


def _name(jws: _Jws, jti: str | None) -> str:
    name = token_name(jws.signing_input, jti)
    if name is None:
        raise InvalidToken("The token has no jti of its own and holds characters outside base64url.")
    return name


def _expiry(value: object) -> float | None:
    """Its `exp`; one that is no time is an error, for a revocation must live as long as the token."""
    try:
        return None if value is None else check_seconds("exp", value)
    except WireError as error:
        raise InvalidToken(f"The token's {error}.") from None
