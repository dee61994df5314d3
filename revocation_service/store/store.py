"""Write revocations to Redis safely, and read them. Decides nothing about tokens.

A revocation is safe when `merge.lua` has written its record and its log entry, and `REVOCATION_WAIT_REPLICAS` replicas
have both. If fewer are connected, those must have them, unless `REVOCATION_STRICT_STORE` refuses the write.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ReadOnlyError

from revocation_client.batcher import Batcher, BatchLimits
from revocation_client.claims import ClaimName
from revocation_client.revocation import Revocation
from revocation_client.schema import Result, dumps
from revocation_service.errors import ClocksDiffer, ExpTooFar, IssuedBeforeTooFar, StoreUnavailable
from revocation_service.metrics import Metrics
from revocation_service.settings import Limits, StoreSettings
from revocation_service.store.key_names import Keyspace
from revocation_service.store.records import clock_of, found_record, merged_record
from revocation_service.store.scripts import GET, MERGE
from revocation_service.store.topology import ATTEMPT_SECONDS, Refused, Reply, Topology, answered

DEADLINE_SECONDS: Final = 0.7
"""How long one operation may take in all: below the second after which callers take the service for away."""

REPLICA_TIMEOUT_SECONDS: Final = 0.25
"""How long WAIT waits for replicas; below `ATTEMPT_SECONDS`, or its reply would be lost."""

WRITE_LIMITS: Final = BatchLimits(questions=100, size=100)
"""Of one call of `merge.lua`; 100 records take about 1.5 ms of Redis."""

READ_LIMITS: Final = BatchLimits(questions=1_000, size=5_000, under_way=1)
"""Of one call of `get.lua`. The size is the number of keys, of which Lua can unpack about 8,000."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Put:
    """A revocation to be stored. Times that it leaves open are set by `merge.lua`. All times are in seconds."""

    claim: ClaimName
    value: str
    exp: float | None = None
    expires_in: float | None = None
    issued_before: float | None = None
    cutoff_is_now: bool = False
    reason: str | None = None
    revoked_by: str | None = None
    expires_at: float | None = None
    """Of a record that is restored as it stands."""

    def members(self) -> dict[str, Any]:
        """Return the fields that `merge.lua` takes."""
        told = zip(_MEMBERS, _VALUES(self), strict=True)
        return {name: value for name, value in told if value is not None and value is not False}


_MEMBERS: Final = tuple(member.name for member in fields(Put))
_VALUES: Final = attrgetter(*_MEMBERS)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a `Put`. There is no record if the token had already expired."""

    result: Result
    record: Revocation | None


class Reading(NamedTuple):
    """The records found, as of `now` on Redis' clock."""

    found: tuple[Revocation, ...]
    now: float


class _Found(NamedTuple):
    """The reply of `get.lua` to a batch: its rows by key."""

    now: float
    rows: Mapping[str, Sequence[Any]]


class Store:
    """The denylist on one Redis master. Create it inside a running event loop."""

    def __init__(
        self,
        topology: Topology,
        settings: StoreSettings,
        limits: Limits,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.topology = topology
        self.keyspace = Keyspace(topology.key_prefix)
        self.settings = settings
        self.limits = limits
        self.up: bool | None = None
        """Whether Redis answered when it was last asked; None before that."""
        self.short_of_replicas = False
        """Whether the last write found fewer replicas connected than asked for."""
        self.on_foreign: Callable[[], None] = lambda: None
        """Called for each record of a foreign application that is met."""
        self.wall = wall
        """This instance's wall clock."""
        self._metrics = metrics
        self._replicas_online = settings.wait_replicas
        self._writes: Batcher[Put, Any] = Batcher(self._write, lambda _put: 1, WRITE_LIMITS)
        self._reads: Batcher[tuple[str, ...], _Found] = Batcher(self._read, len, READ_LIMITS)

    async def aclose(self) -> None:
        """End what is under way, and close every connection."""
        await self._writes.aclose()
        await self._reads.aclose()
        await self.topology.aclose()

    async def put(self, put: Put) -> Stored:
        """Store a revocation. It is safe when this returns. If this raises, it may or may not be stored.

        Raises StoreUnavailable, ClocksDiffer, ExpTooFar, IssuedBeforeTooFar.
        """
        reply = await answered(self._writes.ask(put, DEADLINE_SECONDS))
        result = reply[0].decode()
        if result == "expired":
            return Stored(result, None)
        self._refuse(result)
        if reply[3]:
            self.met_foreign(put.claim)
        return Stored(result, merged_record(put.claim, put.value, reply))

    async def _write(self, puts: list[Put]) -> list[Any]:
        return await self._retried("put", lambda redis: self._write_once(redis, puts))

    async def _write_once(self, redis: Redis, puts: list[Put]) -> list[Any]:
        """Merge the revocations, and wait for the replicas (WAIT, on the connection that wrote)."""
        asked_for = self.settings.wait_replicas
        keys, arguments = self.merge_call(puts, wall=self.wall())
        replies: Any
        if not asked_for:
            replies = await MERGE.run(redis, keys, arguments)
            return list(replies)
        while True:
            wanted = min(asked_for, self._replicas_online)
            wait = ("WAIT", wanted, int(REPLICA_TIMEOUT_SECONDS * 1000))
            replies, confirmed, info = await MERGE.run_with(redis, keys, arguments, wait, ("INFO", "replication"))
            if isinstance(confirmed, Exception):
                raise confirmed
            # where an ACL forbids INFO, all that are asked for are taken to be connected
            online = replicas_online(info) if isinstance(info, dict) else asked_for
            self._replicas_online = online
            if isinstance(replies, NoScriptError):
                continue
            if max(confirmed, online) < asked_for and not await self.topology.is_undisputed(redis):
                self.topology.forget(redis)
                raise StoreUnavailable("the sentinels have another master, or are about to")
            self._note_replicas(asked_for, max(confirmed, online))
            if confirmed >= min(asked_for, online):
                return list(replies)
            if confirmed < wanted:
                raise Refused("a connected replica did not confirm the write in time")

    def merge_call(
        self, puts: Sequence[Put], *, wall: float | None = None, restore: bool = False, nonce: str = ""
    ) -> tuple[list[str], list[bytes]]:
        """Return the keys and arguments of a call of `merge.lua`."""
        shared = {
            "max_lifetime": self.limits.max_token_lifetime_seconds,
            "leeway": self.limits.expiry_leeway_seconds,
            "skew": self.limits.clock_skew_seconds,
            "log_max": self.settings.change_log_max_entries,
            "nonce": nonce or secrets.token_hex(8),
            "restore": restore,
        }
        if wall is not None:
            shared["wall"] = wall
        keys = [self.keyspace.change_log, *(self.keyspace.key(put.claim, put.value) for put in puts)]
        return keys, [dumps(shared), *(dumps(put.members()) for put in puts)]

    def _refuse(self, result: str) -> None:
        limits = self.limits
        if result == "exp_too_far":
            raise ExpTooFar(
                "exp or expires_in is further away than REVOCATION_MAX_TOKEN_LIFETIME_SECONDS"
                f" ({limits.max_token_lifetime_seconds:.0f} s from now); raise that setting to the lifetime of"
                " your longest token, or check that the value is in seconds"
            )
        if result == "issued_before_too_far":
            raise IssuedBeforeTooFar(
                f"issued_before lies more than {limits.clock_skew_seconds:.0f} s ahead; check the caller's clock,"
                " and that it is in seconds"
            )
        if result == "clocks_differ":
            raise ClocksDiffer(
                "the clocks of Redis and of this instance differ by more than REVOCATION_CLOCK_SKEW_SECONDS"
                f" ({limits.clock_skew_seconds:.0f} s); set them right"
            )

    def _note_replicas(self, asked_for: int, online: int) -> None:
        short = online < asked_for
        if short:
            self._metrics.replicas_short.inc()
        if short != self.short_of_replicas:
            self.short_of_replicas = short
            if short:
                _log.warning("replicas_short", asked_for=asked_for, online=online)
            else:
                _log.info("replicas_complete", asked_for=asked_for, online=online)
        if short and self.settings.strict:
            raise Refused("fewer replicas are connected than REVOCATION_WAIT_REPLICAS asks for")

    async def get(self, identifiers: Sequence[tuple[ClaimName, str]], seconds: float = DEADLINE_SECONDS) -> Reading:
        """Return the live records of these claims and values. Raises StoreUnavailable on failure or after `seconds`."""
        key = self.keyspace.key
        keys = tuple([key(claim, value) for claim, value in identifiers])
        now, rows = await answered(self._reads.ask(keys, seconds))
        if not rows or rows.keys().isdisjoint(keys):
            return Reading((), now)
        named = zip(identifiers, keys, strict=True)
        return Reading(tuple([self._record(*named, rows[key], now) for named, key in named if key in rows]), now)

    async def _read(self, questions: list[tuple[str, ...]]) -> list[_Found]:
        keys = list(dict.fromkeys(chain.from_iterable(questions))) if len(questions) > 1 else questions[0]
        self._metrics.read_batch.observe(len(keys))
        reply = await self._retried("get", lambda redis: GET.run(redis, keys))
        found = _Found(clock_of(reply), {keys[row[0] - 1]: row for row in reply[2:]})
        return [found] * len(questions)

    def _record(self, claim: ClaimName, value: str, row: Sequence[Any], now: float) -> Revocation:
        record = found_record(claim, value, row, now)
        if record.revoked_at is None:
            self.met_foreign(claim)
        return record

    def met_foreign(self, claim: ClaimName) -> None:
        """Record that a record of a foreign application was found. The change log does not show such records."""
        self._metrics.foreign_records.inc()
        _log.debug("foreign_record_met", claim=claim)
        self.on_foreign()

    async def _retried(self, operation: str, work: Callable[[Redis], Awaitable[Reply]]) -> Reply:
        with self._noted(operation):
            return await self.topology.retried(work, DEADLINE_SECONDS)

    @asynccontextmanager
    async def exchange(self, operation: str, seconds: float = ATTEMPT_SECONDS) -> AsyncIterator[Redis]:
        """Run one operation on the master, without a retry. Raises StoreUnavailable on failure or after `seconds`."""
        with self._noted(operation):
            async with self.topology.operation(seconds) as redis:
                yield redis

    @contextmanager
    def _noted(self, operation: str) -> Iterator[None]:
        """Count a failure, and note whether Redis answered."""
        try:
            yield
        except StoreUnavailable as error:
            self._metrics.store_failures.labels(operation).inc()
            self._note(operation, up=isinstance(error, Refused) or isinstance(error.__cause__, ReadOnlyError))
            raise
        self._note(operation, up=True)

    def _note(self, operation: str, *, up: bool) -> None:
        if up == self.up:
            return
        if not up:
            _log.warning("store_away", operation=operation)
        elif self.up is not None:
            _log.info("store_back")
        self.up = up
        self._metrics.store_up.set(up)


def replicas_online(info: Mapping[str, Any]) -> int:
    """Return how many replicas have the data and follow the master, according to INFO replication.

    INFO may call a replica online that is still loading, at offset 0. It is not counted: it has confirmed nothing yet.
    """
    replicas = [value for name, value in info.items() if name.startswith("slave") and isinstance(value, dict)]
    return sum(replica.get("state") == "online" and replica.get("offset") != 0 for replica in replicas)
