"""Login, refresh and logout, without HTTP: the only module that calls the revocation service.

What a method promises has been acknowledged by the service before it returns. Otherwise it raises RevocationError.
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
    """No user has this name with this password; which of the two is wrong is not said."""


class Sessions:
    """Opens, carries on and ends sessions. A session is a login, and all the tokens that came of it."""

    def __init__(self, users: Users, tokens: Tokens, revocations: RevocationClient) -> None:
        self._users = users
        self._tokens = tokens
        self._revocations = revocations

    async def log_in(self, name: str, password: str) -> TokenPair:
        """The first tokens of a new session.

        Raises WrongPassword.
        """
        user = await self._users.authenticate(name, password)
        if user is None:
            raise WrongPassword
        return self._tokens.pair(user.name, new_id(), time.time())

    async def current(self, access_token: str) -> tuple[User, TokenClaims]:
        """Whose token this is, if it is good, not revoked, and its user is still there.

        Raises InvalidToken, TokenRevoked, RevocationError.
        """
        claims = self._tokens.read(access_token, "access")
        await self._revocations.ensure_active(claims.for_revocations())
        return self._user_of(claims), claims

    async def refresh(self, refresh_token: str) -> TokenPair:
        """The next tokens of a session, for a refresh token that was never used.

        One that was used before is in two hands, and which of them is the thief's cannot be told: the session is
        revoked, with all its tokens (RFC 9700 section 4.14.2).
        Raises InvalidToken, RevocationError.
        """
        issued_at = time.time()  # before the check: a cutoff that the check is too early to see covers the new tokens
        claims = self._tokens.read(refresh_token, "refresh")
        user = self._user_of(claims)
        if not await self._first_use(claims):
            await self._revocations.revoke_session(claims.sid, reason="refresh token used again")
            raise InvalidToken
        return self._tokens.pair(user.name, claims.sid, issued_at)

    async def _first_use(self, claims: TokenClaims) -> bool:
        """Use a refresh token up; the service's answer is atomic, so that of many at once one is the first.

        If an answer is lost, the client's own second attempt hears "already revoked" and the user has to log in
        again: better that than a thief who can pass for a retry.
        """
        try:
            await self._revocations.ensure_active(claims.for_revocations())
        except TokenRevoked:
            return False
        used = await self._revocations.revoke_jti(claims.jti, exp=claims.exp, reason="refreshed")
        return used.result == "revoked"

    async def log_out(self, access_token: str) -> None:
        """End the session of this token, which may be revoked already: a logout can be repeated until it succeeds.

        The session's revocation covers the token too. The token's own is for programs that look into Redis
        themselves, where they find `token_blacklist:<jti>` for as long as the token would have lived.
        Raises InvalidToken, RevocationError.
        """
        claims = self._tokens.read(access_token, "access")
        await self._revocations.revoke_session(claims.sid, reason="logout")
        await self._revocations.revoke_jti(claims.jti, exp=claims.exp, reason="logout")

    async def log_out_everywhere(self, user: User) -> None:
        """End every session of a user.

        The cutoff is the service's clock, taken when the revocation is stored; if ours is ahead, ours, because it is
        what the tokens were stamped with.
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
