"""Tests that run the examples of client/README.md, as printed, against a real service."""

import ast
import inspect
import re
from collections.abc import AsyncIterator
from types import CodeType
from typing import Any

import httpx
import jwt
import pytest

import revocation_client
from revocation_client import RevocationClient
from tests.api.serving import Service, serving
from tests.client.asgi import asgi
from tests.docs.blocks import ROOT, block
from tests.redis_processes import Process
from tests.system.tokens import mint

README = (ROOT / "client" / "README.md").read_text(encoding="utf-8")
KEY = "the-key-of-this-application"


@pytest.fixture
async def service(redis: Process) -> AsyncIterator[Service]:
    """A service that accepts the API key of the examples."""
    async with serving(redis, API_KEYS=f"readme={KEY}:admin") as running:
        yield running


async def run(source: str, service: Service | None, **names: Any) -> dict[str, Any]:
    """Run an example against the service, and return the names that it defines."""
    url = str(service.url).rstrip("/") if service else "http://revocation.invalid"
    source = source.replace("http://revocation:8080", url)
    code = compile(source, "client/README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    space: dict[str, Any] = {"RevocationClient": RevocationClient, **names}
    await _executed(code, space)
    return space


async def _executed(code: CodeType, space: dict[str, Any]) -> None:
    awaited = eval(code, space)
    if inspect.isawaitable(awaited):
        await awaited


async def test_the_application(service: Service) -> None:
    """A logged-out token gets 401 on the next request, another one still passes, and a forged one gets 401."""
    app = (await run(block("client/README.md", "app"), service))["app"]
    token, other = mint(jti="one", sub="alice"), mint(jti="two", sub="alice")
    async with asgi(app) as http:

        async def ask(method: str, path: str, token: str) -> httpx.Response:
            return await http.request(method, path, headers={"Authorization": f"Bearer {token}"})

        assert (await ask("GET", "/me", token)).json() == {"name": "alice"}
        assert (await ask("POST", "/logout", token)).json() == {"logged_out": True}
        refused = await ask("GET", "/me", token)
        assert refused.status_code == 401
        assert "invalid_token" in refused.headers["WWW-Authenticate"]
        assert (await ask("GET", "/me", other)).status_code == 200
        assert (await ask("GET", "/me", jwt.encode({"jti": "x"}, "y" * 40))).status_code == 401


async def test_the_calls(service: Service) -> None:
    """The calls of the README succeed, and the service stores their six revocations."""
    space = await run(block("client/README.md", "calls"), service)
    counters = space["revocations"].counters
    assert (counters.not_revoked, counters.mirror_not_revoked) == (3, 4)  # `verify_access` makes a check too
    assert (counters.revocations, counters.failed, counters.policy_allowed) == (6, 0, 0)
    stored = await service.stored_keys()
    assert len([key for key in stored if ":token_" in key and "token_revocations" not in key]) == 6


async def test_the_stand_in() -> None:
    """The test that the README shows, with the in-memory client, passes."""
    await (await run(block("client/README.md", "testing"), None))["test_logout"]()


async def test_the_drop_in(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old calls of a blacklist module work with the new import, and the service stores the record."""
    monkeypatch.setenv("REVOCATION_URL", str(service.url))
    monkeypatch.setenv("REVOCATION_API_KEY", KEY)
    await run(block("client/README.md", "blacklist"), service)
    stored = await service.stored_keys()
    assert {key.rpartition(":")[2] for key in stored if "token_blacklist" in key} == {"7d0c1f"}


def test_the_readme_names_every_error_and_call() -> None:
    """The README names every exported error, and every public method of the client but `aclose` and `start`."""
    words = set(re.findall(r"\w+", README))
    assert {name for name in revocation_client.__all__ if is_error(name)} <= words
    assert {name for name in vars(RevocationClient) if not name.startswith("_")} <= words | {"aclose", "start"}


def is_error(name: str) -> bool:
    """Return whether an exported name is an error."""
    one = getattr(revocation_client, name)
    return inspect.isclass(one) and issubclass(one, Exception)
