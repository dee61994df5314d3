"""Where hosts are, asked of the system, which may leave a question open for many seconds.

For five it waits for an answer that was lost (resolv.conf(5), `timeout`), in a thread that cannot be taken back; the
threads of an event loop are few, shared, and waited for at its end. So a question has threads of its own here, and one
that is not answered soon is asked again beside the first.
"""

import asyncio
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from threading import Thread
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

AGAIN_SECONDS: Final = 0.25

MOST_AT_ONCE: Final = 20
"""Threads for one question: it is asked for as long as the system waits before it asks again by itself."""

Address = tuple[Any, Any, int, str, Any]
"""As `socket.getaddrinfo` gives it."""


class Names(AbstractResolver):
    """The addresses of hosts, for one event loop; aiohttp takes it as its resolver.

    A question that has no answer after `again_seconds` is asked again.
    """

    def __init__(self, again_seconds: float = AGAIN_SECONDS) -> None:
        self._again_seconds = again_seconds
        self._questions: dict[tuple[object, ...], _Question] = {}

    async def addresses(self, host: str, port: int, family: int = socket.AF_UNSPEC, flags: int = 0) -> list[Address]:
        """Where TCP connections to that host and port go, in the order in which they are to be tried.

        Raises OSError where it has none, or nobody can tell.
        """
        ask = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=flags)
        if _is_numeric(host):
            return ask()
        key = host, port, family, flags
        question = self._questions.get(key)
        if question is None:
            question = self._questions[key] = _Question(ask, partial(self._questions.pop, key), self._again_seconds)
        return await question.answered()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses as aiohttp asks for them. Raises OSError."""
        addresses = await self.addresses(host, port, family, socket.AI_ADDRCONFIG)
        return [_result(host, address) for address in addresses]

    async def close(self) -> None:
        """Nothing is held: what has been asked ends by itself."""


class _Question:
    """One question, asked in one thread after another until any of them has the answer."""

    def __init__(self, ask: Callable[[], list[Address]], forget: Callable[[], object], again_seconds: float) -> None:
        self._ask = ask
        self._forget = forget
        self._again_seconds = again_seconds
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[list[Address]] | None = None
        self._threads = 0
        self._asked_at = -math.inf

    async def answered(self) -> list[Address]:
        """The answer, which all share who wait for it."""
        answer = self._answer = self._answer or self._loop.create_future()
        while not answer.done():
            if self._loop.time() - self._asked_at >= self._again_seconds and self._threads < MOST_AT_ONCE:
                self._begin()
            await asyncio.wait({answer}, timeout=self._again_seconds)
        return answer.result()

    def _begin(self) -> None:
        thread = Thread(target=self._in_a_thread, name="getaddrinfo", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise OSError("there is no thread left to ask for an address in") from error
        else:
            self._threads += 1
            self._asked_at = self._loop.time()

    def _in_a_thread(self) -> None:
        addresses: list[Address] | None = None
        failure: Exception | None = None
        try:
            addresses = self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it was: who waits for an answer must hear it
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._heard, addresses, failure)

    def _heard(self, addresses: list[Address] | None, failure: Exception | None) -> None:
        self._threads -= 1
        answer, self._answer = self._answer, None
        if answer is not None and failure is not None:
            answer.set_exception(failure)
            answer.exception()  # so that it is no complaint where everybody has given up
        elif answer is not None:
            answer.set_result(addresses or [])
        self._asked_at = -math.inf
        if not self._threads:
            self._forget()


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _result(name: str, address: Address) -> ResolveResult:
    family, _type, protocol, _canonical, (host, port, *more) = address
    scope = f"%{more[1]}" if family == socket.AF_INET6 and more[1] else ""
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=name, host=host + scope, port=port, family=family, proto=protocol, flags=numeric)
