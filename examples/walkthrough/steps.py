"""The steps of the walk, each with the response that it expects."""

import base64
import json
import pathlib
import shlex
import sys
from dataclasses import dataclass
from typing import Any, Final

from walkthrough.parts import DemoError, Parts
from walkthrough.shell import Output, Shell, say

LIMIT: Final = 5
TTL_TOLERANCE_SECONDS: Final = 0.05
HEADERS: Final = "grep -iE '^(HTTP/|x-ratelimit|ratelimit|retry-after)'"


async def walk(shell: Shell, parts: Parts) -> None:
    """Take every step in turn. Raises DemoError at the first that does not do what it says."""
    steps = _Steps(shell, parts)
    say(f"\nThe walk, in {shell.directory}:")
    await steps.log_in()
    await steps.call()
    await steps.log_out()
    await steps.be_refused()
    await steps.look_into_redis()
    await steps.log_in_too_often()
    say("\nEvery step did what it says.", "ok")


@dataclass(frozen=True, slots=True)
class _Steps:
    shell: Shell
    parts: Parts

    async def log_in(self) -> None:
        _title("Log in, through the gateway; its headers say how many logins are left this minute")
        output = await self.shell.run(f"curl -sS -D - -o login.json {self._login()}")
        _expect(output, 200)
        _expect_headers(output, remaining=LIMIT - 1)
        pick = r"""sed 's/.*"access_token":"\([^"]*\)".*/Authorization: Bearer \1/' login.json > access.header"""
        await self.shell.run(pick)

    async def call(self) -> None:
        _title("Call the API with the access token: who am I?")
        output = await self._me()
        _expect(output, 200)
        _check(f'"username":"{self.parts.user}"' in output.text, f"the answer names {self.parts.user}")

    async def log_out(self) -> None:
        _title("Log out: the response is 204 only after the revocation is safely stored")
        _expect(await self.shell.run(f"curl -sSi -H @access.header -X POST {self._api('auth/logout')}"), 204)

    async def be_refused(self) -> None:
        _title("The very next request with that token, which has a good signature and has not expired")
        _expect(await self._me(), 401)

    async def look_into_redis(self) -> None:
        _title("The entry in Redis lives exactly as long as the token would have lived")
        claims = _claims(self.shell.directory / "login.json")
        key = f"token_blacklist:{claims['jti']}"
        output = await self.shell.run(f"{shlex.quote(sys.executable)} \\\n      redis_ttl.py {shlex.quote(key)}")
        found = _json(output)
        say(f"    (the token: exp {claims['exp']})")
        apart = abs(found.get("ends_at", 0) - claims["exp"])
        _check(apart <= TTL_TOLERANCE_SECONDS, f"the entry ends when the token does, at {claims['exp']}")

    async def log_in_too_often(self) -> None:
        _title(f"Log in again and again: {LIMIT} a minute are allowed, and the first step was one")
        for number in range(2, LIMIT + 2):
            say(f"  login {number}")
            output = await self.shell.run(f"curl -sS -D - -o /dev/null {self._login()} |\n      {HEADERS}")
            _expect(output, 200 if number <= LIMIT else 429)
            _expect_headers(output, remaining=max(LIMIT - number, 0))
        _check(output.header("Retry-After") is not None, "Retry-After says when to come back")

    def _login(self) -> str:
        form = f"-d username={self.parts.user} --data-urlencode password@alice.password"
        return f"{self._api('auth/login')} \\\n      {form}"

    async def _me(self) -> Output:
        return await self.shell.run(f"curl -sSi -H @access.header {self._api('users/me')}")

    def _api(self, path: str) -> str:
        return f"{self.parts.gateway_url}/api/v1/{path}"


def _title(text: str) -> None:
    say(f"\n* {text}", "title")


def _expect(output: Output, status: int) -> None:
    _check(output.status == status, f"{status}", f"it should be {status}, and is {output.status}")


def _expect_headers(output: Output, remaining: int) -> None:
    limit, left, reset = (output.header(f"X-RateLimit-{name}") for name in ("Limit", "Remaining", "Reset"))
    said = f"X-RateLimit-Limit {LIMIT}, -Remaining {remaining}, and a -Reset"
    found = f"it should be {said}, and is {limit}, {left}, {reset}"
    _check((limit, left) == (str(LIMIT), str(remaining)) and bool(reset), said, found)


def _check(true: bool, what: str, instead: str | None = None) -> None:
    if not true:
        say(f"    NOT SO: {instead or what}", "failed")
        raise DemoError(f"a step did not do what it says: {instead or what}")
    say(f"    ok: {what}", "ok")


def _claims(login: pathlib.Path) -> dict[str, Any]:
    """Return the claims of the access token, unverified."""
    payload = json.loads(login.read_text())["access_token"].split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def _json(output: Output) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(output.text)
    except ValueError:
        return {}
    return found
