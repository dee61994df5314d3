"""Network links that a test can take down: TCP proxies that then lose every packet, and close no connection."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.redis_processes import Process
from tests.store.conftest import Proxy


@dataclass
class Link(Proxy):
    """A link to one server. It can replace ports in the server's replies by others with as many digits."""

    ports: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reply = self._renamed

    @property
    def at(self) -> int:
        """The port of the link itself."""
        return int(self.address.rpartition(":")[2])

    def take_down(self) -> None:
        """Drop all data from now on, in both directions."""
        self.request = self.reply = _lost

    def bring_up(self) -> None:
        """Pass on all data again, and close the old connections, which have lost some."""
        self.request, self.reply = _passed_on, self._renamed
        self.cut()

    async def _renamed(self, piece: bytes) -> bytes:
        for port, other in self.ports.items():
            piece = piece.replace(b"%d" % port, b"%d" % other)
        return piece


async def _lost(_: bytes) -> bytes:
    return b""


async def _passed_on(piece: bytes) -> bytes:
    return piece


@contextlib.asynccontextmanager
async def links_to(servers: Sequence[Process], ports: Mapping[int, int] | None = None) -> AsyncIterator[Sequence[Link]]:
    """Open a link to each of these servers, with these replacements of ports in replies."""
    async with contextlib.AsyncExitStack() as stack:
        links = [Link(server.port, ports=ports or {}) for server in servers]
        for link in links:
            await stack.enter_async_context(link.running())
        yield links
