"""What setup.cfg cannot say: two files are compiled where that can be done. Everywhere else they are run as they stand.

REVOCATION_CLIENT_NO_EXTENSIONS=1 leaves them as they stand, and makes the wheel that fits every machine.
"""

import os
import platform
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PACKAGE = "revocation_client"
COMPILED = sorted(path.stem for path in Path(PACKAGE).glob("*.pxd"))
OLDEST_CYTHON = (3, 1)


class BuildPython(build_py):
    """In the tree itself, what was built there is removed first: Python would prefer it to what is written now."""

    def run(self) -> None:
        """As ever."""
        if self.editable_mode:
            remove_from_tree()
        super().run()


class BuildExtensions(build_ext):
    """All or none: where not every file can be compiled, none is, because each that is needs the others so."""

    def run(self) -> None:
        """As ever, but anew."""
        if self.inplace:
            remove_from_tree()
        super().run()

    def build_extensions(self) -> None:
        """As ever, with a warning for each that fails, since they are optional."""
        built = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        remove(built)
        super().build_extensions()
        if not all(path.exists() for path in built):
            remove(built)


def remove_from_tree() -> None:
    """What was built for this tree, whatever the Python."""
    for name in COMPILED:
        remove(path for path in Path(PACKAGE).glob(f"{name}.*") if path.suffix in (".so", ".pyd"))


def remove(paths: Iterable[Path]) -> None:
    """Those that are there."""
    for path in paths:
        path.unlink(missing_ok=True)


def extensions() -> list[Extension]:
    """The files with a .pxd beside them, which has their types, written in C by Cython."""
    usual = platform.python_implementation() == "CPython" and sys.maxsize > 1 << 32
    if not usual or sysconfig.get_config_var("Py_GIL_DISABLED") or os.environ.get("REVOCATION_CLIENT_NO_EXTENSIONS"):
        return []
    try:
        import Cython
        from Cython.Build import cythonize
    except ImportError:  # built by hand, without what pyproject.toml asks for
        return []
    if tuple(map(int, Cython.__version__.split(".")[:2])) < OLDEST_CYTHON:
        return []
    found: list[Extension] = cythonize(
        [Extension(f"{PACKAGE}.{name}", [f"{PACKAGE}/{name}.py"]) for name in COMPILED],
        build_dir="build",
        compiler_directives={"annotation_typing": False, "nonecheck": True},
        force=True,
        quiet=True,
    )
    for extension in found:
        extension.optional = True
    return found


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPython, "build_ext": BuildExtensions})
