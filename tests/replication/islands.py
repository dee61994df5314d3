"""A Sentinel set that a test can partition: into an island, and a mainland that keeps the sentinels."""

import asyncio
import contextlib
import functools
import pathlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from tests.redis_processes import HOST, SERVICE_NAME, TILT_SECONDS, Process, eventually, introduce_quickly
from tests.replication.links import Link, links_to


@dataclass(frozen=True)
class Islands:
    """Three data nodes and three sentinels, with the links through which they are reached."""

    nodes: Sequence[Process]
    sentinels: Sequence[Process]
    mainland: Sequence[Link]
    """A link to each node, for the sentinels, the other nodes, and workers on the mainland."""
    island: Sequence[Link]
    """A link to each sentinel, for workers on the island; its replies name the own ports of the nodes."""

    @property
    def mainland_url(self) -> str:
        """The Redis URL of workers on the mainland."""
        return _url(sentinel.address for sentinel in self.sentinels)

    @property
    def island_url(self) -> str:
        """The Redis URL of workers on the island."""
        return _url(link.address for link in self.island)

    def separate(self, *nodes: Process) -> None:
        """Cut off the island: its workers and these nodes."""
        for link in (*self._links_to(nodes), *self.island):
            link.take_down()

    def join(self) -> None:
        """Connect the island to the mainland again."""
        for link in (*self.mainland, *self.island):
            link.bring_up()

    def _links_to(self, nodes: Sequence[Process]) -> list[Link]:
        return [link for node, link in zip(self.nodes, self.mainland, strict=True) if node in nodes]

    async def replaced(self, master: Process) -> None:
        """Wait until a sentinel names a master other than this one."""
        (link,) = self._links_to([master])

        async def another() -> bool:
            _, port = await self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE_NAME)
            return int(port) != link.at

        await eventually(another, "a failover")


def _url(addresses: Iterable[str]) -> str:
    return f"redis+sentinel://{','.join(addresses)}/{SERVICE_NAME}"


@contextlib.asynccontextmanager
async def islands() -> AsyncIterator[Islands]:
    """Run a Sentinel set that is not partitioned yet. Its first node is the master."""
    async with contextlib.AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-test-", ignore_cleanup_errors=True))
        directory = pathlib.Path(name)
        nodes = [Process(directory / f"node{number}") for number in range(3)]
        sentinels = [Process(directory / f"sentinel{number}", arguments=("--sentinel",)) for number in range(3)]
        for process in (*nodes, *sentinels):
            stack.callback(process.kill)
        mainland = await stack.enter_async_context(links_to(nodes))
        own_ports = {link.at: node.port for link, node in zip(mainland, nodes, strict=True)}
        island = await stack.enter_async_context(links_to(sentinels, own_ports))
        await _start(nodes, sentinels, mainland)
        yield Islands(nodes, sentinels, mainland, island)


async def _start(nodes: Sequence[Process], sentinels: Sequence[Process], links: Sequence[Link]) -> None:
    """Start all processes, and wait until each sentinel knows the other sentinels and the replicas."""
    for node, link in zip(nodes, links, strict=True):
        lines = ["save ''", "repl-diskless-sync-delay 0", "repl-ping-replica-period 1"]
        lines += [f"replica-announce-ip {HOST}", f"replica-announce-port {link.at}"]
        node.write_config([*lines, *([] if node is nodes[0] else [f"replicaof {HOST} {links[0].at}"])])
    await asyncio.gather(*(node.start() for node in nodes))
    for node in nodes[1:]:
        await eventually(lambda node=node: follows(node), "replicas that follow")  # type: ignore[misc]
    timing = {"down-after-milliseconds": 1500, "failover-timeout": 6000}
    watch = [f"sentinel monitor {SERVICE_NAME} {HOST} {links[0].at} 2"]
    for each in sentinels:
        each.write_config([*watch, *(f"sentinel {name} {SERVICE_NAME} {value}" for name, value in timing.items())])
    await asyncio.gather(*(each.start() for each in sentinels))
    for each in sentinels:
        await introduce_quickly(each)
    for each in sentinels:
        known = functools.partial(_knows_all, each)
        await eventually(known, "sentinels that know one another", TILT_SECONDS)


async def follows(replica: Process) -> bool:
    """Return whether a replica is linked to its master."""
    return (await replica.info("replication")).get("master_link_status") == "up"


async def _knows_all(sentinel: Process) -> bool:
    flat = await sentinel.command("SENTINEL", "MASTER", SERVICE_NAME)
    master = dict(zip(flat[::2], flat[1::2], strict=True))
    return (master["flags"], master["num-slaves"], master["num-other-sentinels"]) == ("master", "2", "2")
