"""How records in Redis are read. No value of a key is an error."""

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from revocation_client.revocation import Revocation
from revocation_service.store.records import change_form, revocation_from_record
from tests.scale import scaled

many = settings(max_examples=scaled(100, 5000), deadline=None)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"revoked_at": 5}, Revocation("sid", "a", 77.0, 5)),
        ({"revoked_at": 5.5, "expires_at": 76.9996}, Revocation("sid", "a", 76.9996, 5.5)),
        (
            {"revoked_at": 5, "expires_at": 77, "issued_before": 4, "reason": "é", "revoked_by": "api", "more": 1},
            Revocation("sid", "a", 77, 5, 4, "é", "api"),
        ),
        ({"revoked_at": 5, "expires_at": 77, "reason": None}, Revocation("sid", "a", 77, 5)),
    ],
)
def test_a_record_of_ours_is_read_back(members: dict[str, Any], expected: Revocation) -> None:
    """A record's members are read. Its own end is used, because the end of the key is rounded to milliseconds."""
    record = json.dumps(members).encode()
    for written in (record, b" " + record + b"\n"):  # white space that an editor may add; Lua accepts it too
        assert revocation_from_record("sid", "a", written, 77.0) == expected


@pytest.mark.parametrize("stated", [6, 76.9, 77.1, 77_000, 1e300])
def test_the_keys_own_end_counts(stated: float) -> None:
    """If a record states another end than its key has, the revocation ends with the key."""
    record = json.dumps({"revoked_at": 5, "expires_at": stated}).encode()
    assert revocation_from_record("jti", "a", record, 77.0) == Revocation("jti", "a", 77.0, 5)
    assert revocation_from_record("jti", "a", record, None) == Revocation("jti", "a", None, 5)


def test_a_jti_has_no_cutoff() -> None:
    """A cutoff in the record of a `jti` is ignored, because a `jti` names a single token."""
    record = b'{"revoked_at":5,"expires_at":77,"issued_before":1}'
    assert revocation_from_record("jti", "a", record, 77.0).issued_before is None


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"1",
        b"0",
        b"garbage",
        b"null",
        b"[1]",
        b'"x"',
        b"{}",
        b'{"expires_at":5}',
        b'{"revoked_at":null}',
        b'{"revoked_at":true}',
        b'{"revoked_at":"5"}',
        b'{"revoked_at":NaN}',
        b'{"revoked_at":Infinity}',
        b'{"revoked_at":5,"expires_at":null}',
        b'{"revoked_at":5,"expires_at":"soon"}',
        b'{"revoked_at":5,"issued_before":[]}',
        b'{"revoked_at":5,"issued_before":null}',
        b'{"revoked_at":5,"reason":7}',
        b'{"revoked_at":5,"reason":"\\ud800"}',
        b'{"revoked_at":5,"revoked_by":{}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 10_000,
        b'{"revoked_at":1' + b"0" * 5000 + b"}",
        b'{"revoked_at":1' + b"0" * 400 + b"}",
    ],
    ids=range(26),
)
def test_what_is_no_record_of_ours_still_revokes(record: bytes) -> None:
    """A value that is no record of ours is read as a revocation with the key's expiry and nothing else."""
    assert revocation_from_record("jti", "a", record, 77.0) == Revocation("jti", "a", 77.0, None)
    assert revocation_from_record("sub", "a", record, None) == Revocation("sub", "a", None, None)


@many
@given(st.binary(max_size=80) | st.dictionaries(st.text(max_size=9), st.floats() | st.text()).map(repr).map(str.encode))
def test_no_value_in_the_store_is_an_error(record: bytes) -> None:
    """Any value of a key is read as a revocation of the key's claim and value."""
    read = revocation_from_record("jti", "a", record, 77.0)
    assert (read.claim, read.value) == ("jti", "a")


def test_a_change_carries_what_the_rule_needs() -> None:
    """An entry of the change log has what the rule needs, but neither the reason nor the actor."""
    change = change_form(Revocation("sub", "a", 2000.0, 1000.0, 900.5, "why", "ops"))
    assert change == {"claim": "sub", "value": "a", "revoked_at": 1000, "expires_at": 2000, "issued_before": 900.5}
