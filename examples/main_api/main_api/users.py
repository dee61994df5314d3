"""The users and their passwords. This module knows neither HTTP nor tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio.to_thread
from anyio import CapacityLimiter
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

HASHES_AT_ONCE: Final = 2
"""Limit of concurrent hashes. Each takes 64 MiB and a core, so further logins wait."""


@dataclass(frozen=True, slots=True)
class User:
    """A user who may log in. The name is the `sub` of the user's tokens. If names could change, use an id as `sub`."""

    name: str


class Users:
    """The users by name, each with the hash of a password."""

    def __init__(self, password_hashes: Mapping[str, str], hasher: PasswordHash | None = None) -> None:
        self._hashes = dict(password_hashes)
        self._hasher = hasher or PasswordHash.recommended()
        self._nobodys_hash = self._hasher.hash("verified for an unknown name, so that it takes as long")
        self._turn = CapacityLimiter(HASHES_AT_ONCE)

    def named(self, name: str) -> User | None:
        """Return the user with this name, or None if there is no such user."""
        return User(name) if name in self._hashes else None

    async def authenticate(self, name: str, password: str) -> User | None:
        """Return the user if the password is right, else None. An unknown name takes as long as a wrong password."""
        known = self._hashes.get(name)
        right = await anyio.to_thread.run_sync(self._verify, password, known or self._nobodys_hash, limiter=self._turn)
        return User(name) if right and known else None

    def _verify(self, password: str, password_hash: str) -> bool:
        try:
            return self._hasher.verify(password, password_hash)
        except UnknownHashError:
            return False
