"""API keys: the name, the digest and the scopes of each caller, as REVOCATION_API_KEYS holds them.

Errors quote no part of an entry, because the first part of an entry without a name is the key.
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal, get_args

from revocation_service.errors import SettingsError

Scope = Literal["check", "revoke", "revoke-own", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

_KEY: Final = re.compile(r"[A-Za-z0-9\-._~+/=]{20,}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller: its name, the SHA-256 of its key, and its scopes."""

    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """Parse entries separated by commas or line breaks. An entry that begins with # is a comment."""
    keys = [_api_key(entry, f"REVOCATION_API_KEYS, entry {n}") for n, entry in enumerate(_entries(text), 1)]
    if text and not keys:
        raise SettingsError(
            "REVOCATION_API_KEYS is set and holds no key; unset it to serve only loopback, without keys"
        )
    if len({key.digest for key in keys}) != len(keys):
        raise SettingsError("REVOCATION_API_KEYS has one key twice; give every caller a key of its own")
    return tuple(keys)


def _entries(text: str) -> list[str]:
    lines = (line.strip() for line in text.replace(",", "\n").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _api_key(entry: str, where: str) -> ApiKey:
    """Parse `name=key:scope+scope`: the name ends at the first `=`, the scopes begin after the last `:`."""
    name, _, rest = entry.partition("=")
    key, _, scopes = rest.rpartition(":")
    if not key:
        raise SettingsError(f"{where}: it is not name=key:scopes (`revocation-service new-key NAME SCOPES` prints one)")
    parse_key_name(name, f"{where}, its name")
    if not (digest := _DIGEST.fullmatch(key)) and not _KEY.fullmatch(key):
        raise SettingsError(
            f"{where}: a key is 20 or more characters of A-Z a-z 0-9 - . _ ~ + / =, or sha256: and 64 hex digits"
        )
    hashed = bytes.fromhex(digest[1]) if digest else sha256(key.encode()).digest()
    return ApiKey(name, hashed, parse_scopes(scopes, where))


def parse_key_name(name: str, where: str) -> str:
    """Return the name if it is valid for logs and records. Errors begin with `where`."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return name


def parse_scopes(text: str, where: str) -> frozenset[Scope]:
    """Parse scopes that are joined by +. Errors begin with `where`."""
    names = text.split("+")
    scopes = frozenset(scope for scope in SCOPES if scope in names)
    if len(scopes) != len(names):
        raise SettingsError(f"{where}: scopes are one or more of {', '.join(SCOPES)}, joined by +")
    return scopes


def mask_api_keys(text: str) -> str:
    """Return the names of the entries. Print them only if the text is valid: an entry without a name shows its key."""
    return ", ".join(f"{entry.partition('=')[0]}=***" for entry in _entries(text))
