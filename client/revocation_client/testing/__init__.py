"""For an application's own tests: a client whose service is in memory, and can be away or slow.

It is the real client down to the bytes that it would send; only the service and the wire are not there.
"""

from revocation_client.testing.client import InMemoryRevocationClient

__all__ = ["InMemoryRevocationClient"]
