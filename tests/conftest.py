"""The order of the tests: the longest files first, so that no process of pytest-xdist ends alone with one of them."""

import pathlib

import pytest

FOLDERS = ("system", "replication", "store")
"""Where the long files are: their tests wait for real outages."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by folder; within a folder the order stays."""
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: pathlib.Path) -> int:
    folder = path.parent.name
    return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)
