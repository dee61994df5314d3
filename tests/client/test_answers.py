"""What a batch's answer says: the same, whether it is read piece by piece or as a whole."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from revocation_client import Verdict, answers
from revocation_client.answers import Answer, verdicts
from revocation_client.model import CLAIM_NAMES
from revocation_client.questions import inquiry
from tests.scale import scaled

USUAL = {"revoked": False, "considered": ["jti", "all"], "verified": False, "source": "redis"}
REVOKED = USUAL | {"revoked": True}
RECORD = {"claim": "jti", "value": "a", "revoked_at": 1, "expires_at": 2}

awkward = st.sampled_from(["", "},{", '"', "]}", '"revoked":false,', "\\", "é", '},{"revoked":false,"x":"'])
claims = st.lists(st.sampled_from(CLAIM_NAMES), max_size=3)
results_of_a_service = st.one_of(
    st.just(USUAL),
    st.builds(lambda considered: USUAL | {"considered": considered}, claims),
    st.builds(lambda seconds: USUAL | {"source": "mirror", "stale_seconds": seconds}, st.none() | st.integers(0, 9)),
    st.builds(lambda reason: REVOKED | {"revocation": RECORD | {"reason": reason}}, awkward),
    st.builds(lambda detail: {"error": {"status": 400, "code": "invalid_request", "detail": detail}}, awkward),
    st.builds(lambda more: USUAL | {"more": more}, awkward),
    st.sampled_from([{}, {"revoked": False}, USUAL | {"verified": 1}, USUAL | {"source": "hearsay"}, 0, None, "a"]),
)


def compact(results: list[object], *, ascii_only: bool = True) -> bytes:
    """As the service writes it."""
    return json.dumps({"results": results}, separators=(",", ":"), ensure_ascii=ascii_only).encode()


def said(body: bytes, questions: int = 1, **others: object) -> list[Verdict | tuple[type, str]]:
    """What an answer says to questions about `jti` a and these other claims; of an error, its kind and its text."""
    asked = [inquiry({"jti": "a", **others})] * questions
    outcomes = verdicts(Answer(200, "application/json", body), asked, 0.0)
    return [outcome if isinstance(outcome, Verdict) else (type(outcome), str(outcome)) for outcome in outcomes]


@settings(max_examples=scaled(300, 20_000), deadline=None)
@given(
    st.lists(results_of_a_service, min_size=1, max_size=5),
    st.booleans(),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([b"", b"},{", b",", b"}"]),
    st.sampled_from([-1, 0, 0, 1]),
)
def test_an_answer_says_the_same_however_it_is_written(
    results: list[object], ascii_only: bool, ends: tuple[float, float], instead: bytes, off: int
) -> None:
    """Also where a part of it is missing or another, and where there are too few results or too many."""
    body = compact(results, ascii_only=ascii_only)
    first, last = sorted(round(end * len(body)) for end in ends)
    for written in (body, body[:first] + instead + body[last:]):
        as_a_whole = b" " + written  # no service begins so
        assert said(written, len(results) + off) == said(as_a_whole, len(results) + off)


def test_what_differs_from_a_text_read_before_is_not_taken_for_it() -> None:
    """A word of the result, or a claim of the question: the text that was read before says nothing of those."""
    usual, verified = Verdict(False, "redis", None, ("jti", "all")), Verdict(False, "redis", None, ("jti", "all"), True)
    for _turn in range(2):
        assert said(compact([USUAL, USUAL | {"verified": True}, USUAL]), 3) == [usual, verified, usual]
        assert not isinstance(said(compact([USUAL]), sub="b")[0], Verdict)
        assert said(compact([USUAL | {"revoked": None}])) != [usual]


PIECE = compact([USUAL])[len(b'{"results":[{') : -len(b"}]}")].decode()
OUTAGE = '"error":{"status":503,"code":"store_unavailable","detail":"away"}'


@pytest.mark.parametrize(
    "results",
    [
        f"{{{PIECE},{OUTAGE}}}",
        f'{{{PIECE},"revoked":true}}',
        f'{{{PIECE},"revoked":true,"revocation":{json.dumps(RECORD | {"value": "b"})}}}',
        f'{{{PIECE},"more":{"[" * 5_000}{"]" * 5_000}}}',
        f'{{{PIECE}}}]}},{{"results":[{{{PIECE}}}',
    ],
    ids=["an error", "two words", "about another", "too deep", "two lists"],
)
def test_a_result_that_begins_as_the_usual_one_is_read_to_its_end(results: str) -> None:
    """What else it says, of the service or of the token, is not left unread."""
    body = f'{{"results":[{results}]}}'.encode()
    for _turn in range(2):
        (outcome,) = said(body)
        assert not isinstance(outcome, Verdict)
        assert [outcome] == said(b" " + body)


def test_no_byte_of_the_usual_answer_can_be_another() -> None:
    """Each of them in turn, before and after it was read as it should be."""
    body = compact([USUAL, USUAL])
    for place in range(len(body)):
        for instead in (b"", b"x", b"]", b"}", b'"', b","):
            written = body[:place] + instead + body[place + 1 :]
            assert said(written, 2) == said(b" " + written, 2)


def test_long_texts_are_not_remembered() -> None:
    """Whatever a server sends, the memory for usual texts stays small."""
    for number in range(50):
        assert isinstance(said(compact([USUAL | {"more": f"{number}" * 1_000}]))[0], Verdict)
    before = answers._usual.cache_info().currsize
    for number in range(50):
        assert isinstance(said(compact([USUAL | {"more": f"-{number}" * 1_000}]))[0], Verdict)
    assert answers._usual.cache_info().currsize == before
