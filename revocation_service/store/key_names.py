"""Build the names of the keys in Redis. No other module does. `lua/merge.lua` decides when a key expires."""

import re
from typing import Final

from revocation_client.claims import CLAIMS, ClaimName

_JTI: Final = "token_blacklist:"
_OTHER: Final = "token_cutoff:"
_GLOB: Final = re.compile(r"([*?\[\]\\^])")


class Keyspace:
    """Keys under one prefix. The key of a `jti` has the name that common in-process blacklists use.

    On a cluster the prefix carries a hash tag, so all keys are on one master.
    """

    def __init__(self, prefix: str = "") -> None:
        self._jti = prefix + _JTI
        self._other = prefix + _OTHER
        self.change_log = prefix + "token_revocations:log"
        self.state = prefix + "token_revocations:state"
        """The hash with the epoch, the life and the pending restores."""
        self.restore_lease = prefix + "token_revocations:restore"
        """Held by the worker that writes back what is not recent."""
        self.rescan_lease = prefix + "token_revocations:rescan"
        """Held since the last rescan, until the next one is due."""
        self.settings = prefix + "token_revocations:settings"
        """A sorted set of the settings that instances use, by the time until which they count."""
        self.absent = prefix + "token_revocations:absent"
        """Never written. A cluster refuses a command about it and a key that exists while their slot moves."""
        self.records_pattern = _GLOB.sub(r"\\\1", prefix) + "token_[bc]*"
        """A pattern that the keys of all records match, and few others."""
        self._window = prefix + "gateway_window:"

    def key(self, claim: ClaimName, value: str) -> str:
        """Return the key of one revocation."""
        return self._jti + value if claim == "jti" else f"{self._other}{claim}:{value}"

    def record(self, key: bytes) -> tuple[ClaimName, str] | None:
        """Return the claim and the value of the record with this key; None if it is not the key of a record."""
        try:
            name = key.decode()
        except UnicodeDecodeError:
            return None
        if name.startswith(self._jti):
            return "jti", name[len(self._jti) :]
        claim, colon, value = name.removeprefix(self._other).partition(":")
        if not colon or not name.startswith(self._other):
            return None
        return (claim, value) if claim in CLAIMS and claim != "jti" else None

    def is_cutoff(self, key: bytes) -> bool:
        """Return whether this key is the record of a cutoff, whatever its claim."""
        return key.startswith(self._other.encode())

    def window(self, counted: str) -> str:
        """Return the key of the window in which the attempts of one address are counted."""
        return self._window + counted
