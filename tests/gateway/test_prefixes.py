"""A login under a prefix is counted under every path that reaches it, whichever of them is configured."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from yarl import URL

from tests.api.serving import talk_to
from tests.gateway.prefixed_app import LAYOUTS
from tests.gateway.serving import application, gateway_before
from tests.redis_processes import HOST

pytestmark = pytest.mark.asyncio(loop_scope="module")

REACHING = {
    "plain": {"/auth/login"},
    "root-path": {"/auth/login", "/v2/auth/login"},
    "mounted": {"/v2/auth/login"},
    "mounted-under-root-path": {"/api/v2/auth/login"},
    "root-path-of-two": {"/auth/login", "/api/v2/auth/login"},
    "root-path-is-auth": {"/login", "/auth/login"},
}

CANDIDATES = [
    "".join(prefixes) + login
    for count in range(4)
    for prefixes in itertools.product(("/api", "/v2", "/auth"), repeat=count)
    for login in ("/login", "/auth/login")
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def applications() -> AsyncIterator[str]:
    async with application("tests.gateway.prefixed_app:app") as url:
        yield url


def _post(layout: str, path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {layout}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_every_path_that_reaches_the_login_is_counted(applications: str, layout: str) -> None:
    """Requests to all paths that reach the login are counted, whichever of them, or `/auth/login`, is configured."""
    port = URL(applications).port
    assert port is not None
    asked = {path: await talk_to(HOST, port, _post(layout, path)) for path in CANDIDATES}
    reaching = {path for path, answer in asked.items() if answer.statuses == [401]}
    assert reaching == REACHING[layout]
    for configured in reaching | {"/auth/login"}:
        async with gateway_before(applications, LOGIN_PATHS=configured, LOGIN_LIMIT="100/hour") as gateway:
            for number, path in enumerate(sorted(reaching), start=1):
                answer = await gateway.talk(_post(layout, path))
                assert answer.statuses == [401]
                assert answer.headers.get("X-RateLimit-Remaining") == str(100 - number), (configured, path)


async def test_the_public_path_covers_the_one_behind_a_root_path() -> None:
    """With uvicorn's `--root-path /v2` and `/v2/auth/login` configured, logins to `/auth/login` are counted too."""
    async with (
        application("tests.gateway.prefixed_app:app", "--root-path", "/v2") as url,
        gateway_before(url, LOGIN_PATHS="/v2/auth/login") as gateway,
    ):
        answers = [await gateway.talk(_post("plain", "/auth/login")) for _ in range(6)]
    assert [answer.statuses for answer in answers] == [[401]] * 5 + [[429]]
