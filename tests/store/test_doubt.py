"""Who comes to a store that has lost data believes no "not revoked" before those who know have given it back."""

import asyncio
import contextlib
import functools
import math
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from revocation_service.doubt import LISTEN_SECONDS, REBORN_SECONDS
from revocation_service.settings import MirrorSettings
from revocation_service.store.change_log import NOWHERE
from revocation_service.store.changes import Changes
from revocation_service.store.debts import SAID_SECONDS
from tests.redis_processes import Process, cluster, eventually, free_port, sentinel, standalone
from tests.store.conftest import Proxy, missing, open_store
from tests.store.test_reader import Running, reading

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOOK_SECONDS = 0.002

VALUES = [f"v{number}" for number in range(300)]


@contextlib.asynccontextmanager
async def nobodys_turn(process: Process, running: Running) -> AsyncIterator[None]:
    """As if somebody else wrote back, and took his time: meanwhile everything but the newest stays lost."""
    lease = running.opened.store.keyspace.refill_lease
    await process.command("SET", lease, "the test's")
    try:
        yield
    finally:
        await process.command("DEL", lease)


async def knowing(running: Running) -> None:
    """Have it know some revocations, which are not the newest any more."""
    await running.fresh()
    await running.opened.revoke_all(VALUES)
    await all_come_to([running], knows_all, "all in the mirror")


def knows_all(running: Running) -> bool:
    """Whether its mirror has all of them."""
    return all(map(running.knows, VALUES))


def old_one(running: Running) -> bool:
    """Whether nothing has been proven for so long that nobody takes it for young."""
    return running.age > 3


def doubts(running: Running) -> bool:
    """Whether a "not revoked" of the store or the mirror is to be believed by nobody."""
    return running.reader.doubt.doubtful


async def all_come_to(some: Sequence[Running], check: Callable[[Running], bool], what: str) -> None:
    """Wait until something is so of each of these."""
    for each in some:
        await each.until(functools.partial(check, each), what)


async def throughout(seconds: float, check: Callable[[], bool]) -> None:
    """Something is so for as long as that, as often as one looks."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert check()
        await asyncio.sleep(LOOK_SECONDS)


async def believes(running: Running, seconds: float = 15) -> None:
    """Wait until it is in no doubt."""
    await running.until(lambda: not doubts(running), "no doubt", seconds)


@pytest.mark.parametrize("noticed", [False, True], ids=["nobody has noticed", "it was noticed"])
async def test_who_comes_to_an_emptied_store_waits_until_it_is_given_back(noticed: bool) -> None:
    """Emptied, and the one who knows has still to write back: the newcomer doubts, is not fresh, and says so."""
    async with standalone() as process, reading(process.url) as first:
        await knowing(first)
        await process.command("FLUSHALL")
        async with nobodys_turn(process, first):
            if noticed:
                await first.until(lambda: first.reader.status.name == "stale", "that it was noticed")
            async with reading(process.url, key_prefix=first.opened.settings.key_prefix) as new:
                await new.until(lambda: new.reader.synced, "a scan of what is there")
                await new.until(lambda: new.reader.doubt.others_owe, "that others owe")
                await throughout(2, lambda: doubts(new) and new.age == math.inf and not new.reader.fresh)
                assert await missing(new.opened, VALUES), "a test in which all is back early proves nothing"
                assert new.reader.status.name != "synced"
                await process.command("DEL", first.opened.store.keyspace.refill_lease)
                await believes(new)
                assert not await missing(new.opened, VALUES)
                await new.fresh()


async def both_owe(process: Process, running: Running) -> bool:
    """Whether two have said that they have something to write back."""
    return bool(await process.command("HLEN", running.opened.store.keyspace.debts) == 2)


def sure(running: Running) -> bool:
    """Whether it has been there for long enough to know that nobody knew more."""
    return running.reader.doubt.known_to > NOWHERE


async def test_who_knew_everything_goes_on() -> None:
    """Two that were in step when the store was emptied: neither doubts for a moment, though both have to write back."""
    async with standalone() as process, reading(process.url) as one:
        await knowing(one)
        async with reading(process.url, key_prefix=one.opened.settings.key_prefix) as two:
            await all_come_to([two], knows_all, "all in the mirror of the other")
            await all_come_to([one, two], sure, "one who is sure")
            await asyncio.gather(one.fresh(), two.fresh())
            await process.command("FLUSHALL")
            async with nobodys_turn(process, one):
                await eventually(lambda: both_owe(process, one), "that both owe")
                await throughout(2, lambda: not doubts(one) and not doubts(two))
                await one.caught_up()
                assert await missing(one.opened, VALUES), "a test in which all is back early proves nothing"


async def test_after_a_long_outage_only_who_lacks_something_waits() -> None:
    """Redis is back without its files after memories grew old: who was cut off earlier waits for the others' sake."""
    old = MirrorSettings(max_staleness_seconds=1)
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        one = await stack.enter_async_context(reading(process.url, old))
        prefix = one.opened.settings.key_prefix
        two = await stack.enter_async_context(reading(process.url, old, key_prefix=prefix))
        proxy = await stack.enter_async_context(Proxy(process.port).running())
        cut_off = await stack.enter_async_context(reading(proxy.url, old, key_prefix=prefix))
        await all_come_to([one, two, cut_off], sure, "one who is sure")
        await knowing(one)
        await all_come_to([two, cut_off], knows_all, "all in all mirrors")
        proxy.port = free_port()
        proxy.cut()
        await one.opened.revoke("late")
        await two.until(lambda: two.knows("late"), "the late one")
        process.kill()
        await all_come_to([one, two, cut_off], old_one, "an old mirror")
        assert not cut_off.knows("late")
        shutil.rmtree(process.directory / "appendonlydir")
        await process.start()
        async with nobodys_turn(process, one):
            proxy.port = process.port
            await cut_off.until(lambda: cut_off.reader.doubt.others_owe, "that others owe")
            await believes(one, LISTEN_SECONDS + 3)
            await believes(two, LISTEN_SECONDS + 3)
            assert doubts(cut_off)
        await believes(cut_off)
        assert cut_off.knows("late") or not await missing(cut_off.opened, ["late"])


async def test_who_dies_before_he_has_given_back_is_not_waited_for() -> None:
    """What he held is gone with him; after seconds nobody waits any more."""
    async with standalone() as process, reading(process.url) as first:
        await knowing(first)
        await process.command("FLUSHALL")
        prefix = first.opened.settings.key_prefix
        async with nobodys_turn(process, first), reading(process.url, key_prefix=prefix) as new:
            await new.until(lambda: new.reader.doubt.others_owe, "that others owe")
            await first.reader.aclose()
            assert doubts(new)
            await believes(new, SAID_SECONDS + 3)


async def noted(process: Process, running: Running) -> None:
    """Wait until it has noted in which of its lives it follows that store."""
    keyspace = running.opened.store.keyspace

    async def is_noted() -> bool:
        info = await process.info("server")
        life: bytes | str = await process.command("GET", keyspace.life(keyspace.mark(0))) or ""
        return info["run_id"] in str(life)

    await eventually(is_noted, "the note")


@contextlib.asynccontextmanager
async def older_copy() -> AsyncIterator[tuple[Process, Running, Proxy]]:
    """A store that came back as an older copy, and one who knew more, whose way to it leads nowhere."""
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        proxy = await stack.enter_async_context(Proxy(process.port).running())
        first = await stack.enter_async_context(reading(proxy.url))
        await noted(process, first)
        await first.opened.revoke_all(VALUES[:100])
        files, copied = process.directory / "appendonlydir", process.directory / "copy"
        shutil.copytree(files, copied)
        await first.opened.revoke_all(VALUES[100:])
        await all_come_to([first], knows_all, "all in the mirror")
        proxy.port = free_port()
        proxy.cut()
        process.kill()
        shutil.rmtree(files)
        copied.rename(files)
        await process.start()
        yield process, first, proxy


async def test_who_comes_to_an_older_copy_waits_until_it_is_whole_again() -> None:
    """Restarted, and nobody has noticed yet what it lacks: the newcomer listens, hears of it, and waits."""
    async with contextlib.AsyncExitStack() as stack:
        process, first, proxy = await stack.enter_async_context(older_copy())
        async with nobodys_turn(process, first):
            opening = reading(process.url, key_prefix=first.opened.settings.key_prefix)
            new = await stack.enter_async_context(opening)
            await new.until(lambda: new.reader.synced, "a scan of what is there")
            await throughout(1, lambda: doubts(new) and not new.reader.doubt.others_owe)
            proxy.port = process.port
            await new.until(lambda: new.reader.doubt.others_owe, "that others owe")
            await throughout(REBORN_SECONDS, lambda: doubts(new))
            assert await missing(new.opened, VALUES), "a test in which all is back early proves nothing"
        await believes(new)
        assert not await missing(new.opened, VALUES)


async def seconds_of_doubt(running: Running) -> float:
    """For how long it doubts, from now on."""
    began = time.monotonic()
    await believes(running)
    return time.monotonic() - began


async def test_an_older_copy_that_nobody_knows_better_is_believed() -> None:
    """After seconds, because somebody might have; and at once as soon as one has known all of it for a while."""
    async with older_copy() as (process, first, _proxy), contextlib.AsyncExitStack() as stack:
        prefix = first.opened.settings.key_prefix
        several = [await stack.enter_async_context(reading(process.url, key_prefix=prefix)) for _ in range(3)]
        waited = await asyncio.gather(*map(seconds_of_doubt, several))
        assert min(waited) > REBORN_SECONDS - 0.5, "none of them, whoever came first"
        assert max(waited) < REBORN_SECONDS + 2
        await noted(process, several[0])
        late = await stack.enter_async_context(reading(process.url, key_prefix=prefix))
        assert await seconds_of_doubt(late) < 1


async def test_one_who_was_cut_off_earlier_does_not_speak_for_those_who_know() -> None:
    """Back first at an older copy he lacks what it lacks, and finds it whole: a newcomer listens all the same."""
    async with contextlib.AsyncExitStack() as stack:
        process, first, proxy = await stack.enter_async_context(older_copy())
        prefix = first.opened.settings.key_prefix
        async with reading(process.url, key_prefix=prefix) as lacking:
            await all_come_to([lacking], sure, "one who is sure, of what there was before")
            process.kill()
            await lacking.until(lambda: old_one(lacking), "an old mirror")
            await process.start()
            await lacking.until(lambda: lacking.age < 1 and not doubts(lacking), "its being in step again")
            new = await stack.enter_async_context(reading(process.url, key_prefix=prefix))
            await throughout(1, lambda: doubts(new))
            proxy.port = process.port
            await new.until(lambda: new.reader.doubt.others_owe or new.knows(VALUES[-1]), "to hear of the rest")
            await believes(new)
            assert not await missing(new.opened, VALUES)


@pytest.mark.parametrize("word", [b"token_revocations:mark", b"CLIENT"], ids=["mark", "followers"])
async def test_a_newcomer_whose_first_question_fails_listens_at_the_second(word: bytes) -> None:
    """The connection ends on the way to a restarted store, or one without its files: it doubts until it was asked."""
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        async with reading(process.url) as one:
            await noted(process, one)
            prefix = one.opened.settings.key_prefix
        process.kill()
        if word == b"CLIENT":  # which is asked where there is no mark
            shutil.rmtree(process.directory / "appendonlydir")
        await process.start()
        proxy, failed = await stack.enter_async_context(Proxy(process.port).running()), 0

        async def request(piece: bytes) -> bytes | None:
            nonlocal failed
            if word in piece and not failed:
                failed += 1
                return None
            return piece

        proxy.request = request
        new = await stack.enter_async_context(reading(proxy.url, key_prefix=prefix))
        assert await seconds_of_doubt(new) > 1
        assert failed == 1


async def test_who_left_his_mark_and_did_not_hear_so_listens() -> None:
    """The server took the mark, and its answer was lost: he has seen that there was none, and forgets it not."""
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        proxy, marked, lost = await stack.enter_async_context(Proxy(process.port).running()), False, False

        async def request(piece: bytes) -> bytes | None:
            nonlocal marked
            marked = marked or b"\r\nNX\r\n" in piece
            return piece

        async def reply(piece: bytes) -> bytes | None:
            nonlocal lost
            if marked and not lost:
                lost = True
                return None
            return piece

        proxy.request, proxy.reply = request, reply
        new = await stack.enter_async_context(reading(proxy.url))
        assert await seconds_of_doubt(new) > 1
        assert lost


async def test_a_restarted_store_that_takes_no_writes_is_listened_to() -> None:
    """Nobody can note there that he follows, nor say what he owes: the newcomer waits as long as for others."""
    async with standalone() as process:
        async with reading(process.url) as one:
            await noted(process, one)
            prefix = one.opened.settings.key_prefix
        await process.restart()
        await process.command("CONFIG", "SET", "min-replicas-to-write", "1")
        async with reading(process.url, key_prefix=prefix) as new:
            assert await seconds_of_doubt(new) > REBORN_SECONDS - 1


async def test_who_comes_to_a_promoted_replica_listens() -> None:
    """It has run for long, and nobody follows it yet who followed the one before."""
    async with sentinel() as deployment:
        async with reading(deployment.url) as one:
            await noted(await deployment.master(), one)
            prefix = one.opened.settings.key_prefix
        after = await deployment.kill_master()
        await deployment.new_master(after)
        async with reading(deployment.url, key_prefix=prefix) as new:
            await new.until(lambda: new.reader.synced, "a scan of what is there", 20)
            assert doubts(new)
            await believes(new)


async def test_nobody_waits_for_nobody() -> None:
    """A store that is known, one where nobody follows, and a private one are believed before anybody could listen."""
    async with standalone() as process, reading(process.url) as running:
        await running.fresh()
        async with asyncio.timeout(LISTEN_SECONDS):
            async with reading(process.url, key_prefix=running.opened.settings.key_prefix) as known:
                await known.reader.doubt.looked.wait()
                assert not doubts(known)
    async with standalone() as fresh, reading(fresh.url) as one:
        others = Changes(one.opened.store)
        assert await Changes(one.opened.store, private=True).unheard_seconds(1_000_000) == 0, "it is nobody else's"
        assert await others.unheard_seconds(1_000_000) > 900_000, "so young that others may not have found it yet"
        await one.fresh()
        assert await one.changes.unheard_seconds(0.1) <= 0.1, "nobody follows but itself"
        assert await others.unheard_seconds(0.1) == 0.1, "one follows"


async def test_several_who_come_at_once_all_wait() -> None:
    """Three newcomers to an emptied store, whoever of them leaves the first trace: none believes what is not back."""
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(standalone())
        first = await stack.enter_async_context(reading(process.url))
        await knowing(first)
        prefix = first.opened.settings.key_prefix
        for _ in range(3):
            await process.command("FLUSHALL")
            async with nobodys_turn(process, first), contextlib.AsyncExitStack() as newcomers:
                opening = [newcomers.enter_async_context(reading(process.url, key_prefix=prefix)) for _ in range(3)]
                new = await asyncio.gather(*opening)
                while not all(each.reader.doubt.others_owe for each in new):
                    assert all(map(doubts, new))
                    await asyncio.sleep(LOOK_SECONDS)
                assert await missing(first.opened, VALUES), "a test in which all is back early proves nothing"
            await first.in_redis(VALUES)
            await first.until(lambda: not first.reader.doubt.owes, "the end of the writing back")
            await first.fresh()


@pytest.mark.parametrize("disorder", ["dead", "frozen"])
async def test_who_comes_while_a_shard_is_away_believes_the_others(disorder: str) -> None:
    """A cluster without one of its shards: there is nobody to wait for, not even one another, and what the rest says is
    an answer. Thawed, the shard is one of them again.
    """
    async with cluster() as clustered, open_store(clustered.url, wait_replicas=0) as opened:
        keyspace = opened.store.keyspace
        with_log = await clustered.master_of(keyspace.change_log)
        keys = [keyspace.key("jti", value) for value in VALUES[:20]]
        masters = [await clustered.master_of(key) for key in keys]
        key = next(key for key, master in zip(keys, masters, strict=True) if master is not with_log)
        killed = await clustered.kill_master_of(key)
        last = await clustered.new_master_of(key, after=killed)
        if disorder == "dead":
            last.kill()
        else:
            last.freeze()
        async with contextlib.AsyncExitStack() as stack:
            prefix = opened.settings.key_prefix
            opening = [reading(clustered.url, key_prefix=prefix, wait_replicas=0) for _ in range(6)]
            new = await asyncio.gather(*map(stack.enter_async_context, opening))
            for each in new:
                await believes(each, LISTEN_SECONDS + 5)
            await throughout(2, lambda: not any(doubts(each) or each.reader.fresh for each in new))
            if disorder == "frozen":
                last.thaw()
                for each in new:
                    await each.fresh()
                assert not any(map(doubts, new))


async def test_who_comes_while_one_shard_hangs_and_another_was_emptied_waits() -> None:
    """Who knows what was lost notices it, though not every master answers him; the newcomer believes nothing before
    all of it is back.
    """
    async with cluster() as clustered, reading(clustered.url, wait_replicas=0) as first:
        await knowing(first)
        keyspace = first.opened.store.keyspace
        with_log = await clustered.master_of(keyspace.change_log)
        owners = {await clustered.master_of(key): key for key in (keyspace.key("jti", value) for value in VALUES[:20])}
        owners.pop(with_log, None)
        (killed, hanging), (emptied, _key) = owners.items()
        await clustered.kill_master_of(hanging)
        last = await clustered.new_master_of(hanging, after=killed)
        await first.in_redis(VALUES)
        await all_come_to([first], sure, "one who is sure")
        last.freeze()
        await emptied.command("FLUSHALL")
        await first.until(lambda: first.reader.doubt.owes, "that the loss was noticed", LISTEN_SECONDS + 5)
        async with reading(clustered.url, key_prefix=first.opened.settings.key_prefix, wait_replicas=0) as new:
            await throughout(LISTEN_SECONDS + 2, lambda: doubts(new))
            last.thaw()
            await believes(new)
            assert not await missing(new.opened, VALUES)


async def test_who_lacks_nothing_waits_for_nobody_after_an_outage() -> None:
    """Two that came one after the other, and no revocation since: Redis is back with its data, and neither doubts."""
    async with standalone() as process, reading(process.url) as one:
        await knowing(one)
        async with reading(process.url, key_prefix=one.opened.settings.key_prefix) as two:
            await all_come_to([one, two], sure, "one who is sure")
            await asyncio.gather(one.fresh(), two.fresh())
            process.kill()
            await all_come_to([one, two], old_one, "an old mirror")
            await process.start()
            async with asyncio.timeout(10):
                while one.age > 1 or two.age > 1:
                    assert not doubts(one)
                    assert not doubts(two)
                    await asyncio.sleep(LOOK_SECONDS)
