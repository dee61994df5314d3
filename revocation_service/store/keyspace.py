"""The names of the keys in Redis, built here alone."""

import re
from typing import Final

from revocation_client.model import CLAIM_NAMES, ClaimName

_JTI: Final = "token_blacklist:"
_OTHER: Final = "token_cutoff:"
_CHANGE_LOG: Final = "token_revocations:log"
_MARK: Final = "token_revocations:mark:"
_LIFE: Final = "token_revocations:life:"
_REFILL_LEASE: Final = "token_revocations:refill"
_GLOB: Final = re.compile(r"([*?\[\]\\^])")
_WINDOW: Final = "gateway_window:"


class Keyspace:
    """Keys under one prefix: what a common in-process blacklist writes for a `jti`, and ours for the rest."""

    def __init__(self, prefix: str = "") -> None:
        self._jti = prefix + _JTI
        self._other = prefix + _OTHER
        self.change_log = prefix + _CHANGE_LOG
        self._mark = prefix + _MARK
        self._life = prefix + _LIFE
        self.refill_lease = prefix + _REFILL_LEASE
        self.debts = f"{{{self.change_log}}}:debts"
        """In the slot of the change log, so that both can be had or neither."""
        self.records_pattern = _GLOB.sub(r"\\\1", prefix) + "token_[bc]*"
        """What the keys of all records match, and few others."""
        self._window = prefix + _WINDOW

    def key(self, claim: ClaimName, value: str) -> str:
        """The key of one revocation."""
        return self._jti + value if claim == "jti" else f"{self._other}{claim}:{value}"

    def record(self, key: bytes) -> tuple[ClaimName, str] | None:
        """The claim and the value whose record this key is; None where it is none."""
        try:
            name = key.decode()
        except UnicodeDecodeError:
            return None
        if name.startswith(self._jti):
            return "jti", name[len(self._jti) :]
        claim, colon, value = name.removeprefix(self._other).partition(":")
        if not colon or not name.startswith(self._other):
            return None
        return next(((known, value) for known in CLAIM_NAMES[1:] if known == claim), None)

    def is_cutoff(self, key: bytes) -> bool:
        """Return whether this key is the record of a cutoff, whatever its claim."""
        return key.startswith(self._other.encode())

    def mark(self, number: int) -> str:
        """A key that goes when its master loses everything; the numbers are tried until one belongs to that master."""
        return f"{self._mark}{number}"

    def life(self, mark: str) -> str:
        """The key, in the slot of that mark, of which life its master was last met in."""
        return f"{self._life}{{{mark}}}"

    def window(self, counted: str) -> str:
        """Return the key of the window in which the attempts of one address or account are counted."""
        return self._window + counted
