"""A plugin for pytest (`-p tests.as_written`): what is compiled of the client is imported as it is written."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from tests.compiled import CLIENT, COMPILED


class _AsWritten(MetaPathFinder):
    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != CLIENT.name or name not in COMPILED:
            return None
        return importlib.util.spec_from_file_location(fullname, CLIENT / f"{name}.py")


sys.meta_path.insert(0, _AsWritten())
