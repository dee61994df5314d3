"""`make bench`: run the benchmarks and print their results. No file is written."""

import argparse
import asyncio
import platform
import statistics
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp
import redis as redis_py
import uvloop
from redis.asyncio import Redis

from bench import replication
from bench.application import Call, calls, ways
from bench.load import Load, get, load, post
from bench.mirrors import (
    Loaded,
    at_once,
    awaited,
    followers,
    in_dict,
    in_process,
    lags,
    loaded,
    log_out,
    p50s,
    until_synced,
    verified,
)
from bench.parts import AUTH, baseline, fill, gateway, redis, service, used_memory
from revocation_client.schema import dumps
from revocation_service.metrics import Metrics
from revocation_service.settings import Limits, StoreSettings
from revocation_service.store.store import Put, Store
from revocation_service.store.topology import topology
from revocation_service.telemetry import configure_logging

CONNECTIONS = 32
CONCURRENT = 64
FOLLOWERS = 100
LOGGED_OUT = 100
BATCH = 1_000
ASKED = 20_000
BASELINES = {
    ("bare", "asyncio"): "bare aiohttp handler",
    ("bare", "uvloop"): "bare aiohttp handler, uvloop",
    ("redis", "asyncio"): "one Redis command (redis-py, hiredis)",
    ("redis", "uvloop"): "one Redis command (redis-py, hiredis), uvloop",
}
"""The servers of `baseline.py`, by kind and event loop: asyncio, `web.run_app`'s default, or uvloop, the service's."""


class Plan:
    """How long, how often and how much to measure."""

    def __init__(self, *, quick: bool) -> None:
        self.rounds = 2 if quick else 9
        self.seconds = 1.0 if quick else 2.0
        self.stored = 100_000 if quick else 1_000_000
        self.measured_puts = 10_000 if quick else 50_000
        self.asked = 2_000 if quick else 20_000
        self.revoked = 50 if quick else 300


async def interleaved(plan: Plan, runs: dict[str, Callable[[], Awaitable[Load]]]) -> dict[str, list[Load]]:
    """Run all in turn, round by round, so that a busy moment of the machine affects all. The first round is dropped."""
    results: dict[str, list[Load]] = {name: [] for name in runs}
    for number in range(plan.rounds + 1):
        for name, run in runs.items():
            measured = await run()
            if number:
                results[name].append(measured)
    return results


def rate(loads: list[Load]) -> float:
    """Return the median rate of the rounds, in answers per second."""
    return statistics.median(one.per_second for one in loads)


def ratio(ours: list[Load], theirs: list[Load]) -> float:
    """Return the median over the rounds of our rate divided by theirs in the same round."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(one.per_second / other.per_second for one, other in pairs)


def median_ms(loads: list[Load], share: float) -> float:
    """Return the median over the rounds of a latency percentile (`share` from 0 to 1), in milliseconds."""
    return statistics.median(one.latency_ms(share) for one in loads)


def show(name: str, loads: list[Load], scale: int = 1, unit: str = "requests/s") -> None:
    p50, p99 = median_ms(loads, 0.5), median_ms(loads, 0.99)
    print(f"  {name:<48} {rate(loads) * scale:>10,.0f} {unit:<11} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")


async def checks(plan: Plan) -> None:
    """Measure single and batch checks of the service next to the baselines."""
    print(f"\n/check with an API key, {CONNECTIONS} connections, {ASKED:,} tokens, 1,000 of them revoked")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(redis())
        ports = {
            f"{kind} {loop}": await stack.enter_async_context(baseline(kind, loop, url)) for kind, loop in BASELINES
        }
        ports["ours"] = await stack.enter_async_context(service(url))
        await fill(url, "bench", 1_000)
        runs = {name: _single(plan, port) for name, port in ports.items()} | {"batch": _batches(plan, ports["ours"])}
        few = await interleaved(plan, runs)
        crowd = {name: _single(plan, ports[name], 2 * CONNECTIONS) for name in ("bare uvloop", "ours")}
        crowded = await interleaved(plan, crowd)
        for (kind, loop), name in BASELINES.items():
            show(name, few[f"{kind} {loop}"])
        show("the service, GET /check", few["ours"])
        show(f"the service, POST /check/batch of {BATCH:,}", few["batch"], BATCH, "checks/s")
        await fill(url, "other", plan.stored)
        again = {name: runs[name] for name in ("bare uvloop", "ours")}  # the same tokens are checked
        many = await interleaved(plan, again)
        show(f"the service, {plan.stored:,} stored", many["ours"])
    flat = ratio(many["ours"], many["bare uvloop"]) / ratio(few["ours"], few["bare uvloop"])
    against = {
        f"against {name}": f"{ratio(few['ours'], few[f'{kind} {loop}']):.2f} x"
        for (kind, loop), name in BASELINES.items()
    }
    told = against | {
        f"against {BASELINES['bare', 'uvloop']}, {2 * CONNECTIONS} connections": (
            f"{ratio(crowded['ours'], crowded['bare uvloop']):.2f} x"
        ),
        "batch against single, in checks/s": f"{ratio(few['batch'], few['ours']) * BATCH:.1f} x  (goal 10)",
        f"{plan.stored:,} stored against 1,000": f"{flat:.2f} x  (1 is flat; each against the bare handler beside it)",
    }
    for name, value in told.items():
        print(f"  {name:<54} {value:>8}")


def _single(plan: Plan, port: int, connections: int = CONNECTIONS) -> Callable[[], Awaitable[Load]]:
    request = get(lambda number: f"/check?jti=bench-{number * 7919 % ASKED}", AUTH)
    return lambda: load(port, request, connections=connections, seconds=plan.seconds)


def _batches(plan: Plan, port: int) -> Callable[[], Awaitable[Load]]:
    bodies = [
        dumps({"checks": [{"jti": f"bench-{(first + at) % ASKED}"} for at in range(BATCH)]})
        for first in range(0, ASKED, BATCH)
    ]
    request = post("/check/batch", lambda number: bodies[number % len(bodies)], AUTH)
    return lambda: load(port, request, connections=4, seconds=plan.seconds)


async def application(plan: Plan) -> None:
    """Measure a check by an application: through the client, next to an in-process blacklist."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    print(f"\nchecks of an application on {loop}, {CONCURRENT} at once and one after another; the mirror off")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(redis())
        port = await stack.enter_async_context(service(url))
        await fill(url, "bench", 1_000)
        calls_of = await stack.enter_async_context(ways(port, url, ASKED))
        together = await interleaved(plan, {name: _calls(plan, call, CONCURRENT) for name, call in calls_of.items()})
        alone = await interleaved(plan, {name: _calls(plan, call, 1) for name, call in calls_of.items()})
    names = {
        "in-process": "redis.asyncio EXISTS, with hiredis",
        "client": "RevocationClient.is_revoked",
        "request": "a bare aiohttp request of GET /check",
    }
    for loads, number in ((together, CONCURRENT), (alone, 1)):
        for way, name in names.items():
            show(f"{name}, {number} at once", loads[way], unit="checks/s")
    overhead = median_ms(alone["client"], 0.5) - median_ms(alone["request"], 0.5)
    faster = ratio(together["client"], together["in-process"])
    print(f"  client against {names['in-process']}, {CONCURRENT} at once {faster:5.2f} x  (goal 1.5)")
    for way in ("in-process", "client"):
        cpu = statistics.median(each.cpu_seconds / each.answers for each in together[way])
        print(f"  {names[way]}, {CONCURRENT} at once: {cpu * 1e6:.0f} us of the application's processor a check")
    print(f"  client over a bare request, one after another    {overhead * 1000:+.0f} us a check (p50)")


def _calls(plan: Plan, call: Call, concurrent: int) -> Callable[[], Awaitable[Load]]:
    return lambda: calls(call, concurrent=concurrent, seconds=plan.seconds)


async def passing(plan: Plan) -> None:
    """Measure what the gateway adds to the latency of a small request on a keep-alive connection."""
    print("\na small GET through the gateway, and straight to the same upstream")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(redis())
        straight = await stack.enter_async_context(baseline("bare", "uvloop", url))
        through = await stack.enter_async_context(gateway(straight, url))
        request = get(lambda _number: "/check?jti=any", {})
        for connections in (1, CONNECTIONS):
            ports = {"straight": straight, "through the gateway": through}
            runs = {name: _load(plan, port, request, connections) for name, port in ports.items()}
            measured = await interleaved(plan, runs)
            for name, loads in measured.items():
                show(f"{name}, {connections} connections", loads)
            added = median_ms(measured["through the gateway"], 0.5) - median_ms(measured["straight"], 0.5)
            print(f"  the gateway adds, {connections} connections                  {added:.2f} ms (p50)")


def _load(plan: Plan, port: int, request: Callable[[], bytes], connections: int) -> Callable[[], Awaitable[Load]]:
    return lambda: load(port, request, connections=connections, seconds=plan.seconds)


async def memory(plan: Plan) -> None:
    """Measure Redis' memory per revocation: for the service's record, and for the key of an in-process blacklist."""
    number = plan.measured_puts
    print(f"\nRedis memory per revocation, {number:,} of each")
    async with redis() as url:
        before = await used_memory(url)
        async with Redis.from_url(url) as client:
            pipeline = client.pipeline(transaction=False)
            for position in range(number):
                pipeline.set(f"token_blacklist:plain-{position:032d}", "1", ex=3600)
            await pipeline.execute()
        plain = (await used_memory(url) - before) / number
    async with redis() as url:
        before = await used_memory(url)
        settings = StoreSettings(url, change_log_max_entries=1_000)
        store = Store(topology(settings), settings, Limits(), Metrics())
        for first in range(0, number, 50):
            jtis = (f"plain-{position:032d}" for position in range(first, first + 50))
            await asyncio.gather(
                *(store.put(Put("jti", jti, expires_in=3600, revoked_by="main-api", reason="logout")) for jti in jtis)
            )
        record = (await used_memory(url) - before) / number
        async with Redis.from_url(url) as client:
            log = await client.memory_usage(store.keyspace.change_log) or 0
            entries = await client.xlen(store.keyspace.change_log)
        await store.aclose()
    print(f"  SETEX token_blacklist:<jti> <seconds> 1      {plain:6.0f} bytes")
    print(f"  the service's record                         {record:6.0f} bytes   {record / plain:.1f} x")
    print(f"  an entry of the change log (bounded)         {log / max(entries, 1):6.0f} bytes")


async def mirror(plan: Plan) -> None:
    """Measure checks from the mirror, the memory that it takes, and the lag of a revocation."""
    print("\nchecks from memory, each of a token never asked before; redis-py with hiredis, on the same event loop")
    answers: dict[int, float] = {}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(redis())
        stored = 0
        for entries in (1_000, plan.stored):
            await fill(url, f"held-{entries}", entries - stored)
            stored = entries
            port = await stack.enter_async_context(service(url))
            read = await until_synced(port)
            print(f"  {entries:,} revocations, which the service read from Redis in {read:.1f} s:")
            async with loaded(port, entries) as held:
                answers[entries] = await _answers(plan, url, entries, held)
        flat = answers[plan.stored] / answers[1_000]
        print(f"  await is_revoked, {plan.stored:,} against 1,000: {flat:.2f} x  (1 is flat)")
        await _followers(plan, stack)


async def _answers(plan: Plan, url: str, entries: int, held: Loaded) -> float:
    stalled, theirs = held.stalled_seconds * 1000, held.service_stalled_seconds * 1000
    print(f"    snapshot in {held.seconds:.1f} s  (goal 10)", end="")
    print(f"; {held.bytes_an_entry:.0f} bytes of memory an entry  (goal 220)" if entries == plan.stored else "")
    print(f"    longest stall: the application's loop {stalled:.0f} ms, the service's {theirs:.0f} ms  (goal 50)")
    async with Redis.from_url(url) as client:
        ways = {
            "redis": in_process(client),
            "awaited": awaited(held.client.is_revoked),
            "now": at_once(held.client.is_revoked_now),
            "dict": in_dict(entries),
            "pyjwt": verified(),
        }
        p50 = await p50s(ways, plan.asked)
        await log_out(held.client, LOGGED_OUT)
        more = await p50s({name: ways[name] for name in ("redis", "awaited")}, plan.asked)
    told = {
        "redis": ("redis.asyncio EXISTS, in process", ""),
        "awaited": (
            "await is_revoked(claims)",
            f"(goal 3.00)   {p50['redis'] / p50['awaited']:.0f} x as fast as Redis  (goal 40)"
            f"   {p50['awaited'] / p50['pyjwt']:.1%} of PyJWT  (goal 5)",
        ),
        "now": ("is_revoked_now(claims)", ""),
        "dict": ("key in dict", ""),
        "pyjwt": ("PyJWT verifies an RS256 token", ""),
    }
    for way, (name, ratio) in told.items():
        print(f"    {name:<36}  p50 {p50[way] * 1e6:8.2f} us   {ratio}".rstrip())
    times = more["redis"] / more["awaited"]
    print(f"    the same, {LOGGED_OUT} sessions and {LOGGED_OUT} subjects revoked", end="")
    print(f"   p50 {more['awaited'] * 1e6:8.2f} us   {times:.0f} x as fast as Redis")
    return p50["awaited"]


async def _followers(plan: Plan, stack: AsyncExitStack) -> None:
    url = await stack.enter_async_context(redis())
    port = await stack.enter_async_context(service(url))
    await fill(url, "bench", 1_000)
    await until_synced(port)
    async with followers(port, FOLLOWERS) as clients:
        found = sorted(await lags(port, clients, plan.revoked))
        p99, longest = found[int(len(found) * 0.99)] * 1000, found[-1] * 1000
        print(f"  {plan.revoked} revocations, from the answer to each of {FOLLOWERS} mirrors: p50", end=" ")
        print(f"{statistics.median(found) * 1000:.1f} ms, p99 {p99:.1f} ms  (goal 50), longest {longest:.1f} ms")
    run = _single(plan, port)

    async def followed() -> Load:
        async with followers(port, FOLLOWERS):
            return await run()

    rounds = await interleaved(plan, {"without": run, "with": followed})
    kept = ratio(rounds["with"], rounds["without"])
    print(f"  GET /check with {FOLLOWERS} followers against none: {kept:.2f} x  (goal 0.9)")


async def replicating(plan: Plan) -> None:
    """Measure replication: many workers, a restore of everything, and revocations in one round trip."""
    print(f"\nheartbeats and followers, on one Redis; {plan.seconds * 5:.0f} s each")
    for workers in (10, 50, 200):
        await replication.scale(plan.seconds * 5, workers)
    for workers in (50, 200):
        await replication.heartbeats_in_the_log(plan.seconds * 5, workers)
    print("\nRedis loses everything (FLUSHALL), and a worker writes it back")
    await replication.restore(20_000 if plan.rounds == 2 else 200_000)
    print("\na revocation in the store, without HTTP")
    await replication.revoking(plan.rounds, 2_000)


PARTS: dict[str, Callable[[Plan], Coroutine[Any, Any, None]]] = {
    "checks": checks,
    "memory": memory,
    "application": application,
    "gateway": passing,
    "mirror": mirror,
    "replication": replicating,
}


BOTH_LOOPS: Final = frozenset({"application"})
"""Parts that run twice, on asyncio's own event loop and on uvloop, because applications use either."""


def main() -> None:
    """Measure all parts, or those named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, against baselines in the same run.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="short rounds: a look, not a measurement")
    parsed = parser.parse_args()
    configure_logging("error")
    plan = Plan(quick=parsed.quick)
    print(f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, redis-py {redis_py.__version__}, uvloop")
    print(f"{plan.rounds} rounds of {plan.seconds:g} s each, interleaved; medians")
    for name in parsed.parts or PARTS:
        for run in (asyncio.run, uvloop.run) if name in BOTH_LOOPS else (uvloop.run,):
            run(PARTS[name](plan))


if __name__ == "__main__":
    main()
