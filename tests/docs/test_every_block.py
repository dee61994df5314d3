"""Every example in the documentation is run by a test, and every link leads somewhere."""

import pathlib
import re
from typing import Final

import pytest

from tests.docs.blocks import ROOT, blocks, documents

RUN: Final = frozenset({"apache", "caddyfile", "console", "haproxy", "nginx", "python", "sh", "yaml"})
FORMS: Final = RUN | {"text"}
"""The languages that a block may have; `text` is for diagrams."""

_USE: Final = re.compile(r"\b(?:block|commands)\(\s*\"([\w./-]+)\", \"(\w+)\"")
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


def used() -> set[tuple[str, str]]:
    """Return the file and name of each block that a test asks for by literals."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    return {found for source in sources for found in _USE.findall(source)}


def test_every_example_is_run() -> None:
    """Each block of commands, Python or configuration is used by a test, and each block that a test uses exists."""
    all_blocks = [each for file in documents() for each in blocks(file)]
    fences = sum((ROOT / file).read_text(encoding="utf-8").count("```") for file in documents())
    assert fences == 2 * len(all_blocks), "a fence without a language, or inside of a list"
    assert {each.language for each in all_blocks} <= FORMS
    assert {(each.file, each.name) for each in all_blocks if each.language in RUN} == used()


@pytest.mark.parametrize("file", [*documents(), "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_link_leads_to_a_file_and_a_heading(file: str) -> None:
    """Relative links lead to existing files and headings. client/README.md has no relative links."""
    links = [link for link in _LINK.findall((ROOT / file).read_text(encoding="utf-8")) if "://" not in link]
    assert not (links and file == "client/README.md"), "a package index shows this page elsewhere"
    for link in links:
        path, _, fragment = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        assert not fragment or fragment in _anchors(target), link


def _anchors(path: pathlib.Path) -> set[str]:
    """Return the fragments of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
