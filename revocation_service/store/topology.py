"""Find the present master. Standalone, Sentinel and Cluster differ in this alone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from revocation_client.batcher import BatcherClosed
from revocation_service.errors import SettingsError, StoreUnavailable
from revocation_service.settings import CLUSTER_PREFIX, StoreSettings
from revocation_service.store.redis_url import Address, RedisUrl, read_url

ASK_SECONDS: Final = 0.25
"""How long a sentinel or a node is asked for the master. They are asked at the same time."""

ATTEMPT_SECONDS: Final = 0.4
"""How long one attempt of an operation may take, so that a lost reply leaves time for another."""

NOT_IN_TIME: Final = "Redis did not answer within the deadline"

FIND_MASTER: Final = "find-master"
"""Name of the task that asks for the master."""

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""All that redis-py raises; RedisClusterException is not a RedisError."""

_NOT_FOR_LONG: Final = (AskError, TryAgainError, ReadOnlyError, ClusterDownError)
"""Refusals that another master, or the end of a slot's move, changes. MovedError is an AskError."""

_BACKOFF: Final = ExponentialWithJitterBackoff(cap=0.1, base=0.01)

Reply = TypeVar("Reply")

Named = tuple[Address, ...]
"""What a sentinel or a node answers: the master's address, and on a cluster those of its replicas."""


class Refused(StoreUnavailable):
    """Redis answered, and a retry would change nothing: it refused the command, or replicas are missing."""


def cluster_key_prefix(prefix: str, variable: str) -> str:
    """Return the key prefix to use on a cluster, with a hash tag, so that all keys are on one master.

    Raises SettingsError, which names `variable`, if the prefix has no hash tag: non-empty text between the first {
    and the next } (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags).
    """
    if not prefix:
        return CLUSTER_PREFIX
    _, _, rest = prefix.partition("{")
    tag, brace, _ = rest.partition("}")
    if not tag or not brace:
        raise SettingsError(
            f"{variable} needs a hash tag on a cluster, as in {CLUSTER_PREFIX}: all keys must be on one master"
        )
    return prefix


class Topology:
    """The master of one deployment, found when it is first needed and again after `forget`."""

    def __init__(self, url: RedisUrl, key_prefix: str) -> None:
        self.key_prefix = key_prefix
        """Stands in front of every key; on a cluster it has a hash tag."""
        self._url = url
        self._slot = key_slot(key_prefix.encode())
        self._discovery = {address: url.discovery_client(address) for address in url.addresses}
        """The sentinels; or the cluster's nodes in the URL, and those that had our slot when last asked."""
        self._master: Redis | None = None
        self._address: Address | None = None
        self._is_known = False
        self._finding: asyncio.Task[Redis | None] | None = None

    async def master(self) -> Redis:
        """Return the client of the master; it is closed when another master is found.

        Its commands have no timeout: give them a deadline, as `operation` does. Raises StoreUnavailable.
        """
        if self._master is not None and self._is_known:
            return self._master
        if self._finding is None:
            self._finding = asyncio.create_task(self._find(), name=FIND_MASTER)
        found = await asyncio.shield(self._finding)  # the search is shared: a cancelled caller must not end it
        if found is None:
            raise StoreUnavailable("no sentinel or node of Redis names a master")
        return found

    def forget(self, master: Redis) -> None:
        """Ask for the master again before the next use. This has no effect if another master was found meanwhile.

        Call it after a connection error, MOVED or READONLY, or when no majority of sentinels names this master.
        """
        if master is self._master:
            self._is_known = False

    async def majority_names(self, master: Redis) -> bool:
        """Return whether most of the configured sentinels name this master; without sentinels, whether it is in use."""
        if self._url.kind != "sentinel" or master is not self._master:
            return master is self._master
        address = self._address
        return 2 * sum(named[0] == address for named in await self._ask() if named) > len(self._discovery)

    async def is_undisputed(self, master: Redis) -> bool:
        """Return whether every sentinel that answers, and a majority, names this master and plans no other.

        A sentinel that begins a failover says so before it promotes a replica. The former master, if it is up, learns
        of the failover seconds later. What it writes until then is lost. Without sentinels: whether it is in use.
        """
        if self._url.kind != "sentinel" or master is not self._master or self._address is None:
            return master is self._master
        states = [state for state in await asyncio.gather(*map(self._state, self._discovery.values())) if state]
        as_it_should_be = (*self._address, "master")
        return 2 * len(states) > len(self._discovery) and set(states) == {as_it_should_be}

    @asynccontextmanager
    async def operation(self, seconds: float) -> AsyncIterator[Redis]:
        """Run one operation on the master, with a deadline. If it fails and another master may help, forget this one.

        Raises StoreUnavailable for every failure of Redis, and after `seconds`.
        """
        master: Redis | None = None
        try:
            async with asyncio.timeout(seconds):
                master = await self.master()
                yield master
        except FAILURES as error:
            if isinstance(error, ResponseError) and not isinstance(error, _NOT_FOR_LONG):
                raise Refused(self._reason(error)) from error
            if master:
                self.forget(master)
            raise StoreUnavailable(self._reason(error)) from error

    async def retried(self, operate: Callable[[Redis], Awaitable[Reply]], seconds: float) -> Reply:
        """Repeat an idempotent operation until it succeeds, Redis refuses it, or `seconds` have passed.

        Raises StoreUnavailable; its subclass Refused if a retry would change nothing.
        """
        loop = asyncio.get_running_loop()
        until, failures = loop.time() + seconds, 0
        while True:
            try:
                async with self.operation(min(ATTEMPT_SECONDS, until - loop.time())) as master:
                    return await operate(master)
            except Refused:
                raise
            except StoreUnavailable:
                failures += 1
                pause = _BACKOFF.compute(failures)
                if loop.time() + pause >= until:
                    raise
            await asyncio.sleep(pause)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, MovedError) and self._url.kind != "cluster":
            return "Redis is a cluster, and its URL does not begin with redis+cluster://"
        if isinstance(error, ResponseError):
            return "Redis refused the command"
        return NOT_IN_TIME

    async def aclose(self) -> None:
        """Close every connection."""
        if self._finding is not None:
            await asyncio.wait({self._finding})
        self._is_known = False
        masters = () if self._master is None else (self._master,)
        await _close(*masters, *self._discovery.values())

    async def _find(self) -> Redis | None:
        try:
            if self._url.kind == "standalone":
                return await self._use(None)
            counted = Counter(named[0] for named in await self._ask() if named)
            return await self._use(counted.most_common(1)[0][0]) if counted else None
        finally:
            self._finding = None

    async def _use(self, address: Address | None) -> Redis:
        """Use this master. If it is new, close the former's connections; if not, close only its idle connections."""
        former = self._master
        if former is not None and address == self._address:
            master = former
            with suppress(*FAILURES):
                await master.connection_pool.disconnect(inuse_connections=False)
        else:
            master = self._url.client(address)
            self._master, self._address = master, address
            await _close(*(() if former is None else (former,)))
        self._is_known = True
        return master

    async def _ask(self) -> list[Named]:
        """Ask all sentinels or nodes at once, and return what each names.

        redis-py's `discover_master` asks one after the other, so one that hangs would delay the answer.
        """
        answers = await asyncio.gather(*(self._ask_one(*each) for each in self._discovery.items()))
        if self._url.kind == "cluster" and any(answers):
            asked = {*self._url.addresses, *(address for named in answers for address in named)}
            await _close(*(self._discovery.pop(address) for address in self._discovery.keys() - asked))
            self._discovery |= {each: self._url.discovery_client(each) for each in asked - self._discovery.keys()}
        return answers

    async def _state(self, sentinel: Redis) -> tuple[str, int, str] | None:
        """Return address and flags of the master, as one sentinel has them; None if it does not answer in time."""
        with suppress(*FAILURES):
            async with asyncio.timeout(ASK_SECONDS):
                state: Any = await sentinel.sentinel_master(self._url.service)
                return state["ip"], state["port"], state["flags"]
        return None

    async def _ask_one(self, address: Address, client: Redis) -> Named:
        """Return what one sentinel or node names; nothing if it fails or does not answer in time."""
        with suppress(*FAILURES):
            async with asyncio.timeout(ASK_SECONDS):
                if self._url.kind == "sentinel":
                    reply: Any = await client.sentinel_get_master_addr_by_name(self._url.service)
                    return ((_text(reply[0]), reply[1]),) if reply else ()
                for first, last, *nodes in await client.cluster("SLOTS"):
                    if first <= self._slot <= last:
                        return tuple((_text(host) or address[0], port) for host, port, *_ in nodes)
        return ()


async def answered(answer: Awaitable[Reply]) -> Reply:
    """Return the answer from a batch. Raises what the batch raised, and StoreUnavailable after the deadline."""
    try:
        return await answer
    except (TimeoutError, BatcherClosed):
        raise StoreUnavailable(NOT_IN_TIME) from None


def topology(settings: StoreSettings) -> Topology:
    """Return the topology that the settings name, not contacted yet.

    Raises SettingsError for a wrong URL, and on a cluster for a key prefix without a hash tag.
    """
    url, prefix = read_url(settings), settings.key_prefix
    if url.kind == "cluster":
        prefix = cluster_key_prefix(prefix, settings.prefix_variable)
    return Topology(url, prefix)


async def _close(*clients: Redis) -> None:
    for client in clients:
        with suppress(*FAILURES):  # of a server that hangs, a TLS connection does not close in time
            await client.aclose()


def _text(host: bytes | str | None) -> str:
    return host.decode() if isinstance(host, bytes) else host or ""
