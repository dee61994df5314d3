"""`python -m bench.gateways`: measure the cost of forward auth in each gateway, configured as docs/gateways.md shows.

The gateways pass OPTIONS requests on without asking the service, so these are the baseline for a GET with a token.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import aiohttp
import jwt
from aiohttp import web

from bench.load import Load, load
from bench.parts import API_KEY, application, redis, service
from tests.doors.gateways import ARGUMENTS, Addresses, binary, running

SECRET = "bench-secret-0123456789-0123456789"
ROUNDS = 7
SECONDS = 1.5
CONNECTIONS = 32
SETTINGS = {
    "REVOCATION_FORWARD_AUTH": "true",
    "REVOCATION_FORWARD_AUTH_HEADERS": "X-Auth-Subject=sub,X-Auth-Scope=scope",
    "REVOCATION_JWT_SECRET": SECRET,
}


async def main() -> None:
    """Measure every gateway that is installed."""
    os.environ.update(SETTINGS)
    raw = jwt.encode({"jti": "bench", "sub": "alice", "exp": int(time.time()) + 3600}, SECRET)
    requests = {"without": _request("OPTIONS"), "with": _request("GET", f"Authorization: Bearer {raw}")}
    async with AsyncExitStack() as stack:
        revocation = await stack.enter_async_context(service(await stack.enter_async_context(redis())))
        await _until_ready(revocation)
        addresses = Addresses(await stack.enter_async_context(application()), revocation, API_KEY)
        asked = _request("GET", f"Authorization: Bearer {raw}", f"X-Revocation-Key: {API_KEY}", path="/forward-auth")
        print(f"{'':10} {'p50, 1 connection':>32} {f'requests/s, {CONNECTIONS} connections':>32}")
        await _report("the service", revocation, {"alone": asked})
        for name in ARGUMENTS:
            if "/" not in name and binary(name):
                with tempfile.TemporaryDirectory() as directory:
                    async with running(name, Path(directory), addresses) as port:
                        await _report(name, port, requests)


async def _until_ready(port: int) -> None:
    """Wait until the service is in sync with its new Redis."""
    while True:
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}/readyz") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.1)


async def _report(name: str, port: int, requests: dict[str, Callable[[], bytes]]) -> None:
    single: dict[str, list[Load]] = {kind: [] for kind in requests}
    many: dict[str, list[Load]] = {kind: [] for kind in requests}
    for number in range(ROUNDS + 1):  # interleaved; the first round is dropped
        for kind, request in requests.items():
            one = await load(port, request, connections=1, seconds=SECONDS)
            several = await load(port, request, connections=CONNECTIONS, seconds=SECONDS)
            if number:
                single[kind].append(one)
                many[kind].append(several)
    for kind in requests:
        p50 = median(each.latency_ms(0.5) for each in single[kind])
        rate = median(each.per_second for each in many[kind])
        print(f"{name:10} {kind:>15} {p50:13.2f} ms {rate:28,.0f}", flush=True)


def _request(method: str, *fields: str, path: str = "/") -> Callable[[], bytes]:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode


def serve_application(port: int) -> None:
    """Serve the application behind the gateways."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="in")

    app = web.Application()
    app.router.add_route("*", "/", answer)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=lambda _line: None)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve_application(int(sys.argv[1]))
    else:
        asyncio.run(main())
