"""A service in a process of its own for tests that mean it harm: it must live on, and print nothing of what it got."""

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
"""What no line may hold: the canary without its beginning, for a value may be logged by its first 8 characters."""
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
    """The process, and what it has printed."""

    process: subprocess.Popen[bytes]
    output: Path
    port: int
    key: str | None
    secrets: set[str] = field(default_factory=lambda: {_CANARY_TAIL})
    _looked_at: int = 0

    def talk(self, *pieces: bytes, answers: int = 1, half_close: bool = False, seconds: float = ANSWER_SECONDS) -> Raw:
        """Send bytes as they are, and read the answers."""
        talking = talk_to("127.0.0.1", self.port, *pieces, answers=answers, half_close=half_close, seconds=seconds)
        return asyncio.run(talking)

    def request(self, line: str, *headers: str, body: bytes = b"") -> bytes:
        """A request with the right key, as bytes; the line without its version."""
        return request_bytes(f"{line} HTTP/1.1", *headers, body=body, key=self.key)

    def ask(self, line: str, *headers: str, body: bytes = b"") -> Raw:
        """One request with the right key."""
        return self.talk(self.request(line, *headers, body=body))

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Raw:
        """POST of these very bytes."""
        return self.ask(f"POST {path}", f"Content-Type: {content_type}", body=body)

    def forbid(self, *secrets: str) -> None:
        """These too must never be printed; what is short might be there by chance."""
        self.secrets.update(secret for secret in secrets if len(secret) >= 12)

    def printed(self) -> str:
        """All that it has written to stdout and stderr."""
        return self.output.read_text(errors="replace")

    def assert_well(self) -> None:
        """It still answers, and has answered nothing with 5xx."""
        assert self.process.poll() is None, self.printed()
        metrics = self.ask("GET /metrics").data.decode()
        assert "revocation_http_request_duration_seconds" in metrics
        assert 'status="5' not in metrics

    def assert_silent(self, *, since_start: bool = False) -> None:
        """Nothing that was sent is in what it printed since the last look, nor any trace of a fault."""
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
    """`serve` with logs at level debug; it has to end well at SIGTERM, silent to its end."""
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
    """The port that it says it serves on."""
    deadline = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", output.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(f"not serving:\n{output.read_text(errors='replace')}")


def body_of(raw: Raw) -> Any:
    """The JSON of the first answer."""
    return json.loads(raw.data.partition(b"\r\n\r\n")[2])


def assert_problem(raw: Raw, *statuses: int) -> None:
    """One answer of 4xx by a handler or a middleware: a problem, not cached, without a word of what was sent."""
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
    """One answer, 200, or a problem of 4xx."""
    if raw.statuses != [200]:
        assert_problem(raw)


def assert_refused(raw: Raw) -> None:
    """400: a problem, or aiohttp's plain response where its parser refused what is not HTTP (contract, section 4)."""
    assert raw.statuses == [400], raw
    if raw.headers["Content-Type"] != "text/plain; charset=utf-8":
        assert_problem(raw, 400)
