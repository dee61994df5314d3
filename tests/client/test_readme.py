"""The examples of the client's README, run as they stand there against a real service."""

import ast
import inspect
import pathlib
import re
from collections.abc import AsyncIterator
from types import CodeType
from typing import Any

import httpx
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import revocation_client
from revocation_client import Counters, RevocationClient
from revocation_client.errors import __doc__ as tree
from revocation_client.testing import InMemoryRevocationClient
from tests.client.asgi import asgi
from tests.redis_processes import Process
from tests.system.tokens import mint
from tests.web.serving import Service, serving

README = (pathlib.Path(revocation_client.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
KEY = "the-key-of-this-application"
EXAMPLES = dict(re.findall(r"```python (\w+)\n(.*?)```", README, re.DOTALL))


@pytest.fixture
async def service(redis: Process) -> AsyncIterator[Service]:
    """A service that knows the README's key."""
    async with serving(redis, API_KEYS=f"readme={KEY}:admin") as running:
        yield running


async def run(name: str, service: Service | None, **names: Any) -> dict[str, Any]:
    """The names that an example defines; its address is the service's."""
    url = str(service.url).rstrip("/") if service else "http://revocation.invalid"
    source = EXAMPLES[name].replace("http://revocation:8080", url)
    code = compile(source, f"README.md, {name}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    space: dict[str, Any] = {"RevocationClient": RevocationClient, **names}
    await _executed(code, space)
    return space


async def _executed(code: CodeType, space: dict[str, Any]) -> None:
    awaited = eval(code, space)
    if inspect.isawaitable(awaited):
        await awaited


def test_every_example_is_run() -> None:
    """None stands in the README that no test below knows; the one that is `before` only shows what was."""
    assert set(EXAMPLES) == {
        "before",
        "after",
        "ask",
        "revoke",
        "mirror",
        "testing",
        "starlette",
        "aiohttp",
        "blacklist",
    }
    assert README.count("```python") == len(EXAMPLES)


async def test_get_current_user(service: Service) -> None:
    """With the two lines a logged-out token is 401 on the next request, and another one is not."""
    app = (await run("after", service))["app"]
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


@pytest.mark.parametrize("name", ["ask", "revoke"])
async def test_asking_and_revoking(service: Service, name: str) -> None:
    """Each call of the list works, and the revocations are there."""
    space = await run(name, service)
    counters = space["revocations"].counters
    active = counters.not_revoked + counters.mirror_not_revoked
    assert (active, counters.revocations) == ((6, 0) if name == "ask" else (0, 7))
    assert len([key for key in await service.stored_keys() if ":token_" in key and "token_revocations" not in key]) == (
        counters.revocations
    )


async def test_the_mirror(service: Service) -> None:
    """The example comes into step with the real feed, and is answered from memory."""
    space = await run("mirror", service)
    verdict, counters = space["verdict"], space["revocations"].counters
    assert (verdict.source, verdict.revoked, verdict.stale_seconds < 5) == ("mirror", False, True)
    assert (counters.mirror_not_revoked, counters.requests) == (2, 0)


async def test_the_stand_in() -> None:
    """The example test passes as a test does."""
    await (await run("testing", None))["test_logout"]()


async def test_starlette() -> None:
    """A revoked token is 401, another one is not, and a request without one is told so."""
    revocations = InMemoryRevocationClient()
    app = (await run("starlette", None, revocations=revocations))["app"]
    async with revocations:
        await revocations.revoke_jti("one")
    async with asgi(app) as http:
        for jti, status in (("one", 401), ("two", 200)):
            answer = await http.get("/me", headers={"Authorization": f"Bearer {mint(jti=jti)}"})
            assert answer.status_code == status
        assert (await http.get("/me")).status_code == 401


async def test_aiohttp() -> None:
    """After the logout the same token is 401."""
    app: web.Application = (await run("aiohttp", None, revocations=InMemoryRevocationClient()))["app"]
    async with TestClient(TestServer(app)) as http:
        headers = {"Authorization": f"Bearer {mint(jti='one')}"}
        statuses = [(await http.post("/logout", headers=headers)).status for _ in range(2)]
    assert statuses == [200, 401]


async def test_the_drop_in(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old calls work with the old URL, and the service has the record."""
    monkeypatch.setenv("REVOCATION_URL", str(service.url))
    monkeypatch.setenv("REVOCATION_API_KEY", KEY)
    await run("blacklist", service)
    stored = await service.stored_keys()
    assert {key.rpartition(":")[2] for key in stored if "token_blacklist" in key} == {"7d0c1f"}


def test_what_the_readme_lists_is_there() -> None:
    """The error tree is the module's, and the counters are all of them."""
    assert tree is not None
    drawn = [line.strip() for line in tree.splitlines() if "──" in line]
    assert [line for line in README.splitlines() if "──" in line] == drawn
    section = README.split("## Counters")[1].split("\n## ")[0]
    assert set(Counters.__dataclass_fields__) <= set(re.findall(r"`(\w+)`", section))
