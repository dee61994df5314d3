"""Climbing spellings of login paths, and upstreams that resolve dots before they decode a path.

Each upstream answers 401 to a request that reaches its login, and 404 to any other.
"""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import unquote

import pytest

from revocation_service.store.embedded_child import dying_with_parent
from tests.gateway.serving import Visit, bare_upstream
from tests.redis_processes import HOST

LOGINS: Final = ("/auth/login", "/api/v1/auth/login")

_NODE: Final = """
const logins = ["/auth/login", "/api/v1/auth/login"];
const server = require("http").createServer((request, response) => {
  const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
  request.resume();
  response.statusCode = request.method === "POST" && logins.includes(path) ? 401 : 404;
  response.end();
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""

_TARGET: Final = re.compile(rb"POST (\S+) HTTP/1\.1\r\n")


def climbing_spellings() -> Iterator[str]:
    """Yield targets that lead to a login if dots are resolved before the path is decoded, or in between."""
    for detour in ("/a%2fb/%2e%2e", "/a%252fb/%2e%2e", "/x%5cy/%2e%2e", "/x\\y/..", "/x%3by/.%2E", "/x%3fy/.."):
        for path in LOGINS:
            yield detour + path
            yield path.replace("/login", f"{detour}/login")
            yield path + detour


@contextlib.asynccontextmanager
async def node() -> AsyncIterator[str]:
    """Run a Node server that routes on the decoded path of `new URL`, and yield its URL; skip where Node is missing."""
    binary = shutil.which("node")
    if binary is None:
        pytest.skip("node is not on PATH")
    process = await asyncio.create_subprocess_exec(
        *dying_with_parent([binary, "-e", _NODE]), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://{HOST}:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def resolver() -> AsyncIterator[str]:
    """Run an upstream that normalizes as RFC 3986 section 6.2.2 says and decodes then, and yield its URL."""
    async with bare_upstream(_answer_by_resolved_path) as upstream:
        yield upstream.url


async def _answer_by_resolved_path(visit: Visit) -> None:
    answered = 0
    while await visit.read():
        targets = _TARGET.findall(bytes(visit.received))
        while answered < min(len(targets), visit.received.count(b"\r\n\r\n")):
            status = b"401 Unauthorized" if _resolved(targets[answered].decode()) in LOGINS else b"404 Not Found"
            answered += 1
            await visit.send(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)


def _resolved(target: str) -> str:
    kept: list[str] = []
    for segment in re.sub("%2e", ".", target.partition("?")[0], flags=re.IGNORECASE).split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return unquote("/" + "/".join(kept))


UPSTREAMS: Final[dict[str, Callable[[], AbstractAsyncContextManager[str]]]] = {"node": node, "resolver": resolver}
