"""A service in its own process, for hostile input: it must keep running, and must not print what it received."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.api.serving import ANSWER_SECONDS, Raw, request_bytes, talk_to, variables
from tests.redis_processes import Process
from tests.settled import settle
from tests.unit.reencodings import SECRET, issuer

CANARY: Final = "canary-4d1e7c90b52a"
_CANARY_TAIL: Final = "7c90b52a"
"""The end of the canary, which no line of output may contain. The log may show the first 8 characters of a value."""
API_KEY: Final = f"{CANARY}-aaaaaaaaaaaa"
STARTED_SECONDS: Final = 30.0

CONFIGURATIONS: Final[dict[str, dict[str, str]]] = {
    "keys": {
        "API_KEYS": f"caller={API_KEY}:admin",
        "JWT_SECRET": SECRET,
        "JWT_PUBLIC_KEY": issuer("RS256").pem,
        "LOG_FORMAT": "json",
    },
    "no keys": {"LOG_FORMAT": "console"},
}


@dataclass
class Target:
    """A service process, requests to it, and checks of what it printed."""

    process: subprocess.Popen[bytes]
    output: Path
    port: int
    key: str | None
    secrets: set[str] = field(default_factory=lambda: {_CANARY_TAIL})
    _looked_at: int = 0

    def talk(self, *pieces: bytes, answers: int = 1, half_close: bool = False, seconds: float = ANSWER_SECONDS) -> Raw:
        """Send bytes as they are, and return what the service sends back."""
        talking = talk_to("127.0.0.1", self.port, *pieces, answers=answers, half_close=half_close, seconds=seconds)
        return asyncio.run(talking)

    def request(self, line: str, *headers: str, body: bytes = b"") -> bytes:
        """Return a request as bytes, with the API key if the service has one. The line has no HTTP version."""
        return request_bytes(f"{line} HTTP/1.1", *headers, body=body, key=self.key)

    def ask(self, line: str, *headers: str, body: bytes = b"") -> Raw:
        """Send one request, and return the response."""
        return self.talk(self.request(line, *headers, body=body))

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Raw:
        """POST this body as it is, and return the response."""
        return self.ask(f"POST {path}", f"Content-Type: {content_type}", body=body)

    def forbid(self, *secrets: str) -> None:
        """Add secrets that must not be printed. Short ones are left out, because they may appear by chance."""
        self.secrets.update(secret for secret in secrets if len(secret) >= 12)

    def printed(self) -> str:
        """Return all that the process has written to stdout and stderr."""
        return self.output.read_text(errors="replace")

    def assert_well(self) -> None:
        """Assert that the process still responds, and that it has sent no 5xx response."""
        assert self.process.poll() is None, self.printed()
        metrics = self.ask("GET /metrics").data.decode()
        assert "revocation_http_request_duration_seconds" in metrics
        assert 'status="5' not in metrics

    def assert_silent(self, *, since_start: bool = False) -> None:
        """Assert that the output since the last call has no secret, no traceback and no internal error."""
        with self.output.open("rb") as output:
            output.seek(0 if since_start else self._looked_at)
            new = output.read()
        self._looked_at += 0 if since_start else new.rfind(b"\n") + 1
        printed = new.decode(errors="replace")
        found = [secret for secret in self.secrets if secret in printed]
        assert not found, [line for line in printed.splitlines() if any(secret in line for secret in found)]
        assert "internal_error" not in printed
        assert "library_message" not in printed
        assert "Traceback" not in printed


@contextlib.contextmanager
def spawned(redis: Process, output: Path, given: dict[str, str]) -> Iterator[Target]:
    """Run `serve` with debug logs. At SIGTERM it must exit with status 0, and it must have printed no secret."""
    environment = {"PATH": os.environ["PATH"]} | variables(redis, PORT="0", LOG_LEVEL="debug", **given)
    command = [sys.executable, "-m", "revocation_service", "serve"]
    asyncio.run(_settle(redis, environment["REVOCATION_KEY_PREFIX"]))
    with output.open("wb") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            port = _listening_port(process, output)
            target = Target(process, output, port, API_KEY if "API_KEYS" in given else None)
            yield target
            target.assert_well()
            process.terminate()
            assert process.wait(STARTED_SECONDS) == 0
            target.assert_silent(since_start=True)
        finally:
            process.kill()


async def _settle(redis: Process, prefix: str) -> None:
    async with redis.client() as client:
        await settle(client, prefix)


def _listening_port(process: "subprocess.Popen[bytes]", output: Path) -> int:
    """Wait until the process prints its port, and return it."""
    deadline = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", output.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(f"not serving:\n{output.read_text(errors='replace')}")


def body_of(raw: Raw) -> Any:
    """Return the body of a single response, parsed as JSON."""
    return json.loads(raw.data.partition(b"\r\n\r\n")[2])


def assert_problem(raw: Raw, *statuses: int) -> None:
    """Assert that there is one response: a 4xx problem (RFC 9457) that must not be cached and has no canary."""
    assert len(raw.statuses) == 1, raw
    status = raw.statuses[0]
    assert status in (statuses or range(400, 500)), raw
    assert raw.headers["Content-Type"] == "application/problem+json"
    assert raw.headers["Cache-Control"] == "no-store"
    assert raw.headers["X-Request-ID"]
    problem = body_of(raw)
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    assert CANARY.encode() not in raw.data


def assert_answered(raw: Raw) -> None:
    """Assert that there is one response, a 200 or a 4xx problem."""
    if raw.statuses != [200]:
        assert_problem(raw)


def assert_refused(raw: Raw) -> None:
    """Assert one 400 response: a problem, or plain text from aiohttp's parser if the input is not HTTP."""
    assert raw.statuses == [400], raw
    if raw.headers["Content-Type"] != "text/plain; charset=utf-8":
        assert_problem(raw, 400)
