"""What handlers answer: a whole answer, which is written in one piece, by aiohttp or without it."""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Final

from aiohttp import web
from aiohttp.http import SERVER_SOFTWARE

from revocation_client.wire import dumps

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


@dataclass(slots=True)
class Answer:
    """A status, a body that is at hand, and the headers that tell of it; what all answers carry is added to them."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    request_id: str = ""
    last: bool = False
    """Whether the connection ends with it."""

    def response(self) -> web.Response:
        """For aiohttp to write."""
        headers = {"Content-Type": self.content_type, **common_headers(self.request_id), **(self.headers or {})}
        response = web.Response(body=self.body, status=self.status, headers=headers)
        if self.last:
            response.force_close()
        return response

    def encoded(self) -> bytes:
        """The same in HTTP/1.1, whole (RFC 9112 section 2.1)."""
        more = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()]) if self.headers else ""
        if self.last:
            more += "Connection: close\r\n"
        return (
            f"{_STATUS_LINES[self.status]}Content-Type: {self.content_type}\r\nX-Request-ID: {self.request_id}\r\n"
            f"Cache-Control: no-store\r\n{more}Content-Length: {len(self.body)}\r\n{_about(int(time()))}\r\n"
        ).encode("ascii") + self.body


def common_headers(request_id: str) -> dict[str, str]:
    """The headers that every answer carries."""
    return {"X-Request-ID": request_id, "Cache-Control": "no-store"}


def json_answer(form: object, status: int = 200) -> Answer:
    """What JSON says."""
    return Answer(dumps(form), status)


@lru_cache(maxsize=1)
def _about(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n"
