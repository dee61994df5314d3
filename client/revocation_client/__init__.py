"""The application's side of the revocation service: ask whether tokens are revoked, and revoke them."""

from revocation_client.client import OnUnavailable, Question, RevocationClient
from revocation_client.counters import Counters
from revocation_client.errors import (
    ConfigurationError,
    NotStarted,
    RequestRefused,
    RevocationError,
    ServiceUnavailable,
    TokenNeeded,
    TokenRevoked,
    UnexpectedAnswer,
)
from revocation_client.local_mirror import MirrorStatus
from revocation_client.results import Revoked, Source, Verdict
from revocation_client.revocation import Revocation

__all__ = [
    "ConfigurationError",
    "Counters",
    "MirrorStatus",
    "NotStarted",
    "OnUnavailable",
    "Question",
    "RequestRefused",
    "Revocation",
    "RevocationClient",
    "RevocationError",
    "Revoked",
    "ServiceUnavailable",
    "Source",
    "TokenNeeded",
    "TokenRevoked",
    "UnexpectedAnswer",
    "Verdict",
]
