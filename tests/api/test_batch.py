"""`POST /check/batch`: many checks in one request, each with its own result."""

import time
from typing import Any

import pytest

from tests.api.serving import API_KEYS, Service, Start, bearer
from tests.redis_processes import free_port
from tests.unit.reencodings import SECRET, issuer

SINGLE_LIMIT = 64 * 1024
BATCH_LIMIT = 1024 * 1024


def token(**claims: Any) -> str:
    """Return a signed token with these claims. It expires in an hour unless they include `exp`."""
    return issuer("HS256").sign({"exp": int(time.time()) + 3600, **claims})


async def batch(service: Service, checks: list[Any]) -> list[Any]:
    """Send a batch, assert that it succeeds, and return its results."""
    answer = await service.post("/check/batch", {"checks": checks})
    assert answer.status == 200, answer
    assert answer.json.keys() == {"results"}
    results: list[Any] = answer.json["results"]
    return results


async def test_results_come_in_order(service: Service) -> None:
    """The results of a batch of 1,000 checks are in the order of the checks."""
    for number in (0, 1, 7, 500, 998, 999):
        await service.revoke({"jti": f"t{number}"})
    results = await batch(service, [{"jti": f"t{number}"} for number in range(1000)])
    revoked = [number for number, result in enumerate(results) if result["revoked"]]
    assert revoked == [0, 1, 7, 500, 998, 999]
    assert all(results[number]["revocation"]["value"] == f"t{number}" for number in revoked)


async def test_an_element_is_answered_as_a_single_check_is(service: Service) -> None:
    """Each kind of check has the same result in a batch as at /check."""
    await service.revoke({"sub": "alice", "reason": "logout"})
    checks: list[Any] = [
        {"jti": "fine"},
        {"sub": "alice"},
        {"token": token(sub="alice", iat=int(time.time()) - 60)},
        {"token": token(jti="dead", exp=1_000_000_000)},
        {"iat": None},
        {"sub": 42, "client_id": "c", "iat": int(time.time())},
    ]
    assert await batch(service, checks) == [await service.check(check) for check in checks]


async def test_one_bad_element_spoils_no_other(service: Service) -> None:
    """Each bad element of a batch gets its own error, with code and status, and the others get their results."""
    await service.revoke({"jti": "gone"})
    bad: dict[str, Any] = {
        "invalid_request": {"jti": ""},
        "invalid_token": {"token": "a.b.c"},
        "unsupported_token": {"token": "a.b.c.d.e"},
    }
    checks: list[Any] = []
    for each in (*bad.values(), {}, "x", 7, None, [], {"jti": 1.5}, {"jti": "a", "unknown": 1}):
        checks += [each, {"jti": "gone"}]
    results = await batch(service, checks)
    assert all(result["revoked"] is True for result in results[1::2])
    errors = [result["error"] for result in results[::2]]
    assert [result.keys() for result in results[::2]] == [{"error"}] * len(errors)
    assert [error["code"] for error in errors] == [*bad, *["invalid_request"] * 7]
    assert all(error["status"] == 400 and error["title"] and error["detail"] for error in errors)


async def test_only_bad_elements_are_still_a_batch(service: Service) -> None:
    """A batch of only bad elements succeeds, with an error for each element."""
    assert [result["error"]["code"] for result in await batch(service, [{}, {"token": "a.b.c"}])] == [
        "invalid_request",
        "invalid_token",
    ]


async def test_the_same_question_twice_has_two_answers(service: Service) -> None:
    """A batch may contain the same check twice; each of the two gets its result."""
    await service.revoke({"jti": "gone"})
    results = await batch(service, [{"jti": "gone"}, {"jti": "fine"}, {"jti": "gone"}])
    assert [result["revoked"] for result in results] == [True, False, True]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"checks": []},
        {"checks": {}},
        {"checks": "x"},
        {"checks": None},
        {"checks": [{"jti": "a"}], "more": 1},
        {"checks": [{"jti": "a"}] * 1001},
        [{"jti": "a"}],
    ],
    ids=str,
)
async def test_a_batch_is_a_list_of_1_to_1000(service: Service, body: object) -> None:
    """Any body but a list of 1 to 1,000 checks is 400 invalid_request."""
    answer = await service.post("/check/batch", body)
    assert (answer.status, answer.problem) == (400, "invalid_request")


@pytest.mark.parametrize(("size", "status"), [(SINGLE_LIMIT + 1, 200), (BATCH_LIMIT, 200), (BATCH_LIMIT + 1, 413)])
async def test_a_batch_may_be_a_mebibyte(service: Service, size: int, status: int) -> None:
    """The body of a batch may have 1 MiB, and one more byte is 413."""
    answer = await service.send("/check/batch", b'{"checks":[{"jti":"a"}]}'.ljust(size))
    assert answer.status == status


async def test_scopes(service: Service) -> None:
    """A key with `check` or `admin` may send a batch, and one with `revoke` alone is 403."""
    for name, status in {"checker": 200, "both": 200, "ops": 200, "revoker": 403}.items():
        answer = await service.post("/check/batch", {"checks": [{"jti": "a"}]}, headers=bearer(name))
        assert answer.status == status


async def test_keys_that_cannot_be_had_are_the_elements_own_error(start: Start) -> None:
    """While the JWKS URL is unreachable, a token in a batch gets a 503 error, and claims beside it get a result."""
    service = await start(JWKS_URL=f"http://127.0.0.1:{free_port()}/keys")
    signed = issuer("RS256").sign({"jti": "a", "exp": int(time.time()) + 60})
    results = await batch(service, [{"token": signed}, {"jti": "b"}])
    assert (results[0]["error"]["code"], results[0]["error"]["status"]) == ("keys_unavailable", 503)
    assert results[1]["revoked"] is False


async def test_signatures_are_checked_one_by_one(start: Start) -> None:
    """A forged token in a batch gets its own error, and a genuine one beside it is verified."""
    service = await start(JWT_SECRET=SECRET)
    good = token(jti="a")
    results = await batch(service, [{"token": good}, {"token": good[:-6] + "AAAAAA"}])
    assert results[0]["verified"] is True
    assert results[1]["error"]["code"] == "invalid_token"


async def test_a_store_that_is_away_is_one_error(start_without_redis: Start) -> None:
    """With Redis away the whole batch is 503 store_unavailable with Retry-After."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    answer = await service.post("/check/batch", {"checks": [{"jti": str(number)} for number in range(1000)]})
    assert (answer.status, answer.problem) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
