"""The names of the keys in Redis, built here alone."""

from typing import Final

from revocation_client.model import ClaimName

_JTI: Final = "token_blacklist:"
_OTHER: Final = "token_cutoff:"
_CHANGE_LOG: Final = "token_revocations:log"


class Keyspace:
    """Keys under one prefix: what a common in-process blacklist writes for a `jti`, and ours for the rest."""

    def __init__(self, prefix: str = "") -> None:
        self._jti = prefix + _JTI
        self._other = prefix + _OTHER
        self.change_log = prefix + _CHANGE_LOG

    def key(self, claim: ClaimName, value: str) -> str:
        """The key of one revocation."""
        return self._jti + value if claim == "jti" else f"{self._other}{claim}:{value}"
