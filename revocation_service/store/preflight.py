"""What is wrong with the Redis that was given, before it loses a revocation: named warnings, found by asking it.

A managed Redis may refuse to tell; then the warning says `unknown`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from redis.exceptions import ResponseError

from revocation_service.errors import StoreUnavailable
from revocation_service.settings import StoreSettings
from revocation_service.store.masters import Connections
from revocation_service.store.node import FAILURES, Node, info_fields, replicas_online
from revocation_service.store.server_binary import OLDEST_SERVER

PREFLIGHT_SECONDS: Final = 0.8


async def preflight(connections: Connections, settings: StoreSettings) -> tuple[str, ...]:
    """The codes of what is wrong with any of the masters, sorted; empty: nothing is.

    Raises StoreUnavailable where they cannot be asked.
    """
    try:
        async with asyncio.timeout(PREFLIGHT_SECONDS):
            masters = await connections.masters()
            found = await asyncio.gather(*(_judge(node, settings) for node in masters))
    except FAILURES as error:
        raise StoreUnavailable("Redis cannot be asked how it is set up") from error
    if not masters:
        raise StoreUnavailable("no master of the cluster is known yet")
    return tuple(sorted(set().union(*found)))


async def _judge(node: Node, settings: StoreSettings) -> set[str]:
    names = ("maxmemory-policy", "appendonly", "appendfsync", "save", "min-replicas-to-write")
    told_info, *configured = await node.run([("INFO",), *(("CONFIG", "GET", name) for name in names)])
    # an ACL that forbids what is dangerous forbids INFO, and nothing that we need
    info = {} if isinstance(told_info, ResponseError) else info_fields(told_info)
    told = {name: _value(reply) for name, reply in zip(names, configured, strict=True)}
    return {
        *_version(info),
        *_role(info),
        *_eviction(told["maxmemory-policy"] or info.get("maxmemory_policy")),
        *_persistence(info, told),
        *_replicas(info, told, settings),
    }


def _value(reply: Any) -> str | None:
    """The value in a reply to CONFIG GET; None where the server would not say."""
    if not isinstance(reply, list) or len(reply) != 2:
        return None
    value: bytes = reply[1]
    return value.decode()


def _version(info: Mapping[str, str]) -> set[str]:
    if "redis_version" not in info:
        return {"info_unknown"}
    version = tuple(int(part) for part in info["redis_version"].split(".")[:2] if part.isdigit())
    return {"server_too_old"} if version < OLDEST_SERVER else set()


def _role(info: Mapping[str, str]) -> set[str]:
    return {"replica"} if info.get("role") == "slave" else set()


def _eviction(policy: str | None) -> set[str]:
    if policy is None:
        return {"maxmemory_policy_unknown"}
    return set() if policy == "noeviction" else {"evicting_maxmemory_policy"}


def _persistence(info: Mapping[str, str], told: dict[str, str | None]) -> set[str]:
    if info.get("aof_enabled") == "1" or told["appendonly"] == "yes":
        if told["appendfsync"] is None:
            return {"appendfsync_unknown"}
        return set() if told["appendfsync"] == "always" else {"appendfsync_not_always"}
    if told["save"] is None:
        return {"persistence_unknown"}
    return {"snapshots_only"} if told["save"] else {"no_persistence"}


def _replicas(info: Mapping[str, str], told: dict[str, str | None], settings: StoreSettings) -> set[str]:
    """What a failover could lose: too few replicas, or (under Sentinel) a cut-off master that goes on taking writes."""
    warnings = {"replicas_short"} if info and replicas_online(info) < settings.wait_replicas else set()
    if "+sentinel://" in settings.url and told["min-replicas-to-write"] in {"0", None}:
        warnings.add("min_replicas_to_write_zero")
    return warnings
