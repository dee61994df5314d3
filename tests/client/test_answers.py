"""Answers to a batch are read strictly: they must consider all claims the client knows, and concern the right token."""

from typing import Any

import pytest

from revocation_client import UnexpectedAnswer, Verdict
from revocation_client.answers import Answer, verdicts
from revocation_client.questions import check_request
from revocation_client.schema import dumps
from tests.system.tokens import mint

TOKEN = mint(jti="a", sub="alice", device_id="d-1")
CONSIDERED = ["jti", "sub", "all"]
USUAL: dict[str, Any] = {"revoked": False, "considered": CONSIDERED, "verified": False, "source": "redis"}
RECORD = {"claim": "jti", "value": "a", "revoked_at": 1, "expires_at": 2}


def said(result: object) -> object:
    """Return the verdict that the client reads from a result about `TOKEN`, or the type of the error."""
    (outcome,) = verdicts(Answer(200, "application/json", dumps({"results": [result]})), [check_request(TOKEN)])
    return outcome if isinstance(outcome, Verdict) else type(outcome)


def revoked_by(claim: str, value: str, considered: list[str]) -> dict[str, Any]:
    """Return a result that says "revoked" by this claim."""
    return USUAL | {
        "revoked": True,
        "considered": considered,
        "revocation": RECORD | {"claim": claim, "value": value},
    }


def test_the_usual_answer_is_understood() -> None:
    """The usual answer is read as "not revoked". Each test below changes one thing in it."""
    assert said(USUAL) == Verdict(False, "redis", None, tuple(CONSIDERED))


@pytest.mark.parametrize("considered", [[], ["jti"], ["jti", "all"], ["sub", "all"]])
def test_an_answer_that_considered_less_than_the_token_carries_is_not_understood(considered: list[str]) -> None:
    """An answer has to consider every known claim of the token. The client reads the token itself, so it knows them."""
    assert said(USUAL | {"considered": considered}) is UnexpectedAnswer


def test_a_service_with_a_newer_table_of_claims_may_consider_more() -> None:
    """An answer may consider more claims than this client knows."""
    verdict = said(USUAL | {"considered": ["jti", "sub", "device_id", "all"]})
    assert isinstance(verdict, Verdict)
    assert not verdict.revoked


def test_revoked_by_a_claim_that_this_client_does_not_know_is_revoked() -> None:
    """A revocation by an unknown claim counts, but only if the answer says that it considered this claim."""
    verdict = said(revoked_by("device_id", "d-1", ["jti", "sub", "device_id", "all"]))
    assert isinstance(verdict, Verdict)
    assert verdict.revoked
    assert verdict.revocation is not None
    assert (verdict.revocation.claim, verdict.revocation.value) == ("device_id", "d-1")
    assert said(revoked_by("device_id", "d-1", CONSIDERED)) is UnexpectedAnswer


@pytest.mark.parametrize(("claim", "value"), [("jti", "b"), ("sub", "bob"), ("sid", "s-1"), ("all", "x")])
def test_revoked_by_a_value_that_the_token_does_not_carry_is_not_understood(claim: str, value: str) -> None:
    """An answer is refused if the token does not carry the revoked value: it is about another token."""
    assert said(revoked_by(claim, value, CONSIDERED)) is UnexpectedAnswer


@pytest.mark.parametrize("members", [{"revoked": True}, {"revoked": None}, {"verified": 0}, {"expired": 1}], ids=str)
def test_an_unusual_member_is_not_understood(members: dict[str, Any]) -> None:
    """An answer is refused if a member has the wrong type, or if "revoked" comes without a revocation."""
    assert said(USUAL | members) is UnexpectedAnswer


@pytest.mark.parametrize("body", [b'{"results":[],"results":[]}', b'{"results":[NaN]}', b"[]", b"", b"\xff"], ids=str)
def test_a_body_that_is_no_strict_json_object_is_not_understood(body: bytes) -> None:
    """A body must be a JSON object, without duplicate members or NaN, because parsers disagree on how to read those."""
    with pytest.raises(UnexpectedAnswer):
        verdicts(Answer(200, "application/json", body), [])
