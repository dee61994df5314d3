"""Read the fenced blocks of the documentation, and the commands in them.

The info string of a block is its language and a name: "console api". Tests get blocks by file and name. Blocks of one
file and name belong together, in their order.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    file: str
    language: str
    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the documentation says that it prints."""

    text: str
    printed: str


def documents() -> list[str]:
    """Return the paths of all documents, relative to the root."""
    found = [ROOT / "README.md", ROOT / "client" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(file: str) -> list[Block]:
    """Return all blocks of a document."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return [Block(file, language, name, body) for language, name, body in _BLOCK.findall(text)]


def block(file: str, name: str) -> str:
    """Return the text of the blocks of that name, joined."""
    found = [each.text for each in blocks(file) if each.name == name]
    assert found, f"{file} has no block named {name}"
    return "\n".join(found)


def commands(file: str, name: str) -> list[Command]:
    """Return the commands in the console blocks of that name. A comment is not a command."""
    entries = [entry.strip() for entry in re.split(r"^\$ ", block(file, name), flags=re.MULTILINE)]
    return [_command(entry) for entry in entries if entry and not entry.startswith("#")]


def _command(entry: str) -> Command:
    lines = entry.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.endswith(("|", "\\", "&&")))
    return Command("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :]).strip())
