"""Helpers for the tests of `/forward-auth`: requests, challenges and bad tokens."""

from typing import Any

from tests.api.serving import KEYS, Answer, Service
from tests.doors.world import AUDIENCE, ISSUER, token
from tests.unit.reencodings import Issuer, issuer

GATEWAY = {"X-Revocation-Key": KEYS["checker"]}
IDENTITY = ("X-Auth-Subject", "X-Auth-Scope")


async def ask(door: Service, raw: str | None = None, path: str = "/forward-auth", **headers: str) -> Answer:
    """Send a request with this token and return the response. In the names of `headers`, `_` stands for `-`."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    bearer = {} if raw is None else {"Authorization": f"Bearer {raw}"}
    return await door.get(path, headers={**bearer, **given})


def challenge(answer: Answer) -> str:
    """Return the `WWW-Authenticate` challenge of a 401 response."""
    assert answer.status == 401
    return answer.headers["WWW-Authenticate"]


NO_TOKEN = "Bearer"
BAD_TOKEN = 'Bearer error="invalid_token"'


async def revoke(service: Service, **body: Any) -> None:
    """Revoke what `body` names, with the key `ops`. The revocation lasts ten minutes by default."""
    await service.revoke({"expires_in": 600, **body}, headers={"Authorization": f"Bearer {KEYS['ops']}"})


BAD = {
    "expired": token(exp=1_000_000_000),
    "not yet valid": token(nbf=4_000_000_000),
    "another issuer": token(iss="https://other.example"),
    "another audience": token(aud="other"),
    "another kind": token({"typ": "logout+jwt"}),
    "forged": Issuer("HS256", "f" * 64, "").sign({"iss": ISSUER, "aud": AUDIENCE}),
    "another algorithm": issuer("ES256").sign({"iss": ISSUER, "aud": AUDIENCE}),
    "opaque": "2YotnFZFEjr1zCsicMWpAA",
    "encrypted": "a.b.c.d.e",
    "malformed": "a.b.c",
    "empty": "",
    "revoked": token(jti="gone"),
    "revoked session": token(sid="gone"),
}
