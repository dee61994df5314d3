"""What the client decides without any I/O: the pause before the next try, the policy's log, what a token states."""

import base64
import json
import logging
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from revocation_client import ServiceUnavailable
from revocation_client.answers import retry_after_seconds
from revocation_client.counters import Tally
from revocation_client.policy import LOG_EVERY_SECONDS, Policy
from revocation_client.questions import BODY_MAX_BYTES, inquiry, inquiry_by_jti, stated_jti
from revocation_client.revoking import LONGEST_BACKOFF_SECONDS, backoff_seconds
from revocation_client.tokens import Problem, read_token
from revocation_client.wire import loads, parse_question
from revocation_service.errors import RequestError
from revocation_service.keys import SigningKeys
from revocation_service.settings import SigningSettings
from revocation_service.tokens import TokenReader
from tests.system.tokens import mint


def test_pauses_grow_to_a_bound_and_are_drawn_from_nothing_up() -> None:
    """Full jitter: from 0 to the exponential bound; what the service asked for comes on top, and is never shortened."""
    assert [backoff_seconds(attempt, None, lambda: 1.0) for attempt in range(1, 5)] == [0.1, 0.2, 0.4, 0.8]
    assert backoff_seconds(50, None, lambda: 1.0) == LONGEST_BACKOFF_SECONDS
    assert backoff_seconds(1, None, lambda: 0.0) == 0
    assert backoff_seconds(1, 1.0, lambda: 0.0) == 1.0
    assert backoff_seconds(2, 1.0, lambda: 0.5) == 1.1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 50, None),
        ("²", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """RFC 9110, section 10.2.3; what is neither says nothing. The clock says 40."""
    assert retry_after_seconds(header, 40.0) == seconds


def test_the_policy_logs_at_first_and_then_from_time_to_time(caplog: pytest.LogCaptureFixture) -> None:
    """One line at first and one for each while, with how many there were, and at the end with how many in all."""
    caplog.set_level(logging.INFO)
    now = 0.0
    policy = Policy("deny", Tally(), lambda: now)
    for second in range(int(LOG_EVERY_SECONDS) * 2):
        now = float(second)
        for _ in range(10):
            assert policy.verdict(ServiceUnavailable("gone")).revoked
        policy.answered()  # some come through, and that is no news yet
    now += 1
    policy.answered()
    policy.answered()
    policy.verdict(ServiceUnavailable("gone"))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" detail")[0] for line in lines] == [
        "revocation_service_unavailable policy=deny checks=1",
        "revocation_service_unavailable policy=deny checks=300",
        "revocation_service_back checks_decided_by_policy=600",
        "revocation_service_unavailable policy=deny checks=1",
    ]


def b64(form: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(form).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("token", "jti"),
    [
        (f"x.{b64({'jti': 'mine'})}.y", "mine"),
        (f"x.{b64({'jti': 7})}.y", "7"),
        (f"x.{b64({'jti': 'sha256:0'})}.y", None),
        (f"x.{b64({'jti': ''})}.y", None),
        (f"x.{b64({'jti': [1]})}.y", None),
        (f"x.{b64({})}.y", None),
        (f"x.{b64([])}.y", None),
        (f"x.{b64('text')}.y", None),
        ("x.!.y", None),
        ("opaque", None),
        ("a.b.c.d.e", None),
    ],
)
def test_the_jti_that_a_token_plainly_states(token: str, jti: str | None) -> None:
    """Only what no reader could read otherwise; where there is doubt, nothing is expected of the answer."""
    assert stated_jti(token) == jti


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
_VALUES = st.one_of(_TEXT.filter(lambda text: not text.startswith("sha256:")), st.integers())
_IATS = st.one_of(st.none(), st.floats(), st.integers(), st.booleans(), st.text(), st.lists(st.integers()))


@given(_VALUES, st.one_of(st.none(), _VALUES), st.one_of(st.none(), _VALUES), _IATS)
def test_a_question_by_claims_is_always_one_that_the_service_takes(jti: Any, sub: Any, azp: Any, iat: Any) -> None:
    """Whatever texts, numbers and times the claims have: it parses there, and considers what the client expects."""
    asked = inquiry({"jti": jti, "sub": sub, "azp": azp, "iat": iat, "aud": object()})
    claims = parse_question(loads(asked.encoded))
    assert not isinstance(claims, str)
    assert tuple(claim for claim, _ in claims.identifiers()) == asked.considered
    assert claims == asked.claims
    usable = isinstance(iat, int | float) and not isinstance(iat, bool) and _is_time(iat)
    assert claims.iat == (float(iat) if usable else None)


def _is_time(iat: float) -> bool:
    try:
        return math.isfinite(iat) and float(iat) >= 0
    except OverflowError:
        return False


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50).filter(lambda text: text.strip() != "")
)
def test_a_question_by_token_carries_the_token(text: str) -> None:
    """Every character of it survives the journey."""
    asked = inquiry(f"x{text}x")
    assert parse_question(loads(asked.encoded)) == f"x{text}x"
    assert len(asked.encoded) < BODY_MAX_BYTES
    assert parse_question(loads(inquiry_by_jti("a").encoded)) == parse_question({"jti": "a"})


GOOD = mint(jti="one", sid=7, azp="web", exp=2e9)
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
TWICE = base64.b64encode(b'{"jti":"a","jti":"b"}').decode()
TOKENS = [
    GOOD,
    GOOD + "=",
    f"{HEADER}.{PAYLOAD}",
    f"{HEADER}.{PAYLOAD}.",
    f"{HEADER}=.{PAYLOAD}.{SIGNATURE}",
    f"{HEADER}.{PAYLOAD[:10]}\n{PAYLOAD[10:]}.{SIGNATURE}",
    f"{b64({'alg': 'none'})}.{PAYLOAD}.{SIGNATURE}",
    f"{b64({'alg': 'HS256'})}.{b64({'sub': 'x'})}.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64({'sub': 'x'})}*.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64({'jti': 'sha256:abc', 'iat': 'x'})}.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64({'jti': 'a', 'exp': -1})}.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64({'jti': 'a', 'exp': 'x'})}.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64({'jti': 'a', 'sub': ''})}.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64({'jti': 'a', 'client_id': None, 'azp': 5})}.c2ln",
    f"{b64({'alg': 'HS256'})}.{TWICE}.c2ln",
    f"{b64({'alg': 'HS256'})}.{b64([])}.c2ln",
    "opaque",
    "opaque with spaces",
    "a.b",
    "a.b.c.d",
    "a.b.c.d.e",
    "\x01",
    "{}",
    "ü",
]


@pytest.mark.parametrize("token", TOKENS)
async def test_the_stand_in_reads_tokens_as_the_service_does(token: str) -> None:
    """The same name, claims and end, or the same refusal."""
    settings = SigningSettings()
    reader = TokenReader(SigningKeys(settings), settings)
    found: list[object] = []
    try:
        read = await reader.read(token)
        found.append((read.claims, read.exp))
    except RequestError as error:
        found.append(error.code)
    try:
        also = read_token(token)
        found.append((also.claims, also.exp))
    except Problem as problem:
        found.append(problem.code)
    assert found[0] == found[1]
