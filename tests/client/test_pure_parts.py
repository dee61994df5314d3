"""The parts of the client without I/O: the backoff, the limit on log warnings, and the questions to the service."""

import logging
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from revocation_client import ServiceUnavailable
from revocation_client.answers import Answer, failure
from revocation_client.log_limit import WARNING_INTERVAL_SECONDS, Warnings
from revocation_client.questions import check_request, check_request_by_jti
from revocation_client.retry import backoff_seconds
from revocation_client.schema import dumps, loads, parse_question


def test_pauses_grow_to_a_bound_and_are_drawn_from_zero_up() -> None:
    """The backoff is drawn from 0 to an exponential bound (full jitter). A Retry-After is added to it in full."""
    assert [backoff_seconds(attempts, 1.6, None, lambda: 1.0) for attempts in range(1, 5)] == [0.1, 0.2, 0.4, 0.8]
    assert backoff_seconds(50, 1.6, None, lambda: 1.0) == 1.6
    assert backoff_seconds(1, 1.6, None, lambda: 0.0) == 0
    assert backoff_seconds(1, 1.6, 1.0, lambda: 0.0) == 1.0
    assert backoff_seconds(2, 1.6, 1.0, lambda: 0.5) == 1.1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 50, None),
        ("²", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", None),
    ],
)
def test_retry_after_is_a_number_of_seconds(header: str | None, seconds: float | None) -> None:
    """Retry-After counts only if it is a plain, plausible number of seconds. Dates and other values are ignored."""
    failed = failure(Answer(503, "text/plain", b"", header))
    assert isinstance(failed, ServiceUnavailable)
    assert failed.retry_after_seconds == seconds


def test_a_recurring_warning_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each event is logged at once, then at most once a minute with the number of occurrences since the last line."""
    caplog.set_level(logging.INFO)
    now = 0.0
    warnings = Warnings(lambda: now)
    for second in range(int(WARNING_INTERVAL_SECONDS) * 2):
        now = float(second)
        for _ in range(10):
            warnings.warn("iat_unusable", "claim=sub")
    warnings.warn("another", "detail=x")
    assert [record.getMessage() for record in caplog.records] == [
        "iat_unusable claim=sub occurrences=1",
        "iat_unusable claim=sub occurrences=600",
        "another detail=x occurrences=1",
    ]


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
_VALUES = st.one_of(_TEXT.filter(lambda text: not text.startswith("sha256:")), st.integers())
_IATS = st.one_of(st.none(), st.floats(), st.integers(), st.booleans(), st.text(), st.lists(st.integers()))


@given(_VALUES, st.one_of(st.none(), _VALUES), st.one_of(st.none(), _VALUES), _IATS)
def test_a_question_by_claims_is_always_one_that_the_service_takes(jti: Any, sub: Any, azp: Any, iat: Any) -> None:
    """The service's parser reads the same claims and `iat` from a question as the client, whatever their values."""
    asked = check_request({"jti": jti, "sub": sub, "azp": azp, "iat": iat, "aud": object()})
    claims = parse_question(loads(dumps(asked.form)))
    assert not isinstance(claims, str)
    assert tuple(claim for claim, _ in claims.identifiers) == asked.claims.considered
    assert claims == asked.claims
    assert len(dumps(asked.form)) <= asked.max_bytes
    usable = isinstance(iat, int | float) and not isinstance(iat, bool) and _is_time(iat)
    assert claims.iat == (float(iat) if usable else None)


def _is_time(iat: float) -> bool:
    try:
        return math.isfinite(iat) and float(iat) >= 0
    except OverflowError:
        return False


@given(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="."), max_size=50))
def test_a_question_by_token_carries_the_token(text: str) -> None:
    """The service's parser reads exactly the token that the client put into the question."""
    asked = check_request(f"x{text}x")
    assert parse_question(loads(dumps(asked.form))) == f"x{text}x"
    assert parse_question(check_request_by_jti("a").form) == parse_question({"jti": "a"})
