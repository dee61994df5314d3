"""Network links that a test can take down: TCP proxies that then lose every packet, and close no connection."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.redis_processes import Process
from tests.store.conftest import Proxy


@dataclass
class Link(Proxy):
    """The way to one server. Ports that the server names may be replaced by others of the same number of digits."""

    ports: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reply = self._renamed

    @property
    def at(self) -> int:
        """The port of the link itself."""
        return int(self.address.rpartition(":")[2])

    def take_down(self) -> None:
        """Lose everything from now on, in both directions."""
        self.request = self.reply = _lost

    def bring_up(self) -> None:
        """Pass everything on. Connections from before are closed: part of what they carried is lost."""
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
    """A link to each of these servers."""
    async with contextlib.AsyncExitStack() as stack:
        links = [Link(server.port, ports=ports or {}) for server in servers]
        for link in links:
            await stack.enter_async_context(link.running())
        yield links
