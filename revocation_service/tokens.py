"""Read and verify tokens: `revocation_client.jwt_reader` parses and names them, and PyJWT verifies them.

The table in `revocation_client.claims` lists the claims by which tokens are revoked.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeGuard

import jwt
from jwt.types import Options

from revocation_client import jwt_reader
from revocation_client.schema import issued_at_of
from revocation_service.errors import InvalidToken, KeysUnavailable, ServiceError, UnsupportedToken
from revocation_service.settings import SigningSettings
from revocation_service.signing_keys import SigningKeys

SLICE_TOKENS: Final = 8
"""More tokens than this are read in a thread, in slices of this size: cryptography releases the GIL."""

_KINDS: Final = frozenset({"jwt", "at+jwt"})
"""Values of `typ` that an access token may have (RFC 7519 section 5.1, RFC 9068 section 2.1)."""

_UNCHECKED: Final = Options(verify_exp=False, verify_nbf=False, verify_iat=False, verify_sub=False, verify_jti=False)


@dataclass(frozen=True, slots=True)
class Token(jwt_reader.Token):
    """What a token says, and whether its signature was verified."""

    verified: bool = False

    def valid_at(self, now: float) -> bool:
        """Return True for a verified token between its `nbf` and its `exp`. Revocations are not considered.

        A token whose `typ` declares another kind of token, such as a logout token, is not valid as an access token
        (RFC 8725 section 3.11).
        """
        kind, nbf = self.header.get("typ", "JWT"), self.payload.get("nbf")
        if not self.verified or not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _KINDS:
            return False
        begins = 0 if nbf is None else issued_at_of(nbf)
        return begins is not None and begins <= now < (math.inf if self.exp is None else self.exp)


def is_strings(value: object) -> TypeGuard[list[str]]:
    """Return True for a list of strings, the form of a claim with several values."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


class TokenReader:
    """Reads tokens, and verifies them if keys are configured. Times are not checked: `exp` may have passed."""

    def __init__(self, keys: SigningKeys, signing: SigningSettings) -> None:
        self._keys = keys
        self._signing = signing
        self._options = Options(verify_aud=signing.audience is not None, **_UNCHECKED)

    async def read(self, raw: str) -> Token:
        """Return what a token says. Raises InvalidToken, UnsupportedToken, KeysUnavailable."""
        (outcome,) = await self.read_many([raw])
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def read_many(self, raws: Sequence[str]) -> list[Token | ServiceError]:
        """Return the content of each token, or the error that `read` would raise for it."""
        outcomes = await _in_slices(self._outcome, raws)
        waiting = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, KeysUnavailable)]
        if waiting:
            await self._keys.refresh()
            retried = await _in_slices(self._outcome, [raws[place] for place in waiting])
            for place, outcome in zip(waiting, retried, strict=True):
                outcomes[place] = outcome
        return outcomes

    def _outcome(self, raw: str) -> Token | ServiceError:
        try:
            token = jwt_reader.read_token(raw)
            verified = self._keys.configured and bool(token.header)
            if verified:
                self._verify(token)
        except jwt_reader.TokenError as error:
            return UnsupportedToken(error.detail) if error.code == UnsupportedToken.code else InvalidToken(error.detail)
        except ServiceError as error:
            return error
        return Token(token.claims, token.exp, token.text, token.header, token.payload, verified)

    def _verify(self, token: jwt_reader.Token) -> None:
        """Verify the token with the keys that fit its header. Raises InvalidToken, KeysUnavailable."""
        issuer, audience = self._signing.issuer, self._signing.audience
        for key in self._keys.candidates(token.header["alg"], token.header.get("kid")):
            try:
                jwt.decode(token.text, key.key, [key.algorithm], self._options, issuer=issuer, audience=audience)
            except (jwt.InvalidSignatureError, ValueError):  # ValueError: an RSA key that is too small for the digest
                continue
            except jwt.PyJWTError:
                raise InvalidToken("The token's issuer, audience or kid is missing, wrong or mistyped.") from None
            return
        raise InvalidToken("The token's signature is wrong.")


async def _in_slices(work: Callable[[str], Token | ServiceError], raws: Sequence[str]) -> list[Token | ServiceError]:
    """Call `work` for each token, in a thread if there are many. After a cancellation, no further slice begins."""
    outcomes: list[Token | ServiceError] = []
    for first in range(0, len(raws), SLICE_TOKENS):
        part = map(work, raws[first : first + SLICE_TOKENS])
        outcomes += list(part) if len(raws) <= SLICE_TOKENS else await asyncio.to_thread(list, part)
    return outcomes
