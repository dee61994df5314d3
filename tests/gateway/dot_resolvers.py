"""Spellings of login paths, and upstreams that normalize a path before they route it.

Each upstream answers 401 to a request that reaches its login, and 404 to any other.
"""

import asyncio
import contextlib
import pathlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import unquote

import pytest

from revocation_service.store.embedded_child import dying_with_parent
from tests.gateway.serving import Visit, bare_upstream
from tests.redis_processes import HOST, eventually, free_port

LOGINS: Final = ("/auth/login", "/api/v1/auth/login")

_NODE: Final = """
const logins = ["/auth/login", "/api/v1/auth/login"];
const server = require("http").createServer((request, response) => {
  let path = "";
  try { path = decodeURIComponent(new URL(request.url, "http://x").pathname); } catch {}
  request.resume();
  response.statusCode = request.method === "POST" && logins.includes(path) ? 401 : 404;
  response.end();
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""

_TARGET: Final = re.compile(rb"POST (\S+) HTTP/1\.1\r\n")


def spellings() -> Iterator[str]:
    """Yield targets that some server may take for a login's; FastAPI takes those that decode exactly to its path."""
    for path in LOGINS:
        yield path
        yield path + "/"
        yield path + "//"
        yield path + "?"
        yield path + "?next=/x;y#z"
        yield "/" + path
        yield path.replace("/", "//")
        yield path.replace("/", "///") + "/"
        yield path.upper()
        yield path.title()
        yield path.replace("login", "LogIn")
        yield path.replace("login", "%6cogin")
        yield path.replace("login", "%6Cogi%6e")
        yield path.replace("login", "%256cogin")
        yield "/" + "".join(f"%{ord(each):02x}" for each in path[1:])
        yield "/" + "".join(f"%{ord(each):02X}" for each in path[1:])
        yield path.replace("/login", "%2Flogin")
        yield path.replace("/login", "%2flogin")
        yield path.replace("/login", "%252flogin")
        yield path.replace("/login", "%5clogin")
        yield path.replace("/login", "\\login")
        yield path.replace("/login", "/./login")
        yield path.replace("/login", "/%2e/login")
        yield path.replace("/login", "/x/../login")
        yield path.replace("/login", "/x/%2e%2e/login")
        yield path.replace("/login", "/x/.%2E/login")
        yield path.replace("/login", "%2f..%2fauth%2flogin")
        yield "/x/.." + path
        yield "/.." + path
        yield "/..;" + path
        yield path + ";x"
        yield path + ";jsessionid=1?y"
        yield path.replace("/login", ";a=b/login;c")
        yield path + "%3bx"
        yield path + "/."
        yield path + "/x/.."
        yield path + "%00"
        yield path + "%20"
        yield path + "%09"
        yield path + "."
        yield path.replace("login", "log%c4%b1n")
        yield path.replace("login", "%ef%bd%8cogin")
        yield path.replace("/login", "%c0%aflogin")
        yield path.replace("login", "%u006cogin")
        yield f"http://x{path}"
        yield f"http://x:80{path}?a=b"
        yield f"HTTP://X{path}"
        yield f"http://y/{path}"
        yield f"//x{path}"
        yield path + "/..;/login"
        yield path + "/%2e%2e;x/login"
        yield path + "%23x"
        yield path + "%3fx"
        yield path + ".json"
        yield path + "/" * 3_000
        yield path + "?" + "x" * 3_000
        yield path.replace("/login", "/%25" * 700 + "/login")
        yield path.replace("login", "%e0%80%acogin")
        yield path.replace("login", "log%ffin")
        yield path.replace("/login", "/.%00./login")
        yield "/" + path[1:].replace("/", "%252525252f")
    yield from climbing_spellings()


def climbing_spellings() -> Iterator[str]:
    """Yield targets that lead to a login if dots are resolved before the path is decoded, or between two decodings."""
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
    """Run an upstream that normalizes a path by RFC 3986 section 6.2.2, then decodes it, and yield its URL."""
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


_NGINX: Final = """
daemon off; pid nginx.pid; error_log stderr crit;
events {}
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {
    listen 127.0.0.1:%d;
    location = /auth/login { return 401; }
    location = /api/v1/auth/login { return 401; }
    location / { return 404; }
  }
}
"""


@contextlib.asynccontextmanager
async def nginx() -> AsyncIterator[str]:
    """Run nginx, which decodes a path and resolves its dots before it routes, and yield its URL; skip without nginx."""
    binary = shutil.which("nginx")
    if binary is None:
        pytest.skip("nginx is not on PATH")
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        configuration = pathlib.Path(directory) / "nginx.conf"
        configuration.write_text(_NGINX % port)
        command = [binary, "-p", directory, "-e", "stderr", "-c", str(configuration)]
        process = await asyncio.create_subprocess_exec(*dying_with_parent(command))
        try:
            await eventually(lambda: _listening(port), "nginx")
            yield f"http://{HOST}:{port}"
        finally:
            process.terminate()
            await process.wait()


async def _listening(port: int) -> bool:
    _, writer = await asyncio.open_connection(HOST, port)
    writer.close()
    await writer.wait_closed()
    return True


UPSTREAMS: Final[dict[str, Callable[[], AbstractAsyncContextManager[str]]]] = {
    "nginx": nginx,
    "node": node,
    "resolver": resolver,
}
