"""`python -m main_api hash` reads a password from standard input and prints its hash for MAIN_API_USERS."""

import getpass
import sys

from pwdlib import PasswordHash


def main() -> int:
    """Run the command, and return its exit code: 2 for wrong arguments or an empty password."""
    if sys.argv[1:] != ["hash"]:
        sys.stderr.write("usage: python -m main_api hash\n")
        return 2
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
    if not password:
        sys.stderr.write("main-api: an empty password\n")
        return 2
    sys.stdout.write(PasswordHash.recommended().hash(password) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
