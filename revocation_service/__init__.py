"""A standalone service that revokes JSON Web Tokens: a Redis denylist behind /revoke and /check."""

from revocation_service._version import __version__

__all__ = ["__version__"]
