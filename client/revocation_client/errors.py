"""The errors of the client. Pure.

Only TokenRevoked means that a token is revoked. No error means "not revoked". No error holds a whole token or a key.
"""

from dataclasses import dataclass, fields
from typing import Self

from revocation_client.results import Verdict


@dataclass(eq=False)
class RevocationError(Exception):
    """The base class of the client's errors."""

    def __post_init__(self) -> None:
        """Pass the fields on to Exception, so that the error can be pickled."""
        super().__init__(*[getattr(self, field.name) for field in fields(self)])

    def again(self) -> Self:
        """Return a copy. Each caller that shares a failure raises its own, so that tracebacks do not accumulate."""
        return type(self)(*self.args)


@dataclass(eq=False)
class TokenRevoked(RevocationError):
    """The token is revoked."""

    verdict: Verdict

    def __str__(self) -> str:
        claim = self.verdict.revocation.claim if self.verdict.revocation else None
        return f"the token is revoked by its {claim}" if claim else "the token is revoked"


@dataclass(eq=False)
class TokenNeeded(RevocationError):
    """The claims have no usable `jti`, and the token was not passed with them."""

    detail: str = "the claims have no usable jti: pass the token with them"


@dataclass(eq=False)
class NotStarted(RevocationError):
    """The client has no connections on this event loop: it was not started on it, or is closed."""

    detail: str = (
        "the client is not started on this event loop, or is closed: use FastAPI(lifespan=client.lifespan), or"
        " `async with client:`; Starlette's TestClient runs a lifespan only as `with TestClient(app):`"
    )


@dataclass(eq=False)
class ConfigurationError(RevocationError):
    """A setting is missing or wrong."""

    setting: str
    detail: str

    def __str__(self) -> str:
        return f"{self.setting} {self.detail}"


@dataclass(eq=False)
class RequestRefused(RevocationError):
    """The service refused the request (4xx), or would refuse it: a wrong API key, a malformed question, a bad token."""

    status: int
    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"


@dataclass(eq=False)
class UnexpectedAnswer(RevocationError):
    """The answer is not the service's, or this client does not understand it. Nothing is concluded from it."""

    detail: str
    status: int | None = None

    def __str__(self) -> str:
        return self.detail if self.status is None else f"{self.detail} (status {self.status})"


@dataclass(eq=False)
class ServiceUnavailable(RevocationError):
    """The service did not answer in time, or answered 5xx (`status`). A revocation may or may not have been stored."""

    detail: str
    status: int | None = None
    code: str | None = None
    retry_after_seconds: float | None = None
    attempts: int = 1

    def __str__(self) -> str:
        tried = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"the revocation service is unavailable{tried}: {self.detail}"
