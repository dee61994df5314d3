"""A system resolver that can lose answers: the real one, but for names under .test, which lead to loopback."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.redis_processes import HOST

NAME: Final = "revocation.test"


@dataclass
class Resolver:
    """Which question was asked, in which order; one that meets silence is answered when the test is over."""

    addresses: list[str] = field(default_factory=lambda: [HOST])
    silent: bool = False
    failure: Exception | None = None
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, host: str, port: int) -> list[Any]:
        """What the system would say."""
        self.asked.append(host)
        if self.silent:
            self.over.wait()
        if self.failure is not None:
            raise self.failure
        return [_found(address, port) for address in self.addresses]


def _found(address: str, port: int) -> Any:
    """As the system gives it; one that is good on one link only is on the first."""
    if ":" not in address:
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)
    link = int(address.startswith("fe80:"))
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, link)


@contextlib.contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """In this process, for the time of the block."""
    resolver, system = Resolver(), socket.getaddrinfo

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".test"):
            return system(host, port, *arguments, **options)
        return resolver.answer(host, port)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        try:
            yield resolver
        finally:
            resolver.over.set()
