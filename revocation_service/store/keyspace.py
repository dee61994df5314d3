"""The names of the keys in Redis, built here alone."""

from typing import Final

from revocation_client.model import ClaimName

_JTI: Final = "token_blacklist:"
_OTHER: Final = "token_cutoff:"
_CHANGE_LOG: Final = "token_revocations:log"
_WINDOW: Final = "gateway_window:"
_WINDOW_PROBE: Final = "gateway_probe:"


class Keyspace:
    """Keys under one prefix: what a common in-process blacklist writes for a `jti`, and ours for the rest."""

    def __init__(self, prefix: str = "") -> None:
        self._jti = prefix + _JTI
        self._other = prefix + _OTHER
        self.change_log = prefix + _CHANGE_LOG
        self._window = prefix + _WINDOW
        self._window_probe = prefix + _WINDOW_PROBE

    def key(self, claim: ClaimName, value: str) -> str:
        """The key of one revocation."""
        return self._jti + value if claim == "jti" else f"{self._other}{claim}:{value}"

    def window(self, counted: str) -> str:
        """The key of the window in which the attempts of one address or account are counted; no braces in its name."""
        return self._window + counted

    def window_probe(self, window: str) -> str:
        """A key that nobody counts under, in the same slot of a cluster as a window's key."""
        return f"{self._window_probe}{{{window}}}"
