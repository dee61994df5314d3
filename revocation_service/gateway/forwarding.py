"""The header fields in which a proxy tells the next server about the client and its request.

The gateway replaces them, and protected mode refuses a request that has one.
"""

from typing import Final

_FORWARDING: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded",
        b"x-forwarder-for",
        b"x-real-ip",
        b"x-client-ip",
        b"x-remote-ip",
        b"x-remote-addr",
        b"x-originating-ip",
        b"x-original-forwarded-for",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-azure-clientip",
        b"x-appengine-user-ip",
        b"x-original-host",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-host",
        b"x-scheme",
        b"x-url-scheme",
        b"client-ip",
        b"proxy-client-ip",
        b"wl-proxy-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"front-end-https",
    }
)


def is_forwarding(name: bytes) -> bool:
    """Return whether the field of this name, in lower case, tells about the client."""
    return name in _FORWARDING or name.startswith(b"x-forwarded-")
