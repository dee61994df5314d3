"""A question about a name that is not answered stops nobody: neither who asked, nor anybody else, nor the end."""

import asyncio
import socket
import threading
from typing import Final

import aiohttp
import pytest
from aiohttp import web

from revocation_client.names import MOST_AT_ONCE, Names
from revocation_service.reaching import reach
from tests.redis_processes import HOST, eventually, free_port
from tests.resolver import NAME, Resolver

SOON: Final = 0.05
AT_ONCE: Final = 0.001
NEVER: Final = 1e9


async def asked(resolver: Resolver, times: int) -> None:
    """Wait until it was."""

    async def so_often() -> bool:
        return len(resolver.asked) >= times

    await eventually(so_often, f"asked {times} times")


def threads() -> int:
    return sum(thread.name == "getaddrinfo" for thread in threading.enumerate())


async def test_a_question_without_an_answer_is_asked_again_and_everybody_has_the_second_answer(
    resolver: Resolver,
) -> None:
    """The first thread still waits when both who asked are answered."""
    names = Names(SOON)
    resolver.silent = True
    asking = [asyncio.create_task(names.addresses(NAME, 1)) for _ in range(2)]
    await asked(resolver, 1)
    resolver.silent = False
    assert [[address[4] for address in await one] for one in asking] == [[(HOST, 1)]] * 2
    assert threads() >= 1


async def test_who_asks_at_once_shares_a_question_and_who_comes_later_asks_anew(resolver: Resolver) -> None:
    """An address is never older than the question."""
    names = Names(NEVER)
    await asyncio.gather(*(names.addresses(NAME, 1) for _ in range(10)))
    assert resolver.asked == [NAME]
    resolver.addresses = ["127.0.0.9"]
    assert [address[4] for address in await names.addresses(NAME, 1)] == [("127.0.0.9", 1)]
    assert resolver.asked == [NAME] * 2


async def test_who_comes_after_others_gave_up_asks_at_once(resolver: Resolver) -> None:
    """The question that hangs is not waited for again: after the pause, the next to come asks beside it."""
    names = Names(SOON)
    resolver.silent = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await names.addresses(NAME, 1)
    resolver.silent = False
    assert await names.addresses(NAME, 1)


async def test_a_question_takes_no_more_than_so_many_threads_however_often_it_is_given_up(resolver: Resolver) -> None:
    """When all of them wait, no other is begun; the first that is answered answers whoever asks then."""
    names = Names(AT_ONCE)
    resolver.silent = True
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await names.addresses(NAME, 1)
    await asked(resolver, MOST_AT_ONCE)
    assert len(resolver.asked) == threads() == MOST_AT_ONCE
    late = asyncio.create_task(names.addresses(NAME, 1))
    await asyncio.sleep(0)
    resolver.silent = False
    resolver.over.set()
    assert await late
    assert len(resolver.asked) == MOST_AT_ONCE


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

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Names().addresses(NAME, 1)

    asyncio.run(give_up())
    assert threads() == 1
    resolver.over.set()
    for thread in threading.enumerate():
        if thread.name == "getaddrinfo":
            thread.join()


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_NONAME, "no such name"), UnicodeError("no name")])
async def test_a_failure_is_an_answer(resolver: Resolver, failure: Exception) -> None:
    """All who asked hear it, and the next to ask asks anew."""
    names = Names(NEVER)
    resolver.failure = failure
    outcomes = await asyncio.gather(*(names.addresses(NAME, 1) for _ in range(3)), return_exceptions=True)
    assert outcomes == [failure] * 3
    resolver.failure = None
    assert await names.addresses(NAME, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_no_question(host: str) -> None:
    """No thread is begun for it."""
    names, before = Names(), threading.active_count()
    ((_, _, _, _, (found, *_)),) = await names.addresses(host, 1)
    assert (found, threading.active_count()) == (host, before)


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
    """A session asks it, of each family; an address of one link keeps its interface."""

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
    assert resolver.asked == [NAME]
    resolver.addresses = ["fe80::1", "::1"]
    hosts = [found["host"] for found in await Names().resolve(NAME, 1, socket.AF_UNSPEC)]
    assert hosts == ["fe80::1%1", "::1"]
