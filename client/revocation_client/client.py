"""What applications hold: a client that asks the service, or else says what was stated for its absence."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from revocation_client.answers import Outcome
from revocation_client.api import Api, Service, address
from revocation_client.coalescing import Batches
from revocation_client.counters import Counters, Tally
from revocation_client.environment import url_and_key
from revocation_client.errors import ConfigurationError, NotStarted, ServiceUnavailable, TokenRevoked, WrongEventLoop
from revocation_client.policy import OnUnavailable, Policy
from revocation_client.questions import Inquiry, bare_token, inquiry, inquiry_by_jti
from revocation_client.revoking import Revoking
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
    batches: Batches
    revoking: Revoking

    async def aclose(self) -> None:
        await self.batches.aclose()
        await self.service.aclose()


class RevocationClient:
    """Asks a revocation service whether tokens are revoked, and revokes them.

    `on_unavailable` says what becomes of a check that the service does not answer within `timeout_seconds`, or with
    a 5xx: "allow" admits the token, "deny" does not. A revocation is tried for `revoke_timeout_seconds` and then
    raises. `mirror` and `max_staleness_seconds` have no effect yet: every check asks the service.

    Raises ConfigurationError.
    """

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
        self._mirror = mirror
        self._on_unavailable = on_unavailable
        self._tally = Tally()
        self._policy = Policy(on_unavailable, self._tally, time.monotonic)
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
        return self._tally.snapshot()

    def _connect(self) -> Service:
        return Api(self._address)

    async def start(self) -> None:
        """Make ready on the running event loop. Nothing is asked yet: the service may be away.

        Raises WrongEventLoop if it is started on another one.
        """
        loop = asyncio.get_running_loop()
        if self._open is not None and not self._open.loop.is_closed():
            self._started()
            return
        service = self._connect()
        batches = Batches(service, self._timeout_seconds, self._tally)
        revoking = Revoking(service, self._revoke_timeout_seconds, self._timeout_seconds, self._tally)
        self._open = _Open(loop, service, batches, revoking)

    async def aclose(self) -> None:
        """Close the connections; a closed client can be started again, on any event loop."""
        if self._open is None:
            return
        opened = self._open if self._open.loop.is_closed() else self._started()
        self._open = None
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
        if self._open is None:
            raise NotStarted
        if self._open.loop is not asyncio.get_running_loop():
            raise WrongEventLoop
        return self._open

    async def check(self, question: Question) -> Verdict:
        """Whether a token is revoked.

        A mapping is all the claims of a token: `jti`, `sid`, `sub`, `client_id` (or `azp`) and `iat` count. A string
        is a token, with or without `Bearer `.
        Raises TokenNeeded, RequestRefused, UnexpectedAnswer, NotStarted, WrongEventLoop.
        """
        outcome = await self._ask(question)
        return self._policy.verdict(outcome) if isinstance(outcome, ServiceUnavailable) else outcome

    async def check_many(self, questions: Iterable[Question]) -> list[Verdict]:
        """The verdicts in order; the first error in it is raised, after all have been answered.

        To hear of each error, gather single checks: they travel together just the same.
        """
        return await self._verdicts([inquiry(question) for question in questions])

    async def check_jti(self, jti: str) -> Verdict:
        """Whether this `jti` itself is revoked, where nothing else is known of the token.

        Revocations of its session, subject or client are not looked at.
        """
        (verdict,) = await self._verdicts([inquiry_by_jti(jti)])
        return verdict

    async def is_revoked(self, question: Question) -> bool:
        """Whether a token is revoked; raises as `check` does."""
        return (await self.check(question)).revoked

    async def ensure_active(self, question: Question) -> None:
        """Let an application go on only if the token is not revoked.

        Raises TokenRevoked; ServiceUnavailable where the service is away and `on_unavailable="deny"`, because nobody
        knows then; and as `check` does.
        """
        outcome = await self._ask(question)
        if isinstance(outcome, ServiceUnavailable):
            if self._policy.verdict(outcome).revoked:
                raise outcome.again()
        elif outcome.revoked:
            raise TokenRevoked(outcome)

    async def _ask(self, question: Question) -> Verdict | ServiceUnavailable:
        opened = self._started()
        return self._known(await opened.batches.ask(inquiry(question)))

    async def _verdicts(self, inquiries: list[Inquiry]) -> list[Verdict]:
        opened = self._started()
        asked = [opened.batches.ask(one) for one in inquiries]
        try:
            outcomes = [await one for one in asked]
        finally:
            for one in asked:  # where the caller has gone
                one.cancel()
        found = [self._known(outcome) for outcome in outcomes]
        return [self._policy.verdict(one) if isinstance(one, ServiceUnavailable) else one for one in found]

    def _known(self, outcome: Outcome) -> Verdict | ServiceUnavailable:
        """What the service said, counted; an error is raised, unless the policy has a word to say."""
        self._tally.add("checks")
        if isinstance(outcome, Verdict):
            self._policy.answered()
            self._tally.add("revoked" if outcome.revoked else "not_revoked")
            return outcome
        if isinstance(outcome, ServiceUnavailable):
            return outcome
        self._tally.add("failed")
        raise outcome.again()

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
        self, sid: str | int, *, issued_before: float | None = None, reason: str | None = None
    ) -> Revoked:
        """Revoke all tokens of a session, for good; with `issued_before`, those issued until then."""
        return await self._revoke(sid=sid, issued_before=issued_before, reason=reason)

    async def revoke_subject(
        self, sub: str | int, *, issued_before: float | None = None, reason: str | None = None
    ) -> Revoked:
        """Revoke all tokens of a subject issued until now, or until `issued_before`: log out everywhere.

        "Now" is when the service stores it: if it had to be tried again, the last try's.
        """
        return await self._revoke(sub=sub, issued_before=issued_before, reason=reason)

    async def revoke_client(
        self, client_id: str | int, *, issued_before: float | None = None, reason: str | None = None
    ) -> Revoked:
        """Revoke all tokens given to a client, issued until now or until `issued_before`; needs the scope admin."""
        return await self._revoke(client_id=client_id, issued_before=issued_before, reason=reason)

    async def revoke_all(self, *, issued_before: float | None = None, reason: str | None = None) -> Revoked:
        """Revoke every token issued until now or until `issued_before`; needs the scope admin."""
        return await self._revoke(all=True, issued_before=issued_before, reason=reason)

    async def _revoke(self, **members: object) -> Revoked:
        form = {name: value for name, value in members.items() if value is not None}
        return await self._started().revoking.revoke(form)


def _positive(setting: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ConfigurationError(setting, "must be a number of seconds above 0")
    return seconds
