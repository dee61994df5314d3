"""Tests of `/forward-auth`: which requests it allows, the identity headers, and the responses in an outage."""

import asyncio
from collections.abc import Awaitable
from urllib.parse import unquote

import aiohttp
import pytest

from revocation_service.api.forward_auth import header_value
from tests.api.serving import API_KEYS, Answer, Service, Start, bearer
from tests.doors.forward_auth import BAD, BAD_TOKEN, GATEWAY, IDENTITY, NO_TOKEN, ask, challenge, revoke
from tests.doors.world import DOORS, basic, token
from tests.redis_processes import eventually, free_port, standalone
from tests.unit.reencodings import SECRET, reencodings


async def test_a_good_token_passes_with_its_identity(door: Service) -> None:
    """A good token gets 200 with an empty body, `Cache-Control: no-store` and every identity header."""
    answer = await ask(door, token(sub="alice", scope="read write"))
    assert (answer.status, answer.body) == (200, b"")
    assert (answer.headers["Content-Length"], answer.headers["Cache-Control"]) == ("0", "no-store")
    assert [answer.headers[name] for name in IDENTITY] == ["alice", "read write"]


async def test_a_missing_claim_is_an_empty_header(door: Service) -> None:
    """A missing claim gives an empty header. Otherwise, gateways may pass on the client's own (GHSA-7r4p-vjf4-gxv4)."""
    answer = await ask(door, token(sub=None), X_Auth_Subject="forged", X_Auth_Scope="forged")
    assert answer.status == 200
    assert [answer.headers.getall(name) for name in IDENTITY] == [[""], [""]]


async def test_without_a_token_the_challenge_is_bare(door: Service) -> None:
    """Without a token, also with Basic credentials, the challenge has no error code (RFC 6750 section 3.1)."""
    assert challenge(await ask(door)) == NO_TOKEN
    assert challenge(await ask(door, **basic("al", "pw"))) == NO_TOKEN
    assert challenge(await ask(door, Cookie="other=1; access_token=")) == NO_TOKEN


async def test_every_bad_token_is_refused_alike(door: Service) -> None:
    """Every bad token gets 401 with the same challenge and body, so that the response hides the reason."""
    await revoke(door, jti="gone")
    await revoke(door, sid="gone")
    answers = {label: await ask(door, raw) for label, raw in BAD.items()}
    assert {label: challenge(answer) for label, answer in answers.items()} == dict.fromkeys(BAD, BAD_TOKEN)
    assert len({answer.body for answer in answers.values()}) == 1
    assert not any(name in answer.headers for answer in answers.values() for name in IDENTITY)


async def test_no_reencoding_of_a_revoked_token_passes(door: Service) -> None:
    """Other encodings of a revoked token are refused. The test takes every ninth one, if HTTP can carry it."""
    raw = token(jti="gone")
    await revoke(door, jti="gone")
    for label, written in list(reencodings(raw))[::9]:
        if written.isascii() and written.isprintable():
            assert challenge(await ask(door, written)) == BAD_TOKEN, label


async def test_a_revocation_is_seen_by_the_next_request(door: Service) -> None:
    """A token that passed before is refused on the first request after its revocation."""
    raw = token(jti="soon")
    assert (await ask(door, raw)).status == 200
    await revoke(door, token=raw)
    assert challenge(await ask(door, raw)) == BAD_TOKEN


# Optional, unverified, closed


async def test_optional_lets_the_absence_of_a_token_through(door: Service) -> None:
    """At `/forward-auth/optional` and below, a request without a token gets 200 and no identity. Bad tokens get 401."""
    for path in ("/forward-auth/optional", "/forward-auth/optional/a/b"):
        answer = await ask(door, path=path, X_Auth_Subject="forged")
        assert (answer.status, [answer.headers[name] for name in IDENTITY]) == (200, ["", ""])
        assert (await ask(door, token(), path)).headers["X-Auth-Subject"] == "alice"
        assert challenge(await ask(door, BAD["expired"], path)) == BAD_TOKEN


async def test_optional_is_closed_by_default(start: Start) -> None:
    """With the setting off, `/forward-auth/optional` needs a token: Envoy appends the application's own paths."""
    service = await start(**{**DOORS, "FORWARD_AUTH_OPTIONAL": "false"})
    service.headers = dict(GATEWAY)
    assert challenge(await ask(service, path="/forward-auth/optional")) == NO_TOKEN


async def test_optional_does_not_leak_into_other_paths(door: Service) -> None:
    """Other paths below `/forward-auth` that contain the word `optional` still need a token."""
    for path in ("/forward-auth/required/optional", "/forward-auth/optionally", "/forward-auth//optional"):
        assert challenge(await ask(door, path=path)) == NO_TOKEN, path


async def test_behind_a_gateway_that_verifies_it_says_only_whether_a_token_is_revoked(start: Start) -> None:
    """Without signing keys, even expired tokens pass, but without an identity; malformed and revoked ones do not."""
    given = {"FORWARD_AUTH": "true", "FORWARD_AUTH_UNVERIFIED": "true", "FORWARD_AUTH_HEADERS": "X-Auth-Subject=sub"}
    service = await start(API_KEYS=API_KEYS, **given)
    service.headers = dict(GATEWAY)
    await revoke(service, jti="gone")
    for raw in (token(jti="fine"), token(exp=1_000_000_000), BAD["opaque"], BAD["another algorithm"]):
        answer = await ask(service, raw)
        assert (answer.status, answer.headers["X-Auth-Subject"]) == (200, "")
    for raw in (token(jti="gone"), BAD["malformed"], BAD["encrypted"]):
        assert challenge(await ask(service, raw)) == BAD_TOKEN


async def test_a_closed_door_does_not_exist(start: Start) -> None:
    """`/forward-auth` and the paths below it answer 404 unless the setting opens them."""
    service = await start(API_KEYS=API_KEYS, JWT_SECRET=SECRET)
    for path in ("/forward-auth", "/forward-auth/optional", "/forward-auth/a"):
        assert (await ask(service, token(), path)).status == 404


# Outages


async def test_unknown_is_503(start_without_redis: Start) -> None:
    """Without Redis and without a mirror, a good token gets 503 with Retry-After. A missing or forged one gets 401."""
    service = await start_without_redis(**DOORS)
    service.headers = dict(GATEWAY)
    answer = await ask(service, token())
    assert (answer.status, answer.problem) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert challenge(await ask(service)) == NO_TOKEN
    assert challenge(await ask(service, BAD["forged"])) == BAD_TOKEN
    counted = 'revocation_http_request_duration_seconds_count{method="GET",route="/forward-auth",status="503"}'
    assert await service.metric(counted) == 1


async def test_without_signing_keys_yet_it_is_503(start: Start) -> None:
    """Until the JWKS has been fetched, a token gets 503 with Retry-After, and `/readyz` answers 503."""
    given = {**DOORS, "JWKS_URL": f"http://127.0.0.1:{free_port()}/jwks"}
    del given["JWT_SECRET"]
    service = await start(**given)
    service.headers = dict(GATEWAY)
    answer = await ask(service, BAD["another algorithm"])
    assert (answer.status, answer.problem) == (503, "keys_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await service.get("/readyz")).status == 503


async def test_while_redis_hangs_the_mirror_answers_at_once(start: Start) -> None:
    """The mirror answers before the deadline of a read, because a gateway such as Envoy waits only 200 ms."""
    async with standalone() as server:
        service = await start(server=server, MAX_STALENESS_SECONDS="600", **DOORS)
        service.headers = dict(GATEWAY)
        await revoke(service, jti="gone")
        answered: list[tuple[str, int]] = []

        async def answer(name: str, asked: Awaitable[Answer]) -> None:
            answered.append((name, (await asked).status))

        server.freeze()
        try:
            await asyncio.gather(
                answer("check", service.get("/check", {"jti": "fine"}, headers=bearer("ops"))),
                *(answer(jti, ask(service, token(jti=jti))) for jti in ("fine", "gone")),
            )
        finally:
            server.thaw()
        assert set(answered[:2]) == {("fine", 200), ("gone", 401)}
        assert answered[2] == ("check", 200), "it waits for Redis until the deadline of a read"


async def test_while_redis_hangs_too_long_only_what_is_revoked_is_known(start: Start) -> None:
    """After the staleness bound, a known revocation is still 401, and without delay; every other token is 503."""
    async with standalone() as server:
        service = await start(server=server, MAX_STALENESS_SECONDS="2", **DOORS)
        service.headers = dict(GATEWAY)
        await revoke(service, jti="gone")

        async def unknown() -> bool:
            return (await ask(service, token(jti="fine"))).status == 503

        server.freeze()
        try:
            await eventually(unknown, "the end of the mirror's staleness")
            first = asyncio.as_completed([ask(service, token(jti=jti)) for jti in ("fine", "gone")])
            assert [(await answer).status for answer in first] == [401, 503]  # a known revocation is answered first
        finally:
            server.thaw()


# Identity


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auth0|7@example.com", "auth0|7@example.com"),
        ("read write", "read write"),
        (" admin", "%20admin"),
        ("admin\t", "admin%09"),
        ("100%", "100%25"),
        ("é\r\nX: y", "%C3%A9%0D%0AX: y"),
        (["read", "write all"], "read write%20all"),
        ([], ""),
        (42, "42"),
        (True, "true"),
        (None, ""),
        (1.5, ""),
        ({"a": "b"}, ""),
        (["a", 1], ""),
    ],
)
def test_a_header_value_is_printable_ascii(value: object, expected: str) -> None:
    """Characters other than printable ASCII are percent-encoded, lists joined by a space, and other types empty."""
    written = header_value(value)
    assert written == expected
    assert written == written.strip()
    if isinstance(value, str):
        assert unquote(written) == value


async def test_a_subject_cannot_add_a_header(door: Service) -> None:
    """A token with a line break in `sub` is refused. In `scope`, a line break is percent-encoded."""
    assert challenge(await ask(door, token(sub="a\r\nX-Auth-Scope: admin"))) == BAD_TOKEN
    answer = await ask(door, token(scope="a\r\nX-Auth-Subject: admin"))
    assert answer.headers.getall("X-Auth-Subject") == ["alice"]
    assert answer.headers["X-Auth-Scope"] == "a%0D%0AX-Auth-Subject: admin"


async def test_a_gateway_may_keep_its_connection(door: Service) -> None:
    """Responses to requests without a body, allowed or refused, do not close the connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for status in (200, 401, 200):
            bearer = {"Authorization": f"Bearer {token()}"} if status == 200 else {}
            async with session.get(door.url / "forward-auth", headers={**GATEWAY, **bearer}) as response:
                assert response.status == status
                assert response.headers.get("Connection") != "close"
