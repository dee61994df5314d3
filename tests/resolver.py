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
    """Which questions were asked, in which order; one that meets silence is answered when the test is over."""

    addresses: list[str] = field(default_factory=lambda: [HOST])
    silent: bool = False
    lost: int = 0
    """So many answers more are."""
    failure: Exception | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    """What each question was asked with."""
    held: list[threading.Event] = field(default_factory=list)
    """What each of those that met silence waits for."""

    def answer(self, port: int, options: dict[str, Any]) -> list[Any]:
        """What the system would have said when it was asked."""
        failure, answer = self.failure, [_found(address, port) for address in self.addresses]
        self.asked.append(options)
        if self.silent or self.lost:
            self.lost = max(0, self.lost - 1)
            self.held.append(threading.Event())
            self.held[-1].wait()
        if failure is not None:
            raise failure
        return answer

    def release(self) -> None:
        """Answer all that meet silence."""
        self.silent = False
        for each in self.held:
            each.set()


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
        return resolver.answer(port, options)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        try:
            yield resolver
        finally:
            resolver.release()
