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

PAUSE_SECONDS: Final = (0.1, 0.25)
"""Until a question is asked again: the first for each thread that waits for an answer, up to the second."""

MOST_AT_ONCE: Final = 20
"""Threads for one question: it is asked for as long as the system waits before it asks again by itself."""

Address = tuple[Any, Any, int, str, Any]
"""As `socket.getaddrinfo` gives it."""


class Names(AbstractResolver):
    """The addresses of hosts, for one event loop; aiohttp takes it as its resolver."""

    def __init__(self, pause_seconds: tuple[float, float] = PAUSE_SECONDS) -> None:
        self._pause_seconds = pause_seconds
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
            question = self._questions[key] = _Question(ask, partial(self._questions.pop, key), self._pause_seconds)
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
    """One question, asked in one thread after another until one of them has the answer.

    Who waits is answered by a thread that was begun for him, or just before, and by none that hung since earlier: what
    that has to say may be long out of date.
    """

    def __init__(
        self, ask: Callable[[], list[Address]], forget: Callable[[], object], pause_seconds: tuple[float, float]
    ) -> None:
        self._ask = ask
        self._forget = forget
        self._pause_seconds = pause_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[asyncio.Future[list[Address] | OSError], int] = {}
        """Whoever waits, and the number of the first thread that may answer."""
        self._threads = 0
        self._newest = 0
        self._asked_at = -math.inf
        """When the newest thread was begun, if that has not answered yet."""

    async def answered(self) -> list[Address]:
        """The answer. Raises OSError."""
        self._ask_if_due()
        answer: asyncio.Future[list[Address] | OSError] = self._loop.create_future()
        self._waiting[answer] = self._newest + self._is_due
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=self._pause)
                if not answer.done():
                    self._ask_if_due()
        finally:
            del self._waiting[answer]
        outcome = answer.result()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    @property
    def _pause(self) -> float:
        first, longest = self._pause_seconds
        return min(first * max(1, self._threads), longest)

    @property
    def _is_due(self) -> bool:
        """Whether nobody was asked just now who may still answer."""
        return self._loop.time() - self._asked_at >= self._pause

    def _ask_if_due(self) -> None:
        if not self._is_due or self._threads == MOST_AT_ONCE:
            return
        thread = Thread(target=self._in_a_thread, args=(self._newest + 1,), name="getaddrinfo", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise OSError("there is no thread left to ask for an address in") from error
            return
        self._threads += 1
        self._newest += 1
        self._asked_at = self._loop.time()

    def _in_a_thread(self, number: int) -> None:
        outcome: list[Address] | OSError
        try:
            outcome = self._ask()
        except OSError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - a UnicodeError; whatever it was, who waits must hear of it
            outcome = OSError(f"the name cannot be asked for: {error}")
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._heard, number, outcome)

    def _heard(self, number: int, outcome: list[Address] | OSError) -> None:
        self._threads -= 1
        if number == self._newest:
            self._asked_at = -math.inf
        for answer, first in self._waiting.items():
            if first <= number and not answer.done():
                answer.set_result(outcome)
        if not self._threads and all(answer.done() for answer in self._waiting):
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
