"""Tokens as an application mints them, for the process-level tests."""

import time
from typing import Any

import jwt

SECRET = "a-shared-secret-of-the-application-0123456789"
FORGERS_SECRET = "another-secret-that-is-not-configured-0123"


def mint(secret: str = SECRET, **claims: Any) -> str:
    """Return an HS256 token that lives ten minutes, unless the claims say otherwise."""
    now = int(time.time())
    return jwt.encode({"sub": "alice", "iat": now, "exp": now + 600} | claims, secret, algorithm="HS256")
