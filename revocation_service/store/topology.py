"""Find the present master. Standalone, Sentinel and Cluster differ in this alone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from revocation_service.errors import SettingsError, StoreUnavailable
from revocation_service.settings import CLUSTER_PREFIX, StoreSettings
from revocation_service.store.redis_url import Address, RedisUrl, read_url

ASK_SECONDS: Final = 0.25
"""How long a sentinel or a node is asked for the master. They are asked at the same time."""

FIND_MASTER: Final = "find-master"
"""Name of the task that asks for the master."""

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""All that redis-py raises; RedisClusterException is not a RedisError."""

_ANOTHER_MASTER: Final = (MovedError, ReadOnlyError, ClusterDownError)

Named = tuple[Address, ...]
"""What a sentinel or a node answers: the master's address, and on a cluster those of its replicas."""


def is_refusal(error: BaseException | None) -> bool:
    """Return whether Redis refused a command for a reason that neither a retry nor another master changes."""
    return isinstance(error, ResponseError) and not isinstance(error, _ANOTHER_MASTER)


def cluster_key_prefix(prefix: str, variable: str) -> str:
    """Return the key prefix to use on a cluster, with a hash tag, so that all keys are on one master.

    Raises SettingsError for a prefix without one, which names `variable`. A hash tag is what stands between the first {
    and the next }, and is not empty (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags).
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
        self._informants = {address: url.informant(address) for address in url.addresses}
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
        """Ask for the master again before it is used next; without effect if another one was found meanwhile.

        For connection errors, MOVED, READONLY, and a majority of sentinels that does not name it.
        """
        if master is self._master:
            self._is_known = False

    async def majority_names(self, master: Redis) -> bool:
        """Return whether a majority of the configured sentinels names this master. True for other topologies."""
        if self._url.kind != "sentinel" or master is not self._master:
            return master is self._master
        address = self._address
        return 2 * sum(named[0] == address for named in await self._ask() if named) > len(self._informants)

    @asynccontextmanager
    async def operation(self, seconds: float) -> AsyncIterator[Redis]:
        """Lend the master to one operation with a deadline, and forget it where asking again may help.

        Raises StoreUnavailable for every failure of Redis, and after `seconds`.
        """
        master: Redis | None = None
        try:
            async with asyncio.timeout(seconds):
                master = await self.master()
                yield master
        except FAILURES as error:
            if master and not is_refusal(error):
                self.forget(master)
            raise StoreUnavailable(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        if isinstance(error, MovedError) and self._url.kind != "cluster":
            return "Redis is a cluster, and its URL does not begin with redis+cluster://"
        if isinstance(error, ResponseError):
            return "Redis refused the command"
        return "Redis did not answer within the deadline"

    async def aclose(self) -> None:
        """Close every connection."""
        if self._finding is not None:
            await asyncio.wait({self._finding})
        self._is_known = False
        masters = () if self._master is None else (self._master,)
        await _close(*masters, *self._informants.values())

    async def _find(self) -> Redis | None:
        try:
            if self._url.kind == "standalone":
                return await self._use(None)
            counted = Counter(named[0] for named in await self._ask() if named)
            return await self._use(counted.most_common(1)[0][0]) if counted else None
        finally:
            self._finding = None

    async def _use(self, address: Address | None) -> Redis:
        """Make it the master. Close a former one's connections; of the same one, those that may lead nowhere."""
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
        """Ask all informants at once: redis-py's `discover_master` asks in turn, and one that hangs holds it up."""
        answers = await asyncio.gather(*(self._answer(*informant) for informant in self._informants.items()))
        if self._url.kind == "cluster" and any(answers):
            asked = {*self._url.addresses, *(address for named in answers for address in named)}
            await _close(*(self._informants.pop(address) for address in self._informants.keys() - asked))
            self._informants |= {each: self._url.informant(each) for each in asked - self._informants.keys()}
        return answers

    async def _answer(self, address: Address, informant: Redis) -> Named:
        """Return what one informant names; nothing if it fails or does not answer in time."""
        with suppress(*FAILURES):
            async with asyncio.timeout(ASK_SECONDS):
                if self._url.kind == "sentinel":
                    reply: Any = await informant.sentinel_get_master_addr_by_name(self._url.service)
                    return ((_text(reply[0]), reply[1]),) if reply else ()
                for first, last, *nodes in await informant.cluster("SLOTS"):
                    if first <= self._slot <= last:
                        return tuple((_text(host) or address[0], port) for host, port, *_ in nodes)
        return ()


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
