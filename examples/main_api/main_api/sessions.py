"""Login, refresh and logout, without HTTP. This is the only module that calls the revocation service.

A method returns only after the service has acknowledged its revocations. Otherwise it raises RevocationError.
"""

import time
from typing import Final

from main_api.tokens import InvalidToken, TokenClaims, TokenPair, Tokens, new_id
from main_api.users import User, Users
from revocation_client import RevocationClient, TokenRevoked

NAME_MAX_CHARACTERS: Final = 128
PASSWORD_MAX_CHARACTERS: Final = 1024
TOKEN_MAX_CHARACTERS: Final = 4096


class WrongPassword(Exception):
    """The name or the password is wrong. The error does not say which of the two."""


class Sessions:
    """Begins, refreshes and ends sessions. A session is one login with all tokens that follow from it."""

    def __init__(self, users: Users, tokens: Tokens, revocations: RevocationClient) -> None:
        self._users = users
        self._tokens = tokens
        self._revocations = revocations

    async def log_in(self, name: str, password: str) -> TokenPair:
        """Return the first tokens of a new session.

        Raises WrongPassword.
        """
        user = await self._users.authenticate(name, password)
        if user is None:
            raise WrongPassword
        return self._tokens.pair(user.name, new_id(), time.time())

    async def current(self, access_token: str) -> tuple[User, TokenClaims]:
        """Return the user and the claims of a token that is valid and not revoked, and whose user still exists.

        Raises InvalidToken, TokenRevoked, RevocationError.
        """
        claims = self._tokens.read(access_token, "access")
        await self._revocations.ensure_active(claims.for_revocations())
        return self._user_of(claims), claims

    async def refresh(self, refresh_token: str) -> TokenPair:
        """Return new tokens of a session for a refresh token that was never used.

        If the token was used before, two parties hold it, and one of them may be a thief. The session is then revoked,
        with all its tokens (RFC 9700 section 4.14.2).
        Raises InvalidToken, RevocationError.
        """
        issued_at = time.time()  # before the check, so that a cutoff set after the check covers the new tokens
        claims = self._tokens.read(refresh_token, "refresh")
        user = self._user_of(claims)
        if not await self._first_use(claims):
            await self._revocations.revoke_session(claims.sid, reason="refresh token used again")
            raise InvalidToken
        return self._tokens.pair(user.name, claims.sid, issued_at)

    async def _first_use(self, claims: TokenClaims) -> bool:
        """Revoke a refresh token, and return whether this was its first use. Of concurrent uses, only one is the first.

        If the service's response is lost, the retry finds the token already revoked, and the user has to log in again.
        If retries counted as a first use, a thief's use could pass for a retry.
        """
        try:
            await self._revocations.ensure_active(claims.for_revocations())
        except TokenRevoked:
            return False
        used = await self._revocations.revoke_jti(claims.jti, exp=claims.exp, reason="refreshed")
        return used.result == "revoked"

    async def log_out(self, access_token: str) -> None:
        """End the session of this token. The token may be revoked already, so that a logout can be repeated.

        The revocation of the session covers the token too. The token is also revoked by its `jti`, for programs that
        look for `token_blacklist:<jti>` in Redis. That record lasts until the token expires.
        Raises InvalidToken, RevocationError.
        """
        claims = self._tokens.read(access_token, "access")
        await self._revocations.revoke_session(claims.sid, reason="logout")
        await self._revocations.revoke_jti(claims.jti, exp=claims.exp, reason="logout")

    async def log_out_everywhere(self, user: User) -> None:
        """End every session of a user.

        The cutoff is the service's time when it stores the revocation. If the clock of this machine is ahead, the
        cutoff is its time instead, because the `iat` of the tokens is from this clock.
        """
        asked_at = time.time()
        revoked = await self._revocations.revoke_subject(user.name, reason="logout-all")
        if revoked.issued_before is None or revoked.issued_before < asked_at:
            await self._revocations.revoke_subject(user.name, issued_before=asked_at, reason="logout-all")

    def _user_of(self, claims: TokenClaims) -> User:
        user = self._users.named(claims.sub)
        if user is None:
            raise InvalidToken
        return user
