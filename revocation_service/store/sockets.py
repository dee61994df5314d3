"""The library's connections, over sockets that are opened here: it would look a name up in the event loop's threads."""

import asyncio
from socket import socket
from typing import Any

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from revocation_client.names import Names
from revocation_service.reaching import reach


class _OverOurSocket:
    """What the connections below do in the library's place; `names` knows where its host is."""

    socket_connect_timeout: float | None
    host: str
    port: int

    def __init__(self, *, names: Names, **options: Any) -> None:
        super().__init__(**options)
        self._names = names
        self._socket: socket | None = None

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self._socket = await reach(self._names, self.host, self.port)
            await super()._connect()  # type: ignore[misc]

    def _connection_arguments(self) -> dict[str, Any]:
        arguments = {**super()._connection_arguments()}  # type: ignore[misc]
        host, _port = arguments.pop("host"), arguments.pop("port")
        opened, self._socket = self._socket, None  # who is given it closes it
        return arguments | {"sock": opened} | ({"server_hostname": host} if "ssl" in arguments else {})


class PlainConnection(_OverOurSocket, Connection):
    """To an address."""


class TlsConnection(_OverOurSocket, SSLConnection):
    """To an address, over TLS."""


class PlainMasterConnection(_OverOurSocket, SentinelManagedConnection):
    """To the master that the sentinels name."""


class TlsMasterConnection(_OverOurSocket, SentinelManagedSSLConnection):
    """To the master that the sentinels name, over TLS."""
