"""The callers: their names, their keys and what they may do, as one setting holds them; pure.

No error quotes any part of an entry: where its name was forgotten, the key stands in the name's place.
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal, get_args

from revocation_service.errors import SettingsError

Scope = Literal["check", "revoke", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
API_KEY: Final = re.compile(r"[A-Za-z0-9\-._~+/=]{20,}")
_API_KEY_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller: its name, what it may do, and the SHA-256 of its key; the key itself is not kept."""

    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """The entries of REVOCATION_API_KEYS, by comma or by line.

    Raises SettingsError.
    """
    lines = (line.strip() for line in text.replace(",", "\n").splitlines())
    entries = [line for line in lines if line and not line.startswith("#")]
    keys = [_api_key(entry, f"REVOCATION_API_KEYS, entry {number}") for number, entry in enumerate(entries, 1)]
    if not keys:
        raise SettingsError(
            "REVOCATION_API_KEYS is set and holds no key; unset it to serve loopback alone, without keys"
        )
    if len({key.digest for key in keys}) != len(keys):
        raise SettingsError("REVOCATION_API_KEYS has one key twice; give every caller a key of its own")
    return tuple(keys)


def _api_key(entry: str, where: str) -> ApiKey:
    """One entry, `name=key:scope+scope`: the name ends at the first `=`, the scopes begin after the last `:`."""
    name, _, rest = entry.partition("=")
    key, _, scopes = rest.rpartition(":")
    if not key:
        raise SettingsError(
            f"{where}: it is not name=key:scopes (`revocation-service new-key NAME SCOPES` prints a good one)"
        )
    parse_key_name(name, f"{where}, its name")
    return ApiKey(name, _key_digest(key, where), parse_scopes(scopes, where))


def _key_digest(key: str, where: str) -> bytes:
    given = _API_KEY_DIGEST.fullmatch(key)
    if given:
        return bytes.fromhex(given[1])
    if not API_KEY.fullmatch(key):
        raise SettingsError(
            f"{where}: a key is 20 or more characters of A-Z a-z 0-9 - . _ ~ + / =, or sha256: and 64 hex digits"
        )
    return sha256(key.encode()).digest()


def parse_key_name(name: str, where: str) -> str:
    """The name of a caller, as it may stand in logs and records.

    Raises SettingsError, which begins with `where`.
    """
    if not _KEY_NAME.fullmatch(name):
        raise SettingsError(f"{where}: 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def parse_scopes(text: str, where: str) -> frozenset[Scope]:
    """`check+revoke` as a set.

    Raises SettingsError, which begins with `where`.
    """
    names = text.split("+")
    scopes = frozenset(scope for scope in SCOPES if scope in names)
    if len(scopes) != len(names):
        raise SettingsError(f"{where}: scopes are one or more of {', '.join(SCOPES)}, joined by +")
    return scopes


def mask_api_keys(text: str) -> str:
    """The names of the entries alone, of a text that was parsed already."""
    names = [line.strip().partition("=")[0] for line in text.replace(",", "\n").splitlines()]
    return ", ".join(f"{name}=***" for name in names if name and not name.startswith("#"))
