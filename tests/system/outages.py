"""The outage matrix of docs/guarantees.md: how each outage begins and ends, and what is answered meanwhile."""

import asyncio
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tests.redis_processes import SentinelSet
from tests.scale import scaled
from tests.system.outage_worlds import World, make_known

SEEN: Final = scaled(60, 2_000)
"""The number of revocations that all processes know before the outage begins."""

MINUTES_SECONDS: Final = scaled(0, 130)
"""How long an instance or the application stays frozen, at least."""

MEMORY: Final = "not revoked (mirror)"
REDIS: Final = "not revoked (redis)"
POLICY: Final = "not revoked (policy)"
KNOWN: Final = "revoked (mirror)"
STORED: Final = "revoked (redis)"
REFUSED: Final = "503"
NOTHING: Final = "no answer"

_NONE: Final = (NOTHING,)

Step = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """One row of the table: how the outage begins and ends, and the answers. A tuple lists the allowed answers."""

    what: str
    strike: Step
    repair: Step
    check_revoked: tuple[str, ...]
    check_unknown: tuple[str, ...]
    check_unknown_later: tuple[str, ...]
    client_revoked: tuple[str, ...]
    client_unknown: tuple[str, ...]
    client_unknown_later: tuple[str, ...]
    revoking: str
    """Which instance accepts a revocation during the outage: "one" (the first), "other", or "none"."""
    kept: bool = True
    """Whether Redis or an instance still holds what was acknowledged."""
    replicated: bool = False
    lasts_seconds: float = 0.0
    """How long the outage lasts, at least."""

    @property
    def name(self) -> str:
        """The pytest id of the row."""
        return self.what.replace(",", "").replace(" ", "-")

    @property
    def silences_the_application(self) -> bool:
        """Whether the application answers nothing during the outage."""
        return self.client_revoked == _NONE


async def _nothing(_world: World) -> None:
    pass


async def _kill_redis(world: World) -> None:
    world.server.kill()


async def _start_redis(world: World) -> None:
    await world.server.start()


async def _start_redis_without_its_files(world: World) -> None:
    shutil.rmtree(world.server.directory / "appendonlydir")
    await world.server.start()  # the service writes back at once, so Redis is hardly seen empty


async def _freeze_redis(world: World) -> None:
    world.server.freeze()


async def _thaw_redis(world: World) -> None:
    world.server.thaw()


async def _empty_redis(world: World) -> None:
    await world.server.command("FLUSHALL")


async def _lose_writes_in_a_failover(world: World) -> None:
    """Cut the replicas off, revoke more, and kill the master. So the failover loses the last revocations."""
    assert isinstance(world.redis, SentinelSet)
    master = await world.redis.master()
    for node in world.redis.nodes:
        if node is not master:
            await node.command("CONFIG", "SET", "masterauth", "wrong")
    await master.command("CLIENT", "KILL", "TYPE", "replica")
    await make_known(world, range(SEEN, SEEN + 10))
    await world.redis.kill_master()


async def _await_the_failover(world: World) -> None:
    assert isinstance(world.redis, SentinelSet)
    (dead,) = [node for node in world.redis.nodes if not node.alive]
    await world.redis.new_master(after=dead)


async def _kill_one(world: World) -> None:
    world.one.kill()


async def _start_one(world: World) -> None:
    await world.one.start("/healthz")


async def _start_one_on_an_empty_redis(world: World) -> None:
    await world.server.command("FLUSHALL")
    await _start_one(world)


async def _freeze_one(world: World) -> None:
    world.one.signal(signal.SIGSTOP)


async def _thaw_one(world: World) -> None:
    world.one.signal(signal.SIGCONT)


async def _kill_both(world: World) -> None:
    world.one.kill()
    world.other.kill()


async def _start_both(world: World) -> None:
    await asyncio.gather(world.one.start("/healthz"), world.other.start("/healthz"))


async def _start_both_on_an_empty_redis(world: World) -> None:
    await world.server.command("FLUSHALL")
    await _start_both(world)


async def _cut_from_one(world: World) -> None:
    await world.to_one.cut()


async def _mend_to_one(world: World) -> None:
    await world.to_one.mend()


async def _cut_from_redis(world: World) -> None:
    assert world.to_redis is not None
    await world.to_redis.cut()


async def _mend_to_redis(world: World) -> None:
    assert world.to_redis is not None
    await world.to_redis.mend()


async def _kill_everything(world: World) -> None:
    await _kill_both(world)
    world.server.kill()


async def _start_everything(world: World) -> None:
    await world.server.start()
    await _start_both(world)


async def _freeze_app(world: World) -> None:
    world.app.freeze()


async def _thaw_app(world: World) -> None:
    world.app.thaw()


_REVOKED: Final = (KNOWN, STORED)
_AWAY: Final = ((KNOWN,), (MEMORY,), (REFUSED,), (KNOWN,), (MEMORY,), (POLICY,), "none")
"""The answers while Redis is away."""

_ALONE: Final = ((KNOWN,), (MEMORY,), (POLICY,))
"""The application's answers while the service is away."""

_WELL: Final = ((KNOWN,), (MEMORY, REDIS), (MEMORY, REDIS))
"""The application's answers while nothing is away."""

ROWS: Final = [
    Row("Redis dead, then back with its data", _kill_redis, _start_redis, *_AWAY),
    Row("Redis frozen, then thawed", _freeze_redis, _thaw_redis, *_AWAY),
    Row("Redis dead, then back without its files", _kill_redis, _start_redis_without_its_files, *_AWAY),
    Row("Redis emptied (FLUSHALL)", _empty_redis, _nothing, _REVOKED, (REDIS,), (REDIS,), *_WELL, "one"),
    Row(
        "Redis failed over, the last writes lost",
        _lose_writes_in_a_failover,
        _await_the_failover,
        _REVOKED,
        (MEMORY,),
        (REFUSED, REDIS, MEMORY),
        (KNOWN,),
        (MEMORY,),
        (POLICY, REDIS, MEMORY),
        "none",
        replicated=True,
    ),
    Row("service dead, then started", _kill_one, _start_one, _NONE, _NONE, _NONE, *_ALONE, "other"),
    Row(
        "service frozen, then thawed",
        _freeze_one,
        _thaw_one,
        _NONE,
        _NONE,
        _NONE,
        *_ALONE,
        "other",
        lasts_seconds=MINUTES_SECONDS,
    ),
    Row(
        "service dead, then started on an empty Redis",
        _kill_one,
        _start_one_on_an_empty_redis,
        _NONE,
        _NONE,
        _NONE,
        *_ALONE,
        "other",
    ),
    Row(
        "all of the service dead, then started on an empty Redis",
        _kill_both,
        _start_both_on_an_empty_redis,
        _NONE,
        _NONE,
        _NONE,
        *_ALONE,
        "none",
        kept=False,
    ),
    Row(
        "network cut between application and service",
        _cut_from_one,
        _mend_to_one,
        _REVOKED,
        (REDIS,),
        (REDIS,),
        *_ALONE,
        "one",
    ),
    Row("network cut between service and Redis", _cut_from_redis, _mend_to_redis, *_AWAY[:6], "other"),
    Row("all of it dead, then started", _kill_everything, _start_everything, _NONE, _NONE, _NONE, *_ALONE, "none"),
    Row(
        "application frozen, then thawed",
        _freeze_app,
        _thaw_app,
        _REVOKED,
        (REDIS,),
        (REDIS,),
        _NONE,
        _NONE,
        _NONE,
        "one",
        lasts_seconds=MINUTES_SECONDS,
    ),
]

HEAD: Final = (
    "",
    "`/check`: revoked",
    "`/check`: unknown",
    "client: revoked",
    "client: unknown",
    "`/revoke`",
    "afterwards",
)


def table(rows: Iterable[Row]) -> str:
    """Return the rows as the Markdown table of docs/guarantees.md."""
    lines = [HEAD, tuple("---" for _ in HEAD), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        " or ".join(row.check_revoked),
        _then(row.check_unknown, row.check_unknown_later),
        " or ".join(row.client_revoked),
        _then(row.client_unknown, row.client_unknown_later),
        {"none": "503, or no answer", "other": "by the other instances"}.get(row.revoking, "works"),
        "all is revoked, and in Redis again" if row.kept else "revoked where it was in memory",
    )


def _then(at_once: tuple[str, ...], later: tuple[str, ...]) -> str:
    first, then = " or ".join(at_once), " or ".join(later)
    return first if first == then else f"{first}, then {then}"
