"""The users and their passwords; it knows neither HTTP nor tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio.to_thread
from anyio import CapacityLimiter
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

HASHES_AT_ONCE: Final = 2
"""One argon2 takes 64 MiB and a core: logins wait for their turn rather than fill the machine."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in. Here the name is the `sub`; where names can change, it would be an id."""

    name: str


class Users:
    """The users by name, each with the hash of a password."""

    def __init__(self, password_hashes: Mapping[str, str], hasher: PasswordHash | None = None) -> None:
        self._hashes = dict(password_hashes)
        self._hasher = hasher or PasswordHash.recommended()
        self._nobodys_hash = self._hasher.hash("verified for an unknown name, so that it takes as long")
        self._turn = CapacityLimiter(HASHES_AT_ONCE)

    def named(self, name: str) -> User | None:
        """The user with this name, if there is one (still)."""
        return User(name) if name in self._hashes else None

    async def authenticate(self, name: str, password: str) -> User | None:
        """The user, if the password is right. An unknown name takes as long as a wrong password."""
        known = self._hashes.get(name)
        right = await anyio.to_thread.run_sync(self._verify, password, known or self._nobodys_hash, limiter=self._turn)
        return User(name) if right and known else None

    def _verify(self, password: str, password_hash: str) -> bool:
        try:
            return self._hasher.verify(password, password_hash)
        except UnknownHashError:
            return False
