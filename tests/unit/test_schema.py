"""The JSON of checks and revocations: what is accepted, what is refused, and what the errors say."""

import json
import math
from contextlib import suppress
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from revocation_client.claims import CLAIMS, ClaimName, Claims
from revocation_client.revocation import Revocation
from revocation_client.schema import (
    BATCH_MAX_CHECKS,
    REASON_MAX_CHARACTERS,
    VALUE_MAX_CHARACTERS,
    RevokeRequest,
    SchemaError,
    check_reason,
    check_seconds,
    check_token,
    check_value,
    dumps,
    loads,
    number,
    parse_batch,
    parse_claim,
    parse_question,
    parse_revoke,
    revocation_form,
)
from tests.scale import scaled

many = settings(max_examples=scaled(100, 5000), deadline=None)

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
members_known = st.sampled_from(
    ["token", *CLAIMS, "exp", "expires_in", "issued_before", "reason", "iat", "checks", "other"]
)
bodies = documents | st.dictionaries(members_known, documents, max_size=4)


def refused(call: Any, *arguments: Any) -> str:
    """Return the text of the SchemaError that the call raises. It begins with the field that the error names."""
    with pytest.raises(SchemaError) as error:
        call(*arguments)
    assert str(error.value) == f"{error.value.field} {error.value.message}"
    return str(error.value)


@pytest.mark.parametrize(
    ("body", "parsed"),
    [
        ({"token": "abc"}, RevokeRequest("token", "abc")),
        ({"token": "abc", "expires_in": 5, "reason": "x"}, RevokeRequest("token", "abc", expires_in=5, reason="x")),
        ({"token": "abc", "exp": 5.5}, RevokeRequest("token", "abc", exp=5.5)),
        ({"jti": "a"}, RevokeRequest("jti", "a")),
        ({"jti": 7}, RevokeRequest("jti", "7")),
        ({"jti": -7}, RevokeRequest("jti", "-7")),
        ({"jti": "a", "exp": 0}, RevokeRequest("jti", "a", exp=0)),
        ({"sid": "a"}, RevokeRequest("sid", "a")),
        ({"sid": "a", "issued_before": 9}, RevokeRequest("sid", "a", issued_before=9)),
        ({"sub": "a", "issued_before": 9.5, "reason": None}, RevokeRequest("sub", "a", issued_before=9.5)),
        ({"client_id": "a", "reason": ""}, RevokeRequest("client_id", "a")),
        ({"all": True}, RevokeRequest("all", "")),
        ({"all": True, "issued_before": 0}, RevokeRequest("all", "", issued_before=0)),
        ({"sid": "a", "expires_in": 5}, RevokeRequest("sid", "a", expires_in=5)),
        ({"sub": "a", "exp": 5, "issued_before": 9}, RevokeRequest("sub", "a", exp=5, issued_before=9)),
        ({"client_id": "a", "expires_in": 0}, RevokeRequest("client_id", "a", expires_in=0)),
        ({"all": True, "expires_in": 5.5}, RevokeRequest("all", "", expires_in=5.5)),
    ],
)
def test_what_may_be_revoked(body: object, parsed: object) -> None:
    """Requests to revoke by a token or by any claim are parsed, with all optional members."""
    assert parse_revoke(body) == parsed


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (None, "body must be a JSON object"),
        ([], "body must be a JSON object"),
        ("jti", "body must be a JSON object"),
        ({}, "body must have exactly one of token, jti, sid, sub, client_id, all"),
        ({"reason": "x"}, "body must have exactly one of"),
        ({"jti": "a", "sub": "a"}, "body must have exactly one of"),
        ({"jti": "a", "token": "a"}, "body must have exactly one of"),
        ({"jti": "a", "jit": "a"}, "body has an unknown member; known here: "),
        ({"jti": "a", "issued_before": 5}, "body has an unknown member; known here: "),
        ({"token": "a", "issued_before": 5}, "body has an unknown member; known here: "),
        ({"sub": "a", "iat": 5}, "body has an unknown member; known here: "),
        ({"jti": "a", "exp": 5, "expires_in": 5}, "body must have at most one of exp and expires_in"),
        ({"sub": "a", "exp": 5, "expires_in": 5}, "body must have at most one of exp and expires_in"),
        ({"all": True, "expires_in": "5"}, "expires_in must be a number of seconds"),
        ({"jti": "a", "exp": "5"}, "exp must be a number of seconds"),
        ({"jti": "a", "exp": True}, "exp must be a number of seconds"),
        ({"jti": "a", "exp": None}, "exp must be a number of seconds"),
        ({"jti": "a", "expires_in": -1}, "expires_in must be a finite number of seconds, 0 or more"),
        ({"jti": "a", "expires_in": math.nan}, "expires_in must be a finite number"),
        ({"jti": "a", "exp": math.inf}, "exp must be a finite number"),
        ({"jti": "a", "exp": 10**400}, "exp must be a finite number"),
        ({"sub": "a", "issued_before": []}, "issued_before must be a number of seconds"),
        ({"all": "true"}, "all must be true"),
        ({"all": 1}, "all must be true"),
        ({"all": False}, "all must be true"),
        ({"all": None}, "all must be true"),
        ({"token": ""}, "token must be a string that is not empty"),
        ({"token": 7}, "token must be a string that is not empty"),
        ({"token": None}, "token must be a string that is not empty"),
        ({"token": "a\ud800"}, "token must be a string that is not empty"),
        ({"jti": "a", "reason": 7}, "reason must be a string"),
        ({"jti": "a", "reason": "x" * 257}, "reason must be a string of at most 256 characters"),
        ({"jti": "a", "reason": "two\nlines"}, "reason must be one line"),
    ],
)
def test_what_may_not_be_revoked(body: object, complaint: str) -> None:
    """Each malformed request to revoke is refused with an error that names the member and what it must be."""
    assert refused(parse_revoke, body).startswith(complaint)


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ({"token": "abc"}, "abc"),
        ({"jti": "a"}, Claims.of(jti="a")),
        ({"jti": 7}, Claims.of(jti="7")),
        ({"sub": "a", "sid": "b", "client_id": 3}, Claims.of(sub="a", sid="b", client_id="3")),
        ({"iat": 5}, Claims.of(iat=5, all="")),
        ({"iat": None}, Claims.of(iat=None, all="")),
        ({"sub": "a", "iat": 5.25}, Claims.of(sub="a", iat=5.25, all="")),
        ({"sub": "a", "iat": None}, Claims.of(sub="a", all="")),
    ],
)
def test_what_may_be_asked(body: object, question: object) -> None:
    """A check considers the claims that it names. It considers `all` only if it has an `iat`, even a null one."""
    assert parse_question(body) == question


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ([], "check must be a JSON object"),
        ({}, "check must have a token, or one or more of jti, sid, sub, client_id and iat"),
        ({"token": "a", "jti": "a"}, "body has an unknown member; known here: "),
        ({"all": True}, "check must have a token, or one or more of"),
        ({"jti": "a", "exp": 5}, "check must have a token, or one or more of"),
        ({"jti": None}, "jti must be a string, or an integer of at most 256 digits"),
        ({"sub": True}, "sub must be a string, or an integer of at most 256 digits"),
        ({"sub": 1.5}, "sub must be a string, or an integer of at most 256 digits"),
        ({"sid": ["a"]}, "sid must be a string, or an integer of at most 256 digits"),
        ({"sid": ""}, "sid must have 1 to 256 characters"),
        ({"iat": "5"}, "iat must be a number of seconds"),
        ({"iat": -1}, "iat must be a finite number of seconds, 0 or more"),
        ({"token": {}}, "token must be a string that is not empty"),
    ],
)
def test_what_may_not_be_asked(body: object, complaint: str) -> None:
    """Each malformed check is refused with an error that names the member and what it must be."""
    assert refused(parse_question, body).startswith(complaint)


def test_the_first_of_several_faults_of_a_question_is_told() -> None:
    """Faults of a check are reported in this order: claims in the order of the table, unknown members, `iat`."""
    assert refused(parse_question, {"exp": 5, "sub": "", "jti": 1.5}).startswith("jti must be")
    assert refused(parse_question, {"iat": "5", "exp": 5}).startswith("check must have")
    assert refused(parse_question, {"iat": "5", "sub": ""}).startswith("sub must have")


def test_a_value_is_a_plain_text() -> None:
    """A member of a StrEnum becomes a plain string, because its hash differs from that of the equal string."""

    class Named(StrEnum):
        ALICE = "alice"
        CONTROL = "a\x7f"

    assert type(check_value("sub", Named.ALICE)) is str
    assert refused(check_value, "sub", Named.CONTROL) == "sub must not have control characters or lone surrogates"


def test_a_batch_is_a_list_of_bounded_length() -> None:
    """A batch has 1 to 1,000 checks. They may be anything, because `parse_batch` does not parse them."""
    assert parse_batch({"checks": [1, "x", {}]}) == [1, "x", {}]
    assert len(parse_batch({"checks": [{}] * BATCH_MAX_CHECKS})) == 1000
    complaint = "checks must be a list of 1 to 1000 checks"
    malformed: list[object] = [
        {},
        {"checks": []},
        {"checks": [{}] * 1001},
        {"checks": {}},
        {"checks": "ab"},
        {"checks": None},
    ]
    for body in malformed:
        assert refused(parse_batch, body) == complaint
    assert refused(parse_batch, []) == "body must be a JSON object"
    assert refused(parse_batch, {"checks": [1], "more": 1}).startswith("body has an unknown member")


def test_a_claim_is_one_of_the_table() -> None:
    """`parse_claim` accepts only the claims by which tokens can be revoked."""
    assert [parse_claim(name) for name in CLAIMS] == [*CLAIMS]
    for name in ("", "JTI", "iss", "azp", "token"):
        assert refused(parse_claim, name) == "claim must be one of jti, sid, sub, client_id, all"


@pytest.mark.parametrize("character", ["\x00", "\x1f", "\n", "\x7f", "\x85", "\x9f", chr(0xD800), chr(0xDFFF)])
def test_values_hold_no_control_characters(character: str) -> None:
    """A value with a control character or a lone surrogate at any position is refused."""
    for value in (character, f"{character}a", f"a{character}", f"a{character}b"):
        assert refused(check_value, "sub", value) == "sub must not have control characters or lone surrogates"


@pytest.mark.parametrize("value", [" ", "a b", "é", "停" * 256, "\U0001f512", "a:b", "{a}", "\xa0", "0", "sha256:x"])
def test_values_are_taken_as_they_stand(value: str) -> None:
    """A value with spaces, braces or non-ASCII characters is accepted unchanged."""
    assert check_value("jti", value) == value


def test_a_value_is_of_bounded_length() -> None:
    """A value has at most 256 characters, or 256 digits if it is an integer."""
    assert VALUE_MAX_CHARACTERS == 256
    assert check_value("jti", "x" * 256) == "x" * 256
    assert refused(check_value, "jti", "x" * 257) == "jti must have 1 to 256 characters"
    assert check_value("jti", 10**255) == str(10**255)
    for huge in (10**256, -(10**256), 10**5000):
        assert refused(check_value, "jti", huge) == "jti must be a string, or an integer of at most 256 digits"


@many
@given(st.integers(-(10**30), 10**30))
def test_an_integer_is_its_decimal_digits(value: int) -> None:
    """An integer and its decimal string are read as the same value."""
    assert check_value("sub", value) == check_value("sub", str(value)) == str(value)


@pytest.mark.parametrize("character", ["\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\udc00"])
def test_a_reason_cannot_break_a_line(character: str) -> None:
    """A reason with a line break, a control character or a lone surrogate is refused."""
    assert refused(check_reason, f"a{character}b") == "reason must be one line without control characters"


def test_a_reason_that_says_nothing_is_none() -> None:
    """A reason that is null or empty is read as None. One of 256 characters is accepted."""
    assert check_reason(None) is None
    assert check_reason("") is None
    assert check_reason("x" * REASON_MAX_CHARACTERS) == "x" * 256


@pytest.mark.parametrize(("value", "seconds"), [(0, 0.0), (-0.0, 0.0), (5, 5.0), (5.25, 5.25), (1e308, 1e308)])
def test_seconds_are_finite_and_not_negative(value: float, seconds: float) -> None:
    """A finite number of seconds, 0 or more, is returned unchanged."""
    assert check_seconds("exp", value) == seconds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("{'a': 1}", "is not valid JSON"),
        ('{"a": 1} x', "is not valid JSON"),
        (b'"\xff"', "is not valid JSON in UTF-8"),
        ('{"a": 1, "a": 1}', "has two members of one name"),
        ('{"a": {"b": 1, "b": 2}}', "has two members of one name"),
        ('{"a": 1, "\\u0061": 2}', "has two members of one name"),
        ('{"a": NaN}', "has NaN or Infinity"),
        ("[Infinity]", "has NaN or Infinity"),
        ("-Infinity", "has NaN or Infinity"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a":' * 100_000, "is not valid JSON"),
        ("1" * 10_000, "is not valid JSON"),
    ],
    ids=range(14),
)
def test_json_is_read_strictly(text: str | bytes, complaint: str) -> None:
    """Invalid JSON, duplicate members, NaN, and texts meant to exhaust the parser are errors of the body."""
    assert refused(loads, text).startswith(f"body {complaint}")


class Written(list[tuple[str, Any]]):
    """A JSON object as the list of its members, whose names may repeat."""


awkward = st.sampled_from(["", "a", "b", ":", "::", '"', '":', '": ', "{}", "\\"])
written = st.recursive(
    st.none() | st.integers() | awkward,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(awkward, inner), max_size=4).map(Written),
    max_leaves=12,
)


def text_of(value: Any, colon: str) -> str:
    if isinstance(value, Written):
        return "{" + ",".join(f"{json.dumps(name)}{colon}{text_of(each, colon)}" for name, each in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(text_of(each, colon) for each in value) + "]"
    return json.dumps(value)


def is_unique(value: Any) -> bool:
    if isinstance(value, Written):
        return len(dict(value)) == len(value) and all(is_unique(each) for _name, each in value)
    return all(map(is_unique, value)) if isinstance(value, list) else True


def read(value: Any) -> Any:
    if isinstance(value, Written):
        return {name: read(each) for name, each in value}
    return [read(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=scaled(500, 20_000), deadline=None)
@given(written, st.sampled_from([":", " : ", "\n:\t"]))
@example(Written([("checks", [Written([("a", 1), ("a", 2)]), Written([("b", ":")])])]), ":")
@example(Written([("checks", [Written([("a", Written([("b", 1), ("b", 1)]))])])]), " : ")
@example(Written([("checks", [Written([("a", 1), ("b", 2)])] * 2), ("checks", [])]), ":")
def test_a_name_that_comes_twice_is_seen_wherever_it_stands(value: Any, colon: str) -> None:
    """JSON is refused exactly if an object in it names a member twice, whatever the names, texts and spaces."""
    text = text_of(value, colon)
    if is_unique(value):
        assert loads(text) == read(value)
    else:
        assert refused(loads, text) == "body has two members of one name"


@pytest.mark.parametrize("parse", [parse_revoke, parse_question, parse_batch])
@many
@given(body=bodies)
@example(body={"jti": -(10**300)})
@example(body={"token": "\ud800"})
def test_no_body_is_more_than_refused(parse: Any, body: object) -> None:
    """Any body is parsed or raises SchemaError, and no other exception."""
    with suppress(SchemaError):
        assert parse(body) is not None


@many
@given(st.binary(max_size=60) | st.text(max_size=60))
def test_no_text_is_more_than_refused(text: str | bytes) -> None:
    """Any text is decoded or raises SchemaError, and no other exception."""
    with suppress(SchemaError):
        loads(text)


@many
@given(st.text(min_size=1, max_size=40))
def test_a_complaint_never_quotes_a_token(secret: str) -> None:
    """The error for a malformed request does not contain the token, wherever in the request it is."""
    token = f"eyJ-{secret}-sig"
    for body in ({"token": [token]}, {token: 1}, {"jti": {"x": token}}, {"token": "a", token: 1}, {"reason": token}):
        assert token not in refused(parse_revoke, body)
        assert token not in refused(parse_question, body)
    assert token not in refused(check_token, [token])


@many
@given(documents)
def test_what_is_dumped_reads_back(body: object) -> None:
    """What `dumps` writes is read back unchanged by `loads`. NaN and infinity are never written."""
    try:
        text = dumps(body)
    except ValueError:  # NaN, infinity
        return
    assert loads(text) == body


def test_json_is_written_compactly() -> None:
    """`dumps` writes no spaces, and UTF-8 instead of escapes."""
    assert dumps({"a": [1, 2.5, None, True], "é": "b c"}) == '{"a":[1,2.5,null,true],"é":"b c"}'.encode()


@pytest.mark.parametrize("claim", [*CLAIMS])
def test_a_revocation_in_an_answer(claim: ClaimName) -> None:
    """Whole seconds are integers. `revoked_at` and `expires_at` may be null; other unknown members are left out."""
    full = Revocation(claim, "a", 2000.0, 1000.5, 900.0, "why", "ops")
    assert revocation_form(full) == {
        "claim": claim,
        "value": "a",
        "revoked_at": 1000.5,
        "expires_at": 2000,
        "issued_before": 900,
        "reason": "why",
        "revoked_by": "ops",
    }
    assert dumps(revocation_form(full)).count(b'"expires_at":2000,') == 1
    bare = {"claim": claim, "value": "a", "revoked_at": None, "expires_at": None}
    assert revocation_form(Revocation(claim, "a", None, None)) == bare


@many
@given(st.floats(-1e15, 1e15))
def test_a_number_reads_as_the_same_number(seconds: float) -> None:
    """`number` turns whole seconds into integers, and returns other seconds and None unchanged."""
    shown = number(seconds)
    assert shown == seconds
    assert isinstance(shown, int) is seconds.is_integer()
    assert number(None) is None
