"""`/healthz`, `/readyz` and `/metrics`: liveness, readiness and Prometheus metrics, without secrets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from revocation_service import __version__
from revocation_service.api.dependencies import IN_FLIGHT
from revocation_service.api.readiness import Readiness
from revocation_service.http.in_flight import InFlight
from revocation_service.metrics import Metrics
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.settings import MirrorSettings, load
from revocation_service.signing_keys import SigningKeys
from revocation_service.store.store import Store
from revocation_service.store.topology import topology
from tests.api.serving import API_KEYS, Answer, Service, Start, serving, variables
from tests.redis_processes import Process, eventually, free_port, standalone
from tests.unit.reencodings import issuer

SAFE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sick() -> AsyncIterator[Process]:
    """A Redis server for this module alone, whose settings its tests may change."""
    async with standalone() as server:
        yield server


async def configure(server: Process, **settings: str) -> None:
    """Apply these settings to the server, and the safe values of all others."""
    for name, value in (SAFE | {name.replace("_", "-"): value for name, value in settings.items()}).items():
        await server.command("CONFIG", "SET", name, value)


async def store_of(service: Service) -> tuple[int, Any]:
    """Return the status of /readyz, and its component `store`."""
    answer = await service.get("/readyz", headers={"Authorization": ""})
    return answer.status, answer.json["components"]["store"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_probes_need_no_key(service: Service, path: str) -> None:
    """`/healthz`, `/readyz` and `/metrics` are 200 without an API key."""
    async with service.session.get(service.url.with_path(path)) as answer:
        assert answer.status == 200


async def test_healthz_says_the_version(service: Service) -> None:
    """`/healthz` returns the status `ok` and the version of the service."""
    assert (await service.get("/healthz")).json == {"status": "ok", "version": __version__}


async def test_every_other_route_needs_a_key(service: Service) -> None:
    """Every route is 401 without an API key, except the probes and the documentation."""
    open_to_all = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}
    routes = {(route.method, route.resource.canonical) for route in service.app.router.routes() if route.resource}
    wanting = {(method, path) for method, path in routes if method != "*" and path not in open_to_all}
    assert {path for _, path in wanting} >= {"/revoke", "/check", "/check/batch", "/revocations"}
    for method, path in sorted(wanting):
        async with service.session.request(method, service.url.with_path(path)) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (401, "unauthorized"), path


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_probes_take_head(service: Service, path: str) -> None:
    """HEAD on a probe is 200 without a body."""
    answer = await service.request("HEAD", path)
    assert (answer.status, answer.body) == (200, b"")


async def test_healthz_lives_without_redis(start_without_redis: Start) -> None:
    """Without Redis, /healthz is still 200, and /readyz is 503 with the store as unavailable."""
    service = await start_without_redis(API_KEYS=API_KEYS)

    async def unready() -> Answer | None:  # the last reply of Redis may be read after its end
        answer = await service.get("/readyz")
        return answer if answer.status == 503 else None

    answer = await eventually(unready, "a store that is away")
    assert answer.json["status"] == "not_ready"
    assert answer.json["components"]["store"] == {"status": "unavailable"}
    assert (await service.get("/healthz")).status == 200


async def test_readyz_names_every_component(service: Service) -> None:
    """/readyz is 200 if all is well, with the status of the server, the store, the mirror and the signing keys."""

    async def synced() -> bool:
        mirror = (await service.get("/readyz")).json["components"]["mirror"]
        return bool(mirror == {"status": "synced"})

    await eventually(synced, "a mirror that is in sync")
    answer = await service.get("/readyz")
    assert answer.status == 200
    names = ("server", "store", "mirror", "signing_keys")
    assert answer.json == {
        "status": "ready",
        "components": {name: {"status": "synced" if name == "mirror" else "ok"} for name in names},
    }


async def test_readyz_fails_first_when_the_service_is_told_to_stop(service: Service) -> None:
    """While the service drains, /readyz is 503 with the server as draining, and a check still succeeds."""
    service.app[IN_FLIGHT].draining = True
    answer = await service.get("/readyz")
    assert (answer.status, answer.json["components"]["server"]) == (503, {"status": "draining"})
    assert not (await service.check({"jti": "a"}))["revoked"]


async def test_readyz_names_keys_that_cannot_be_had(start: Start) -> None:
    """If no JWKS could be fetched, /readyz is 503 and names the error by a code, without the port of the URL."""
    port = free_port()
    service = await start(JWKS_URL=f"http://127.0.0.1:{port}/keys")
    await service.post("/check", {"token": issuer("RS256").sign({"jti": "a"})})  # waits for the fetch
    answer = await service.get("/readyz")
    assert answer.status == 503
    assert answer.json["components"]["signing_keys"] == {"status": "unavailable", "warnings": ["unreachable"]}
    assert str(port) not in answer.body.decode()


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "evicting_maxmemory_policy"),
        ({"maxmemory_policy": "volatile-ttl"}, "evicting_maxmemory_policy"),
        ({"appendonly": "no"}, "no_persistence"),
        ({"appendonly": "no", "save": "3600 1"}, "snapshots_only"),
        ({"appendfsync": "everysec"}, "appendfsync_not_always"),
        ({"appendfsync": "no"}, "appendfsync_not_always"),
    ],
)
@pytest.mark.parametrize("strict", ["false", "true"])
async def test_preflight_names_what_is_wrong(
    sick: Process, settings: dict[str, str], warning: str, strict: str
) -> None:
    """A setting of Redis that may lose revocations is a named warning; with REVOCATION_STRICT_STORE, /readyz is 503."""
    await configure(sick, **settings)
    async with serving(sick, STRICT_STORE=strict) as service:
        status, store = await store_of(service)
        assert store["warnings"] == [warning]
        assert (status, store["status"]) == ((503, "refused") if strict == "true" else (200, "ok"))


async def test_a_store_without_fault_has_no_warnings(sick: Process) -> None:
    """If Redis has safe settings, /readyz is 200 without warnings, even with REVOCATION_STRICT_STORE."""
    await configure(sick)
    async with serving(sick, STRICT_STORE="true") as service:
        assert await store_of(service) == (200, {"status": "ok"})


async def test_a_mended_store_is_ready_again(sick: Process) -> None:
    """With REVOCATION_STRICT_STORE, each preflight refuses or accepts the store by its present settings."""
    settings = load(variables(sick, STRICT_STORE="true")).settings
    store = Store(topology(settings.store), settings.store, settings.limits, Metrics())
    sync = MirrorSync(store, MirrorSettings(), Metrics())
    readiness = Readiness(store, sync, SigningKeys(settings.signing), InFlight())

    async def status() -> str:
        await readiness.run_preflight()
        return {component.name: component.status for component in await readiness.components()}["store"]

    try:
        await configure(sick, appendfsync="everysec")
        assert await status() == "refused"
        await configure(sick)
        assert await status() == "ok"
        await configure(sick, appendfsync="everysec")
        assert await status() == "refused"
    finally:
        await store.aclose()


async def test_a_store_that_is_refused_still_takes_revocations(sick: Process) -> None:
    """With REVOCATION_STRICT_STORE and unsafe settings of Redis, a revocation still succeeds."""
    await configure(sick, appendfsync="everysec")
    async with serving(sick, STRICT_STORE="true") as service:
        assert (await service.revoke({"jti": "a"}))["result"] == "revoked"
    await configure(sick)


async def test_a_replica_is_named(sick: Process) -> None:
    """If Redis is a replica, /readyz is 503 with the warning `replica`, and a revocation is 503."""
    await configure(sick)
    async with standalone(config=[f"replicaof 127.0.0.1 {sick.port}"]) as replica, serving(replica) as service:
        status, store = await store_of(service)
        assert (status, store["warnings"]) == (503, ["replica"])
        answer = await service.post("/revoke", {"jti": "a"})
        assert (answer.status, answer.problem) == (503, "store_unavailable")


async def test_what_a_renamed_config_does_not_tell_is_unknown() -> None:
    """If Redis has no CONFIG command, /readyz is 200 with the warning `appendfsync_unknown`."""
    async with standalone(config=['rename-command CONFIG ""']) as server, serving(server) as service:
        status, store = await store_of(service)
        assert (status, store["warnings"]) == (200, ["appendfsync_unknown"])
        assert (await service.revoke({"jti": "a"}))["result"] == "revoked"


@contextlib.asynccontextmanager
async def limited(server: Process, *rules: str) -> AsyncIterator[str]:
    """Create a user with these ACL rules, yield its URL, and delete the user at the end."""
    await server.command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", *rules)
    try:
        yield f"redis://limited:pw@127.0.0.1:{server.port}/0"
    finally:
        await server.command("ACL", "DELUSER", "limited")


async def test_what_an_acl_forbids_to_ask_is_unknown(sick: Process) -> None:
    """If an ACL denies CONFIG, /readyz warns of what is unknown; with REVOCATION_STRICT_STORE it is 503."""
    async with limited(sick, "-config") as url:
        await configure(sick)
        async with serving(sick, REDIS_URL=url) as service:
            assert (await store_of(service)) == (200, {"status": "ok", "warnings": ["appendfsync_unknown"]})
        await configure(sick, appendonly="no")
        async with serving(sick, REDIS_URL=url, STRICT_STORE="true") as service:
            assert (await store_of(service)) == (503, {"status": "refused", "warnings": ["persistence_unknown"]})
    await configure(sick)


async def test_a_store_that_tells_nothing_still_serves(sick: Process) -> None:
    """If an ACL denies all @dangerous commands, INFO too, /readyz warns, and revocations and checks succeed."""
    await configure(sick)
    async with limited(sick, "-@dangerous") as url, serving(sick, REDIS_URL=url) as service:

        async def ready() -> bool:
            return (await store_of(service))[0] == 200

        await eventually(ready, "the end of the grace of a Redis whose history is unknown")
        _, store = await store_of(service)
        assert store["status"] == "ok"
        assert store["warnings"] == ["info_unknown", "maxmemory_policy_unknown", "persistence_unknown"]
        assert (await service.revoke({"jti": "a"}))["result"] == "revoked"
        assert (await service.check({"jti": "a"}))["revoked"]


async def test_readyz_shows_no_address(sick: Process) -> None:
    """/readyz shows neither the address of Redis nor its user or password, even if the store is refused."""
    await configure(sick, appendfsync="everysec")
    async with limited(sick) as url, serving(sick, REDIS_URL=url, STRICT_STORE="true") as service:
        body = (await service.get("/readyz")).body.decode()
        assert not any(word in body for word in ("127.0.0.1", str(sick.port), "limited", "pw", "redis:"))
    await configure(sick)


async def test_metrics_are_prometheus_text(service: Service) -> None:
    """/metrics is Prometheus text, with requests by route, method and status, and revocations by claim and result."""
    await service.revoke({"jti": "a"})
    await service.revoke({"jti": "a"})
    await service.check({"jti": "a"})
    answer = await service.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    asked = 'revocation_http_request_duration_seconds_count{method="POST",route="/revoke",status="200"}'
    assert await service.metric(asked) == 2
    assert await service.metric('revocation_revocations_total{claim="jti",result="revoked"}') == 1
    assert await service.metric('revocation_revocations_total{claim="jti",result="already_revoked"}') == 1
    assert await service.metric('revocation_checks_total{outcome="revoked"}') == 1
    assert await service.metric("revocation_store_up") == 1


async def test_no_label_comes_from_a_claim(service: Service) -> None:
    """No value, token, reason, key, unknown path, unknown method or request id is in the metrics."""
    canary = "canary-3f1d9a"
    signed = issuer("HS256").sign({"jti": f"{canary}j", "sub": f"{canary}s", "exp": 2_000_000_000})
    headers = {"X-Request-ID": canary, "User-Agent": canary, "Referer": canary}
    for claim in ("jti", "sid", "sub", "client_id"):
        await service.revoke({claim: f"{canary}{claim}", "reason": canary}, headers=headers)
        await service.get("/check", {claim: f"{canary}{claim}"}, headers=headers)
        await service.get("/revocations", {"claim": claim, "value": f"{canary}{claim}"}, headers=headers)
    await service.post("/check", {"token": signed}, headers=headers)
    await service.get(f"/{canary}/{signed}")
    await service.request("PROPFIND", "/revoke")
    await service.request("PROPFIND", f"/{canary}")
    await service.get("/check", headers={"Authorization": f"Bearer {canary}"})
    text = (await service.get("/metrics")).body.decode()
    assert canary not in text
    assert signed.split(".")[1] not in text
    assert "PROPFIND" not in text


async def test_one_label_stands_for_all_unknown_paths(service: Service) -> None:
    """Requests to 50 unknown paths are counted in one time series."""
    await asyncio.gather(*(service.get(f"/admin/{number}") for number in range(50)))
    asked = 'revocation_http_request_duration_seconds_count{method="(any)",route="(none)",status="404"}'
    assert await service.metric(asked) == 50
    text = (await service.get("/metrics")).body.decode()
    assert (
        len([line for line in text.splitlines() if line.startswith("revocation_http_request_duration_seconds_count{")])
        == 2
    )


async def test_a_failing_store_is_counted(start_without_redis: Start) -> None:
    """Without Redis, a failed read is counted by the name of its operation, and `revocation_store_up` is 0."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    await service.get("/check", {"jti": "a"})
    assert await service.metric('revocation_store_failures_total{operation="get"}') == 1
    assert await service.metric("revocation_store_up") == 0
