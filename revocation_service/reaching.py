"""A TCP connection to a host by its name, where no library is to look the name up."""

from socket import socket

import aiohappyeyeballs

from revocation_client.names import Names


async def reach(names: Names, host: str, port: int) -> socket:
    """A new connection to that host, at the first of its addresses that takes it.

    Raises OSError. How long it may take is for the caller to say.
    """
    return await aiohappyeyeballs.start_connection(await names.addresses(host, port))
