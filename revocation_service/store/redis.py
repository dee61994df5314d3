"""The store: revocations put into Redis safely, and read from it. It decides nothing about tokens.

Safe means: in the record, then in the change log, each on as many replicas as asked for; acknowledged after all of it.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from revocation_client.model import ClaimName, Revocation
from revocation_client.wire import Result, change_to_json, dumps, revocation_from_record
from revocation_service.errors import ExpTooFar, IssuedBeforeTooFar, StoreUnavailable
from revocation_service.settings import Limits, StoreSettings
from revocation_service.store.keyspace import Keyspace
from revocation_service.store.masters import Connections
from revocation_service.store.node import FAILURES, PUT, Command, Node, info_fields, replicas_online
from revocation_service.store.reads import Answer, Found, Lane
from revocation_service.telemetry import Metrics

DEADLINE_SECONDS: Final = 0.7
"""How long one operation may take in all: below the second within which callers are told that the store is away."""

REPLICA_TIMEOUT_SECONDS: Final = 0.3
"""How long WAIT waits for replicas; below `ATTEMPT_SECONDS`, or its answer would be lost."""

_NONE: Final[frozenset[tuple[ClaimName, str]]] = frozenset()

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Put:
    """A revocation to be stored; what it leaves open is decided on Redis' clock. Times are in seconds."""

    claim: ClaimName
    value: str
    exp: float | None = None
    expires_in: float | None = None
    issued_before: float | None = None
    cutoff_is_now: bool = False
    reason: str | None = None
    revoked_by: str | None = None
    revoked_at: float | None = None
    expires_at: float | None = None
    """With `revoked_at`: a record that is handed on as it stands."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a `Put`; there is no record where the token had already expired."""

    result: Result
    record: Revocation | None


@dataclass(slots=True)
class Reading:
    """The records found, as of `now` on Redis' clock, and of what a part of the store said nothing in time.

    Where several masters' clocks differ, `now` is the earliest: what one of them holds alive stays so.
    """

    found: tuple[Revocation, ...]
    now: float
    unread: frozenset[tuple[ClaimName, str]] = _NONE


class Store:
    """The denylist in one deployment of Redis."""

    def __init__(self, connections: Connections, settings: StoreSettings, limits: Limits, metrics: Metrics) -> None:
        self.connections = connections
        self.keyspace = Keyspace(settings.key_prefix)
        self.settings = settings
        self._limits = limits
        self._metrics = metrics
        self._lanes: dict[Node, Lane] = {}
        self._short: set[Node] = set()
        self._up: bool | None = None
        self.foreign_met = 0
        """How often a record of a foreign application was met."""
        self._away: set[Node] = set()

    @property
    def away(self) -> bool:
        """Whether a master said nothing when it was last asked to read."""
        return bool(self._away)

    async def aclose(self) -> None:
        """End what is under way, and close every connection."""
        await asyncio.gather(*(lane.aclose() for lane in self._lanes.values()))
        await self.connections.aclose()

    async def put(self, put: Put) -> Stored:
        """Store a revocation; it is safe when this returns, and nothing is promised when this raises.

        Raises StoreUnavailable, ExpTooFar, IssuedBeforeTooFar.
        """
        async with self._operation("put") as until:
            await self.connections.ready(until)
            key = self.keyspace.key(put.claim, put.value)
            (reply,) = await self.write(key, [self.put_command(put)], until)
            result = reply[0].decode()
            if result == "expired":
                return Stored(result, None)
            self._refuse(result)
            if reply[3]:
                self._met_foreign(put.claim)
            record = revocation_from_record(put.claim, put.value, reply[1], float(reply[2]) if reply[2] else None)
            await self.write(self.keyspace.change_log, [self.log_entry(record)], until)
            return Stored(result, record)

    def put_command(self, put: Put) -> Command:
        """What merges it into the record under its key."""
        return PUT.call([self.keyspace.key(put.claim, put.value)], dumps(self._asked(put)))

    def _asked(self, put: Put) -> dict[str, Any]:
        asked = {
            "claim": put.claim,
            "max_lifetime": self._limits.max_token_lifetime_seconds,
            "leeway": self._limits.expiry_leeway_seconds,
            "skew": self._limits.clock_skew_seconds,
            "exp": put.exp,
            "expires_in": put.expires_in,
            "issued_before": put.issued_before,
            "cutoff_is_now": put.cutoff_is_now,
            "reason": put.reason,
            "revoked_by": put.revoked_by,
            "revoked_at": put.revoked_at,
            "expires_at": put.expires_at,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def _refuse(self, result: str) -> None:
        if result == "exp_too_far":
            raise ExpTooFar(
                "exp or expires_in is further away than REVOCATION_MAX_TOKEN_LIFETIME_SECONDS"
                f" ({self._limits.max_token_lifetime_seconds:.0f} s from now); raise that setting to the lifetime of"
                " your longest token, or check that the value is in seconds"
            )
        if result == "issued_before_too_far":
            raise IssuedBeforeTooFar(
                f"issued_before lies more than {self._limits.clock_skew_seconds:.0f} s ahead; check the caller's clock,"
                " and that it is in seconds"
            )

    def log_entry(self, record: Revocation) -> Command:
        """One entry of the change log; its nonce tells it from an entry that another history put under the same id."""
        return self.append_command("n", secrets.token_hex(8), "r", dumps(change_to_json(record)))

    def append_command(self, *fields: str | bytes) -> Command:
        """What appends an entry of these fields to the change log, and keeps the log within its bound."""
        bound = self.settings.change_log_max_entries
        return ("XADD", self.keyspace.change_log, "MAXLEN", "~", bound, "*", *fields)

    async def append(self, operation: str, *fields: str | bytes) -> str:
        """The id of an entry of the change log that is as safe as a revocation's.

        Raises StoreUnavailable.
        """
        async with self._operation(operation) as until:
            await self.connections.ready(until)
            (entry_id,) = await self.write(self.keyspace.change_log, [self.append_command(*fields)], until)
            return str(entry_id.decode())

    async def ask_once(self, key: str, *commands: Command) -> list[Any]:
        """The replies of the key's owner, at the first attempt or never; a refused one's is its error.

        For who comes again soon. Raises StoreUnavailable.
        """
        try:
            await self.connections.ready(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
            return await self.connections.owner(key).run(commands)
        except FAILURES as error:
            self.connections.suspect()
            raise StoreUnavailable("a master of Redis cannot be asked") from error

    async def write(self, key: str, commands: Sequence[Command], until: float) -> list[Any]:
        """The replies to idempotent writes, once the replicas have them too (WAIT, on the connection that wrote).

        They go to the owner of `key`. Raises StoreUnavailable.
        """
        asked_for = self.settings.wait_replicas
        if not asked_for:
            return await self.connections.run(key, commands, until)
        while True:
            online = self.connections.owner(key).replicas_online
            wanted = asked_for if online is None else min(asked_for, online)
            wait: Command = ("WAIT", wanted, int(REPLICA_TIMEOUT_SECONDS * 1000))
            *replies, confirmed = await self.connections.run(key, [*commands, wait], until)
            node = self.connections.owner(key)
            wrote_to = node.master_address
            if confirmed >= asked_for:
                self._note_replicas(node, asked_for, confirmed)
                return replies
            online = node.replicas_online = await self._replicas_online(node)
            if online < asked_for and await self._deposed(node, wrote_to, until):
                continue  # a deposed master has no replicas: write again, to its successor
            self._note_replicas(node, asked_for, online)
            if confirmed >= min(asked_for, online):
                return replies
            if confirmed >= wanted:
                continue  # more replicas came than were waited for: write again, and wait for them
            raise StoreUnavailable("a connected replica did not confirm the write in time")

    async def _replicas_online(self, node: Node) -> int:
        """How many replicas a master has just now; one that may not be asked is held to have all it should."""
        (info,) = await node.run([("INFO", "replication")])
        if isinstance(info, Exception):
            raise StoreUnavailable("too few replicas confirmed, and Redis will not say how many it has") from info
        return replicas_online(info_fields(info))

    async def _deposed(self, node: Node, wrote_to: tuple[str, int] | None, until: float) -> bool:
        """Whether the sentinels have another master by now: the old one may not know, and take writes."""
        async with asyncio.timeout_at(until):
            return await node.ask_for_master() != wrote_to

    @property
    def short_of_replicas(self) -> bool:
        """Whether the last write to any master found fewer replicas connected than asked for."""
        if self._short:
            self._short.intersection_update(self.connections.known_masters())
        return bool(self._short)

    def _note_replicas(self, node: Node, asked_for: int, online: int) -> None:
        short = online < asked_for
        if short:
            self._metrics.replicas_short.inc()
        if short != (node in self._short):
            (self._short.add if short else self._short.discard)(node)
            event = "replicas_short" if short else "replicas_complete"
            (_log.warning if short else _log.info)(event, asked_for=asked_for, online=online)
        if short and self.settings.strict:
            raise StoreUnavailable("fewer replicas are connected than REVOCATION_WAIT_REPLICAS asks for")

    async def get(self, identifiers: Sequence[tuple[ClaimName, str]]) -> Reading:
        """The live records of these claims and values, each named once, as far as they can be had.

        Raises StoreUnavailable where none can.
        """
        keys = self._keys(identifiers)
        parts, orphans = self.connections.parts(keys)
        if orphans:
            await self._ready()
            parts, orphans = self.connections.parts(keys)
        asked = [self._lane(node).ask(part) for node, part in parts.items()]
        reading = self._reading(identifiers, keys, [await one for one in asked], orphans)
        if len(reading.unread) == len(keys):
            self._note("get", up=False)
            raise StoreUnavailable("Redis did not answer within the deadline")
        if not self._up:
            self._note("get", up=True)
        return reading

    async def glance(self, identifiers: Sequence[tuple[ClaimName, str]]) -> Reading:
        """As `get`, for who has another way: what is known to be away is not waited for, and nothing read is no error.

        Each glance asks it again all the same, so that its return is seen at once.
        """
        keys = self._keys(identifiers)
        parts, orphans = self.connections.parts(keys)
        answers = await asyncio.gather(*(self._lane(node).glance(part) for node, part in parts.items()))
        reading = self._reading(identifiers, keys, answers, orphans)
        if reading.unread:
            self.connections.suspect()
        if reading.now and not self._up:
            self._note("get", up=True)
        self._away.intersection_update(self.connections.known_masters())
        return reading

    def _turned(self, node: Node, away: bool) -> None:
        (self._away.add if away else self._away.discard)(node)

    def _keys(self, identifiers: Sequence[tuple[ClaimName, str]]) -> list[str]:
        key = self.keyspace.key
        return [key(claim, value) for claim, value in identifiers]

    def _reading(
        self,
        identifiers: Sequence[tuple[ClaimName, str]],
        keys: Sequence[str],
        answers: Sequence[Answer],
        orphans: Sequence[str],
    ) -> Reading:
        """What the answers say of these keys, in their order, so that the same state always reads the same."""
        answer = Answer.together(answers, keys)
        found, unread = answer.found, answer.unread
        if not unread and not orphans and found.keys().isdisjoint(keys):
            return Reading((), answer.now)
        named = list(zip(identifiers, keys, strict=True))
        records = tuple([self._record(claim, value, found[key]) for (claim, value), key in named if key in found])
        missed = frozenset([one for one, key in named if key in unread or key in orphans])
        return Reading(records, answer.now, missed)

    async def _ready(self) -> None:
        with suppress(*FAILURES):
            await self.connections.ready(asyncio.get_running_loop().time() + DEADLINE_SECONDS)

    def _lane(self, node: Node) -> Lane:
        lane = self._lanes.get(node)
        if lane is None:
            known = {*self.connections.known_masters(), node}
            self._lanes = {other: kept for other, kept in self._lanes.items() if other in known or kept.busy}
            lane = Lane(self.connections, node, DEADLINE_SECONDS, self._metrics.read_batch, self._turned)
            self._lanes[node] = lane
        return lane

    def _record(self, claim: ClaimName, value: str, found: Found) -> Revocation:
        record = revocation_from_record(claim, value, found.value, found.expires_at)
        if record.revoked_at is None:
            self._met_foreign(claim)
        return record

    def meet_unknown(self) -> None:
        """Note a key or a log entry that this version does not know, so that no mirror counts as complete."""
        self.foreign_met += 1

    def _met_foreign(self, claim: ClaimName) -> None:
        self.foreign_met += 1
        self._metrics.foreign_records.inc()
        _log.debug("foreign_record_met", claim=claim)

    async def ping(self) -> None:
        """Whether every master answers.

        Raises StoreUnavailable.
        """
        async with self._operation("ping") as until, asyncio.timeout_at(until):
            masters = await self.connections.masters()
            replies = await asyncio.gather(*(node.run([("PING",)]) for node in masters))
            if not masters or any(isinstance(reply, Exception) for answers in replies for reply in answers):
                raise StoreUnavailable("Redis does not answer PING")

    @asynccontextmanager
    async def _operation(self, name: str) -> AsyncIterator[float]:
        """The deadline of one operation, on the loop's clock; its failures are counted, and all look alike."""
        try:
            yield asyncio.get_running_loop().time() + DEADLINE_SECONDS
        except StoreUnavailable:
            self._note(name, up=False)
            raise
        except FAILURES as error:
            self._note(name, up=False)
            raise StoreUnavailable("Redis cannot be reached") from error
        self._note(name, up=True)

    def _note(self, operation: str, *, up: bool) -> None:
        if not up:
            self._metrics.store_failures.labels(operation).inc()
            self.connections.suspect()  # nobody else would look again, where only /readyz still asks
        if up != self._up:
            if not up:
                _log.warning("store_away", operation=operation)
            elif self._up is not None:
                _log.info("store_back")
            self._up = up
            self._metrics.store_up.set(up)
