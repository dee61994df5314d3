"""The rule for which tokens a revocation covers, against a plain model, and the properties of a merge."""

import itertools
import math
import random
from collections.abc import Sequence
from functools import reduce
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from revocation_client.claims import CLAIMS, ClaimName, Claims
from revocation_client.revocation import (
    DEFAULT_CLOCK_SKEW_SECONDS,
    Revocation,
    covers,
    first_covering,
    iat_unusable,
    issued_at,
)
from tests.merging import merge
from tests.scale import scaled

many = settings(max_examples=scaled(100, 5000), deadline=None)

NOW = 1_750_000_000.0
LIVE = NOW + 1000

names = st.sampled_from([*CLAIMS])
values = st.sampled_from(["a", "b"])
moments = st.one_of(
    st.sampled_from([NOW - 10, NOW - 1, NOW, NOW + 0.5, NOW + 1, NOW + 59, NOW + 60, NOW + 61, NOW + 1e6]),
    st.floats(NOW - 100, NOW + 100),
    st.integers(int(NOW) - 100, int(NOW) + 100).map(float),
)
issuances = st.one_of(
    st.none(), moments, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, NOW + 60.000001])
)


@st.composite
def revocations(draw: st.DrawFn, claim: ClaimName | None = None, value: str | None = None) -> Revocation:
    """Draw any record. There are only two values, so that records often match."""
    chosen = draw(names) if claim is None else claim
    value = draw(values) if value is None else value
    return Revocation(
        chosen,
        "" if chosen == "all" else value,
        draw(st.none() | moments),
        draw(st.none() | moments),
        draw(st.none() | moments),
        draw(st.none() | st.sampled_from(["", "one", "two", "é", "停", "\U0001f512"])),
        draw(st.none() | st.sampled_from(["", "api", "ops"])),
    )


@st.composite
def questions(draw: st.DrawFn) -> Claims:
    """Draw the claims of a token, or some of them."""
    some = st.none() | values
    values_of = {
        name: draw(some) if claim.members else draw(st.sampled_from([None, ""])) for name, claim in CLAIMS.items()
    }
    return Claims.of(draw(issuances), **values_of)


def plainly_covers(revocation: Revocation, claims: Claims, now: float, skew: float) -> bool:
    """Return whether the revocation covers the claims, by a plain model of the rule."""
    about = claims.value_of(revocation.claim) == revocation.value
    dead = revocation.expires_at is not None and revocation.expires_at < now
    if not about or dead:
        return False
    if revocation.issued_before is None:
        return True
    believable = claims.iat is not None and math.isfinite(claims.iat) and claims.iat <= now + skew
    return not believable or (claims.iat is not None and claims.iat <= revocation.issued_before)


@many
@given(revocations(), questions(), st.sampled_from([0.0, 1.0, 60.0, 3600.0]))
def test_the_rule_is_what_the_contract_says(revocation: Revocation, claims: Claims, skew: float) -> None:
    """`covers` agrees with the plain model of the rule for any record, any claims and several skews."""
    assert covers(revocation, claims, NOW, skew) is plainly_covers(revocation, claims, NOW, skew)


@many
@given(st.lists(revocations(), max_size=8), questions())
def test_any_one_that_covers_revokes(records: list[Revocation], claims: Claims) -> None:
    """`first_covering` returns the first of several revocations that covers the claims, and None if none does."""
    found = first_covering(records, claims, NOW)
    covering = [record for record in records if plainly_covers(record, claims, NOW, DEFAULT_CLOCK_SKEW_SECONDS)]
    assert found is (covering[0] if covering else None)


@many
@given(st.lists(moments, min_size=1, max_size=6), moments)
def test_of_several_cutoffs_the_greatest_decides(cutoffs: list[float], iat: float) -> None:
    """A token is revoked exactly if the greatest cutoff covers it, in whatever order the cutoffs come."""
    records = [Revocation("sub", "alice", LIVE, NOW, cutoff) for cutoff in cutoffs]
    claims = Claims.of(sub="alice", iat=iat)
    expected = covers(Revocation("sub", "alice", LIVE, NOW, max(cutoffs)), claims, NOW)
    for order in itertools.islice(itertools.permutations(records), 24):
        assert (first_covering(order, claims, NOW) is not None) is expected


@pytest.mark.parametrize("claim", [name for name, claim in CLAIMS.items() if claim.cutoff != "never"])
@pytest.mark.parametrize(
    ("iat", "revoked"),
    [
        (NOW - 11, True),
        (NOW - 10, True),  # exactly at the cutoff
        (NOW - 10 + 1e-3, False),
        (NOW - 9, False),
        (NOW, False),
        (NOW + 60, False),  # as far ahead as the skew allows
        (NOW + 60.001, True),  # beyond the skew
        (1e30, True),
        (None, True),
        (math.nan, True),
        (math.inf, True),
        (-math.inf, True),
        (0.0, True),
        (-5.0, True),
    ],
)
def test_the_edges_of_a_cutoff(claim: ClaimName, iat: float | None, revoked: bool) -> None:
    """A cutoff covers every `iat` up to itself, and every `iat` that is missing, invalid or too far ahead."""
    value = "" if claim == "all" else "x"
    record = Revocation(claim, value, LIVE, NOW, NOW - 10)
    claims = Claims.of(sid="x", sub="x", client_id="x", iat=iat, all="")
    assert covers(record, claims, NOW) is revoked


def test_a_far_future_iat_escapes_no_later_cutoff() -> None:
    """A token with an `iat` a year ahead is covered by an old cutoff of its subject, but by none of another subject."""
    claims = Claims.of(sub="alice", iat=NOW + 365 * 86_400)
    assert covers(Revocation("sub", "alice", LIVE, NOW, NOW - 1e9), claims, NOW)
    assert not covers(Revocation("sub", "bob", LIVE, NOW, NOW), claims, NOW)


@many
@given(questions())
def test_without_a_cutoff_the_iat_does_not_matter(claims: Claims) -> None:
    """A revocation without a cutoff covers the tokens with its claim, whatever their `iat` is."""
    for claim in CLAIMS:
        value = claims.value_of(claim)
        if value is not None:
            assert covers(Revocation(claim, value, LIVE, NOW), claims, NOW)


def test_a_record_dies_at_its_expiry() -> None:
    """A record covers tokens until its expiry, inclusive. A record without an expiry covers them forever."""
    claims = Claims.of(jti="a")
    assert covers(Revocation("jti", "a", NOW, NOW), claims, NOW)
    assert not covers(Revocation("jti", "a", NOW, NOW), claims, math.nextafter(NOW, math.inf))
    assert covers(Revocation("jti", "a", None, None), claims, NOW * 100)


@pytest.mark.parametrize("claim", [*CLAIMS])
def test_only_what_is_considered_is_covered(claim: ClaimName) -> None:
    """A revocation covers exactly the claims that include its own claim and value, whatever else they have."""
    value = "" if claim == "all" else "x"
    record = Revocation(claim, value, LIVE, NOW)
    everything: dict[str, Any] = {
        "jti": "x",
        "sid": "x",
        "sub": "x",
        "client_id": "x",
        "iat": NOW,
        "all": "",
    }
    assert covers(record, Claims.of(**everything), NOW)
    assert not covers(record, Claims.of(**everything | {claim: None}), NOW)
    assert not covers(record, Claims.of(), NOW)
    if claim != "all":
        assert not covers(record, Claims.of(**everything | {claim: "y"}), NOW)


@many
@given(questions())
def test_identifiers_are_the_values_considered(claims: Claims) -> None:
    """`identifiers` has each claim that is present, once, with its value."""
    identifiers = list(claims.identifiers)
    assert dict(identifiers) == {claim: value for claim in CLAIMS if (value := claims.value_of(claim)) is not None}
    assert len(identifiers) == len(dict(identifiers))


@many
@given(issuances, st.floats(0, 1e6))
def test_an_iat_stands_or_is_before_everything(iat: float | None, skew: float) -> None:
    """`issued_at` returns a usable `iat` unchanged. Any other counts as issued before every cutoff."""
    counted = issued_at(iat, NOW, skew)
    if iat is not None and math.isfinite(iat) and iat <= NOW + skew:
        assert counted == iat
    else:
        assert counted == -math.inf


@many
@given(revocations(), questions(), st.sampled_from([0.0, 1.0, 60.0, 3600.0]))
def test_an_iat_is_unusable_where_it_cannot_be_compared_with_the_cutoff(
    revocation: Revocation, claims: Claims, skew: float
) -> None:
    """`iat_unusable` is true of a covering revocation if it has a cutoff with which the `iat` cannot be compared."""
    if not covers(revocation, claims, NOW, skew):
        return
    usable = claims.iat is not None and math.isfinite(claims.iat) and claims.iat <= NOW + skew
    assert iat_unusable(revocation, claims, NOW, skew) is (revocation.issued_before is not None and not usable)


def test_without_a_covering_revocation_no_iat_is_unusable() -> None:
    """`iat_unusable` is false if no revocation covers the token."""
    assert not iat_unusable(None, Claims.of(sub="a"), NOW)


alike = revocations(claim="sub", value="a")


@many
@given(alike, alike)
@example(Revocation("sub", "a", None, None), Revocation("sub", "a", None, None, None, "", ""))
def test_merge_is_commutative(one: Revocation, other: Revocation) -> None:
    """Which of two records comes first makes no difference."""
    assert merge(one, other) == merge(other, one)


@many
@given(alike, alike, alike)
def test_merge_is_associative(one: Revocation, two: Revocation, three: Revocation) -> None:
    """How three records are grouped makes no difference."""
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@many
@given(alike)
def test_merge_is_idempotent(record: Revocation) -> None:
    """Merging a record with itself changes nothing."""
    assert merge(record, record) == record


@many
@given(st.lists(alike, min_size=1, max_size=6), st.lists(st.integers(0, 5), max_size=8), st.randoms())
def test_order_duplicates_and_late_copies_do_no_harm(
    records: list[Revocation], repeats: list[int], dice: random.Random
) -> None:
    """Records merge into the same record in any order, also with duplicates and copies of intermediate results."""
    expected = reduce(merge, records)
    history = records + [records[number % len(records)] for number in repeats]
    dice.shuffle(history)
    state = history[0]
    stages = [state]
    for record in history:
        state = merge(state, record)
        stages.append(state)
        state = merge(state, dice.choice(stages))
    assert state == expected


@many
@given(st.lists(alike, min_size=1, max_size=6))
def test_merge_keeps_the_latest_end_and_cutoff_and_the_earliest_origin(records: list[Revocation]) -> None:
    """A merge keeps the latest end and cutoff, and the earliest `revoked_at` with its reason and actor."""
    merged = reduce(merge, records)
    assert merged.expires_at == latest([record.expires_at for record in records])
    assert merged.issued_before == latest([record.issued_before for record in records])
    known = [record.revoked_at for record in records if record.revoked_at is not None]
    assert merged.revoked_at == (min(known) if known else None)
    origins = {(r.revoked_at, r.reason, r.revoked_by) for r in records}
    assert (merged.revoked_at, merged.reason, merged.revoked_by) in origins


def latest(times: Sequence[float | None]) -> float | None:
    """Return the latest of these times. None is later than any other."""
    known = [each for each in times if each is not None]
    return max(known) if len(known) == len(times) else None


@many
@given(alike, alike, issuances)
def test_a_merged_record_covers_what_either_covers(one: Revocation, other: Revocation, iat: float | None) -> None:
    """A token that is covered by one of two records is also covered by the merged record."""
    claims = Claims.of(sub="a", iat=iat)
    if covers(one, claims, NOW) or covers(other, claims, NOW):
        assert covers(merge(one, other), claims, NOW)


def test_merge_keeps_the_first_reason_with_its_actor() -> None:
    """A merge keeps the reason and the actor of the earlier request, even if it gave no reason."""
    first = Revocation("jti", "a", NOW + 1, NOW - 5, None, None, "api")
    later = Revocation("jti", "a", NOW + 9, NOW, None, "stolen", "ops")
    assert merge(later, first) == Revocation("jti", "a", NOW + 9, NOW - 5, None, None, "api")


def test_a_record_of_unknown_origin_gives_way_to_one_that_is_known() -> None:
    """A foreign writer's record has no `revoked_at`. Merged with ours, it gets our `revoked_at`, reason and actor."""
    foreign = Revocation("jti", "a", None, None)
    ours = Revocation("jti", "a", NOW + 9, NOW, None, "stolen", "ops")
    assert merge(foreign, ours) == ours._replace(expires_at=None) == merge(ours, foreign)


@pytest.mark.parametrize("other", [Revocation("sub", "b", LIVE, NOW), Revocation("sid", "a", LIVE, NOW)])
def test_records_of_different_tokens_are_not_merged(other: Revocation) -> None:
    """Merging two records of different claims or values raises ValueError."""
    with pytest.raises(ValueError, match="same claim and value"):
        merge(Revocation("sub", "a", LIVE, NOW), other)
