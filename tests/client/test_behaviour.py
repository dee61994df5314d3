"""What the client promises: one suite for the real service and the stand-in, so that the two do not drift apart."""

import asyncio
import functools
import hashlib
import time
import uuid
from typing import Any

import pytest

from revocation_client import (
    RequestRefused,
    RevocationClient,
    ServiceUnavailable,
    TokenNeeded,
    TokenRevoked,
)
from tests.client.worlds import World
from tests.system.tokens import mint

SHORT_SECONDS = 0.3
HANG_SECONDS = 20.0


def claims(**others: Any) -> dict[str, Any]:
    """Return the claims of a token that was issued a minute ago."""
    now = int(time.time())
    return {"jti": uuid.uuid4().hex, "sub": "alice", "sid": "s-1", "iat": now - 60, "exp": now + 600} | others


async def test_a_token_that_is_not_revoked_is_active(client: RevocationClient) -> None:
    """Checks by claims and by token say "not revoked"; the verdict names the claims that were considered."""
    verdict = await client.check(claims(client_id="web"))
    assert (verdict.revoked, verdict.source, verdict.revocation) == (False, "redis", None)
    assert verdict.considered == ("jti", "sid", "sub", "client_id", "all")
    by_token = await client.check(mint(jti=uuid.uuid4().hex))
    assert (by_token.revoked, by_token.expired, by_token.verified) == (False, False, False)
    await client.ensure_active(claims())


async def test_a_revoked_jti_is_revoked_by_claims_and_by_token(client: RevocationClient) -> None:
    """As soon as `revoke` returns, every way of asking about the token says "revoked"."""
    token = mint(jti="one", sub="alice")
    done = await client.revoke(token, reason="logout")
    assert (done.result, done.claim, done.value, done.reason) == ("revoked", "jti", "one", "logout")
    assert done.revoked_at
    assert done.expires_at
    assert done.issued_before is None
    assert await client.is_revoked(token)
    assert await client.is_revoked(f"  bearer {token}\n")
    assert (await client.check_jti("one")).revoked
    verdict = await client.check(claims(jti="one"))
    assert verdict.revocation is not None
    assert (verdict.revocation.claim, verdict.revocation.reason) == ("jti", "logout")
    with pytest.raises(TokenRevoked) as caught:
        await client.ensure_active(claims(jti="one"))
    assert caught.value.verdict == verdict
    assert not await client.is_revoked(claims(jti="two"))


async def test_revoking_again_is_a_success(client: RevocationClient) -> None:
    """Revoking again returns `already_revoked`, keeps the first reason, and does not shorten the revocation."""
    first = await client.revoke_jti("again", expires_in=600, reason="logout")
    second = await client.revoke_jti("again", expires_in=60, reason="another")
    assert (first.result, second.result) == ("revoked", "already_revoked")
    assert (second.reason, second.expires_at) == ("logout", first.expires_at)


async def test_a_token_that_has_died_needs_no_revocation(client: RevocationClient) -> None:
    """Revoking an expired token returns `expired`, and stores nothing."""
    done = await client.revoke(mint(jti="dead", exp=int(time.time()) - 10))
    assert (done.result, done.revoked_at) == ("expired", None)
    assert not (await client.check_jti("dead")).revoked


async def test_logging_out_everywhere_leaves_the_next_login_alone(client: RevocationClient) -> None:
    """Revoking a subject covers its tokens issued until the cutoff, but no later ones, and no other subject's."""
    done = await client.revoke_subject("alice", reason="phone lost")
    assert done.issued_before is not None
    assert await client.is_revoked(claims())
    assert await client.is_revoked(claims(iat=int(done.issued_before)))
    assert not await client.is_revoked(claims(iat=int(done.issued_before) + 1))
    assert not await client.is_revoked(claims(sub="bob"))


async def test_cutoffs_only_move_forward(client: RevocationClient) -> None:
    """An earlier cutoff changes nothing. A later one, or none, covers more. The answer has the cutoff that holds."""
    now = time.time()
    cutoffs = [now - 100, now - 200, now - 50, None, now - 10]
    done = [await client.revoke_session("s-1", issued_before=cutoff) for cutoff in cutoffs]
    results = ["revoked", "already_revoked", "revoked", "revoked", "already_revoked"]
    assert [one.result for one in done] == results
    expected = [now - 100, now - 100, now - 50, None, None]
    assert [one.issued_before for one in done] == [one if one is None else pytest.approx(one) for one in expected]


async def test_a_cutoff_lives_as_long_as_its_caller_says(client: RevocationClient) -> None:
    """Every revocation by cutoff takes `expires_in`. A longer one moves the end; a shorter one changes nothing."""
    now = time.time()
    for revoke in (
        functools.partial(client.revoke_session, "s-1"),
        functools.partial(client.revoke_subject, "alice"),
        functools.partial(client.revoke_client, "mobile"),
        client.revoke_all,
    ):
        ends = [(await revoke(expires_in=seconds)).expires_at for seconds in (900, 60, 3600)]
        assert ends == [pytest.approx(now + seconds, abs=5) for seconds in (900, 900, 3600)]
        with pytest.raises(RequestRefused, match="exp_too_far"):
            await revoke(expires_in=31 * 86_400)
        with pytest.raises(RequestRefused, match="expires_in must be"):
            await revoke(expires_in=-1)


async def test_a_cutoff_that_has_ended_already_revokes_nothing(client: RevocationClient) -> None:
    """Revoking with `expires_in=0` returns `expired`, and stores nothing."""
    done = await client.revoke_subject("alice", expires_in=0)
    assert (done.result, done.revoked_at, done.issued_before) == ("expired", None, None)
    assert not await client.is_revoked(claims())


@pytest.mark.parametrize("iat", [None, "yesterday", True, float("nan"), float("inf"), -5, 10**400, [1]])
async def test_an_iat_that_is_no_time_counts_as_issued_before_every_cutoff(
    client: RevocationClient, iat: object
) -> None:
    """A token whose `iat` is not a time is covered by every cutoff, and can still be checked."""
    assert not await client.is_revoked(claims(iat=iat))
    await client.revoke_subject("alice", issued_before=time.time() - 3600)
    assert not await client.is_revoked(claims())
    assert await client.is_revoked(claims(iat=iat))
    verdict = await client.check({"jti": "bare", "iat": iat})
    assert (verdict.revoked, verdict.considered) == (False, ("jti", "all"))


@pytest.mark.parametrize("iat", [None, "yesterday", float("inf"), 4e9])
async def test_the_verdict_says_that_the_iat_is_unusable(client: RevocationClient, iat: object) -> None:
    """`iat_unusable` is True only if a cutoff covers the token just because its `iat` is unusable."""
    await client.revoke_subject("alice", issued_before=time.time() - 3600)
    verdict = await client.check(claims(iat=iat))
    assert (verdict.revoked, verdict.iat_unusable) == (True, True)
    if iat != float("inf"):  # JSON has no infinity
        by_token = await client.check(mint(sub="alice", iat=iat))
        assert (by_token.revoked, by_token.iat_unusable) == (True, True)
    with pytest.raises(TokenRevoked) as caught:
        await client.ensure_active(claims(iat=iat))
    assert caught.value.verdict.iat_unusable
    await client.revoke_jti("gone", expires_in=60)
    for question, revoked in (
        (claims(), False),
        (claims(iat=time.time() - 7200), True),
        (claims(jti="gone", iat=iat), True),
        (claims(sub="bob", iat=iat), False),
    ):
        verdict = await client.check(question)
        assert (verdict.revoked, verdict.iat_unusable) == (revoked, False)


async def test_sessions_clients_and_all_are_revoked_by_their_claims(client: RevocationClient) -> None:
    """Each revocation covers the tokens that carry its claim. `azp` counts as the client if there is no `client_id`."""
    session = await client.revoke_session("s-1")
    assert session.issued_before is None
    assert await client.is_revoked(claims(iat=int(time.time()) + 30))
    assert not await client.is_revoked(claims(sid="s-2"))
    await client.revoke_session("s-3", issued_before=time.time() - 3600)
    assert not await client.is_revoked(claims(sid="s-3"))
    await client.revoke_client("mobile")
    for form in ({"client_id": "mobile"}, {"azp": "mobile"}, {"client_id": None, "azp": "mobile"}):
        assert await client.is_revoked(claims(sid="s-2") | form)
    assert not await client.is_revoked(claims(sid="s-2", client_id="web", azp="mobile"))
    done = await client.revoke_all(reason="key leaked")
    assert (done.claim, done.value) == ("all", "")
    assert await client.is_revoked({"jti": "any", "iat": int(time.time()) - 60})
    assert not await client.is_revoked({"jti": "any", "iat": int(time.time()) + 30})


async def test_integers_are_taken_as_their_decimal_strings(client: RevocationClient) -> None:
    """Integers as claims are checked and revoked as their decimal strings."""
    await client.revoke_jti(7)
    await client.revoke_subject(42)
    assert await client.is_revoked({"jti": 7})
    assert await client.is_revoked({"jti": "7"})
    assert await client.is_revoked({"jti": "8", "sub": 42})
    assert not await client.is_revoked({"jti": 8})


@pytest.mark.parametrize("jti", [None, "", "sha256:" + "0" * 64])
async def test_claims_that_do_not_name_their_token_need_the_token(client: RevocationClient, jti: str | None) -> None:
    """Claims without a usable `jti` raise TokenNeeded. The whole token is revoked and checked by its hash."""
    with pytest.raises(TokenNeeded):
        await client.check(claims(jti=jti))
    given = {"jti": jti} if jti else {}
    token = mint(**given)
    done = await client.revoke(token)
    assert done.value == "sha256:" + hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()
    assert await client.is_revoked(token)
    with pytest.raises(RequestRefused, match="invalid_token"):
        await client.check(token + "=")  # another spelling of the token is refused, never answered "not revoked"
    assert not await client.is_revoked(mint(sub="bob", **given))


async def test_opaque_tokens_are_named_by_the_whole_of_them(client: RevocationClient) -> None:
    """An opaque token is revoked only with a lifetime, and is recognised by its whole text."""
    with pytest.raises(RequestRefused, match="exp_required"):
        await client.revoke("opaque-1")
    await client.revoke("opaque-1", expires_in=60)
    assert await client.is_revoked("Bearer opaque-1")
    assert not await client.is_revoked("opaque-2")


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("a.b.c", "invalid_token"),
        ("a.b.c.d.e", "unsupported_token"),
        ('{"payload":"x"}', "unsupported_token"),
        ("", "invalid_token"),
        ("Bearer ", "invalid_token"),
        ("\ud800", "invalid_token"),
        (mint(jti=True, secret="x" * 32), "invalid_token"),
        (mint(sub=["a"], secret="x" * 32), "invalid_token"),
        (mint(jti="x" * 300), "invalid_token"),
        ("eyJhbGciOiJub25lIn0.e30.", "invalid_token"),
    ],
)
async def test_what_is_no_token_is_refused_to_its_asker_alone(client: RevocationClient, token: str, code: str) -> None:
    """An invalid token is refused with status 400 and a code. A concurrent check is still answered."""
    bad, good = await asyncio.gather(client.check(token), client.check(claims()), return_exceptions=True)
    assert isinstance(bad, RequestRefused)
    assert (bad.status, bad.code) == (400, code)
    assert not isinstance(good, BaseException)
    assert not good.revoked


@pytest.mark.parametrize(
    "wrong",
    [{"jti": True}, {"jti": 1.5}, {"jti": ["a"]}, {"jti": "a\nb"}, {"sub": {}}, {"sid": ""}, {"azp": "x" * 300}],
)
async def test_claims_that_no_token_may_have_are_refused(client: RevocationClient, wrong: dict[str, Any]) -> None:
    """Claims are refused if no valid token can carry them. Claims that the client does not use may have any value."""
    with pytest.raises(RequestRefused) as caught:
        await client.check(claims(**wrong))
    assert (caught.value.status, caught.value.code) == (400, "invalid_token")
    assert not await client.is_revoked(claims(roles=object(), aud=["a", "b"], exp="never", nbf=None))


@pytest.mark.parametrize("question", [None, 7, b"token", ["token"]])
async def test_what_is_no_question_is_a_mistake_in_the_program(client: RevocationClient, question: Any) -> None:
    """A question that is neither a token nor claims raises TypeError."""
    with pytest.raises(TypeError):
        await client.check(question)


async def test_check_many_answers_in_order(client: RevocationClient) -> None:
    """`check_many` returns the verdicts in order, also over several requests. If one check is refused, it raises."""
    await client.revoke_jti("n-3")
    verdicts = await client.check_many([{"jti": f"n-{number}"} for number in range(1200)])
    assert [number for number, verdict in enumerate(verdicts) if verdict.revoked] == [3]
    assert await client.check_many([]) == []
    with pytest.raises(RequestRefused):
        await client.check_many([{"jti": "fine"}, "a.b.c"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"jti": "x", "exp": 1, "expires_in": 1},
        {"jti": "x", "expires_in": -1},
        {"jti": "x", "exp": float("nan")},
        {"jti": ""},
        {"jti": None},
        {"jti": "x", "reason": "two\nlines"},
        {"jti": "x", "exp": 4e9},
    ],
)
async def test_a_wrong_revocation_is_refused_at_once(client: RevocationClient, wrong: dict[str, Any]) -> None:
    """An invalid revocation is refused with status 400, is not retried, and revokes nothing."""
    with pytest.raises(RequestRefused) as caught:
        await client.revoke_jti(**wrong)
    assert caught.value.status == 400
    assert client.counters.retries == 0
    assert not (await client.check_jti("x")).revoked


async def test_a_cutoff_too_far_ahead_is_refused(client: RevocationClient) -> None:
    """A cutoff too far in the future is refused with the service's own code."""
    with pytest.raises(RequestRefused, match="issued_before_too_far"):
        await client.revoke_subject("alice", issued_before=time.time() + 3600)


async def test_away_and_allow_admits_counts_and_logs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In an outage, "allow" admits every token. Each verdict is counted, but the log gets one line for all."""
    async with world.client(timeout_seconds=SHORT_SECONDS) as client:
        await client.revoke_jti("gone")
        async with world.outage():
            verdicts = await asyncio.gather(*(client.check(claims(jti="gone")) for _ in range(20)))
            assert {(one.revoked, one.source, one.revocation) for one in verdicts} == {(False, "policy", None)}
            await client.ensure_active(claims(jti="gone"))
        assert client.counters.policy_allowed == 21
        assert (await client.check(claims(jti="gone"))).source == "redis"
    events = [record.getMessage().split()[0] for record in caplog.records if record.name == "revocation_client"]
    assert events == ["revocation_service_unavailable"]
    assert "gone" not in caplog.text


async def test_away_and_deny_admits_no_token(world: World) -> None:
    """In an outage, "deny" makes every verdict "revoked" by policy, and `ensure_active` raises ServiceUnavailable."""
    async with world.client(timeout_seconds=SHORT_SECONDS, on_unavailable="deny") as client:
        async with world.outage():
            verdict = await client.check(claims())
            assert (verdict.revoked, verdict.source) == (True, "policy")
            assert await client.is_revoked(claims())
            with pytest.raises(ServiceUnavailable):
                await client.ensure_active(claims())
            assert client.counters.policy_denied == 3
        assert not await client.is_revoked(claims())


async def test_a_service_too_slow_is_away_at_the_callers_deadline(world: World) -> None:
    """If the service is too slow, the policy decides: not before the timeout, but long before the service answers."""
    async with world.client(timeout_seconds=SHORT_SECONDS) as client:
        with world.latency(3 * HANG_SECONDS):
            began = time.monotonic()
            async with asyncio.timeout(HANG_SECONDS):
                assert (await client.check(claims())).source == "policy"
            assert time.monotonic() - began > SHORT_SECONDS * 0.9


async def test_a_revocation_is_tried_again_until_the_service_is_back(world: World) -> None:
    """A revocation is retried until its deadline, so its caller does not notice a shorter outage."""
    async with world.client(revoke_timeout_seconds=20) as client:
        async with world.outage():
            logout = asyncio.create_task(client.revoke_jti("patient", expires_in=60))
            while not client.counters.retries:
                await asyncio.sleep(0)
        assert (await logout).result == "revoked"
        assert await client.is_revoked(claims(jti="patient"))
        assert client.counters.revocations == 1


async def test_a_revocation_in_an_outage_raises_at_its_deadline(world: World) -> None:
    """In an outage, a revocation raises ServiceUnavailable at its deadline, and is not reported as a success."""
    async with world.client(revoke_timeout_seconds=SHORT_SECONDS, timeout_seconds=SHORT_SECONDS) as client:
        async with world.outage():
            with pytest.raises(ServiceUnavailable) as caught:
                async with asyncio.timeout(HANG_SECONDS):
                    await client.revoke_jti("lost", expires_in=60)
        assert caught.value.attempts >= 1
        assert caught.value.__context__ is None
        assert (client.counters.revocations, client.counters.revocations_failed) == (0, 1)
        assert not await client.is_revoked(claims(jti="lost"))


async def test_counters_tell_what_happened(client: RevocationClient) -> None:
    """`counters` counts verdicts, requests and revocations. The object that it returned earlier does not change."""
    before = client.counters
    await client.revoke_jti("counted")
    await asyncio.gather(*(client.check(claims(jti="counted")) for _ in range(3)), client.check(claims()))
    after = client.counters
    assert (after.revoked, after.not_revoked, after.failed) == (3, 1, 0)
    assert (after.batches, after.requests, after.revocations, after.retries) == (1, 2, 1, 0)
    assert before.revoked == before.revocations == 0
