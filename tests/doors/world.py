"""Settings that open every optional endpoint, and the tokens and keys that fit these settings."""

import time
from base64 import b64encode
from typing import Any, Final
from urllib.parse import quote_plus

from tests.api.serving import API_KEYS
from tests.unit.reencodings import SECRET, issuer

ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "api"
ODD_KEY: Final = "a+b/c==d~e.f_g-h+++///ij="
"""An API key with `+`, `/`, `=` and `~`, which some clients form-encode."""
OWN_KEY: Final = "own-aaaaaaaaaaaaaaaaaaaaaaaaaa"

DOORS: Final = {
    "API_KEYS": f"{API_KEYS},odd={ODD_KEY}:check+revoke,mobile={OWN_KEY}:revoke-own",
    "JWT_SECRET": SECRET,
    "JWT_ISSUER": ISSUER,
    "JWT_AUDIENCE": AUDIENCE,
    "FORWARD_AUTH": "true",
    "FORWARD_AUTH_COOKIE": "access_token",
    "FORWARD_AUTH_QUERY": "access_token",
    "FORWARD_AUTH_HEADERS": "X-Auth-Subject=sub,X-Auth-Scope=scope",
    "FORWARD_AUTH_OPTIONAL": "true",
    "OAUTH_REVOKE": "true",
    "OAUTH_INTROSPECT": "true",
}


def token(headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a signed token of the right issuer and audience, valid for a day. A claim that is None is left out."""
    usual = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 86_400, "sub": "alice"}
    members = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return issuer("HS256").sign(members, headers)


def basic(client_id: str, secret: str, *, encoded: bool = False) -> dict[str, str]:
    """Return an HTTP Basic header. If `encoded`, form-encode the name and the key (RFC 6749 section 2.3.1)."""
    pair = [quote_plus(client_id), quote_plus(secret)] if encoded else [client_id, secret]
    return {"Authorization": f"Basic {b64encode(':'.join(pair).encode()).decode()}"}
