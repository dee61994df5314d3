"""HTTP to the service, over one aiohttp session that belongs to one event loop. It does not interpret answers."""

import re
from collections.abc import AsyncGenerator, Awaitable
from typing import Final, TypeVar
from urllib.parse import urlsplit

import aiohttp

from revocation_client.answers import Answer, failure
from revocation_client.errors import (
    ConfigurationError,
    NotStarted,
    RevocationError,
    ServiceUnavailable,
    UnexpectedAnswer,
)

KEEPALIVE_SECONDS: Final = 30.0
"""Shorter than the service's 40 s, so that the service rarely closes a kept connection first."""

ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024
"""Bound of an answer: that of a batch of 1,000 checks, with the longest texts, is smaller."""

_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.IGNORECASE)

Result = TypeVar("Result")


class ConnectionBroken(ServiceUnavailable):
    """The connection ended before the answer came: the instance went away. A retry may reach another instance."""


class Http:
    """The service over HTTP: kept connections, no redirects, no cookies, nothing from the environment.

    No exception of aiohttp leaves this class, not even as a context, because its `request_info` holds the API key.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        """Open a session on the running event loop. Nothing is connected yet."""
        self._url = url.rstrip("/")
        authorization = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=KEEPALIVE_SECONDS),
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json", **authorization},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),  # each call has its own; the feed is endless
        )

    async def aclose(self) -> None:
        """Close the session and its connections."""
        await self._session.close()

    async def post(self, path: str, body: bytes) -> Answer:
        """Post JSON; return the answer. Raises ServiceUnavailable, UnexpectedAnswer, NotStarted."""
        if self._session.closed:
            raise NotStarted
        return await _told(self._post(path, body))

    async def _post(self, path: str, body: bytes) -> Answer:
        async with self._session.post(f"{self._url}/{path}", data=body, allow_redirects=False) as response:
            return await _whole(response)

    async def feed(self, cursor: str | None) -> AsyncGenerator[bytes]:
        """Yield the raw bytes of the feed, resumed at `cursor`, until it ends.

        Raises RequestRefused, ServiceUnavailable, UnexpectedAnswer.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        response = await _told(self._session.get(f"{self._url}/feed", headers=headers, allow_redirects=False))
        try:
            encoded = response.headers.get("Content-Encoding", "identity") != "identity"
            if response.status != 200 or response.content_type != "text/event-stream" or encoded:
                failed = None if response.status == 200 else failure(await _told(_whole(response)))
                raise failed or UnexpectedAnswer("the answer is no event stream: this is not the service's feed", 200)
            while chunk := await _told(response.content.readany()):
                yield chunk
        finally:
            response.close()


def check_address(url: str, api_key: str | None) -> None:
    """Raise ConfigurationError for a malformed URL or API key."""
    if api_key is not None and not re.fullmatch("[!-~]+", api_key):
        raise ConfigurationError("api_key", "must be one word of printable ASCII characters")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # which each connection would do, and fail at
        good = _URL.fullmatch(url) and url.isprintable() and host and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        good = False
    if not good:
        raise ConfigurationError("url", "must be http:// or https:// and a host, without user, query and fragment")


async def _whole(response: aiohttp.ClientResponse) -> Answer:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            raise UnexpectedAnswer("the answer is larger than any of the service's", response.status)
    return Answer(response.status, response.content_type, bytes(body), response.headers.get("Retry-After"))


async def _told(exchange: Awaitable[Result]) -> Result:
    """Await an exchange, and turn aiohttp's errors into ours, which are raised after `except` to have no context."""
    try:
        return await exchange
    except (aiohttp.ClientError, OSError) as error:
        failed = _failed(error)
    raise failed


def _failed(error: Exception) -> RevocationError:
    """Return ServiceUnavailable if there was no answer, or UnexpectedAnswer if the service did not send it."""
    if isinstance(error, aiohttp.ClientSSLError):
        return UnexpectedAnswer("the server speaks no TLS, or its certificate is not trusted")
    if isinstance(error, aiohttp.ClientResponseError):
        return UnexpectedAnswer("the server speaks no HTTP")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ServiceUnavailable(f"no connection ({error.os_error.strerror or type(error.os_error).__name__})")
    return ConnectionBroken(f"the connection broke off ({type(error).__name__})")
