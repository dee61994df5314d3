"""What can go wrong, as one tree; it knows codes and details, and nothing of HTTP.

    ServiceError
    ├── SettingsError           the start is refused: a setting is wrong, or the machine cannot do what it asks
    ├── WatchFailed             `watch` gets no feed, or none any more
    ├── RequestError            the caller's doing; sending the same again will not help
    │   ├── InvalidRequest
    │   ├── InvalidToken
    │   ├── UnsupportedToken
    │   ├── ExpRequired
    │   ├── ExpTooFar
    │   ├── IssuedBeforeTooFar
    │   └── NoSuchRevocation
    ├── CallerError             who may call
    │   ├── Unauthorized
    │   ├── InsufficientScope
    │   └── ProtectedMode
    └── Unavailable             nothing is promised; the same again may succeed later
        ├── StoreUnavailable
        ├── KeysUnavailable
        ├── FeedUnavailable
        └── TooManySubscribers

`code` is stable and part of the contract; `detail` is for people and never holds a token or a key.
"""

from typing import ClassVar


class ServiceError(Exception):
    """The root: every error of the service has a stable `code` and a `detail` for a person."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class SettingsError(ServiceError):
    """The service cannot start as it was told to; the detail names the setting and the way out."""

    code = "invalid_setting"


class WatchFailed(ServiceError):
    """The feed that was to be watched cannot be had, or has ended; the detail says why, and what to do."""

    code = "watch_failed"


class RequestError(ServiceError):
    """The request cannot be carried out as it stands."""


class InvalidRequest(RequestError):
    """The body or the query is not of the stated form."""

    code = "invalid_request"


class InvalidToken(RequestError):
    """The token is malformed, or its signature, algorithm, issuer or audience is wrong."""

    code = "invalid_token"


class UnsupportedToken(RequestError):
    """The token is of a kind whose claims cannot be read here (an encrypted JWT, RFC 7516)."""

    code = "unsupported_token"


class ExpRequired(RequestError):
    """Nothing says when the token dies."""

    code = "exp_required"


class ExpTooFar(RequestError):
    """The stated lifetime is longer than `REVOCATION_MAX_TOKEN_LIFETIME_SECONDS`."""

    code = "exp_too_far"


class IssuedBeforeTooFar(RequestError):
    """The cutoff lies further ahead than clocks may differ."""

    code = "issued_before_too_far"


class NoSuchRevocation(RequestError):
    """There is no live revocation of that claim and value."""

    code = "revocation_not_found"


class CallerError(ServiceError):
    """The caller may not do this."""


class Unauthorized(CallerError):
    """No API key, or one that is not known."""

    code = "unauthorized"


class InsufficientScope(CallerError):
    """The API key is known and lacks the scope."""

    code = "insufficient_scope"

    def __init__(self, detail: str, *, scope: str) -> None:
        super().__init__(detail)
        self.scope = scope


class ProtectedMode(CallerError):
    """No API keys are configured, and the request is not plainly a local one."""

    code = "protected_mode"


class Unavailable(ServiceError):
    """Something this needs is away; `retry_after_seconds` says when to ask again."""

    retry_after_seconds: ClassVar[int] = 1


class StoreUnavailable(Unavailable):
    """Redis did not answer, or not safely, within the deadline; nothing is promised."""

    code = "store_unavailable"


class ClocksDiffer(Unavailable):
    """Redis' clock and this instance's differ by more than `REVOCATION_CLOCK_SKEW_SECONDS`; nothing was stored."""

    code = "clocks_differ"


class KeysUnavailable(Unavailable):
    """The signing keys cannot be had just now, so no signature can be judged."""

    code = "keys_unavailable"


class FeedUnavailable(Unavailable):
    """This worker cannot feed mirrors: its own is not in sync with Redis yet, or it is about to stop."""

    code = "feed_unavailable"


class ShuttingDown(Unavailable):
    """This instance acknowledges no more revocations, because its feed has ended; this one may have been stored."""

    code = "shutting_down"


class TooManySubscribers(Unavailable):
    """As many mirrors follow this process as it may feed."""

    code = "too_many_subscribers"
    retry_after_seconds = 5
