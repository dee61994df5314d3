"""The drop-in for a blacklist inside the process: the same class, instance and methods, and the service behind them.

An application changes one import, and shares the revocations with every other process.
"""

import logging
from typing import Any, Final

from revocation_client.client import RevocationClient
from revocation_client.environment import api_key, url_and_key
from revocation_client.errors import NotStarted, RevocationError

GIVE_UP_SECONDS: Final = 2.0
"""How long a call may take: callers of the old module expect the latency of a local Redis."""

_log = logging.getLogger("revocation_client")
_REDIS: Final = ("redis", "unix:", "valkey")


class TokenBlacklist:
    """`prefix`, `init`, `close`, `blacklist_token` and `is_blacklisted`, with the failure behaviour of such modules.

    The two token methods never raise a RevocationError. Where the service is away, refuses (a wrong key, a lifetime
    that is too long), sends an answer that cannot be read, or was not initialised, they return False and log an error.
    What this process knows to be revoked stays True, and so does everything with `on_unavailable="deny"`. `options`
    are those of `RevocationClient`.
    """

    prefix = "token_blacklist:"
    """What the keys of tokens begin with in Redis, after REVOCATION_KEY_PREFIX."""

    def __init__(self, **options: Any) -> None:
        self._options = {"timeout_seconds": GIVE_UP_SECONDS, "revoke_timeout_seconds": GIVE_UP_SECONDS} | options
        self._client: RevocationClient | None = None

    @property
    def client(self) -> RevocationClient:
        """The client behind it, for all that the old interface cannot say.

        Raises NotStarted.
        """
        if self._client is None:
            raise NotStarted("the blacklist is not initialised, or is closed: `await token_blacklist.init(url)` first")
        return self._client

    async def init(self, url: str) -> None:
        """Make ready; a service that is away is asked again with each call.

        The URL is the service's, and its key comes from REVOCATION_API_KEY. A Redis URL, as the old module took it,
        stands for REVOCATION_URL.
        Raises ConfigurationError.
        """
        where, key = url_and_key() if url.startswith(_REDIS) else (url, api_key())
        client = RevocationClient(where, api_key=key, **self._options)
        await client.start()
        before, self._client = self._client, client
        if before is not None:
            await before.aclose()

    async def close(self) -> None:
        """Close the connections; nothing happens if there are none."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def blacklist_token(self, jti: str, expires_in: float) -> bool:
        """Revoke the token with this `jti` for so many seconds; return True only if that is safely stored.

        A token that has expired is a success. Every failure is False and a line in the log.
        """
        try:
            await self.client.revoke_jti(jti, expires_in=max(0, expires_in))
        except (RevocationError, TypeError) as error:
            _log.error("token_not_blacklisted detail=%s", error)
            return False
        return True

    async def is_blacklisted(self, jti: str) -> bool:
        """Return whether this `jti` is revoked; while the service is away, what is remembered, else `on_unavailable`.

        Every other failure is False and a line in the log.
        """
        try:
            return (await self.client.check_jti(jti)).revoked
        except RevocationError as error:
            _log.error("token_not_checked detail=%s", error)
            return False


token_blacklist: Final = TokenBlacklist()
