"""Run the command `revocation-service` as `python -m revocation_service`."""

import sys

from revocation_service.cli import main

if __name__ == "__main__":
    sys.exit(main())
