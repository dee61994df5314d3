"""The errors of the service: a tree of classes, each with a code and an HTTP status. To add an error, add a class.

The `code` of an error is stable and part of the contract. The `detail` is for people, and never holds a token or a key.
"""

from typing import ClassVar


class ServiceError(Exception):
    """The base class of all errors of the service."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init_subclass__(cls, *, code: str | None = None, status: int | None = None) -> None:
        """Set code and status from the class statement. What it leaves out is inherited."""
        cls.code, cls.status = code or cls.code, status or cls.status

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class SettingsError(ServiceError, code="invalid_setting"):
    """The service cannot start as configured; the detail names the setting and says what to do."""


class RequestError(ServiceError, status=400):
    """The request cannot be carried out; sending it again will not help."""


class InvalidRequest(RequestError, code="invalid_request"):
    """The body or the query does not have the documented form."""


class InvalidToken(RequestError, code="invalid_token"):
    """The token is malformed, or its signature, algorithm, issuer or audience is wrong."""


class UnsupportedToken(RequestError, code="unsupported_token"):
    """The claims of this kind of token cannot be read (an encrypted JWT, RFC 7516)."""


class ExpRequired(RequestError, code="exp_required"):
    """Neither the token nor the request says when the token expires."""


class ExpTooFar(RequestError, code="exp_too_far"):
    """The token's lifetime is longer than `REVOCATION_MAX_TOKEN_LIFETIME_SECONDS`."""


class IssuedBeforeTooFar(RequestError, code="issued_before_too_far"):
    """The cutoff is further in the future than clocks may differ."""


class NotOwnToken(RequestError, code="not_own_token"):
    """The API key may revoke only verified tokens that were issued to its name; this token is not one of them."""


class NoSuchRevocation(RequestError, code="revocation_not_found", status=404):
    """No live revocation has this claim and value."""


class Unauthorized(RequestError, code="unauthorized", status=401):
    """The request has no API key, or an unknown one."""


class InsufficientScope(RequestError, code="insufficient_scope", status=403):
    """The API key lacks the scope."""

    def __init__(self, detail: str, *, scope: str) -> None:
        super().__init__(detail)
        self.scope = scope


class GatewayKeyRefused(RequestError, code="gateway_key_refused", status=403):
    """The gateway sent no API key, an unknown one, or one without the scope. The user's token was not checked."""


class ProtectedMode(RequestError, code="protected_mode", status=403):
    """No API keys are configured, and the request may come from another machine or a web page."""


class Unavailable(ServiceError, status=503):
    """Something that the request needs is unavailable; a retry after `retry_after_seconds` may succeed."""

    retry_after_seconds: ClassVar[int] = 1


class StoreUnavailable(Unavailable, code="store_unavailable"):
    """Redis did not answer in time, could not make the write safe in time, or may lack revocations."""


class ClocksDiffer(Unavailable, code="clocks_differ"):
    """The clocks of Redis and of this instance differ by more than `REVOCATION_CLOCK_SKEW_SECONDS`."""


class KeysUnavailable(Unavailable, code="keys_unavailable"):
    """The signing keys cannot be fetched, so no signature can be verified."""


class FeedUnavailable(Unavailable, code="feed_unavailable"):
    """This worker cannot serve the feed: it is about to stop, or its mirror is not in sync with Redis yet."""


class ShuttingDown(Unavailable, code="shutting_down"):
    """The feed of this instance has ended, so no revocation is acknowledged. The requested one may have been stored."""


class TooManySubscribers(Unavailable, code="too_many_subscribers"):
    """This process has as many subscribers as it may have."""

    retry_after_seconds = 5
