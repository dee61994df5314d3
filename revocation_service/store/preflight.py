"""Check how Redis is set up, and warn before it loses a revocation. Each warning has a name.

A managed Redis may refuse to answer. Then the name of the warning ends in `unknown`.
"""

from collections.abc import Mapping
from typing import Any, Final

from redis.exceptions import ResponseError

from revocation_client.schema import dumps
from revocation_service.settings import Limits, StoreSettings
from revocation_service.store.embedded import OLDEST_SERVER
from revocation_service.store.store import Store, replicas_online

PREFLIGHT_SECONDS: Final = 0.8

SETTINGS_SECONDS: Final = 60
"""How long the settings of an instance count after it last said them."""

_CONFIG: Final = ("maxmemory-policy", "appendonly", "appendfsync", "save", "min-replicas-to-write")


async def preflight(store: Store, clock_offset: float = 0.0) -> tuple[str, ...]:
    """Return the names of the warnings about the master, sorted. Raises StoreUnavailable.

    All instances on one Redis must agree on the longest lifetime, the leeway and the clock skew. So each writes its own
    to Redis here, and compares them. Where they differ, revocations end earlier than some instances expect.
    """
    key, now = store.keyspace.settings, store.wall() + clock_offset
    async with store.exchange("preflight", PREFLIGHT_SECONDS) as redis, redis.pipeline(transaction=False) as pipeline:
        pipeline.info()
        for name in _CONFIG:
            pipeline.config_get(name)
        pipeline.zadd(key, {_agreed(store.limits): now + SETTINGS_SECONDS})
        pipeline.zremrangebyscore(key, "-inf", now)
        pipeline.pexpire(key, SETTINGS_SECONDS * 1000)
        pipeline.zcard(key)
        told, *replies = await pipeline.execute(raise_on_error=False)
    info: Mapping[str, Any] = {} if isinstance(told, Exception) else told  # an ACL may forbid INFO
    config = {name: _value(reply, name) for name, reply in zip(_CONFIG, replies, strict=False)}
    warnings = {
        *_version(info),
        *_role(info),
        *_eviction(config["maxmemory-policy"] or info.get("maxmemory_policy")),
        *_persistence(info, config),
        *_replicas(info, config, store.settings),
        *_settings(replies[-1]),
    }
    return tuple(sorted(warnings))


def _agreed(limits: Limits) -> bytes:
    lifetime, leeway, skew = limits.max_token_lifetime_seconds, limits.expiry_leeway_seconds, limits.clock_skew_seconds
    return dumps({"max_token_lifetime": lifetime, "expiry_leeway": leeway, "clock_skew": skew})


def _settings(count: Any) -> set[str]:
    """Return a warning if the sorted set holds different settings; none if Redis refuses to count its members."""
    return {"settings_differ"} if isinstance(count, int) and count > 1 else set()


def _value(reply: Any, name: str) -> str | None:
    """Return the value in a reply to CONFIG GET; None where the server does not say."""
    return None if isinstance(reply, ResponseError) or not isinstance(reply, dict) else _text(reply.get(name))


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _version(info: Mapping[str, Any]) -> set[str]:
    if "redis_version" not in info:
        return {"info_unknown"}
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2] if part.isdigit())
    return {"server_too_old"} if version < OLDEST_SERVER else set()


def _role(info: Mapping[str, Any]) -> set[str]:
    return {"replica"} if info.get("role") == "slave" else set()


def _eviction(policy: str | None) -> set[str]:
    if policy is None:
        return {"maxmemory_policy_unknown"}
    return set() if policy == "noeviction" else {"evicting_maxmemory_policy"}


def _persistence(info: Mapping[str, Any], config: Mapping[str, str | None]) -> set[str]:
    if info.get("aof_enabled") == 1 or config["appendonly"] == "yes":
        if config["appendfsync"] is None:
            return {"appendfsync_unknown"}
        return set() if config["appendfsync"] == "always" else {"appendfsync_not_always"}
    if config["save"] is None:
        return {"persistence_unknown"}
    return {"snapshots_only"} if config["save"] else {"no_persistence"}


def _replicas(info: Mapping[str, Any], config: Mapping[str, str | None], settings: StoreSettings) -> set[str]:
    """Return why a failover could lose data: too few replicas, or under Sentinel a former master that takes writes."""
    warnings = {"replicas_short"} if info and replicas_online(info) < settings.wait_replicas else set()
    if "+sentinel://" in settings.url and config["min-replicas-to-write"] in {"0", None}:
        warnings.add("min_replicas_to_write_zero")
    return warnings
