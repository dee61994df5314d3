"""What can go wrong, as one tree. Pure; knows no HTTP.

    RevocationError
    ├── TokenRevoked          the token is revoked; .verdict says by what
    ├── TokenNeeded           the claims give the token no name of its own: pass the token with them
    ├── NotStarted            the client was not started, or is closed
    ├── WrongEventLoop        it was started on another event loop
    ├── ConfigurationError    .setting is wrong
    ├── RequestRefused        a 4xx: .status, .code, .detail; the same again will not help
    ├── UnexpectedAnswer      what answered is not the service, or not understood: .status, .detail
    └── ServiceUnavailable    no answer or a 5xx: .status, .code, .retry_after_seconds; nothing is promised

Only TokenRevoked says that a token is revoked, and no error says that one is not. None ever holds a token or a key.
"""

from typing import Self

from revocation_client.verdicts import Verdict

NOT_STARTED = (
    "the client is not started, or is closed: give its lifespan to the application, FastAPI(lifespan=client.lifespan),"
    " or write `async with client:`; Starlette's TestClient runs a lifespan only as `with TestClient(app):`"
)
WRONG_EVENT_LOOP = (
    "the client was started on another event loop, and its connections belong to that one: make a client for each loop"
)


class RevocationError(Exception):
    """The root. `args` are the arguments of the constructor, so that every error can be pickled."""

    def again(self) -> Self:
        """The same once more: an error that several callers are told is raised by each as its own."""
        return type(self)(*self.args)


class TokenRevoked(RevocationError):
    """The token is revoked."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict

    def __str__(self) -> str:
        claim = self.verdict.revocation.claim if self.verdict.revocation else None
        return f"the token is revoked by its {claim}" if claim else "the token is revoked"


class TokenNeeded(RevocationError):
    """These claims do not name their token, and the token was not passed with them."""

    def __init__(self, detail: str = "the claims have no jti of their own: pass the token with them") -> None:
        super().__init__(detail)
        self.detail = detail


class NotStarted(RevocationError):
    """The client has no connections, because it was not started, or is closed."""

    def __init__(self, detail: str = NOT_STARTED) -> None:
        super().__init__(detail)
        self.detail = detail


class WrongEventLoop(RevocationError):
    """The client belongs to another event loop."""

    def __init__(self, detail: str = WRONG_EVENT_LOOP) -> None:
        super().__init__(detail)
        self.detail = detail


class ConfigurationError(RevocationError):
    """A setting is missing or wrong."""

    def __init__(self, setting: str, detail: str) -> None:
        super().__init__(setting, detail)
        self.setting = setting
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.setting} {self.detail}"


class RequestRefused(RevocationError):
    """The service refuses the request (4xx), or would: a wrong API key, a malformed question, a bad token."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status, code, detail)
        self.status = status
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"


class UnexpectedAnswer(RevocationError):
    """What answered is not the service, or says what this client does not understand; it is taken for nothing."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail, status)
        self.detail = detail
        self.status = status

    def __str__(self) -> str:
        return self.detail if self.status is None else f"{self.detail} (status {self.status})"


class ServiceUnavailable(RevocationError):
    """The service did not answer in time, or answered 5xx. A revocation may or may not have been stored."""

    def __init__(
        self,
        detail: str,
        status: int | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(detail, status, code, retry_after_seconds, attempts)
        self.detail = detail
        self.status = status
        """The 5xx; None where there was no answer."""
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.attempts = attempts

    def __str__(self) -> str:
        tried = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"the revocation service is unavailable{tried}: {self.detail}"
