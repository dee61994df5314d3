"""A drop-in for an in-process blacklist: an application changes one import, and keeps its calls."""

import logging
from typing import Any, Final

from revocation_client.client import RevocationClient
from revocation_client.errors import NotStarted, RevocationError
from revocation_client.settings import api_key, service_url

GIVE_UP_SECONDS: Final = 2.0
"""How long a call may take: callers of the old module expect the latency of a local Redis."""

_log = logging.getLogger("revocation_client")


class TokenBlacklist:
    """The interface of an in-process blacklist, with its failure behaviour; `options` are those of `RevocationClient`.

    The two token methods never raise a RevocationError. If the service refuses the key, its answer cannot be read, or
    `init` was not called, they return False and log an error. While the service is away, `blacklist_token` does the
    same. `is_blacklisted` then returns what memory says. If memory cannot tell, it applies `on_unavailable` and logs a
    warning. Once `init` has run, `is_blacklisted` returns True whenever memory knows the `jti` to be revoked.
    """

    prefix = "token_blacklist:"
    """Prefix of the keys of tokens in Redis, after REVOCATION_KEY_PREFIX."""

    def __init__(self, **options: Any) -> None:
        self._options = {"timeout_seconds": GIVE_UP_SECONDS, "revoke_timeout_seconds": GIVE_UP_SECONDS} | options
        self._client: RevocationClient | None = None

    @property
    def client(self) -> RevocationClient:
        """The client behind it, for what the old interface cannot express. Raises NotStarted."""
        if self._client is None:
            raise NotStarted("the blacklist is not initialised, or is closed: `await token_blacklist.init(url)` first")
        return self._client

    async def init(self, url: str) -> None:
        """Start, with the service's URL and the key that `from_env` takes. Raises ConfigurationError.

        If `url` is a Redis URL, as for the old module, REVOCATION_URL is used instead. A service
        that is away raises no error: each later call asks it again.
        """
        where = service_url() if url.startswith(("redis", "unix:", "valkey")) else url
        client = RevocationClient(where, api_key=api_key(), **self._options)
        await client.start()
        before, self._client = self._client, client
        if before is not None:
            await before.aclose()

    async def close(self) -> None:
        """Close the connections, if there are any."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def blacklist_token(self, jti: str, expires_in: float) -> bool:
        """Revoke this `jti` for `expires_in` seconds. Return True only if that is safely stored, or has expired."""
        try:
            await self.client.revoke_jti(jti, expires_in=max(expires_in, 0))  # NaN stays NaN, which is refused
        except (RevocationError, TypeError) as error:
            _log.error("token_not_blacklisted detail=%s", error)
            return False
        return True

    async def is_blacklisted(self, jti: str) -> bool:
        """Return whether this `jti` is revoked. While the service is away, memory decides, or else `on_unavailable`."""
        try:
            return (await self.client.check_jti(jti)).revoked
        except RevocationError as error:
            _log.error("token_not_checked detail=%s", error)
            return False


token_blacklist: Final = TokenBlacklist()
