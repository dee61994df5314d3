"""What setup.cfg cannot say: two files are compiled where that can be done. Everywhere else they are run as they stand.

REVOCATION_CLIENT_NO_EXTENSIONS=1 leaves them as they stand, and makes the wheel that fits every machine.
"""

import os
import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPILED = ("sieve", "glance")


class AllOrNone(build_ext):
    """Builds what the compiler can; nothing, where that is not all: one that is compiled needs the other so."""

    def build_extensions(self) -> None:
        """As ever, with a warning for each that fails, since they are optional."""
        super().build_extensions()
        built = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        if not all(path.exists() for path in built):
            for path in built:
                path.unlink(missing_ok=True)


def extensions() -> list[Extension]:
    """The two, written in C by Cython, which knows their types from the .pxd files beside them."""
    usual = platform.python_implementation() == "CPython" and sys.maxsize > 1 << 32
    if not usual or sysconfig.get_config_var("Py_GIL_DISABLED") or os.environ.get("REVOCATION_CLIENT_NO_EXTENSIONS"):
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:  # built by hand, without what pyproject.toml asks for
        return []
    found: list[Extension] = cythonize(
        [Extension(f"revocation_client.{name}", [f"revocation_client/{name}.py"]) for name in COMPILED],
        build_dir="build",
        compiler_directives={"annotation_typing": False},
        quiet=True,
    )
    for extension in found:
        extension.optional = True
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNone})
