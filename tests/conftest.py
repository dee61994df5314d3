"""The test order: the longest files first, so that they do not keep one pytest-xdist worker busy at the end."""

import pathlib

import pytest

FOLDERS = ("system", "replication", "store")
"""Folders whose tests run first, in this order. They take longest, because they wait for real outages."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by folder; within a folder the order stays."""
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: pathlib.Path) -> int:
    folder = path.parent.name
    return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)
