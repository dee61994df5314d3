"""Exit with 0 if /healthz answers 200, else with one line on stderr. This is the HEALTHCHECK of the images.

Without an argument, it asks the service at REVOCATION_HOST and REVOCATION_PORT. With a port as its argument, it asks
that port on loopback: the main API's, or the admin port of the gateway.
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
