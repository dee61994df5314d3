"""`python -m revocation_service` is `revocation-service`."""

import sys

from revocation_service.cli import main

if __name__ == "__main__":
    sys.exit(main())
