"""Run commands as a user would type them, and print each with its output."""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import sys
from dataclasses import dataclass
from typing import Final

COMMAND_SECONDS: Final = 30.0
_CODES: Final = {"title": "1", "command": "36", "output": "2", "ok": "32", "failed": "1;31"}
"""ANSI codes of the styles: bold, cyan, faint, green, bold red."""

_STATUS: Final = re.compile(r"^HTTP/[0-9.]+ (\d{3})", re.MULTILINE)


def say(text: str, style: str | None = None) -> None:
    """Print a line, in colour on a terminal unless NO_COLOR is set (no-color.org)."""
    sys.stdout.write(f"\x1b[{_CODES[style]}m{text}\x1b[0m\n" if style and _has_colours() else f"{text}\n")
    sys.stdout.flush()


def _has_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a command."""

    text: str

    @property
    def status(self) -> int | None:
        """The HTTP status; None if no response is in it."""
        found = _STATUS.search(self.text)
        return int(found[1]) if found else None

    def header(self, name: str) -> str | None:
        """Return a header of the response; None if it is not there."""
        found = re.search(rf"^{re.escape(name)}: *(.*)$", self.text, re.MULTILINE | re.IGNORECASE)
        return found[1].strip() if found else None


class Shell:
    """A shell in one directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    async def run(self, command: str) -> Output:
        """Print a command, run it, and print its output."""
        say(f"  $ {command}", "command")
        output = Output((await self._output_of(command)).replace("\r", "").rstrip("\n"))
        for line in output.text.splitlines():
            say(f"    {line}", "output")
        return output

    async def _output_of(self, command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            command,
            cwd=self.directory,
            env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                printed, _ = await process.communicate()
        except TimeoutError:
            return f"no end within {COMMAND_SECONDS:g} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return printed.decode(errors="replace")
