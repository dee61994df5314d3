"""The client of an application: it answers from memory, else from the service, else by the configured policy."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, Self, TypedDict, Unpack

from revocation_client.counters import Counters
from revocation_client.errors import ConfigurationError, NotStarted, ServiceUnavailable, TokenRevoked
from revocation_client.expiry_clock import ExpiryClock, uptime
from revocation_client.follower import Follower
from revocation_client.http import Http, check_address
from revocation_client.local_mirror import Clock, LocalMirror, MirrorStatus
from revocation_client.log_limit import Warnings
from revocation_client.questions import CheckRequest, check_request, check_request_by_jti
from revocation_client.results import Revoked, Verdict
from revocation_client.revocation import Revocation
from revocation_client.service_calls import Service
from revocation_client.settings import (
    MAX_STALENESS_SECONDS,
    REVOKE_TIMEOUT_SECONDS,
    TIMEOUT_SECONDS,
    api_key,
    check_seconds,
    service_url,
)

OnUnavailable = Literal["allow", "deny"]

Question = str | Mapping[str, object]
"""A token, or all the claims of one."""


class Options(TypedDict, total=False):
    """Options of a revocation.

    By default, the revocation of a whole token ends at the token's `exp`. Any other revocation ends after the longest
    token lifetime that the service allows. When a revocation ends, a covered token that lives longer is accepted: give
    it at least the lifetime of your longest token.
    """

    exp: float | None
    """When it ends, in epoch seconds."""
    expires_in: float | None
    """When it ends, in seconds from now."""
    issued_before: float | None
    """The cutoff, in epoch seconds; not for one token. The default is now; for a session, none."""
    reason: str | None


class RevocationClient:
    """Says whether tokens are revoked, and revokes them.

    The feed of the service keeps the live revocations in memory. A check is answered by the first of these that can:

    1. Memory, if it knows that the token is revoked, or if the feed is connected and was proven complete within 3 s.
    2. The service, unless it answers 5xx or too late: after a second if 3 is possible, else after `timeout_seconds`.
    3. Memory, if it was proven complete within `max_staleness_seconds`.
    4. `on_unavailable`: "allow" admits the token, "deny" refuses it.

    Memory says "not revoked" only for claims, never for a whole token. With `mirror=False` there is no memory.
    A revocation is retried for `revoke_timeout_seconds`. After that, the call raises.

    Raises ConfigurationError.
    """

    _wall: Clock = staticmethod(time.time)
    _uptime: Clock = staticmethod(uptime)
    _feeds = True
    """False for the stand-in, which has no feed."""

    def __init__(  # noqa: PLR0913 - each by its name; contract, section 8
        self,
        url: str,
        *,
        api_key: str | None = None,
        mirror: bool = True,
        max_staleness_seconds: float = MAX_STALENESS_SECONDS,
        on_unavailable: OnUnavailable = "allow",
        timeout_seconds: float = TIMEOUT_SECONDS,
        revoke_timeout_seconds: float = REVOKE_TIMEOUT_SECONDS,
    ) -> None:
        check_address(url, api_key)
        if on_unavailable not in ("allow", "deny"):
            raise ConfigurationError("on_unavailable", 'must be "allow" or "deny"')
        timeouts = {"timeout_seconds": timeout_seconds, "revoke_timeout_seconds": revoke_timeout_seconds}
        check_seconds(timeouts | {"max_staleness_seconds": max_staleness_seconds})
        self._on_unavailable = on_unavailable
        self._counters = Counters()
        self._warnings = Warnings()
        self._connect: Callable[[], Service] = lambda: Service(self._http(url, api_key), self._counters, **timeouts)
        clock = ExpiryClock(self._wall, self._uptime)
        memory = LocalMirror(max_staleness_seconds, self._counters, self._wall, time.monotonic, expiry_clock=clock)
        self._memory = memory if mirror else None
        self._service: Service | None = None
        self._follower: Follower | None = None

    def _http(self, url: str, api_key: str | None) -> Http:
        return Http(url, api_key)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Return a client for REVOCATION_URL. Its key is REVOCATION_API_KEY, or is in the file REVOCATION_API_KEY_FILE.

        Raises ConfigurationError.
        """
        return cls(service_url(), api_key=api_key(), **options)

    @property
    def counters(self) -> Counters:
        """What the client has done so far."""
        return replace(self._counters)

    async def start(self) -> None:
        """Start on the running event loop. Returns immediately: connecting happens in the background.

        Raises NotStarted if the client is already started on another event loop.
        """
        if self._service is not None and not self._service.loop.is_closed():
            self._started()
            return
        if self._memory is not None:
            self._memory.mark_unproven()  # a loop that was closed took its feed with it
        self._service = self._connect()
        if self._memory is not None and self._feeds:
            feed = self._service.http.feed
            self._follower = Follower(feed, self._memory, self._counters, wall=self._wall, monotonic=time.monotonic)
            self._follower.start()

    async def aclose(self) -> None:
        """Close the connections. A closed client can be started again, on any event loop."""
        if self._service is None or self._service.loop.is_closed():  # a closed loop took its connections with it
            return
        service, follower = self._started(), self._follower
        self._service = self._follower = None
        if self._memory is not None:
            self._memory.mark_unproven()
        async with aclosing(service):
            if follower is not None:
                await follower.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Run the client as the lifespan of an application: `FastAPI(lifespan=client.lifespan)`."""
        async with self:
            yield

    def _started(self) -> Service:
        if self._service is None or self._service.loop is not asyncio.get_running_loop():
            raise NotStarted
        return self._service

    async def check(self, question: Question, token: str | None = None) -> Verdict:
        """Return whether a token is revoked, and by what.

        `question` is either the token, with or without `Bearer `, or all its claims, which the application has
        verified. The claims `jti`, `sid`, `sub`, `client_id` (or `azp`) and `iat` are used. If they have no usable
        `jti`, pass the token as `token` too.
        Raises TokenNeeded, RequestRefused, UnexpectedAnswer, NotStarted.
        """
        return await self._decide(check_request(question, token))

    async def check_many(self, questions: Iterable[Question]) -> list[Verdict]:
        """Return the verdicts, in order. Raises the first error."""
        return list(await asyncio.gather(*map(self.check, questions)))

    async def check_jti(self, jti: str) -> Verdict:
        """Return whether this `jti` is revoked. Use this if nothing else is known of the token.

        Revocations by session, subject, client or `all` are not considered.
        """
        return await self._decide(check_request_by_jti(jti))

    async def is_revoked(self, question: Question, token: str | None = None) -> bool:
        """Return whether a token is revoked. Raises as `check` does."""
        self._started()  # first, or it would be raised only while memory does not answer
        if self._memory is not None and self._memory.admits(question):
            return False
        return (await self.check(question, token)).revoked

    def is_revoked_now(self, question: Question, token: str | None = None) -> bool | None:
        """Return whether a token is revoked, from memory alone; None if the service has to be asked.

        Returns at once, in any thread. True does not need a fresh feed. False is only returned for claims, and only
        while the feed is connected, fresh and complete. Raises TokenNeeded, RequestRefused, NotStarted.
        """
        if self._service is None:
            raise NotStarted
        if self._memory is None:
            return None
        if self._memory.admits(question):
            return False
        verdict = self._memory.verdict(check_request(question, token))
        return None if verdict is None else self._counted(verdict).revoked

    async def ensure_active(self, question: Question, token: str | None = None) -> None:
        """Raise TokenRevoked if a token is revoked.

        Raises ServiceUnavailable if neither memory nor the service can decide, and `on_unavailable` is "deny".
        Otherwise raises as `check` does.
        """
        self._started()  # first, or it would be raised only while memory does not answer
        if self._memory is not None and self._memory.admits(question):
            return
        verdict = await self._decide(check_request(question, token), deny_raises=True)
        if verdict.revoked:
            raise TokenRevoked(verdict)

    async def verify_access(self) -> None:
        """Raise unless the service answers and lets this client check tokens. Call this to fail early, at start.

        Raises RequestRefused (401 or 403 if the API key is refused), ServiceUnavailable, UnexpectedAnswer.
        """
        await self._started().check(check_request_by_jti("verify-access"), memory_can_decide=False)

    @property
    def mirror_status(self) -> MirrorStatus | None:
        """State of the memory at this moment; None with `mirror=False`."""
        return None if self._memory is None else self._memory.status()

    async def mirror_ready(self, timeout_seconds: float | None = None) -> bool:
        """Wait at most `timeout_seconds` until the memory is in sync for the first time. Return whether it was.

        No call needs this: until then the service is asked. With `mirror=False` it returns False immediately.
        """
        self._started()
        return self._follower is not None and await self._follower.ready(timeout_seconds)

    async def _decide(self, asked: CheckRequest, *, deny_raises: bool = False) -> Verdict:
        """Return the verdict of memory or the service. If neither decides, apply `on_unavailable` and log it.

        With `deny_raises`, "deny" raises ServiceUnavailable instead of returning "revoked".
        """
        try:
            return self._counted(await self._ask(asked))
        except ServiceUnavailable as error:
            denied = self._on_unavailable == "deny"
            self._counters.policy_denied += denied
            self._counters.policy_allowed += not denied
            self._warnings.warn("revocation_service_unavailable", f"policy={self._on_unavailable} detail={error}")
            if denied and deny_raises:
                raise
            return Verdict(revoked=denied, source="policy")

    async def _ask(self, asked: CheckRequest) -> Verdict:
        """Ask memory, then the service, then less fresh memory. Raises ServiceUnavailable if none of them decides."""
        service, memory = self._started(), self._memory
        if memory is None:
            return await service.check(asked, memory_can_decide=False)
        if (known := memory.verdict(asked)) is not None:
            return known
        try:
            said = await service.check(asked, memory_can_decide=memory.can_decide(asked))
        except ServiceUnavailable:
            if (known := memory.verdict(asked, alone=False)) is not None:
                return known
            raise
        return memory.compared(asked, said)

    def _counted(self, verdict: Verdict) -> Verdict:
        if verdict.iat_unusable and verdict.revocation is not None:
            self._counters.iat_unusable += 1
            self._warnings.warn("iat_unusable", f"claim={verdict.revocation.claim}")
        return verdict

    async def revoke(self, token: str, **options: Unpack[Options]) -> Revoked:
        """Revoke one token, which is passed whole. The revocation is safely stored when this returns.

        If the token is no JWT, or has no `exp`, pass `exp` or `expires_in`.
        Raises RequestRefused, UnexpectedAnswer, and ServiceUnavailable (the revocation may or may not be stored).
        """
        return await self._revoke(token=token, **options)

    async def revoke_jti(self, jti: str | int, **options: Unpack[Options]) -> Revoked:
        """Revoke the token with this `jti`."""
        return await self._revoke(jti=jti, **options)

    async def revoke_session(self, sid: str | int, **options: Unpack[Options]) -> Revoked:
        """Revoke all tokens of a session; with `issued_before`, only those issued until that time."""
        return await self._revoke(sid=sid, **options)

    async def revoke_subject(self, sub: str | int, **options: Unpack[Options]) -> Revoked:
        """Revoke all tokens of a subject issued until now, or until `issued_before`: log out everywhere.

        "Now" is the moment at which the service stores the revocation; after retries, the last attempt counts.
        """
        return await self._revoke(sub=sub, **options)

    async def revoke_client(self, client_id: str | int, **options: Unpack[Options]) -> Revoked:
        """Revoke all tokens of a client issued until now, or until `issued_before`; needs the scope admin."""
        return await self._revoke(client_id=client_id, **options)

    async def revoke_all(self, **options: Unpack[Options]) -> Revoked:
        """Revoke every token issued until now, or until `issued_before`; needs the scope admin."""
        return await self._revoke(all=True, **options)

    async def _revoke(self, **members: object) -> Revoked:
        service = self._started()
        try:
            done = await service.revoke({name: value for name, value in members.items() if value is not None})
        except BaseException:
            self._counters.revocations_failed += 1
            raise
        self._counters.revocations += 1
        if self._memory is not None and done.result != "expired":
            self._memory.learn(Revocation(done.claim, done.value, done.expires_at, done.revoked_at, done.issued_before))
        return done
