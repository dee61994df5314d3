"""Exits with 0 if the service on this machine answers /healthz, or whoever listens on the loopback port given.

The image's HEALTHCHECK; the gateway's too, which answers on its admin port.
"""

import http.client
import os
import sys

EVERYWHERE = {"0.0.0.0", "::", ""}  # noqa: S104 - not bound here

host = "127.0.0.1" if sys.argv[1:] else os.environ.get("REVOCATION_HOST", "127.0.0.1")
port = int(sys.argv[1] if sys.argv[1:] else os.environ.get("REVOCATION_PORT", "8080"))
connection = http.client.HTTPConnection("127.0.0.1" if host in EVERYWHERE else host, port, timeout=2)
try:
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"/healthz: {type(error).__name__}")
sys.exit(0 if status == 200 else f"/healthz: {status}")
