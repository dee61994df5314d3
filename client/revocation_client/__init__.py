"""The application's side of the revocation service: ask whether tokens are revoked, and revoke them."""

from revocation_client.client import Question, RevocationClient
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
    WrongEventLoop,
)
from revocation_client.memory import MirrorStatus
from revocation_client.model import ClaimName, Claims, Revocation, covers, first_covering, merge
from revocation_client.policy import OnUnavailable
from revocation_client.verdicts import Revoked, Source, Verdict

__all__ = [
    "ClaimName",
    "Claims",
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
    "WrongEventLoop",
    "covers",
    "first_covering",
    "merge",
]
