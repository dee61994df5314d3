"""Helpers for the tests of the OAuth endpoints: requests, and checks of the responses."""

from typing import Any

from tests.api.serving import Answer, Service, bearer

PATHS = ("/oauth2/revoke", "/oauth2/introspect")
JWE = "a.b.c.d.e"
OPAQUE = "2YotnFZFEjr1zCsicMWpAA"


async def revoke(service: Service, raw: str, **fields: str) -> Answer:
    """Send a token to `/oauth2/revoke` with the key `revoker`, and return the response."""
    return await service.form("/oauth2/revoke", {"token": raw, **fields}, headers=bearer("revoker"))


async def introspect(service: Service, raw: str, **fields: str) -> Any:
    """Return the JSON that `/oauth2/introspect` answers about a token. The response must be 200."""
    answer = await service.form("/oauth2/introspect", {"token": raw, **fields}, headers=bearer("checker"))
    told = answer.status, answer.headers["Content-Type"], answer.headers["Cache-Control"]
    assert told == (200, "application/json", "no-store"), answer
    return answer.json


async def is_revoked(service: Service, raw: str) -> bool:
    """Return whether `/check` says that a token is revoked."""
    revoked: bool = (await service.check({"token": raw}))["revoked"]
    return revoked


def error(answer: Answer) -> tuple[int, str]:
    """Return the status and code of an OAuth error, which must have the form of RFC 6749 section 5.2."""
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"error", "error_description"}
    assert all(
        character not in '"\\' and 0x20 <= ord(character) < 0x7F for character in answer.json["error_description"]
    )
    return answer.status, answer.json["error"]
