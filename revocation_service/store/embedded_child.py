"""Run a command that Linux kills when its parent ends. This file is a script: it imports only the standard library."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def dying_with_parent(command: list[str]) -> list[str]:
    """Return the command to run instead of `command`, whose first word must be a path.

    The kernel watches the thread that spawns, not the process: spawn from a thread that lives as long as the process.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent process died before the command was started")
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted
