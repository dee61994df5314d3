"""Calls of the service over one HTTP session, which belongs to the event loop that it was opened on.

A call ends with an answer, bounded in time and size, or with none; what either means is not decided here.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp

from revocation_client.answers import Answer, NoAnswer, failure
from revocation_client.deadlines import within
from revocation_client.errors import (
    ConfigurationError,
    NotStarted,
    RevocationError,
    ServiceUnavailable,
    UnexpectedAnswer,
)
from revocation_client.names import Names

CONNECTIONS: Final = 64
KEEPALIVE_SECONDS: Final = 30.0
"""Below the service's own 75 s, so that a kept connection is seldom closed from the other side."""

PROBLEM_MAX_BYTES: Final = 64 * 1024


class Service(Protocol):
    """What can be asked; over HTTP it is `Api`."""

    async def post(self, path: str, body: bytes, *, seconds: float, most_bytes: int) -> Answer | NoAnswer:
        """One request with a JSON body, answered within so many seconds and so many bytes.

        Raises UnexpectedAnswer for what is no HTTP, too large, or not whom it claims to be.
        """

    async def aclose(self) -> None:
        """Let go of the connections."""


class Stream(Protocol):
    """The feed, as it comes."""

    async def read(self) -> bytes:
        """The next of it; nothing at its end.

        Raises ServiceUnavailable where the connection breaks off.
        """

    def close(self) -> None:
        """Let go of the connection."""


class Feed(Protocol):
    """Where the feed can be had; over HTTP it is `Api`."""

    async def feed(self, cursor: str | None, *, seconds: float) -> Stream:
        """A stream from this cursor on, or from a snapshot on, if it begins within so many seconds.

        Raises RequestRefused, ServiceUnavailable, and UnexpectedAnswer for what is no feed.
        """


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service is, and the key for it, which no repr shows."""

    url: str
    """Without a slash at its end."""
    authorization: str | None

    def __repr__(self) -> str:
        return f"Address({self.url!r}, {'with' if self.authorization else 'without'} a key)"


def address(url: str, api_key: str | None) -> Address:
    """The address, if it is one.

    Raises ConfigurationError.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key and " " not in api_key):
        raise ConfigurationError("api_key", "must be one word of printable ASCII characters")
    try:
        parts = urlsplit(url)
        named = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")  # which the connection would do, and fail at, each time
    except (ValueError, TypeError, AttributeError):
        named = False
    if not named or not url.isprintable() or " " in url:
        raise ConfigurationError("url", "must begin with http:// or https://, and name a host")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ConfigurationError("url", "must have no user, password, query or fragment; the key is api_key")
    return Address(url.rstrip("/"), None if api_key is None else f"Bearer {api_key}")


class Api:
    """The service over HTTP: kept connections, no redirects, no cookies, nothing from the environment."""

    def __init__(self, where: Address) -> None:
        self._url = where.url
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        if where.authorization is not None:
            headers["Authorization"] = where.authorization
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEPALIVE_SECONDS, resolver=Names()),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),  # `within` bounds each call, and the feed is endless
        )

    async def post(self, path: str, body: bytes, *, seconds: float, most_bytes: int) -> Answer | NoAnswer:
        """One request; see `Service`. No exception of aiohttp leaves it: their request_info holds the key."""
        if self._session.closed:
            raise NotStarted
        outcome = await self._answer(f"{self._url}/{path}", body, seconds, most_bytes)
        if isinstance(outcome, UnexpectedAnswer):
            raise outcome
        return outcome

    async def _answer(
        self, url: str, body: bytes, seconds: float, most_bytes: int
    ) -> Answer | NoAnswer | UnexpectedAnswer:
        try:
            async with within(seconds), self._session.post(url, data=body, allow_redirects=False) as response:
                content = await _bounded(response.content, most_bytes)
                if content is None:
                    return UnexpectedAnswer("the answer is larger than any of the service's", response.status)
                retry_after = response.headers.get("Retry-After")
                return Answer(response.status, response.content_type, content, retry_after)
        except TimeoutError:
            return NoAnswer(f"no answer within {seconds:.3g} s")
        except (aiohttp.ClientError, OSError) as error:
            return _failed(error)

    async def feed(self, cursor: str | None, *, seconds: float) -> Stream:
        """The feed; see `Feed`."""
        if self._session.closed:
            raise NotStarted
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        outcome: Stream | RevocationError
        try:
            async with asyncio.timeout(seconds):
                outcome = await self._stream(headers)
        except TimeoutError:
            outcome = ServiceUnavailable(f"no feed within {seconds:.3g} s")
        except (aiohttp.ClientError, OSError) as error:
            outcome = _error(_failed(error))
        if isinstance(outcome, RevocationError):
            raise outcome
        return outcome

    async def _stream(self, headers: dict[str, str]) -> Stream | RevocationError:
        response = await self._session.get(f"{self._url}/feed", headers=headers, allow_redirects=False)
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if response.status == 200 and response.content_type == "text/event-stream" and not encoded:
            return _HttpStream(response)
        try:
            return await _refusal(response)
        finally:
            response.close()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()


class _HttpStream:
    """A feed over HTTP; no exception of aiohttp leaves it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            broken = _error(_failed(error))
        raise broken

    def close(self) -> None:
        self._response.close()


async def _refusal(response: aiohttp.ClientResponse) -> RevocationError:
    """Why an answer is no feed."""
    if response.status == 200:
        return UnexpectedAnswer("the answer is no event stream: this is not the service's feed", 200)
    body = await _bounded(response.content, PROBLEM_MAX_BYTES)
    answer = Answer(response.status, response.content_type, body or b"", response.headers.get("Retry-After"))
    failed = failure(answer, time.time())
    assert failed is not None
    return failed


async def _bounded(content: aiohttp.StreamReader, most_bytes: int) -> bytes | None:
    """The body, or None where there is more of it."""
    body = bytearray()
    while chunk := await content.readany():
        body += chunk
        if len(body) > most_bytes:
            return None
    return bytes(body)


def _failed(error: Exception) -> NoAnswer | UnexpectedAnswer:
    """A connection that cannot be had, or breaks, is no answer; what talks another language is a wrong one."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return UnexpectedAnswer("the certificate of what answers is not trusted")
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return UnexpectedAnswer("what answers speaks no TLS, or none that can be agreed on")
    if isinstance(error, aiohttp.ClientResponseError):
        return UnexpectedAnswer("what answers speaks no HTTP")
    if isinstance(error, aiohttp.ClientConnectorError):
        return NoAnswer(f"no connection ({error.os_error.strerror or type(error.os_error).__name__})")
    return NoAnswer(f"the connection broke off ({type(error).__name__})", broke_off=True)


def _error(failed: NoAnswer | UnexpectedAnswer) -> RevocationError:
    return failed if isinstance(failed, UnexpectedAnswer) else ServiceUnavailable(failed.detail)
