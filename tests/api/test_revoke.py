"""`POST /revoke`: which bodies it accepts, what it returns, and what it stores in Redis."""

import asyncio
import hmac
import json
import time
from hashlib import sha256
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.api.serving import API_KEYS, Service, Start, bearer
from tests.redis_processes import free_port
from tests.unit.reencodings import SECRET, Issuer, b64url, issuer

DAY = 86_400
MONTH = 30 * DAY
FORMS: dict[str, dict[str, Any]] = {
    "jti": {"jti": "7d2c1f"},
    "jti, exp": {"jti": "7d2c1f", "exp": int(time.time()) + DAY},
    "jti, expires_in": {"jti": "7d2c1f", "expires_in": 3600},
    "sid": {"sid": "family-1"},
    "sid, issued_before": {"sid": "family-1", "issued_before": int(time.time())},
    "sid, expires_in": {"sid": "family-1", "expires_in": 3600},
    "sub": {"sub": "alice"},
    "sub, issued_before": {"sub": "alice", "issued_before": int(time.time()) - 5},
    "sub, expires_in": {"sub": "alice", "expires_in": 900.5},
    "sub, issued_before, exp": {"sub": "alice", "issued_before": int(time.time()) - 5, "exp": int(time.time()) + DAY},
    "client_id": {"client_id": "mobile"},
    "client_id, issued_before": {"client_id": "mobile", "issued_before": int(time.time())},
    "client_id, expires_in": {"client_id": "mobile", "expires_in": 3600},
    "all": {"all": True},
    "all, issued_before": {"all": True, "issued_before": int(time.time())},
    "all, expires_in": {"all": True, "expires_in": 3600},
}
HAVE_CUTOFF = {"sub", "client_id", "all"}
BY_CUTOFF: list[dict[str, Any]] = [{"sid": "a"}, {"sub": "a"}, {"client_id": "a"}, {"all": True}]


def token(**claims: Any) -> str:
    """Return a signed token with these claims. It expires in an hour unless they include `exp`."""
    return issuer("HS256").sign({"exp": int(time.time()) + 3600, **claims})


def unsigned(alg: str) -> str:
    """Return the header and payload of a token with this `alg`, without a signature."""
    claims = {"jti": "a", "exp": int(time.time()) + 60}
    return ".".join(b64url(json.dumps(part).encode()) for part in ({"alg": alg}, claims))


async def expiry_of(service: Service, claim: Any, value: str) -> float:
    """Return when Redis expires the record, in epoch seconds."""
    return int(await service.redis.pexpiretime(service.keyspace.key(claim, value))) / 1000


def as_form(body: dict[str, Any]) -> dict[str, str]:
    """Return the members of a JSON body as form fields."""
    return {name: "true" if value is True else str(value) for name, value in body.items()}


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "form"])
@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
async def test_each_form_revokes_its_claim_and_value(service: Service, body: dict[str, Any], as_json: bool) -> None:
    """Each kind of body, as JSON and as form fields, stores one revocation of its claim and value, and returns it."""
    if as_json:
        answer = await service.post("/revoke", body | {"reason": "lost phone"})
    else:
        answer = await service.form("/revoke", as_form(body) | {"reason": "lost phone"})
    assert answer.status == 200
    said = answer.json
    claim: Any = next(iter(body))
    value = "" if claim == "all" else body[claim]
    assert (said["result"], said["claim"], said["value"]) == ("revoked", claim, value)
    assert (said["reason"], said["verified"]) == ("lost phone", False)
    assert abs(said["revoked_at"] - time.time()) < 5
    assert ("issued_before" in said) == (claim in HAVE_CUTOFF or "issued_before" in body)
    assert await service.stored_keys() == {service.keyspace.key(claim, value)}


async def test_a_token_is_revoked_by_its_jti(service: Service) -> None:
    """A JWT is revoked by its `jti`, until its `exp`."""
    exp = int(time.time()) + 777
    said = await service.revoke({"token": token(jti="7d2c1f", exp=exp)})
    assert (said["result"], said["claim"], said["value"], said["expires_at"]) == ("revoked", "jti", "7d2c1f", exp)


async def test_the_answer_has_the_stated_members_and_no_others(service: Service) -> None:
    """The response has only the seven documented members, and `issued_before` if there is a cutoff."""
    members = {"result", "claim", "value", "revoked_at", "expires_at", "reason", "verified"}
    assert (await service.revoke({"jti": "a"})).keys() == members
    assert (await service.revoke({"sub": "a"})).keys() == members | {"issued_before"}


async def test_no_reason_is_null(service: Service) -> None:
    """Without a reason, `reason` is null in the response."""
    assert (await service.revoke({"jti": "a"}))["reason"] is None


@pytest.mark.parametrize("written", ["Bearer {}", "  {}\n", "bearer   {} ", "{}"])
async def test_white_space_and_the_scheme_are_dropped(service: Service, written: str) -> None:
    """White space around a token and the scheme `Bearer` before it are ignored."""
    assert (await service.revoke({"token": written.format(token(jti="7d2c1f"))}))["value"] == "7d2c1f"


async def test_a_jwt_without_jti_is_named_by_its_signing_input(service: Service) -> None:
    """A JWT without `jti` is named `sha256:` and the hex SHA-256 of its encoded header and payload."""
    bare = token(sub="alice")
    named = "sha256:" + sha256(bare.rpartition(".")[0].encode()).hexdigest()
    assert (await service.revoke({"token": bare}))["value"] == named


async def test_no_token_may_claim_a_computed_name(service: Service) -> None:
    """A JWT whose `jti` begins with `sha256:` is not named by it, so it cannot revoke the token of that name."""
    victim = "sha256:" + "0" * 64
    said = await service.revoke({"token": token(jti=victim)})
    assert said["value"] != victim
    assert not (await service.check({"jti": victim}))["revoked"]


async def test_an_opaque_token_is_named_by_the_whole_of_it(service: Service) -> None:
    """A token that is not a JWT is named `sha256:` and the hex SHA-256 of the whole string."""
    said = await service.revoke({"token": "an-opaque-token", "expires_in": 60})
    assert said["value"] == "sha256:" + sha256(b"an-opaque-token").hexdigest()


@pytest.mark.parametrize("opaque", ["an-opaque-token", "one.two", "sha256:" + "0" * 64])
async def test_an_opaque_token_needs_an_expiry(service: Service, opaque: str) -> None:
    """An opaque token without `exp` or `expires_in` is 400 exp_required, and nothing is stored."""
    answer = await service.post("/revoke", {"token": opaque})
    assert (answer.status, answer.problem) == (400, "exp_required")
    assert await service.stored_keys() == set()


async def test_a_jwt_without_exp_needs_an_expiry(service: Service) -> None:
    """A JWT without `exp` is 400 exp_required, but with `expires_in` it is revoked."""
    eternal = issuer("HS256").sign({"jti": "eternal"})
    answer = await service.post("/revoke", {"token": eternal})
    assert (answer.status, answer.problem) == (400, "exp_required")
    said = await service.revoke({"token": eternal, "expires_in": 60})
    assert said["result"] == "revoked"
    assert 55 < said["expires_at"] - time.time() < 61


@pytest.mark.parametrize("raw", ["a.b.c", "..", "a.b.c.d", "{}", "eyJhbGciOiJIUzI1NiJ9.e30"])
async def test_three_parts_are_a_jwt_or_an_error(service: Service, raw: str) -> None:
    """A malformed JWT is 400 and not accepted as an opaque token, but a string of four parts is."""
    answer = await service.post("/revoke", {"token": raw, "expires_in": 60})
    if raw == "a.b.c.d":
        assert answer.status == 200  # opaque: neither a JWT nor a JWE
    else:
        assert (answer.status, answer.problem in {"invalid_token", "unsupported_token"}) == (400, True)
        assert await service.stored_keys() == set()


async def test_an_encrypted_token_is_unsupported(service: Service) -> None:
    """A token of five parts is a JWE, which is 400 unsupported_token."""
    answer = await service.post("/revoke", {"token": "a.b.c.d.e", "expires_in": 60})
    assert (answer.status, answer.problem) == (400, "unsupported_token")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reason": "x"},
        {"jti": "a", "sid": "b"},
        {"token": "a", "jti": "b", "expires_in": 1},
        {"all": True, "sub": "a"},
        {"jti": "a", "exp": 2_000_000_000, "expires_in": 60},
        {"jti": "a", "issued_before": 1},
        {"token": "opaque", "expires_in": 60, "issued_before": 1},
        {"sub": "a", "exp": 2_000_000_000, "expires_in": 60},
        {"sid": "a", "iat": 60},
        {"all": False},
        {"all": "true"},
        {"all": 1},
        {"jti": "a", "unknown": 1},
    ],
)
async def test_exactly_one_form_and_only_its_members(service: Service, body: dict[str, Any]) -> None:
    """A body without a claim, with two, or with members that do not belong together is 400, and nothing is stored."""
    answer = await service.post("/revoke", body)
    assert (answer.status, answer.problem) == (400, "invalid_request")
    assert await service.stored_keys() == set()


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
async def test_an_integer_is_its_decimal_string(service: Service, claim: str) -> None:
    """The integer `42` and the string `"42"` are the same value of a claim."""
    assert (await service.revoke({claim: 42}))["value"] == "42"
    assert (await service.revoke({claim: "42"}))["result"] == "already_revoked" or claim in HAVE_CUTOFF
    assert len(await service.stored_keys()) == 1


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}, None, "", "x" * 257, "a\nb", "a\x00", "\x85"])
@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
async def test_other_values_are_errors(service: Service, claim: str, value: object) -> None:
    """A value is 1 to 256 characters without control characters, or an integer; anything else is 400."""
    answer = await service.post("/revoke", {claim: value})
    assert (answer.status, answer.problem) == (400, "invalid_request")


async def test_256_characters_are_a_value(service: Service) -> None:
    """A value of 256 characters is revoked and found, also outside ASCII."""
    for longest in ("x" * 256, "\U0001f511" * 256):
        assert (await service.revoke({"jti": longest}))["value"] == longest
        assert (await service.check({"jti": longest}))["revoked"]


@pytest.mark.parametrize("reason", ["x" * 257, "two\nlines", "a\rb", "a\x00b", "a\u2028b", "\x1b[31m", 7, ["x"]])
async def test_a_reason_is_one_short_line(service: Service, reason: object) -> None:
    """A reason is 400 if it is too long, has a control character or a line separator, or is not a string."""
    answer = await service.post("/revoke", {"jti": "a", "reason": reason})
    assert (answer.status, answer.problem) == (400, "invalid_request")


async def test_scopes(service: Service) -> None:
    """A key with `revoke` or `admin` may revoke by `jti`, `sid`, `sub` or token; one with `check` alone is 403."""
    bodies: tuple[dict[str, Any], ...] = ({"jti": "a"}, {"sid": "a"}, {"sub": "a"}, {"token": token(jti="b")})
    for body in bodies:
        answer = await service.post("/revoke", body, headers=bearer("checker"))
        assert (answer.status, answer.problem) == (403, "insufficient_scope")
    assert (await service.stored_keys(), await service.log_length()) == (set(), 0)
    for number, body in enumerate(bodies, 1):
        for name in ("revoker", "both", "ops"):
            assert (await service.post("/revoke", body, headers=bearer(name))).status == 200
            assert len(await service.stored_keys()) == number


@pytest.mark.parametrize("body", [{"client_id": "mobile"}, {"all": True}], ids=["client_id", "all"])
async def test_wide_revocations_need_admin(service: Service, body: dict[str, Any]) -> None:
    """The scope `revoke` is not enough for `client_id` and `all`: 403, and nothing is stored."""
    for name in ("revoker", "both", "checker"):
        answer = await service.post("/revoke", body, headers=bearer(name))
        assert (answer.status, answer.problem) == (403, "insufficient_scope")
    assert await service.stored_keys() == set()
    assert (await service.revoke(body, headers=bearer("ops")))["result"] == "revoked"


async def test_a_missing_scope_is_named(service: Service) -> None:
    """A 403 names the missing scope in WWW-Authenticate (RFC 6750 section 3)."""
    answer = await service.post("/revoke", {"all": True}, headers=bearer("revoker"))
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    assert 'error="insufficient_scope"' in challenge
    assert 'scope="admin"' in challenge


async def test_the_caller_is_recorded(service: Service) -> None:
    """The record has the name of the caller's API key as `revoked_by`."""
    await service.revoke({"jti": "a"}, headers=bearer("revoker"))
    assert (await service.check({"jti": "a"}))["revocation"]["revoked_by"] == "revoker"


async def test_again_is_a_success_that_changes_nothing(service: Service) -> None:
    """A second revocation returns `already_revoked`, and keeps the reason, time and actor of the first."""
    first = await service.revoke({"jti": "a", "reason": "first"}, headers=bearer("revoker"))
    again = await service.revoke({"jti": "a", "reason": "second"}, headers=bearer("ops"))
    assert again == first | {"result": "already_revoked", "expires_at": again["expires_at"]}
    assert (await service.check({"jti": "a"}))["revocation"]["revoked_by"] == "revoker"


async def test_again_never_shortens_the_life(service: Service) -> None:
    """A second revocation with an earlier end keeps the end of the first, in the response and in Redis."""
    long = await service.revoke({"jti": "a", "expires_in": 3600})
    short = await service.revoke({"jti": "a", "expires_in": 5})
    assert short["expires_at"] == long["expires_at"]
    assert await expiry_of(service, "jti", "a") >= long["expires_at"]


async def test_again_may_lengthen_the_life(service: Service) -> None:
    """A second revocation with a later end moves the end there, in the response and in Redis."""
    await service.revoke({"jti": "a", "expires_in": 5})
    exp = int(time.time()) + 3600
    assert (await service.revoke({"jti": "a", "exp": exp}))["expires_at"] == exp
    assert await expiry_of(service, "jti", "a") == exp


@pytest.mark.parametrize("seconds", [3, 3600, MONTH])
async def test_redis_removes_it_when_the_token_dies(service: Service, seconds: int) -> None:
    """Redis expires a record at the given `exp`: never before it, and less than 10 ms after it."""
    exp = time.time() + seconds
    await service.revoke({"jti": "a", "exp": exp})
    assert exp <= await expiry_of(service, "jti", "a") < exp + 0.01


async def test_the_leeway_is_added(start: Start) -> None:
    """A revocation ends REVOCATION_EXPIRY_LEEWAY_SECONDS after the given `exp`."""
    service = await start(EXPIRY_LEEWAY_SECONDS="30")
    exp = int(time.time()) + 60
    assert (await service.revoke({"jti": "a", "exp": exp}))["expires_at"] == exp + 30
    assert await expiry_of(service, "jti", "a") == exp + 30


async def test_within_the_leeway_a_dead_token_is_still_revoked(start: Start) -> None:
    """A `jti` whose `exp` passed less than the leeway ago is still revoked: a lenient verifier may accept it."""
    service = await start(EXPIRY_LEEWAY_SECONDS="30")
    assert (await service.revoke({"jti": "a", "exp": int(time.time()) - 10}))["result"] == "revoked"


async def test_a_jti_without_exp_lives_the_longest_lifetime(start: Start) -> None:
    """A revocation by `jti` without an expiry lasts for REVOCATION_MAX_TOKEN_LIFETIME_SECONDS."""
    service = await start(MAX_TOKEN_LIFETIME_SECONDS="5000")
    said = await service.revoke({"jti": "a"})
    assert said["expires_at"] - said["revoked_at"] == pytest.approx(5000, abs=0.01)


@pytest.mark.parametrize("claim", ["sid", "sub", "client_id"])
async def test_the_others_outlive_every_token_they_cover(start: Start, claim: str) -> None:
    """A revocation by `sid`, `sub` or `client_id` ends a maximum lifetime after the later of cutoff and now."""
    service = await start(MAX_TOKEN_LIFETIME_SECONDS="5000")
    now = time.time()
    past = await service.revoke({claim: "past", "issued_before": int(now) - 1000})
    assert past["expires_at"] == pytest.approx(now + 5000, abs=2)
    ahead = await service.revoke({claim: "ahead", "issued_before": now + 50})
    assert ahead["expires_at"] == pytest.approx(now + 5050, abs=2)


def stored_under(body: dict[str, Any]) -> tuple[str, str]:
    """Return the claim and the value of the record that this body creates."""
    ((claim, value),) = body.items()
    return claim, "" if claim == "all" else value


@pytest.mark.parametrize("body", BY_CUTOFF, ids=lambda body: next(iter(body)))
async def test_a_cutoff_ends_when_its_caller_says(service: Service, body: dict[str, Any]) -> None:
    """A revocation ends `expires_in` seconds after `revoked_at`, or at `exp`, in the response and in Redis."""
    said = await service.revoke(body | {"expires_in": 900})
    assert said["expires_at"] == pytest.approx(said["revoked_at"] + 900, abs=0.001)
    assert await expiry_of(service, *stored_under(body)) == pytest.approx(said["expires_at"], abs=0.002)
    exp = int(time.time()) + 7200
    assert (await service.revoke(body | {"exp": exp}))["expires_at"] == exp
    assert await expiry_of(service, *stored_under(body)) == exp


@pytest.mark.parametrize("body", BY_CUTOFF, ids=lambda body: next(iter(body)))
async def test_no_cutoff_is_shortened_by_a_later_one(service: Service, body: dict[str, Any]) -> None:
    """A shorter `expires_in` keeps the end of a revocation. A longer one, or none at all, moves it later."""
    now = time.time()
    ends = []
    for life in ({"expires_in": 900}, {"expires_in": 60}, {"expires_in": 0}, {"expires_in": 3600}, {}):
        await service.revoke(body | life)
        ends.append(await expiry_of(service, *stored_under(body)) - now)
    assert ends == [pytest.approx(end, abs=5) for end in (900, 900, 900, 3600, MONTH)]


async def test_a_cutoff_ahead_may_end_before_it_is_reached(service: Service) -> None:
    """A revocation ends `expires_in` seconds from now, even if its cutoff is later than that."""
    said = await service.revoke({"sub": "alice", "issued_before": time.time() + 50, "expires_in": 10})
    assert said["expires_at"] == pytest.approx(said["revoked_at"] + 10, abs=0.001)
    assert said["expires_at"] < said["issued_before"]


async def test_the_leeway_is_added_to_a_stated_end_of_a_cutoff_too(start: Start) -> None:
    """The leeway is added to `expires_in` of a cutoff too, because lenient verifiers accept its tokens for longer."""
    service = await start(EXPIRY_LEEWAY_SECONDS="30")
    said = await service.revoke({"sub": "alice", "expires_in": 60})
    assert said["expires_at"] == pytest.approx(said["revoked_at"] + 90, abs=0.001)


async def test_every_record_has_an_expiry(service: Service) -> None:
    """Every kind of body stores a key that has an expiry."""
    for body in FORMS.values():
        await service.revoke(body)
    for key in await service.stored_keys():
        assert await service.redis.pttl(key) > 0


@pytest.mark.parametrize("life", [{"exp": 1_000_000_000}, {"expires_in": 0}, {"exp": 0}])
@pytest.mark.parametrize("body", [{"jti": "a"}, *BY_CUTOFF], ids=lambda body: next(iter(body)))
async def test_what_has_ended_already_stores_nothing(
    service: Service, body: dict[str, Any], life: dict[str, Any]
) -> None:
    """A revocation whose end has passed returns `expired` without a cutoff or a `revoked_at`, and writes nothing."""
    said = await service.revoke(body | life)
    assert (said["result"], said["revoked_at"]) == ("expired", None)
    assert "issued_before" not in said
    assert await service.stored_keys() == set()
    assert await service.log_length() == 0


async def test_a_dead_token_stores_nothing(service: Service) -> None:
    """A token whose `exp` has passed returns `expired` and that `exp`, and no record is stored."""
    said = await service.revoke({"token": token(jti="a", exp=1_000_000_000)})
    assert (said["result"], said["value"], said["expires_at"]) == ("expired", "a", 1_000_000_000)
    assert await service.stored_keys() == set()


@pytest.mark.parametrize(
    "life", [{"exp": int(time.time()) + MONTH + DAY}, {"expires_in": MONTH + 3600}, {"exp": 1e300}]
)
@pytest.mark.parametrize("body", [{"jti": "a"}, *BY_CUTOFF], ids=lambda body: next(iter(body)))
async def test_too_long_a_life_is_refused(service: Service, body: dict[str, Any], life: dict[str, Any]) -> None:
    """An end beyond the maximum lifetime is 400 exp_too_far. The error names the setting, and nothing is stored."""
    answer = await service.post("/revoke", body | life)
    assert (answer.status, answer.problem) == (400, "exp_too_far")
    assert "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS" in answer.json["detail"]
    assert await service.stored_keys() == set()


async def test_a_tokens_own_exp_may_be_too_far(service: Service) -> None:
    """A token whose own `exp` is too far in the future is 400 exp_too_far."""
    answer = await service.post("/revoke", {"token": token(jti="a", exp=4_070_908_800)})
    assert (answer.status, answer.problem) == (400, "exp_too_far")


async def test_a_cutoff_may_lie_a_minute_ahead(service: Service) -> None:
    """A cutoff may be 55 s ahead, because callers' clocks differ; 70 s are 400 issued_before_too_far."""
    ahead = time.time() + 55
    assert (await service.revoke({"sub": "alice", "issued_before": ahead}))["issued_before"] == ahead
    answer = await service.post("/revoke", {"sub": "bob", "issued_before": time.time() + 70})
    assert (answer.status, answer.problem) == (400, "issued_before_too_far")
    assert not (await service.check({"sub": "bob"}))["revoked"]


async def test_the_cutoff_defaults_to_now(service: Service) -> None:
    """Without `issued_before` the cutoff is the moment of the revocation."""
    said = await service.revoke({"sub": "alice"})
    assert said["issued_before"] == said["revoked_at"] == pytest.approx(time.time(), abs=2)


async def test_cutoffs_only_move_forward(service: Service) -> None:
    """An earlier cutoff returns `already_revoked` and changes nothing; a later one returns `revoked` and counts."""
    now = int(time.time())
    await service.revoke({"sub": "alice", "issued_before": now})
    smaller = await service.revoke({"sub": "alice", "issued_before": now - 1000})
    assert (smaller["result"], smaller["issued_before"]) == ("already_revoked", now)
    greater = await service.revoke({"sub": "alice", "issued_before": now + 10})
    assert (greater["result"], greater["issued_before"]) == ("revoked", now + 10)


async def test_of_cutoffs_at_once_the_greatest_wins(service: Service) -> None:
    """Of many concurrent cutoffs for one subject, the latest one wins."""
    now = int(time.time())
    cutoffs = [now - (7 * number) % 50 for number in range(50)]
    await asyncio.gather(*(service.revoke({"sub": "alice", "issued_before": cutoff}) for cutoff in cutoffs))
    assert (await service.check({"sub": "alice"}))["revocation"]["issued_before"] == max(cutoffs)


async def test_a_session_without_cutoff_stays_without(service: Service) -> None:
    """If a session was revoked without a cutoff, a later request with one does not add it."""
    await service.revoke({"sid": "family"})
    again = await service.revoke({"sid": "family", "issued_before": 1000})
    assert again["result"] == "already_revoked"
    assert "issued_before" not in again


async def test_every_success_is_in_the_change_log(service: Service) -> None:
    """Each of three requests that revoke the same `jti` appends to the change log."""
    for count in (1, 2, 3):
        await service.revoke({"jti": "a"})
        assert await service.log_length() == count


async def test_an_in_process_blacklist_sees_it(service: Service) -> None:
    """A revocation by token sets the key `token_blacklist:<jti>`, with nothing but the key prefix before it."""
    await service.revoke({"token": token(jti="7d2c1f")})
    assert await service.redis.exists(f"{service.settings.store.key_prefix}token_blacklist:7d2c1f") == 1


@pytest.mark.parametrize("foreign", ["1", "0", "", "garbage", '{"revoked_at": "x"}'])
async def test_what_a_foreign_application_revoked_is_already_revoked(service: Service, foreign: str) -> None:
    """A foreign writer's key counts as revoked, whatever its value, and its expiry is not shortened."""
    await service.blacklist("a", 7200, foreign)
    said = await service.revoke({"jti": "a", "expires_in": 60, "reason": "ours"})
    assert said["result"] == "already_revoked"
    assert await expiry_of(service, "jti", "a") == pytest.approx(time.time() + 7200, abs=5)


async def test_nothing_takes_a_revocation_back(service: Service) -> None:
    """DELETE, PUT and PATCH are 405 on /revoke, /revocations and /check, and the revocation remains."""
    await service.revoke({"jti": "a"})
    for path in ("/revoke", "/revocations?claim=jti&value=a", "/check?jti=a"):
        for method in ("DELETE", "PUT", "PATCH"):
            assert (await service.request(method, path)).status == 405
    assert (await service.check({"jti": "a"}))["revoked"]


async def test_without_signing_keys_claims_are_read_unverified(service: Service) -> None:
    """Without signing keys, a token with a wrong signature is revoked, and `verified` is false."""
    forged = token(jti="a")[:-4] + "AAAA"
    said = await service.revoke({"token": forged})
    assert (said["result"], said["verified"]) == ("revoked", False)


@pytest.mark.parametrize("label", ["HS256", "RS256", "PS384", "ES256", "Ed25519"])
async def test_with_a_signing_key_a_good_signature_is_verified(start: Start, label: str) -> None:
    """A token with a valid signature is revoked, and `verified` is true, for each algorithm."""
    signer = issuer(label)
    service = await start(JWT_SECRET=SECRET) if label == "HS256" else await start(JWT_PUBLIC_KEY=signer.pem)
    said = await service.revoke({"token": signer.sign({"jti": "a", "exp": int(time.time()) + 60})})
    assert (said["result"], said["verified"]) == ("revoked", True)


async def refused(service: Service, raw: str) -> None:
    """Assert that the token is 400 invalid_token on /revoke and /check, and that nothing is written to Redis."""
    for path in ("/revoke", "/check"):
        answer = await service.post(path, {"token": raw})
        assert (answer.status, answer.problem) == (400, "invalid_token")
        assert raw not in answer.body.decode()
    assert await service.stored_keys() == set()
    assert await service.log_length() == 0


async def test_a_wrong_signature_revokes_nothing(start: Start) -> None:
    """With keys configured, a token signed with another secret is invalid_token."""
    service = await start(JWT_SECRET="another secret that is long enough for hs256")
    await refused(service, token(jti="a"))


async def test_alg_none_revokes_nothing(start: Start) -> None:
    """With a signing key, `alg: none` in any spelling is invalid_token, with and without a signature."""
    service = await start(JWT_SECRET=SECRET)
    for alg in ("none", "None", "NONE", " none", ""):
        for signature in ("", "AAAA"):
            await refused(service, f"{unsigned(alg)}.{signature}")


async def test_a_public_key_is_no_secret(start: Start) -> None:
    """Key confusion: HS256 with the public key's PEM as the secret is invalid_token."""
    pem = issuer("RS256").pem
    service = await start(JWT_PUBLIC_KEY=pem)
    signing_input = unsigned("HS256")
    for secret in (pem, pem.strip()):
        signature = hmac.digest(secret.encode(), signing_input.encode(), "sha256")
        await refused(service, f"{signing_input}.{b64url(signature)}")


async def test_an_algorithm_that_was_not_asked_for_revokes_nothing(start: Start) -> None:
    """With REVOCATION_JWT_ALGORITHMS=HS512 a good HS256 signature is invalid_token."""
    service = await start(JWT_SECRET=SECRET, JWT_ALGORITHMS="HS512")
    await refused(service, token(jti="a"))


async def test_keys_from_the_token_are_ignored(start: Start) -> None:
    """A token with its own key in `jwk` is invalid_token if no configured key signed it."""
    own = issuer("ES256")
    service = await start(JWT_PUBLIC_KEY=issuer("RS256").pem + issuer("ES384").pem)
    await refused(service, own.sign({"jti": "a", "exp": int(time.time()) + 60}, {"jwk": own.jwk(), "kid": "own"}))


@pytest.mark.parametrize("claims", [{}, {"iss": "https://other", "aud": "api"}, {"iss": "https://us", "aud": "web"}])
async def test_issuer_and_audience_are_checked_where_configured(start: Start, claims: dict[str, str]) -> None:
    """A token with a wrong or missing issuer or audience is invalid_token, and one with the right ones is verified."""
    service = await start(JWT_SECRET=SECRET, JWT_ISSUER="https://us", JWT_AUDIENCE="api")
    await refused(service, token(jti="a", **claims))
    said = await service.revoke({"token": token(jti="a", iss="https://us", aud=["web", "api"])})
    assert (said["result"], said["verified"]) == ("revoked", True)


async def test_time_claims_do_not_stop_a_logout(start: Start) -> None:
    """A token whose `nbf` and `iat` are in the future is verified and revoked."""
    service = await start(JWT_SECRET=SECRET)
    ahead = int(time.time()) + 300
    said = await service.revoke({"token": token(jti="a", nbf=ahead, iat=ahead)})
    assert (said["result"], said["verified"]) == ("revoked", True)


async def test_keys_that_cannot_be_had_are_503(start: Start) -> None:
    """While the JWKS URL is unreachable, a token is 503 keys_unavailable with Retry-After, and nothing is stored."""
    service = await start(JWKS_URL=f"http://127.0.0.1:{free_port()}/keys")
    for path in ("/revoke", "/check"):
        answer = await service.post(path, {"token": issuer("RS256").sign({"jti": "a", "exp": int(time.time()) + 60})})
        assert (answer.status, answer.problem) == (503, "keys_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    assert await service.stored_keys() == set()


async def test_without_the_key_set_claims_can_be_revoked_still(start: Start) -> None:
    """While the JWKS URL is unreachable, a revocation by `jti` still succeeds, because it needs no signing key."""
    service = await start(JWKS_URL=f"http://127.0.0.1:{free_port()}/keys")
    assert (await service.revoke({"jti": "a"}))["result"] == "revoked"


async def publishing(signer: Issuer) -> TestServer:
    """Start a server that publishes the signer's public key as a JWKS, with "known" as its `kid`."""

    async def published(_request: web.Request) -> web.Response:
        return web.json_response({"keys": [signer.jwk(kid="known")]})

    app = web.Application()
    app.router.add_get("/keys", published)
    server = TestServer(app)
    await server.start_server()
    return server


async def test_a_known_key_outlives_the_address_it_came_from(start: Start) -> None:
    """While the JWKS URL is unreachable, known keys still verify, and an unknown `kid`, perhaps a new key, is 503."""
    signer, exp = issuer("RS256"), int(time.time()) + 60
    server = await publishing(signer)
    try:
        service = await start(JWKS_URL=str(server.make_url("/keys")))
        first = await service.revoke({"token": signer.sign({"jti": "a", "exp": exp}, {"kid": "known"})})
    finally:
        await server.close()
    second = await service.revoke({"token": signer.sign({"jti": "b", "exp": exp}, {"kid": "known"})})
    assert first["verified"]
    assert second["verified"]
    new = await service.post("/revoke", {"token": signer.sign({"jti": "c", "exp": exp}, {"kid": "new"})})
    assert (new.status, new.problem) == (503, "keys_unavailable")


async def test_an_unknown_kid_of_a_key_set_at_hand_is_a_wrong_signature(start: Start) -> None:
    """While the JWKS URL is reachable, a `kid` that it does not publish is 400 invalid_token."""
    server = await publishing(issuer("RS256"))
    try:
        service = await start(JWKS_URL=str(server.make_url("/keys")))
        await refused(service, issuer("ES256").sign({"jti": "a", "exp": int(time.time()) + 60}, {"kid": "other"}))
    finally:
        await server.close()


async def test_a_store_that_is_away_promises_nothing(start_without_redis: Start) -> None:
    """With Redis away a revocation is 503 store_unavailable with Retry-After."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    answers = await asyncio.gather(*(service.post("/revoke", body) for body in FORMS.values()))
    for answer in answers:
        assert (answer.status, answer.problem) == (503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
