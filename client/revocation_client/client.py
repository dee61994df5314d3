"""What applications hold: a client that answers from memory, else from the service, else by the stated policy."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Self

from revocation_client.answers import Outcome
from revocation_client.api import Api, Feed, Service, address
from revocation_client.asking import Asking, settled
from revocation_client.counters import Counters, Tally
from revocation_client.environment import url_and_key
from revocation_client.errors import (
    ConfigurationError,
    NotStarted,
    RevocationError,
    ServiceUnavailable,
    TokenRevoked,
    WrongEventLoop,
)
from revocation_client.expiry_clock import ExpiryClock, uptime
from revocation_client.follower import Follower
from revocation_client.glance import Clock
from revocation_client.memory import Memory, MirrorStatus
from revocation_client.model import Revocation
from revocation_client.policy import OnUnavailable, Policy
from revocation_client.questions import Inquiry, bare_token, inquiry, inquiry_by_jti
from revocation_client.revoking import Revoking
from revocation_client.unusable_iat import UnusableIat
from revocation_client.verdicts import Revoked, Verdict

TIMEOUT_SECONDS: Final = 2.0
REVOKE_TIMEOUT_SECONDS: Final = 5.0
MAX_STALENESS_SECONDS: Final = 5.0

Question = str | Mapping[str, object]
"""A token, or all the claims of one."""


@dataclass(frozen=True, slots=True)
class _Open:
    """What a started client holds, on the loop that it was started on."""

    loop: asyncio.AbstractEventLoop
    service: Service
    asking: Asking
    revoking: Revoking
    follower: Follower | None

    async def aclose(self) -> None:
        try:
            if self.follower is not None:
                await self.follower.aclose()
            await self.asking.aclose()
        finally:
            await self.service.aclose()


class RevocationClient:
    """Says whether tokens are revoked, from memory where it can, else from the service; and revokes them.

    With `mirror`, the service's feed keeps the live revocations in memory. What is known to be revoked stays revoked.
    Memory says "not revoked" by itself only while the feed is connected and fresh within 3 s. Otherwise the service is
    asked; where it does not answer within a second, or with a 5xx, memory decides for at most `max_staleness_seconds`
    after it was last proven complete. After that, and without a mirror, `on_unavailable` decides: "allow" admits the
    token, "deny" does not. Without a mirror a check waits `timeout_seconds` for the service. A revocation is tried for
    `revoke_timeout_seconds` and then raises.

    Raises ConfigurationError.
    """

    _wall: Clock = staticmethod(time.time)
    _uptime: Clock = staticmethod(uptime)

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
        if on_unavailable not in ("allow", "deny"):
            raise ConfigurationError("on_unavailable", 'must be "allow" or "deny"')
        _positive("max_staleness_seconds", max_staleness_seconds)
        self._address = address(url, api_key)
        self._timeout_seconds = _positive("timeout_seconds", timeout_seconds)
        self._revoke_timeout_seconds = _positive("revoke_timeout_seconds", revoke_timeout_seconds)
        self._on_unavailable = on_unavailable
        self._tally = Tally()
        self._policy = Policy(on_unavailable, self._tally, time.monotonic)
        self._unusable_iat = UnusableIat(self._tally, time.monotonic)
        expiry_clock = ExpiryClock(self._wall, self._uptime)
        memory = Memory(max_staleness_seconds, self._tally, self._wall, time.monotonic, expiry_clock=expiry_clock)
        self._memory = memory if mirror else None
        self._admits_here: Callable[[object], bool] = lambda _question: False
        """The glance that nearly every check takes, in the thread of the event loop."""
        self._open: _Open | None = None

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client of REVOCATION_URL with REVOCATION_API_KEY, or the key in the file REVOCATION_API_KEY_FILE.

        Raises ConfigurationError.
        """
        url, api_key = url_and_key()
        return cls(url, api_key=api_key, **options)

    def __repr__(self) -> str:
        state = "started" if self._open else "not started"
        return f"{type(self).__name__}({self._address!r}, on_unavailable={self._on_unavailable!r}, {state})"

    @property
    def counters(self) -> Counters:
        """What the client has done so far."""
        return self._tally.snapshot(0 if self._memory is None else self._memory.glance.admitted)

    def _connect(self) -> Service:
        return Api(self._address)

    def _feed(self, service: Service) -> Feed | None:
        return service if isinstance(service, Api) else None

    async def start(self) -> None:
        """Make ready on the running event loop. Returns immediately: connecting happens in the background.

        Raises WrongEventLoop if it is started on another one.
        """
        loop = asyncio.get_running_loop()
        if self._open is not None and not self._open.loop.is_closed():
            self._started()
            return
        service = self._connect()
        asking = Asking(service, self._timeout_seconds, self._tally)
        revoking = Revoking(service, self._revoke_timeout_seconds, self._timeout_seconds, self._tally)
        self._open = _Open(loop, service, asking, revoking, self._follower(service))
        if self._memory is not None:
            self._memory.glance.thread = get_ident()
            self._admits_here = self._memory.glance.admits_here

    def _follower(self, service: Service) -> Follower | None:
        feed = self._feed(service)
        if self._memory is None or feed is None:
            return None
        follower = Follower(feed, self._memory, self._tally, wall=self._wall, monotonic=time.monotonic)
        follower.start()
        return follower

    async def aclose(self) -> None:
        """Close the connections; a closed client can be started again, on any event loop."""
        if self._open is None:
            return
        opened = self._open if self._open.loop.is_closed() else self._started()
        self._open = None
        if self._memory is not None:
            self._memory.mark_unproven()
        if not opened.loop.is_closed():  # else its connections went with it
            await opened.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """The lifespan of an application that needs no other: `FastAPI(lifespan=client.lifespan)`."""
        async with self:
            yield

    def _started(self) -> _Open:
        opened = self._open
        if opened is None:
            raise NotStarted
        if opened.loop is not asyncio.get_running_loop():
            raise WrongEventLoop
        return opened

    async def check(self, question: Question, token: str | None = None) -> Verdict:
        """Return whether a token is revoked.

        `question` is all the claims of the token, verified by the application: `jti`, `sid`, `sub`, `client_id` (or
        `azp`) and `iat` count. With them, `token` names a token whose claims have no usable `jti`. Or `question` is
        the token itself, with or without `Bearer `.
        Raises TokenNeeded, RequestRefused, UnexpectedAnswer, NotStarted, WrongEventLoop.
        """
        outcome = await self._ask(inquiry(question, token))
        return self._policy.verdict(outcome) if isinstance(outcome, ServiceUnavailable) else outcome

    async def check_many(self, questions: Iterable[Question]) -> list[Verdict]:
        """The verdicts in order; the first error in it is raised, after all have been answered.

        To hear of each error, gather single checks: they are sent as one batch too.
        """
        return await self._verdicts([inquiry(question) for question in questions])

    async def check_jti(self, jti: str) -> Verdict:
        """Whether this `jti` itself is revoked, where nothing else is known of the token.

        Revocations of its session, subject or client are not looked at.
        """
        (verdict,) = await self._verdicts([inquiry_by_jti(jti)])
        return verdict

    async def is_revoked(self, question: Question, token: str | None = None) -> bool:
        """Return whether a token is revoked; raises as `check` does."""
        if self._admits_here(question):
            return False
        return (await self.check(question, token)).revoked

    def is_revoked_now(self, question: Question, token: str | None = None) -> bool | None:
        """Return the same at once and in any thread, from memory alone; None if the service would have to be asked.

        It has to be asked while the feed is not connected or not fresh, and whether a whole token, instead of claims,
        is not revoked. Raises TokenNeeded, RequestRefused, NotStarted.
        """
        if self._open is None:
            raise NotStarted
        if self._memory is None:
            return None
        if self._memory.glance.admits(question):
            return False
        verdict = self._remembered(inquiry(question, token))
        return None if verdict is None else verdict.revoked

    async def ensure_active(self, question: Question, token: str | None = None) -> None:
        """Return only if the token is not revoked.

        Raises TokenRevoked; ServiceUnavailable where nothing is known of the token and `on_unavailable="deny"`; and
        as `check` does.
        """
        if self._admits_here(question):
            return
        outcome = await self._ask(inquiry(question, token))
        if isinstance(outcome, ServiceUnavailable):
            if self._policy.verdict(outcome).revoked:
                raise outcome.again()
        elif outcome.revoked:
            raise TokenRevoked(outcome)

    async def verify_access(self) -> None:
        """Return only if the service answers, and lets this client check tokens; for applications that fail at start.

        Raises RequestRefused (401 or 403: the API key), ServiceUnavailable, UnexpectedAnswer.
        """
        asked = self._started().asking.ask(inquiry_by_jti("verify-access"), memory_can_decide=False)
        outcome = await settled(asked)
        if isinstance(outcome, RevocationError):
            raise outcome.again()

    @property
    def mirror_status(self) -> MirrorStatus | None:
        """State of the memory at this moment; None with `mirror=False`."""
        follower = self._open.follower if self._open else None
        return None if self._memory is None else self._memory.status(follower.last_error if follower else None)

    async def mirror_ready(self, timeout_seconds: float | None = None) -> bool:
        """Wait, at most so long, until the memory has been synced for the first time; return whether it has.

        Nothing needs this: until then the service is asked. With `mirror=False` it is False at once.
        """
        follower = self._started().follower
        return False if follower is None else await follower.ready(timeout_seconds)

    async def _ask(self, asked: Inquiry) -> Verdict | ServiceUnavailable:
        opened = self._started()
        known = self._remembered(asked)
        return self._known(await settled(self._outcome(opened, asked)), asked) if known is None else known

    def _remembered(self, asked: Inquiry) -> Verdict | None:
        verdict = None if self._memory is None else self._memory.verdict(asked)
        if verdict is not None:
            self._tally.add("checks")
            self._unusable_iat.look(verdict)
        return verdict

    def _outcome(self, opened: _Open, asked: Inquiry) -> asyncio.Future[Outcome]:
        can_decide = self._memory is not None and self._memory.can_decide(asked)
        return opened.asking.ask(asked, memory_can_decide=can_decide)

    async def _verdicts(self, inquiries: list[Inquiry]) -> list[Verdict]:
        opened = self._started()
        remembered = [self._remembered(one) for one in inquiries]
        answers = [
            self._outcome(opened, one) for one, known in zip(inquiries, remembered, strict=True) if known is None
        ]
        try:
            outcomes = iter([await settled(one) for one in answers])
        finally:
            for one in answers:  # where the caller was cancelled
                one.cancel()
        found = [
            self._known(next(outcomes), one) if known is None else known
            for one, known in zip(inquiries, remembered, strict=True)
        ]
        return [self._policy.verdict(one) if isinstance(one, ServiceUnavailable) else one for one in found]

    def _known(self, outcome: Outcome, asked: Inquiry) -> Verdict | ServiceUnavailable:
        """Return what is known after the service was asked, and count it; raise an error that is not an outage.

        What memory has meanwhile learned to be revoked is revoked, whatever the service said. Where the service does
        not answer, memory decides if it may.
        """
        if isinstance(outcome, Verdict):
            self._policy.answered()
            if self._open is not None and self._open.follower is not None:
                self._open.follower.service_answers()
        self._tally.add("checks")
        learned = None
        if self._memory is not None and isinstance(outcome, ServiceUnavailable):
            learned = self._memory.fallback(asked)
        elif self._memory is not None and isinstance(outcome, Verdict) and not outcome.revoked:
            learned = self._memory.revoked(asked)
        if learned is not None:
            self._unusable_iat.look(learned)
            return learned
        if isinstance(outcome, Verdict):
            self._tally.add("revoked" if outcome.revoked else "not_revoked")
            self._unusable_iat.look(outcome)
        elif not isinstance(outcome, ServiceUnavailable):
            self._tally.add("failed")
            raise outcome.again()
        return outcome

    async def revoke(
        self, token: str, *, exp: float | None = None, expires_in: float | None = None, reason: str | None = None
    ) -> Revoked:
        """Revoke one token, given whole; it is safely stored when this returns.

        One that is no JWT, or has no `exp`, needs `exp` (epoch seconds) or `expires_in` (seconds).
        Raises RequestRefused, UnexpectedAnswer, and ServiceUnavailable where nothing is promised.
        """
        return await self._revoke(token=bare_token(token), exp=exp, expires_in=expires_in, reason=reason)

    async def revoke_jti(
        self, jti: str | int, *, exp: float | None = None, expires_in: float | None = None, reason: str | None = None
    ) -> Revoked:
        """Revoke the token with this `jti`, until its `exp`; without that, for as long as any token may live."""
        return await self._revoke(jti=jti, exp=exp, expires_in=expires_in, reason=reason)

    async def revoke_session(
        self,
        sid: str | int,
        *,
        issued_before: float | None = None,
        expires_in: float | None = None,
        reason: str | None = None,
    ) -> Revoked:
        """Revoke all tokens of a session; with `issued_before`, those issued until then.

        `expires_in` is the lifetime of the revocation, in seconds, as for `revoke_subject`.
        """
        return await self._revoke(sid=sid, issued_before=issued_before, expires_in=expires_in, reason=reason)

    async def revoke_subject(
        self,
        sub: str | int,
        *,
        issued_before: float | None = None,
        expires_in: float | None = None,
        reason: str | None = None,
    ) -> Revoked:
        """Revoke all tokens of a subject issued until now, or until `issued_before`: log out everywhere.

        "Now" is the moment at which the service stores the revocation. After a retry it is the moment of the last try.

        The revocation ends after `expires_in` seconds, or after the longest token lifetime that the service is
        configured for. Give at least the lifetime of your longest token: one that lives longer is accepted again.
        """
        return await self._revoke(sub=sub, issued_before=issued_before, expires_in=expires_in, reason=reason)

    async def revoke_client(
        self,
        client_id: str | int,
        *,
        issued_before: float | None = None,
        expires_in: float | None = None,
        reason: str | None = None,
    ) -> Revoked:
        """Revoke all tokens of a client issued until now, or until `issued_before`; needs the scope admin.

        `expires_in` is the lifetime of the revocation, in seconds, as for `revoke_subject`.
        """
        return await self._revoke(
            client_id=client_id, issued_before=issued_before, expires_in=expires_in, reason=reason
        )

    async def revoke_all(
        self, *, issued_before: float | None = None, expires_in: float | None = None, reason: str | None = None
    ) -> Revoked:
        """Revoke every token issued until now, or until `issued_before`; needs the scope admin.

        `expires_in` is the lifetime of the revocation, in seconds, as for `revoke_subject`.
        """
        return await self._revoke(all=True, issued_before=issued_before, expires_in=expires_in, reason=reason)

    async def _revoke(self, **members: object) -> Revoked:
        form = {name: value for name, value in members.items() if value is not None}
        done = await self._started().revoking.revoke(form)
        if self._memory is not None and done.result != "expired":
            self._memory.learn(Revocation(done.claim, done.value, done.expires_at, done.revoked_at, done.issued_before))
        return done


def _positive(setting: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ConfigurationError(setting, "must be a number of seconds above 0")
    return seconds
