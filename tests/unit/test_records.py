"""The records in Redis: what they say, and that no value under a key is an error."""

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
    """A record's members become the revocation; its end is more exact than the key's, which has milliseconds."""
    record = json.dumps(members).encode()
    for written in (record, b" " + record + b"\n"):  # as an operator's editor leaves it; Lua reads it too
        assert revocation_from_record("sid", "a", written, 77.0) == expected


@pytest.mark.parametrize("stated", [6, 76.9, 77.1, 77_000, 1e300])
def test_the_keys_own_end_counts(stated: float) -> None:
    """A value that states another end than its key has is not believed: the key lives, and so does the revocation."""
    record = json.dumps({"revoked_at": 5, "expires_at": stated}).encode()
    assert revocation_from_record("jti", "a", record, 77.0) == Revocation("jti", "a", 77.0, 5)
    assert revocation_from_record("jti", "a", record, None) == Revocation("jti", "a", None, 5)


def test_a_jti_has_no_cutoff() -> None:
    """A token is revoked or it is not, whatever a value under its key says of cutoffs."""
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
    """A foreign value is presence: no cutoff, no origin, the key's own expiry, and never an error."""
    assert revocation_from_record("jti", "a", record, 77.0) == Revocation("jti", "a", 77.0, None)
    assert revocation_from_record("sub", "a", record, None) == Revocation("sub", "a", None, None)


@many
@given(st.binary(max_size=80) | st.dictionaries(st.text(max_size=9), st.floats() | st.text()).map(repr).map(str.encode))
def test_no_value_in_the_store_is_an_error(record: bytes) -> None:
    """Whatever stands under a key, it is read to a revocation of that claim and value."""
    read = revocation_from_record("jti", "a", record, 77.0)
    assert (read.claim, read.value) == ("jti", "a")


def test_a_change_carries_what_the_rule_needs() -> None:
    """The change log has neither the reason nor the actor."""
    change = change_form(Revocation("sub", "a", 2000.0, 1000.0, 900.5, "why", "ops"))
    assert change == {"claim": "sub", "value": "a", "revoked_at": 1000, "expires_at": 2000, "issued_before": 900.5}
