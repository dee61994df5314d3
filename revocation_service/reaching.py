"""A TCP connection to a host by its name, where no library is to look the name up."""

from socket import socket
from typing import Final

import aiohappyeyeballs

from revocation_client.names import Names

NEXT_ADDRESS_SECONDS: Final = 0.1
"""How long one address of a name is tried alone (RFC 8305, section 5: at least that)."""


async def reach(names: Names, host: str, port: int) -> socket:
    """A new connection to that host, at whichever of its addresses takes it first.

    Raises OSError. How long it may take is for the caller to say.
    """
    addresses = await names.addresses(host, port)
    return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)
