"""Run the commands of the documentation in a shell, and prepare their output for a comparison."""

import asyncio
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from tests.docs.blocks import Command

KEY: Final = "docs-key-0123456789abcdef"
COMMAND_SECONDS: Final = 60.0
BIN: Final = pathlib.Path(sys.executable).parent

_VARYING: Final = frozenset({"issued_before", "version"})


def give_curl_the_key(home: pathlib.Path) -> None:
    """Write the file that the commands of the documentation read the key from."""
    (home / ".revocation.curl").write_text(f'header = "Authorization: Bearer {KEY}"\n')


async def typed(
    command: str,
    home: pathlib.Path,
    *,
    answer: str = "",
    shell: str = "bash",
    directory: pathlib.Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command in a shell, with `answer` as its input, and return its output. It must succeed."""
    command = command.replace(".venv/bin/", f"{BIN}/")
    process = await asyncio.create_subprocess_exec(
        shell,
        "-euc",
        command,
        cwd=directory or home,
        env={"HOME": str(home), "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", **(environment or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(answer.encode()), COMMAND_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"{command}\n{out.decode()}{err.decode()}"
    return out.decode()


async def answered(command: Command, port: int, home: pathlib.Path) -> Any:
    """Return the JSON that a curl command gets from the service at this port."""
    return json.loads(await typed(command.text.replace("localhost:8080", f"localhost:{port}"), home))


def shape(answer: Any) -> Any:
    """Return an answer with its times and versions masked, because they differ from run to run."""
    if isinstance(answer, dict):
        hidden = {name for name in answer if name.endswith("_at") or name in _VARYING}
        return {name: "varies" if name in hidden else shape(value) for name, value in answer.items()}
    return [shape(each) for each in answer] if isinstance(answer, list) else answer
