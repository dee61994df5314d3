"""Prints a command as one would type it, runs that very command, and prints what came back."""

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
_STATUS: Final = re.compile(r"^HTTP/[0-9.]+ (\d{3})", re.MULTILINE)


def say(line: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed."""

    text: str

    @property
    def status(self) -> int | None:
        """The HTTP status, where an answer's head is in it."""
        found = _STATUS.search(self.text)
        return int(found[1]) if found else None

    def header(self, name: str) -> str | None:
        """A header of the answer."""
        found = re.search(rf"^{re.escape(name)}: *(.*)$", self.text, re.MULTILINE | re.IGNORECASE)
        return found[1].strip() if found else None


class Shell:
    """A shell in one directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    async def run(self, command: str) -> Output:
        """Print it, run it, print what it printed."""
        say(f"  $ {command}")
        output = Output((await self._output_of(command)).replace("\r", "").rstrip("\n"))
        for line in output.text.splitlines():
            say(f"    {line}")
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
