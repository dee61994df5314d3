"""Which files of the client are compiled, where that can be done."""

import os
import platform
import shutil
import sysconfig
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parents[1] / "client" / "revocation_client"
COMPILED: Final = sorted(path.stem for path in CLIENT.glob("*.pxd"))
CAN_COMPILE: Final = (
    platform.python_implementation() == "CPython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not os.environ.get("REVOCATION_CLIENT_NO_EXTENSIONS")
    and shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is not None
    and Path(sysconfig.get_path("include"), "Python.h").exists()
)


def outdated(directory: Path = CLIENT) -> str | None:
    """What was compiled of an older source than the one that is there: Python would prefer it all the same."""
    for name in COMPILED:
        sources = [directory / f"{name}.py", directory / f"{name}.pxd"]
        written = max(source.stat().st_mtime for source in sources)
        for built in (path for path in directory.glob(f"{name}.*") if path not in sources):
            if built.stat().st_mtime < written:
                return built.name
    return None
