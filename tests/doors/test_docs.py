"""docs/gateways.md and docs/oauth.md: their settings load, their Python runs, and their tables name every setting."""

import asyncio
import re
import shlex
from typing import Any

import pytest

from revocation_service.settings import load
from tests.api.serving import Service
from tests.docs.blocks import ROOT, block
from tests.doors.oauth import is_revoked
from tests.doors.world import ODD_KEY, OWN_KEY, token


@pytest.mark.parametrize(
    ("text", "doors"),
    [
        (block("docs/gateways.md", "settings"), ("/forward-auth",)),
        (block("docs/oauth.md", "settings"), ("/oauth2/revoke", "/oauth2/introspect")),
    ],
    ids=["gateways", "oauth"],
)
def test_the_documented_settings_are_valid(text: str, doors: tuple[str, ...]) -> None:
    """With a digest for each `…`, the settings of a page load, and open the endpoints that the page describes."""
    given = dict(word.split("=", 1) for line in text.splitlines() for word in shlex.split(line))
    digests = iter(f"{number:064x}" for number in range(9))
    given["REVOCATION_API_KEYS"] = re.sub("…", lambda _: next(digests), given["REVOCATION_API_KEYS"])
    loaded = load(given)
    assert loaded.unknown == ()
    assert loaded.settings.open_doors == (*doors, "/openapi.json", "/docs")


def test_every_setting_of_a_door_is_documented() -> None:
    """The tables of the two pages list exactly the settings of forward auth and of OAuth, each with its default."""
    shown = dict(line.removesuffix("  (default)").split("=", 1) for line in load({}).shown)
    for page, prefix in (("gateways.md", "REVOCATION_FORWARD_AUTH"), ("oauth.md", "REVOCATION_OAUTH")):
        rows = dict(
            re.findall(
                r"^\| `(REVOCATION_\w+)` \| (?:`(\w+)`|none) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE
            )
        )
        assert rows == {name: default for name, default in shown.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("needed", "text"),
    [
        ("authlib", block("docs/oauth.md", "authlib")),
        ("oauthlib", block("docs/oauth.md", "oauthlib")),
        ("fastmcp", block("docs/oauth.md", "fastmcp")),
    ],
    ids=["Authlib", "requests-oauthlib", "FastMCP"],
)
async def test_the_documented_python_runs(
    service: Service, needed: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented clients revoke a token in a real service, and the documented verifier accepts a good token."""
    pytest.importorskip("requests")
    pytest.importorskip(needed)
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    raw = token(client_id="mobile", jti="a")
    client, key = ("odd", ODD_KEY) if "your-api" in text else ("mobile", OWN_KEY)
    for documented, actual in {
        "http://revocation:8080": str(service.url).rstrip("/"),
        "…": raw,
        "mobile-app": client,
        "your-api": client,
        "the-clients-key": key,
    }.items():
        text = text.replace(documented, actual)
    names: dict[str, Any] = {}
    await asyncio.to_thread(exec, text, names)
    if "verifier" in names:
        assert await names["verifier"].verify_token(raw) is not None
    else:
        assert await is_revoked(service, raw)
