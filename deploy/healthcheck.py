"""Exits with 0 if the service on this machine answers /healthz; the image's HEALTHCHECK."""

import http.client
import os
import sys

EVERYWHERE = {"0.0.0.0", "::", ""}  # noqa: S104 - not bound here

host = os.environ.get("REVOCATION_HOST", "127.0.0.1")
port = int(os.environ.get("REVOCATION_PORT", "8080"))
connection = http.client.HTTPConnection("127.0.0.1" if host in EVERYWHERE else host, port, timeout=2)
try:
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"/healthz: {type(error).__name__}")
sys.exit(0 if status == 200 else f"/healthz: {status}")
