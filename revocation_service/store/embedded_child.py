"""Run a server that Linux kills with its parent process. It runs as a script, and imports the standard library only."""

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # prctl(2)


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """Return the command to run instead of `command`, whose first word must be a path.

    The kernel watches the thread that spawns, not the process: spawn from a thread that lives as long as the process.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Become the server, with the same process id, standard streams and inherited descriptors."""
    parent, command = int(arguments[0]), list(arguments[1:])
    if sys.platform == "linux":
        _die_with(parent)
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


def _die_with(parent: int) -> None:
    """Ask for SIGKILL when the parent dies (prctl(2)), and exit if it has died already."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        sys.exit("the service died before its Redis was started")


if __name__ == "__main__":
    main(sys.argv[1:])
