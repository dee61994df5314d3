"""`GET /check` and `POST /check`: which requests are valid, which claims count, and what the response says."""

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.api.serving import API_KEYS, Service, Start, bearer
from tests.redis_processes import eventually
from tests.unit.reencodings import SECRET, issuer

NOW = int(time.time())
EVERYTHING = ["jti", "sid", "sub", "client_id", "all"]


def token(**claims: Any) -> str:
    """Return a signed token with these claims. It expires in an hour unless they include `exp`."""
    return issuer("HS256").sign({"exp": int(time.time()) + 3600, **claims})


async def is_revoked(service: Service, body: dict[str, Any]) -> bool:
    """Check this body, and return `revoked` from the response."""
    revoked: bool = (await service.check(body))["revoked"]
    return revoked


@pytest.fixture
async def revoked(service: Service) -> Service:
    """A service where the `jti` "gone" is revoked."""
    await service.revoke({"jti": "gone", "exp": NOW + 3600, "reason": "logout"})
    return service


@pytest.mark.parametrize("jti", ["gone", "fine"])
async def test_all_ways_to_ask_have_one_answer(revoked: Service, jti: str) -> None:
    """A check by `jti` or by token has the same result as a query, as JSON and as a form."""
    raw = token(jti=jti)
    answers = [
        await revoked.get("/check", {"jti": jti}),
        await revoked.get("/check", {"token": raw}),
        await revoked.post("/check", {"jti": jti}),
        await revoked.post("/check", {"token": raw}),
        await revoked.form("/check", {"jti": jti}),
        await revoked.form("/check", {"token": raw}),
    ]
    assert [answer.status for answer in answers] == [200] * 6
    assert {answer.json["revoked"] for answer in answers} == {jti == "gone"}


async def test_not_revoked_has_no_revocation(service: Service) -> None:
    """If nothing is revoked, the response says what was considered, whether it was verified, and the source."""
    assert await service.check({"jti": "fine"}) == {
        "revoked": False,
        "considered": ["jti"],
        "verified": False,
        "source": "redis",
    }


async def test_revoked_has_the_record(revoked: Service) -> None:
    """If a token is revoked, the response has the record: claim, value, times, reason and actor."""
    said = await revoked.check({"jti": "gone"})
    at = said["revocation"].pop("revoked_at")
    assert abs(at - time.time()) < 10
    assert said == {
        "revoked": True,
        "revocation": {
            "claim": "jti",
            "value": "gone",
            "expires_at": NOW + 3600,
            "reason": "logout",
            "revoked_by": "ops",
        },
        "considered": ["jti"],
        "verified": False,
        "source": "redis",
    }


async def test_members_that_say_nothing_are_left_out(service: Service) -> None:
    """A record in a response has `reason` and `issued_before` only if they are set."""
    await service.revoke({"jti": "a"})
    assert (await service.check({"jti": "a"}))["revocation"].keys() == {
        "claim",
        "value",
        "revoked_at",
        "expires_at",
        "revoked_by",
    }
    await service.revoke({"sub": "alice", "issued_before": NOW})
    assert (await service.check({"sub": "alice"}))["revocation"]["issued_before"] == NOW


async def test_scopes(service: Service) -> None:
    """A key with `check` or `admin` may check, and one with `revoke` alone is 403."""
    for name, status in {"checker": 200, "both": 200, "ops": 200, "revoker": 403}.items():
        for answer in (
            await service.get("/check", {"jti": "a"}, headers=bearer(name)),
            await service.post("/check", {"jti": "a"}, headers=bearer(name)),
        ):
            assert answer.status == status


@pytest.mark.parametrize(
    ("claim", "value"), [("jti", "j"), ("sid", "s"), ("sub", "u"), ("client_id", "c"), ("all", True)]
)
async def test_every_claim_revokes_the_tokens_that_carry_it(service: Service, claim: str, value: object) -> None:
    """A revocation covers a token with its value and not one with another value, but `all` covers every token."""
    carrying = token(**({} if claim == "all" else {claim: value}), iat=NOW - 60)
    other = token(**({} if claim == "all" else {claim: "other"}), iat=NOW - 60)
    assert not await is_revoked(service, {"token": carrying})
    await service.revoke({claim: value})
    assert (await service.check({"token": carrying}))["revocation"]["claim"] == claim
    assert await is_revoked(service, {"token": other}) == (claim == "all")


@pytest.mark.parametrize("claim", ["sub", "client_id", "all", "sid"])
async def test_a_cutoff_covers_what_was_issued_at_or_before_it(service: Service, claim: str) -> None:
    """A cutoff covers a token with an equal or earlier `iat`, and none with a later one."""
    value = True if claim == "all" else "v"
    carried = {} if claim == "all" else {claim: "v"}
    await service.revoke({claim: value, "issued_before": NOW})
    for iat, expected in {NOW - 1: True, NOW: True, NOW + 0.5: False, NOW + 1: False}.items():
        assert await is_revoked(service, {"token": token(**carried, iat=iat)}) == expected, iat
        if claim != "all":
            assert await is_revoked(service, {**carried, "iat": iat}) == expected, iat


@pytest.mark.parametrize("iat", [None, "1700000000", True, [], 1e18, pytest.param(NOW + 86_400, id="in a day")])
async def test_an_iat_that_cannot_be_believed_counts_as_before_every_cutoff(service: Service, iat: object) -> None:
    """A token whose `iat` is not a number, or is more than 60 s ahead, is covered by a cutoff in the past."""
    await service.revoke({"sub": "alice", "issued_before": NOW - 1000})
    assert await is_revoked(service, {"token": token(sub="alice", iat=iat)})


async def test_a_token_without_iat_counts_as_before_every_cutoff(service: Service) -> None:
    """A token without `iat` is covered by a cutoff in the past."""
    await service.revoke({"sub": "alice", "issued_before": NOW - 1000})
    assert await is_revoked(service, {"token": token(sub="alice")})


@pytest.mark.parametrize("iat", ["none", None, "1700000000", True, pytest.param(NOW + 86_400, id="in a day"), 1e18])
@pytest.mark.parametrize("claim", ["sid", "sub", "client_id", "all"])
async def test_the_answer_says_that_the_iat_is_unusable(service: Service, claim: str, iat: object) -> None:
    """`iat_unusable` is true where a cutoff covers a token, or its claims, only because the `iat` is unusable."""
    carried = {} if claim == "all" else {claim: "v"}
    await service.revoke({"all": True} if claim == "all" else carried | {"issued_before": NOW})
    said = await service.check({"token": token(**carried, **({} if iat == "none" else {"iat": iat}))})
    assert (said["revoked"], said["iat_unusable"], said["revocation"]["claim"]) == (True, True, claim)
    question = carried | {"iat": iat if isinstance(iat, int | float) and iat is not True else None}
    assert (await service.check(question))["iat_unusable"] is True


async def test_a_question_without_iat_gets_the_same_answer(service: Service) -> None:
    """A check by `sub` without `iat` has `iat_unusable` in the response, as JSON, as a query and in a batch."""
    await service.revoke({"sub": "alice"})
    assert (await service.check({"sub": "alice"}))["iat_unusable"] is True
    assert (await service.get("/check", {"sub": "alice"})).json["iat_unusable"] is True
    batch = {"checks": [{"sub": "alice"}, {"sub": "alice", "iat": NOW - 60}, {"sub": "bob"}]}
    results = (await service.post("/check/batch", batch)).json["results"]
    assert [one.get("iat_unusable") for one in results] == [True, None, None]


async def test_iat_unusable_is_absent_otherwise(service: Service) -> None:
    """`iat_unusable` is absent if the `iat` is usable, if no cutoff decides, and if the token is not revoked."""
    await service.revoke({"sub": "alice", "issued_before": NOW})
    await service.revoke({"jti": "gone"})
    await service.revoke({"sid": "family"})
    for claims, revoked in (
        ({"sub": "alice", "iat": NOW - 60}, True),
        ({"sub": "alice", "iat": NOW}, True),
        ({"sub": "alice", "iat": 0}, True),
        ({"sub": "alice", "iat": NOW + 1}, False),
        ({"sub": "bob"}, False),
        ({"jti": "gone"}, True),
        ({"jti": "gone", "sub": "alice"}, True),
        ({"sid": "family", "sub": "alice"}, True),
    ):
        for question in ({"token": token(**claims)}, claims):
            said = await service.check(question)
            assert (said["revoked"], "iat_unusable" in said) == (revoked, False), claims


async def test_an_unusable_iat_is_counted_and_warned_about(service: Service) -> None:
    """Every check with an unusable `iat` is counted. Four in a row log one warning, without the claim's value."""
    await service.revoke({"sub": "alice-4711"})
    batch = {"checks": [{"token": token(sub="alice-4711")}, {"sub": "alice-4711", "iat": NOW - 60}] * 3}
    with capture_logs() as logged:
        assert await is_revoked(service, {"token": token(sub="alice-4711")})
        await service.post("/check/batch", batch)
    assert await service.metric("revocation_checks_iat_unusable_total") == 4
    (warning,) = [event for event in logged if event["log_level"] == "warning"]
    assert (warning["event"], warning["claim"], warning["occurrences"]) == ("iat_unusable", "sub", 1)
    assert "4711" not in str(logged)


@pytest.mark.parametrize("claim", ["sub", "client_id"])
async def test_tokens_without_iat_are_accepted_again_when_the_cutoff_ends(service: Service, claim: Any) -> None:
    """A token without `iat` is accepted as soon as a revocation with `expires_in` has ended, and not before."""
    ends = (await service.revoke({claim: "v", "expires_in": 1}))["expires_at"]
    assert (await service.check({"token": token(**{claim: "v"})}))["iat_unusable"] is True

    async def logged_in() -> bool:
        return not await is_revoked(service, {"token": token(jti="the next login", **{claim: "v"})})

    await eventually(logged_in, "the end of the cutoff")
    assert time.time() >= ends - 0.01
    assert await service.redis.exists(service.keyspace.key(claim, "v")) == 0


async def test_a_little_ahead_is_believed(service: Service) -> None:
    """An `iat` 50 s ahead is taken for a clock offset, so a cutoff of now does not cover the token."""
    await service.revoke({"sub": "alice"})
    assert not await is_revoked(service, {"token": token(sub="alice", iat=time.time() + 50)})


async def test_a_session_is_revoked_for_good(service: Service) -> None:
    """A revocation by `sid` without a cutoff also covers tokens that are issued later."""
    await service.revoke({"sid": "family"})
    assert await is_revoked(service, {"token": token(sid="family", iat=NOW + 50)})


async def test_azp_stands_in_for_client_id(service: Service) -> None:
    """A token's client is its `client_id`, else its `azp`; never the `azp` beside a `client_id`."""
    await service.revoke({"client_id": "mobile"})
    assert await is_revoked(service, {"token": token(azp="mobile", iat=NOW - 60)})
    assert not await is_revoked(service, {"token": token(client_id="web", azp="mobile", iat=NOW - 60)})


async def test_any_revocation_that_covers_is_enough(service: Service) -> None:
    """A token is revoked if any revocation covers it, even if the cutoff of another does not."""
    await service.revoke({"sub": "alice", "issued_before": NOW - 1000})
    await service.revoke({"client_id": "mobile", "issued_before": NOW - 10})
    said = await service.check({"token": token(sub="alice", client_id="mobile", iat=NOW - 500)})
    assert (said["revoked"], said["revocation"]["claim"]) == (True, "client_id")


async def test_a_token_is_considered_whole(service: Service) -> None:
    """A check by token considers every claim that the token carries, and `all`."""
    assert (await service.check({"token": token(jti="j", sid="s", sub="u", azp="c")}))["considered"] == EVERYTHING
    assert (await service.check({"token": token(jti="j")}))["considered"] == ["jti", "all"]


@pytest.mark.parametrize(
    ("claims", "considered"),
    [
        ({"jti": "j"}, ["jti"]),
        ({"sid": "s", "sub": "u"}, ["sid", "sub"]),
        ({"jti": "j", "sid": "s", "sub": "u", "client_id": "c"}, ["jti", "sid", "sub", "client_id"]),
        ({"iat": NOW}, ["all"]),
        ({"iat": None}, ["all"]),
        ({"client_id": "c", "iat": NOW}, ["client_id", "all"]),
    ],
)
async def test_claims_are_considered_as_named(service: Service, claims: dict[str, Any], considered: list[str]) -> None:
    """A check by claims considers only those that it names, and `all` only if it has `iat`, which may be null."""
    assert (await service.check(claims))["considered"] == considered


async def test_without_iat_all_is_not_considered(service: Service) -> None:
    """A check by `jti` is covered by a revocation of `all` only if it has `iat`, which may be null."""
    await service.revoke({"all": True})
    assert not await is_revoked(service, {"jti": "j"})
    assert await is_revoked(service, {"jti": "j", "iat": None})
    assert await is_revoked(service, {"jti": "j", "iat": NOW - 60})


@pytest.mark.parametrize("claim", ["sub", "client_id"])
async def test_without_iat_a_subject_is_judged_as_without(service: Service, claim: str) -> None:
    """A check by `sub` or `client_id` without `iat` is covered by any cutoff."""
    await service.revoke({claim: "v", "issued_before": NOW - 1000})
    assert await is_revoked(service, {claim: "v"})
    assert not await is_revoked(service, {claim: "v", "iat": NOW})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"token": "a.b.c", "jti": "a"},
        {"azp": "mobile"},
        {"jti": "a", "exp": 1},
        {"token": ""},
        {"token": None},
        {"token": 7},
        {"jti": None},
        {"jti": 1.5},
        {"sub": True},
        {"sid": ["a"]},
        {"iat": "now"},
        {"iat": -1},
        {"jti": ""},
        {"jti": "x" * 257},
    ],
)
async def test_other_questions_are_errors(service: Service, body: dict[str, Any]) -> None:
    """A check without a claim, with a token and claims, with an unknown member or with a bad value is 400."""
    answer = await service.post("/check", body)
    assert (answer.status, answer.problem) == (400, "invalid_request")


@pytest.mark.parametrize("query", ["", "?", "?jti=a&jti=b", "?jti=a&token=b", "?nonsense=1", "?jti", "?&jti=a&&"])
async def test_other_queries_are_errors(service: Service, query: str) -> None:
    """An empty, ambiguous or malformed query is 400 invalid_request."""
    answer = await service.get(f"/check{query}")
    assert (answer.status, answer.problem) == (400, "invalid_request")


async def test_a_query_is_decoded_once(service: Service) -> None:
    """A value in a query is percent-decoded exactly once."""
    await service.revoke({"jti": "a b+c%20é&=#"})
    assert (await service.get("/check?jti=a+b%2Bc%2520%C3%A9%26%3D%23")).json["revoked"]


async def test_an_integer_is_its_decimal_string(service: Service) -> None:
    """An integer `sub`, in a check or in a token, matches the revocation of its decimal string."""
    await service.revoke({"sub": "42"})
    assert await is_revoked(service, {"sub": 42})
    assert await is_revoked(service, {"token": token(sub=42)})


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}, "", "x" * 257])
@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id", "azp"])
async def test_a_token_with_unfit_claims_is_invalid(service: Service, claim: str, value: object) -> None:
    """A token with a claim that is neither an integer nor a string of 1 to 256 characters is 400 invalid_token."""
    answer = await service.post("/check", {"token": token(**{claim: value})})
    assert (answer.status, answer.problem) == (400, "invalid_token")


async def test_expired_is_said_of_a_token(service: Service) -> None:
    """`expired` says whether the `exp` of a token has passed. A check by claims has no such member."""
    assert (await service.check({"token": token(jti="a")}))["expired"] is False
    assert (await service.check({"token": token(jti="a", exp=1_000_000_000)}))["expired"] is True
    assert (await service.check({"token": issuer("HS256").sign({"jti": "a"})}))["expired"] is False
    assert "expired" not in await service.check({"jti": "a"})


async def test_verified_says_whether_a_signature_was_checked(start: Start) -> None:
    """`verified` is true for a token if there are signing keys, and false without them and for claims."""
    with_keys, without = await start(JWT_SECRET=SECRET), await start()
    raw = token(jti="a")
    assert (await with_keys.check({"token": raw}))["verified"] is True
    assert (await with_keys.check({"jti": "a"}))["verified"] is False
    assert (await without.check({"token": raw}))["verified"] is False


async def test_another_writing_of_the_token_is_the_same_token(start: Start) -> None:
    """A revoked token with padding, another alphabet, a scheme or white space is still revoked, or is 400."""
    for settings in ({}, {"JWT_SECRET": SECRET}):
        service = await start(**settings)
        for claims in ({"jti": "7d2c1f"}, {"sub": "alice"}):
            raw = token(**claims)
            await service.revoke({"token": raw})
            for writing in (raw + "=", f"Bearer {raw}", raw.replace("-", "+").replace("_", "/"), f" {raw}\n"):
                answer = await service.post("/check", {"token": writing})
                assert answer.json.get("revoked") or answer.problem == "invalid_token", writing


@pytest.mark.parametrize("value", ["1", "0", "", "garbage", "[]", "null", '{"expires_at": 1}'])
async def test_a_foreign_blacklist_is_honoured(service: Service, value: str) -> None:
    """A foreign writer's key `token_blacklist:<jti>` revokes the token, whatever its value."""
    await service.blacklist("theirs", 60, value)
    said = await service.check({"token": token(jti="theirs")})
    assert (said["revoked"], said["revocation"]["revoked_at"]) == (True, None)
    assert said["revocation"]["expires_at"] == pytest.approx(time.time() + 60, abs=3)


async def test_a_foreign_key_of_any_type_is_honoured(service: Service) -> None:
    """A foreign writer's key revokes even if it is a list or has no expiry."""
    await service.redis.rpush(service.keyspace.key("jti", "list"), "x")
    await service.redis.set(service.keyspace.key("jti", "eternal"), "1")
    assert await is_revoked(service, {"jti": "list"})
    assert (await service.check({"jti": "eternal"}))["revocation"]["expires_at"] is None


async def test_every_instance_answers_alike(start: Start) -> None:
    """A revocation holds at once on an instance with the same key prefix, and not on one with another prefix."""
    one = await start(KEY_PREFIX="shared:")
    two = await start(KEY_PREFIX="shared:")
    apart = await start()
    await one.revoke({"jti": "shared", "expires_in": 30})
    assert await is_revoked(two, {"jti": "shared"})
    assert not await is_revoked(apart, {"jti": "shared"})


async def test_a_revocation_ends_with_the_token(service: Service) -> None:
    """A revocation holds until its `exp`, and then Redis expires its key."""
    exp = time.time() + 1.5
    await service.revoke({"jti": "short", "exp": exp})

    async def ended() -> bool:
        return not await is_revoked(service, {"jti": "short"})

    await eventually(ended, "the end of the revocation")
    assert time.time() >= exp - 0.01
    assert await service.redis.exists(service.keyspace.key("jti", "short")) == 0


async def test_an_exp_too_far_is_told_not_refused(service: Service) -> None:
    """A check of a token whose `exp` is too far in the future succeeds. It is counted and logged with the setting."""
    with capture_logs() as logged:
        assert not await is_revoked(service, {"token": token(jti="a", exp=NOW + 40 * 86_400)})
    (warning,) = [event for event in logged if event["log_level"] == "warning"]
    assert warning["event"] == "exp_too_far"
    assert warning["setting"] == "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS"
    assert await service.metric("revocation_checked_exp_too_far_total") == 1


async def test_an_encrypted_token_is_unsupported(service: Service) -> None:
    """A token of five parts (a JWE) is 400 unsupported_token."""
    answer = await service.post("/check", {"token": "a.b.c.d.e"})
    assert (answer.status, answer.problem) == (400, "unsupported_token")


async def test_unknown_is_never_a_guess(start_without_redis: Start) -> None:
    """Without Redis, every check is 503 store_unavailable with Retry-After."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    answers = await asyncio.gather(
        service.get("/check", {"jti": "a"}),
        service.post("/check", {"token": token(jti="a")}),
        service.post("/check", {"sub": "alice", "iat": NOW}),
    )
    for answer in answers:
        assert (answer.status, answer.problem) == (503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
