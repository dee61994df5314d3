"""Move a slot of a cluster from one master to another, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.crc import key_slot

from tests.redis_processes import HOST, Cluster, Process


@dataclass(frozen=True)
class SlotMove:
    """One slot, the master that has it, the one that will get it, and all masters."""

    slot: int
    source: Process
    target: Process
    masters: Sequence[Process]

    async def begin(self) -> None:
        """Tell both masters that the slot is being moved."""
        source, target = await self.source.command("CLUSTER", "MYID"), await self.target.command("CLUSTER", "MYID")
        await self.target.command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", str(source))
        await self.source.command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", str(target))

    async def carry(self, *keys: str) -> None:
        """Move some keys."""
        login = ("AUTH", self.source.password) if self.source.password else ()
        for key in keys:
            await self.source.command("MIGRATE", HOST, self.target.port, key, 0, 2000, *login)

    async def finish(self) -> None:
        """Move the remaining keys, and give the slot to the target."""
        while keys := await self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
            await self.carry(*keys)
        owner = str(await self.target.command("CLUSTER", "MYID"))
        for node in (self.target, *(each for each in self.masters if each is not self.target)):
            await node.command("CLUSTER", "SETSLOT", self.slot, "NODE", owner)


async def slot_move(clustered: Cluster, key: str, target: Process | None = None) -> SlotMove:
    """Return a move of the key's slot, not begun yet, to `target` or else to any other master."""
    source = await clustered.master_of(key)
    masters = [node for node in clustered.nodes if (await node.info("replication"))["role"] == "master"]
    target = target or next(node for node in masters if node is not source)
    return SlotMove(key_slot(key.encode()), source, target, masters)
