"""`POST /revoke`: what it takes, what it answers, and what is in Redis afterwards."""

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
    """A signed token that lives an hour, with the claims given."""
    return issuer("HS256").sign({"exp": int(time.time()) + 3600, **claims})


def unsigned(alg: str) -> str:
    """Header and payload of a token, as a forger writes them."""
    claims = {"jti": "a", "exp": int(time.time()) + 60}
    return ".".join(b64url(json.dumps(part).encode()) for part in ({"alg": alg}, claims))


async def expiry_of(service: Service, claim: Any, value: str) -> float:
    """When Redis itself removes the record, in epoch seconds."""
    return int(await service.redis.pexpiretime(service.keyspace.key(claim, value))) / 1000


def as_form(body: dict[str, Any]) -> dict[str, str]:
    """The same members as form fields."""
    return {name: "true" if value is True else str(value) for name, value in body.items()}


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "form"])
@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
async def test_each_form_revokes_its_claim_and_value(service: Service, body: dict[str, Any], as_json: bool) -> None:
    """Every form of the body, as JSON and as a form, stores one revocation of its claim and value and answers it."""
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
    """A JWT is named by its own `jti`, and its revocation lives until its `exp`."""
    exp = int(time.time()) + 777
    said = await service.revoke({"token": token(jti="7d2c1f", exp=exp)})
    assert (said["result"], said["claim"], said["value"], said["expires_at"]) == ("revoked", "jti", "7d2c1f", exp)


async def test_the_answer_has_the_stated_members_and_no_others(service: Service) -> None:
    """result, claim, value, revoked_at, expires_at, reason, verified; and issued_before where there is a cutoff."""
    members = {"result", "claim", "value", "revoked_at", "expires_at", "reason", "verified"}
    assert (await service.revoke({"jti": "a"})).keys() == members
    assert (await service.revoke({"sub": "a"})).keys() == members | {"issued_before"}


async def test_no_reason_is_null(service: Service) -> None:
    """`reason` is in the answer also where none was given."""
    assert (await service.revoke({"jti": "a"}))["reason"] is None


@pytest.mark.parametrize("written", ["Bearer {}", "  {}\n", "bearer   {} ", "{}"])
async def test_white_space_and_the_scheme_are_dropped(service: Service, written: str) -> None:
    """A token as it is copied from a header is the same token."""
    assert (await service.revoke({"token": written.format(token(jti="7d2c1f"))}))["value"] == "7d2c1f"


async def test_a_jwt_without_jti_is_named_by_its_signing_input(service: Service) -> None:
    """Its name is `sha256:` and the hex SHA-256 of header and payload as they stand."""
    bare = token(sub="alice")
    named = "sha256:" + sha256(bare.rpartition(".")[0].encode()).hexdigest()
    assert (await service.revoke({"token": bare}))["value"] == named


async def test_no_token_may_claim_a_computed_name(service: Service) -> None:
    """A JWT whose own `jti` begins with `sha256:` is named by its signing input all the same."""
    victim = "sha256:" + "0" * 64
    said = await service.revoke({"token": token(jti=victim)})
    assert said["value"] != victim
    assert not (await service.check({"jti": victim}))["revoked"]


async def test_an_opaque_token_is_named_by_the_whole_of_it(service: Service) -> None:
    """A token that is no JWT is named `sha256:` and the hex SHA-256 of the string."""
    said = await service.revoke({"token": "an-opaque-token", "expires_in": 60})
    assert said["value"] == "sha256:" + sha256(b"an-opaque-token").hexdigest()


@pytest.mark.parametrize("opaque", ["an-opaque-token", "one.two", "sha256:" + "0" * 64])
async def test_an_opaque_token_needs_an_expiry(service: Service, opaque: str) -> None:
    """Without `exp` or `expires_in` nothing says when it dies: 400 exp_required, and nothing is stored."""
    answer = await service.post("/revoke", {"token": opaque})
    assert (answer.status, answer.problem) == (400, "exp_required")
    assert await service.stored_keys() == set()


async def test_a_jwt_without_exp_needs_an_expiry(service: Service) -> None:
    """400 exp_required; the same token with `expires_in` is revoked."""
    eternal = issuer("HS256").sign({"jti": "eternal"})
    answer = await service.post("/revoke", {"token": eternal})
    assert (answer.status, answer.problem) == (400, "exp_required")
    said = await service.revoke({"token": eternal, "expires_in": 60})
    assert said["result"] == "revoked"
    assert 55 < said["expires_at"] - time.time() < 61


@pytest.mark.parametrize("raw", ["a.b.c", "..", "a.b.c.d", "{}", "eyJhbGciOiJIUzI1NiJ9.e30"])
async def test_three_parts_are_a_jwt_or_an_error(service: Service, raw: str) -> None:
    """What looks like a JWT and is none is refused, not taken for an opaque token."""
    answer = await service.post("/revoke", {"token": raw, "expires_in": 60})
    if raw == "a.b.c.d":
        assert answer.status == 200  # neither a JWT nor near one
    else:
        assert (answer.status, answer.problem in {"invalid_token", "unsupported_token"}) == (400, True)
        assert await service.stored_keys() == set()


async def test_an_encrypted_token_is_unsupported(service: Service) -> None:
    """Five parts are a JWE: 400 unsupported_token."""
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
    """No form, two forms, and members that belong to another form are 400 invalid_request; nothing is stored."""
    answer = await service.post("/revoke", body)
    assert (answer.status, answer.problem) == (400, "invalid_request")
    assert await service.stored_keys() == set()


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
async def test_an_integer_is_its_decimal_string(service: Service, claim: str) -> None:
    """Many applications mint integers; `42` and `"42"` are one value."""
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
    """The longest value is taken, and found again, also outside ASCII."""
    for longest in ("x" * 256, "\U0001f511" * 256):
        assert (await service.revoke({"jti": longest}))["value"] == longest
        assert (await service.check({"jti": longest}))["revoked"]


@pytest.mark.parametrize("reason", ["x" * 257, "two\nlines", "a\rb", "a\x00b", "a\u2028b", "\x1b[31m", 7, ["x"]])
async def test_a_reason_is_one_short_line(service: Service, reason: object) -> None:
    """More than 256 characters, a line break, another control character, or no string at all is 400."""
    answer = await service.post("/revoke", {"jti": "a", "reason": reason})
    assert (answer.status, answer.problem) == (400, "invalid_request")


async def test_scopes(service: Service) -> None:
    """`revoke` revokes tokens, sessions and subjects; `check` revokes nothing; `admin` includes `revoke`."""
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
    """403 tells in WWW-Authenticate which scope is wanting (RFC 6750 section 3)."""
    answer = await service.post("/revoke", {"all": True}, headers=bearer("revoker"))
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    assert 'error="insufficient_scope"' in challenge
    assert 'scope="admin"' in challenge


async def test_the_caller_is_recorded(service: Service) -> None:
    """The name of the key is the `revoked_by` of what it revokes."""
    await service.revoke({"jti": "a"}, headers=bearer("revoker"))
    assert (await service.check({"jti": "a"}))["revocation"]["revoked_by"] == "revoker"


async def test_again_is_a_success_that_changes_nothing(service: Service) -> None:
    """The second time is `already_revoked`, with the first reason, time and actor."""
    first = await service.revoke({"jti": "a", "reason": "first"}, headers=bearer("revoker"))
    again = await service.revoke({"jti": "a", "reason": "second"}, headers=bearer("ops"))
    assert again == first | {"result": "already_revoked", "expires_at": again["expires_at"]}
    assert (await service.check({"jti": "a"}))["revocation"]["revoked_by"] == "revoker"


async def test_again_never_shortens_the_life(service: Service) -> None:
    """A shorter second life leaves the first as it is, in the answer and in Redis."""
    long = await service.revoke({"jti": "a", "expires_in": 3600})
    short = await service.revoke({"jti": "a", "expires_in": 5})
    assert short["expires_at"] == long["expires_at"]
    assert await expiry_of(service, "jti", "a") >= long["expires_at"]


async def test_again_may_lengthen_the_life(service: Service) -> None:
    """A longer second life counts."""
    await service.revoke({"jti": "a", "expires_in": 5})
    exp = int(time.time()) + 3600
    assert (await service.revoke({"jti": "a", "exp": exp}))["expires_at"] == exp
    assert await expiry_of(service, "jti", "a") == exp


@pytest.mark.parametrize("seconds", [3, 3600, MONTH])
async def test_redis_removes_it_when_the_token_dies(service: Service, seconds: int) -> None:
    """Redis' own expiry is the token's `exp`: never before, and not a second later."""
    exp = time.time() + seconds
    await service.revoke({"jti": "a", "exp": exp})
    assert exp <= await expiry_of(service, "jti", "a") < exp + 0.01


async def test_the_leeway_is_added(start: Start) -> None:
    """With REVOCATION_EXPIRY_LEEWAY_SECONDS a revocation outlives the `exp` by so much."""
    service = await start(EXPIRY_LEEWAY_SECONDS="30")
    exp = int(time.time()) + 60
    assert (await service.revoke({"jti": "a", "exp": exp}))["expires_at"] == exp + 30
    assert await expiry_of(service, "jti", "a") == exp + 30


async def test_within_the_leeway_a_dead_token_is_still_revoked(start: Start) -> None:
    """A token whose `exp` has just passed may still be taken by a lenient verifier, so it is stored."""
    service = await start(EXPIRY_LEEWAY_SECONDS="30")
    assert (await service.revoke({"jti": "a", "exp": int(time.time()) - 10}))["result"] == "revoked"


async def test_a_jti_without_exp_lives_the_longest_lifetime(start: Start) -> None:
    """Where nothing says when it dies, REVOCATION_MAX_TOKEN_LIFETIME_SECONDS does."""
    service = await start(MAX_TOKEN_LIFETIME_SECONDS="5000")
    said = await service.revoke({"jti": "a"})
    assert said["expires_at"] - said["revoked_at"] == pytest.approx(5000, abs=0.01)


@pytest.mark.parametrize("claim", ["sid", "sub", "client_id"])
async def test_the_others_outlive_every_token_they_cover(start: Start, claim: str) -> None:
    """They live the longest lifetime past the later of the cutoff and now."""
    service = await start(MAX_TOKEN_LIFETIME_SECONDS="5000")
    now = time.time()
    past = await service.revoke({claim: "past", "issued_before": int(now) - 1000})
    assert past["expires_at"] == pytest.approx(now + 5000, abs=2)
    ahead = await service.revoke({claim: "ahead", "issued_before": now + 50})
    assert ahead["expires_at"] == pytest.approx(now + 5050, abs=2)


def stored_under(body: dict[str, Any]) -> tuple[str, str]:
    """The claim and the value of the record that the body makes."""
    ((claim, value),) = body.items()
    return claim, "" if claim == "all" else value


@pytest.mark.parametrize("body", BY_CUTOFF, ids=lambda body: next(iter(body)))
async def test_a_cutoff_ends_when_its_caller_says(service: Service, body: dict[str, Any]) -> None:
    """`expires_in` counts from now on Redis' clock, `exp` is the moment itself; answer and key say the same."""
    said = await service.revoke(body | {"expires_in": 900})
    assert said["expires_at"] == pytest.approx(said["revoked_at"] + 900, abs=0.001)
    assert await expiry_of(service, *stored_under(body)) == pytest.approx(said["expires_at"], abs=0.002)
    exp = int(time.time()) + 7200
    assert (await service.revoke(body | {"exp": exp}))["expires_at"] == exp
    assert await expiry_of(service, *stored_under(body)) == exp


@pytest.mark.parametrize("body", BY_CUTOFF, ids=lambda body: next(iter(body)))
async def test_no_cutoff_is_shortened_by_a_later_one(service: Service, body: dict[str, Any]) -> None:
    """A shorter `expires_in` leaves the end where it is, a longer one and none at all move it away."""
    now = time.time()
    ends = []
    for life in ({"expires_in": 900}, {"expires_in": 60}, {"expires_in": 0}, {"expires_in": 3600}, {}):
        await service.revoke(body | life)
        ends.append(await expiry_of(service, *stored_under(body)) - now)
    assert ends == [pytest.approx(end, abs=5) for end in (900, 900, 900, 3600, MONTH)]


async def test_a_cutoff_ahead_may_end_before_it_is_reached(service: Service) -> None:
    """`expires_in` counts from now also where the cutoff lies ahead: the revocation ends when the caller says."""
    said = await service.revoke({"sub": "alice", "issued_before": time.time() + 50, "expires_in": 10})
    assert said["expires_at"] == pytest.approx(said["revoked_at"] + 10, abs=0.001)
    assert said["expires_at"] < said["issued_before"]


async def test_the_leeway_is_added_to_a_stated_end_of_a_cutoff_too(start: Start) -> None:
    """Lenient verifiers accept the covered tokens for that much longer, so the revocation lives that much longer."""
    service = await start(EXPIRY_LEEWAY_SECONDS="30")
    said = await service.revoke({"sub": "alice", "expires_in": 60})
    assert said["expires_at"] == pytest.approx(said["revoked_at"] + 90, abs=0.001)


async def test_every_record_has_an_expiry(service: Service) -> None:
    """No form leaves a key behind for ever."""
    for body in FORMS.values():
        await service.revoke(body)
    for key in await service.stored_keys():
        assert await service.redis.pttl(key) > 0


@pytest.mark.parametrize("life", [{"exp": 1_000_000_000}, {"expires_in": 0}, {"exp": 0}])
@pytest.mark.parametrize("body", [{"jti": "a"}, *BY_CUTOFF], ids=lambda body: next(iter(body)))
async def test_what_has_ended_already_stores_nothing(
    service: Service, body: dict[str, Any], life: dict[str, Any]
) -> None:
    """`expired` is 200, without a `revoked_at` or a cutoff; neither record nor log entry is made."""
    said = await service.revoke(body | life)
    assert (said["result"], said["revoked_at"]) == ("expired", None)
    assert "issued_before" not in said
    assert await service.stored_keys() == set()
    assert await service.log_length() == 0


async def test_a_dead_token_stores_nothing(service: Service) -> None:
    """The same for a token whose `exp` has passed; the answer tells that `exp`."""
    said = await service.revoke({"token": token(jti="a", exp=1_000_000_000)})
    assert (said["result"], said["value"], said["expires_at"]) == ("expired", "a", 1_000_000_000)
    assert await service.stored_keys() == set()


@pytest.mark.parametrize(
    "life", [{"exp": int(time.time()) + MONTH + DAY}, {"expires_in": MONTH + 3600}, {"exp": 1e300}]
)
@pytest.mark.parametrize("body", [{"jti": "a"}, *BY_CUTOFF], ids=lambda body: next(iter(body)))
async def test_too_long_a_life_is_refused(service: Service, body: dict[str, Any], life: dict[str, Any]) -> None:
    """An end beyond the longest lifetime is 400 exp_too_far; the detail names the setting; nothing is stored."""
    answer = await service.post("/revoke", body | life)
    assert (answer.status, answer.problem) == (400, "exp_too_far")
    assert "REVOCATION_MAX_TOKEN_LIFETIME_SECONDS" in answer.json["detail"]
    assert await service.stored_keys() == set()


async def test_a_tokens_own_exp_may_be_too_far(service: Service) -> None:
    """A token in milliseconds, or from 2099, is refused like any other too long a life."""
    answer = await service.post("/revoke", {"token": token(jti="a", exp=4_070_908_800)})
    assert (answer.status, answer.problem) == (400, "exp_too_far")


async def test_a_cutoff_may_lie_a_minute_ahead(service: Service) -> None:
    """Callers' clocks differ: up to 60 s ahead is taken, more is 400 issued_before_too_far."""
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
    """A smaller cutoff afterwards changes nothing, and says so; a greater one counts as a new revocation."""
    now = int(time.time())
    await service.revoke({"sub": "alice", "issued_before": now})
    smaller = await service.revoke({"sub": "alice", "issued_before": now - 1000})
    assert (smaller["result"], smaller["issued_before"]) == ("already_revoked", now)
    greater = await service.revoke({"sub": "alice", "issued_before": now + 10})
    assert (greater["result"], greater["issued_before"]) == ("revoked", now + 10)


async def test_of_cutoffs_at_once_the_greatest_wins(service: Service) -> None:
    """Many at the same time, in any order, end with the greatest."""
    now = int(time.time())
    cutoffs = [now - (7 * number) % 50 for number in range(50)]
    await asyncio.gather(*(service.revoke({"sub": "alice", "issued_before": cutoff}) for cutoff in cutoffs))
    assert (await service.check({"sub": "alice"}))["revocation"]["issued_before"] == max(cutoffs)


async def test_a_session_without_cutoff_stays_without(service: Service) -> None:
    """`sid` is for good; a cutoff that comes later takes nothing back."""
    await service.revoke({"sid": "family"})
    again = await service.revoke({"sid": "family", "issued_before": 1000})
    assert again["result"] == "already_revoked"
    assert "issued_before" not in again


async def test_every_success_is_in_the_change_log(service: Service) -> None:
    """Also `already_revoked` appends: the retry after a half-done write must not be the one that skips it."""
    for count in (1, 2, 3):
        await service.revoke({"jti": "a"})
        assert await service.log_length() == count


async def test_an_in_process_blacklist_sees_it(service: Service) -> None:
    """EXISTS token_blacklist:<jti> is 1 after the revocation, behind the prefix and nothing else."""
    await service.revoke({"token": token(jti="7d2c1f")})
    assert await service.redis.exists(f"{service.settings.store.key_prefix}token_blacklist:7d2c1f") == 1


@pytest.mark.parametrize("foreign", ["1", "0", "", "garbage", '{"revoked_at": "x"}'])
async def test_what_a_foreign_application_revoked_is_already_revoked(service: Service, foreign: str) -> None:
    """Presence decides, never the value; the life is never shortened."""
    await service.blacklist("a", 7200, foreign)
    said = await service.revoke({"jti": "a", "expires_in": 60, "reason": "ours"})
    assert said["result"] == "already_revoked"
    assert await expiry_of(service, "jti", "a") == pytest.approx(time.time() + 7200, abs=5)


async def test_nothing_takes_a_revocation_back(service: Service) -> None:
    """No method on any route undoes one."""
    await service.revoke({"jti": "a"})
    for path in ("/revoke", "/revocations?claim=jti&value=a", "/check?jti=a"):
        for method in ("DELETE", "PUT", "PATCH"):
            assert (await service.request(method, path)).status == 405
    assert (await service.check({"jti": "a"}))["revoked"]


async def test_without_signing_keys_claims_are_read_unverified(service: Service) -> None:
    """With no keys configured any signature will do, and the answer says that none was checked."""
    forged = token(jti="a")[:-4] + "AAAA"
    said = await service.revoke({"token": forged})
    assert (said["result"], said["verified"]) == ("revoked", False)


@pytest.mark.parametrize("label", ["HS256", "RS256", "PS384", "ES256", "Ed25519"])
async def test_with_a_signing_key_a_good_signature_is_verified(start: Start, label: str) -> None:
    """`verified` is true, whichever algorithm."""
    signer = issuer(label)
    service = await start(JWT_SECRET=SECRET) if label == "HS256" else await start(JWT_PUBLIC_KEY=signer.pem)
    said = await service.revoke({"token": signer.sign({"jti": "a", "exp": int(time.time()) + 60})})
    assert (said["result"], said["verified"]) == ("revoked", True)


async def refused(service: Service, raw: str) -> None:
    """The token is 400 invalid_token, on /revoke and on /check, and nothing is stored or logged."""
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
    """Neither with an empty signature nor with one made up, in no spelling of `none`."""
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
    """A token that brings its own key in `jwk` is judged by the configured one."""
    own = issuer("ES256")
    service = await start(JWT_PUBLIC_KEY=issuer("RS256").pem + issuer("ES384").pem)
    await refused(service, own.sign({"jti": "a", "exp": int(time.time()) + 60}, {"jwk": own.jwk(), "kid": "own"}))


@pytest.mark.parametrize("claims", [{}, {"iss": "https://other", "aud": "api"}, {"iss": "https://us", "aud": "web"}])
async def test_issuer_and_audience_are_checked_where_configured(start: Start, claims: dict[str, str]) -> None:
    """Another or a missing one is invalid_token; the right ones are verified."""
    service = await start(JWT_SECRET=SECRET, JWT_ISSUER="https://us", JWT_AUDIENCE="api")
    await refused(service, token(jti="a", **claims))
    said = await service.revoke({"token": token(jti="a", iss="https://us", aud=["web", "api"])})
    assert (said["result"], said["verified"]) == ("revoked", True)


async def test_time_claims_do_not_stop_a_logout(start: Start) -> None:
    """A token from a clock ahead, not valid yet, is verified and revoked all the same."""
    service = await start(JWT_SECRET=SECRET)
    ahead = int(time.time()) + 300
    said = await service.revoke({"token": token(jti="a", nbf=ahead, iat=ahead)})
    assert (said["result"], said["verified"]) == ("revoked", True)


async def test_keys_that_cannot_be_had_are_503(start: Start) -> None:
    """With the JWKS address away nothing can be judged: 503 keys_unavailable with Retry-After, nothing is stored."""
    service = await start(JWKS_URL=f"http://127.0.0.1:{free_port()}/keys")
    for path in ("/revoke", "/check"):
        answer = await service.post(path, {"token": issuer("RS256").sign({"jti": "a", "exp": int(time.time()) + 60})})
        assert (answer.status, answer.problem) == (503, "keys_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    assert await service.stored_keys() == set()


async def test_without_the_key_set_claims_can_be_revoked_still(start: Start) -> None:
    """Only a token needs keys: what a caller names by claims is revoked while the JWKS address is away."""
    service = await start(JWKS_URL=f"http://127.0.0.1:{free_port()}/keys")
    assert (await service.revoke({"jti": "a"}))["result"] == "revoked"


async def publishing(signer: Issuer) -> TestServer:
    """A JWKS address with the signer's public key under the `kid` known."""

    async def published(_request: web.Request) -> web.Response:
        return web.json_response({"keys": [signer.jwk(kid="known")]})

    app = web.Application()
    app.router.add_get("/keys", published)
    server = TestServer(app)
    await server.start_server()
    return server


async def test_a_known_key_outlives_the_address_it_came_from(start: Start) -> None:
    """While the JWKS address is away the last good set serves; an unknown `kid` may be a new key, so it is 503."""
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
    """While the JWKS address answers, a `kid` that it does not publish is 400 invalid_token."""
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
