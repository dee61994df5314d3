"""A question about a name that is not answered stops nobody: neither who asked, nor anybody else, nor the end."""

import asyncio
import functools
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from revocation_client.names import MOST_AT_ONCE, Names
from revocation_service.reaching import reach
from tests.redis_processes import HOST, eventually, free_port
from tests.resolver import NAME, Resolver

SOON: Final = (0.05, 0.05)
AT_ONCE: Final = (0.001, 0.001)
NEVER: Final = (1e9, 1e9)
HANGS: Final = """
import asyncio, socket, threading
socket.getaddrinfo = lambda *_arguments, **_options: threading.Event().wait()
from revocation_client.names import Names
try:
    asyncio.run(asyncio.wait_for(Names().addresses("revocation.test", 1), 0.01))
except TimeoutError:
    print("given up")
"""


async def asked(resolver: Resolver, times: int) -> None:
    """Wait until it was."""

    async def so_often() -> bool:
        return len(resolver.asked) >= times

    await eventually(so_often, f"asked {times} times")


async def given_up(names: Names, seconds: float) -> None:
    """Ask, and wait no longer than that."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await names.addresses(NAME, 1)


def where(addresses: Iterable[Any]) -> list[Any]:
    """The sockets' addresses."""
    return [address[4] for address in addresses]


async def test_a_question_without_an_answer_is_asked_again_and_everybody_has_the_second_answer(
    resolver: Resolver,
) -> None:
    """The first thread still waits when both who asked are answered."""
    names = Names(SOON)
    resolver.silent = True
    asking = [asyncio.create_task(names.addresses(NAME, 1)) for _ in range(2)]
    await asked(resolver, 1)
    resolver.silent = False
    assert [where(await one) for one in asking] == [[(HOST, 1)]] * 2
    assert resolver.held
    assert not any(event.is_set() for event in resolver.held)


async def test_who_asks_at_once_shares_a_question_and_who_comes_later_asks_anew(resolver: Resolver) -> None:
    """An answer is of a question that was asked for him; nothing of it is kept."""
    names = Names(NEVER)
    await asyncio.gather(*(names.addresses(NAME, 1) for _ in range(10)))
    assert len(resolver.asked) == 1
    resolver.addresses = ["127.0.0.9"]
    assert where(await names.addresses(NAME, 1)) == [("127.0.0.9", 1)]
    assert len(resolver.asked) == 2
    assert names._questions == {}


async def test_who_comes_after_others_gave_up_asks_at_once(resolver: Resolver) -> None:
    """The question that hangs is not waited for again: after the pause, the next to come asks beside it."""
    names = Names(SOON)
    resolver.silent = True
    await given_up(names, 0.06)
    resolver.silent = False
    assert await names.addresses(NAME, 1)


@pytest.mark.parametrize("failure", [None, socket.gaierror(socket.EAI_NONAME, "no such name")])
async def test_an_answer_that_comes_late_is_not_for_who_asked_later(
    resolver: Resolver, failure: socket.gaierror | None
) -> None:
    """A thread that hung comes back with how it was then, and who waits by now goes on waiting for his own."""
    names = Names(SOON)
    resolver.silent, resolver.failure = True, failure
    await given_up(names, 0.06)
    await asyncio.sleep(SOON[1])  # the pause: who comes within it shares the newest question
    before = len(resolver.held)
    resolver.addresses, resolver.failure = ["127.0.0.9"], None
    later = asyncio.create_task(names.addresses(NAME, 1))
    await asked(resolver, before + 1)
    for event in resolver.held[:before]:
        event.set()
    await asked(resolver, before + 2)
    assert not later.done()
    resolver.release()
    assert where(await later) == [("127.0.0.9", 1)]


async def test_a_question_takes_no_more_than_so_many_threads_however_often_it_is_given_up(resolver: Resolver) -> None:
    """When all of them hang, no other is begun; when one comes back, whoever waits asks at last."""
    names = Names(AT_ONCE)
    resolver.silent = True
    for _ in range(3):
        await given_up(names, 0.1)
    await asked(resolver, MOST_AT_ONCE)
    late = asyncio.create_task(names.addresses(NAME, 1))
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert len(resolver.asked) == MOST_AT_ONCE
    resolver.silent = False
    resolver.held[0].set()
    assert await late
    assert len(resolver.asked) == MOST_AT_ONCE + 1


async def test_a_question_that_hangs_keeps_no_other_name_waiting(resolver: Resolver) -> None:
    """Nor anything else that the event loop has threads for."""
    names = Names(AT_ONCE)
    resolver.silent = True
    hanging = asyncio.create_task(names.addresses(NAME, 1))
    await asked(resolver, MOST_AT_ONCE)
    assert await names.addresses("localhost", 1)
    assert await asyncio.to_thread(int, "1") == 1
    hanging.cancel()


def test_the_event_loop_ends_while_a_question_hangs(resolver: Resolver) -> None:
    """It would wait for its own threads; nor is it a complaint that the answer comes when the loop is gone."""
    resolver.silent = True
    asyncio.run(given_up(Names(), 0.01))
    assert not resolver.held[0].is_set()
    resolver.release()
    for thread in threading.enumerate():
        if thread.name == "getaddrinfo":
            thread.join()


def test_the_process_ends_while_a_question_hangs() -> None:
    """A name server that is silent holds up no shutdown."""
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=True)
    assert (ended.stdout, ended.stderr) == ("given up\n", "")


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_NONAME, "no such name"), UnicodeError("no name")])
async def test_a_failure_is_an_answer(resolver: Resolver, failure: Exception) -> None:
    """All who asked hear it, and the next to ask asks anew."""
    names = Names(NEVER)
    resolver.failure = failure
    outcomes = await asyncio.gather(*(names.addresses(NAME, 1) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(outcome, OSError) and "no" in str(outcome) for outcome in outcomes)
    resolver.failure = None
    assert await names.addresses(NAME, 1)


async def test_without_a_thread_left_it_is_a_failure(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the name, and not of whoever asks for it; the next to ask tries again."""

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names = Names()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(OSError, match="no thread left"):
            await names.addresses(NAME, 1)
    assert await names.addresses(NAME, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_no_question(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is begun for it."""
    monkeypatch.setattr(threading.Thread, "start", functools.partial(pytest.fail, "a thread was begun"))
    ((_, _, _, _, (found, *_)),) = await Names().addresses(host, 1)
    assert found == host


async def test_where_one_address_of_a_name_takes_no_connection_the_next_does(resolver: Resolver) -> None:
    """Nobody listens at the first."""
    resolver.addresses = ["127.0.0.2", HOST]
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with await reach(Names(), NAME, port) as reached:
            assert reached.getpeername() == (HOST, port)
    with pytest.raises(OSError, match="Connect call failed"):
        await reach(Names(), NAME, free_port())


async def test_aiohttp_finds_a_host_by_it(resolver: Resolver) -> None:
    """A session asks it, for the families that this machine has; an address of one link keeps its interface."""

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        url = f"http://{NAME}:{runner.addresses[0][1]}/"
        connector = aiohttp.TCPConnector(resolver=Names())
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as answer:
            assert await answer.text() == "hello"
    finally:
        await runner.cleanup()
    expected = {"family": socket.AF_UNSPEC, "type": socket.SOCK_STREAM, "flags": socket.AI_ADDRCONFIG}
    assert resolver.asked == [expected]
    resolver.addresses = ["fe80::1", "::1"]
    hosts = [found["host"] for found in await Names().resolve(NAME, 1, socket.AF_INET6)]
    assert hosts == ["fe80::1%1", "::1"]
    assert resolver.asked[1]["family"] == socket.AF_INET6
