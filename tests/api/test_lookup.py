"""`GET /revocations`: the record of one claim and value."""

import time

import pytest

from tests.api.serving import API_KEYS, Service, Start, bearer


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
async def test_the_record_is_shown(service: Service, claim: str) -> None:
    """The response has claim, value, times, reason and actor of the record, and the cutoff if there is one."""
    said = await service.revoke({claim: "v 1/é", "reason": "stolen"})
    answer = await service.get("/revocations", {"claim": claim, "value": "v 1/é"})
    assert answer.status == 200
    expected = {name: said[name] for name in ("claim", "value", "revoked_at", "expires_at", "reason")}
    cutoff = {"issued_before": said["issued_before"]} if claim in {"sub", "client_id"} else {}
    assert answer.json == expected | cutoff | {"revoked_by": "ops"}


async def test_all_has_no_value(service: Service) -> None:
    """`claim=all` without a value returns the revocation of all tokens."""
    await service.revoke({"all": True})
    answer = await service.get("/revocations", {"claim": "all"})
    assert (answer.status, answer.json["claim"], answer.json["value"]) == (200, "all", "")


async def test_what_is_not_there_is_404(service: Service) -> None:
    """A claim and value without a live revocation are 404 revocation_not_found."""
    await service.revoke({"jti": "a"})
    for query in ({"claim": "jti", "value": "b"}, {"claim": "sid", "value": "a"}, {"claim": "all"}):
        answer = await service.get("/revocations", query)
        assert (answer.status, answer.problem) == (404, "revocation_not_found")


async def test_a_foreign_record_is_shown_as_far_as_it_says(service: Service) -> None:
    """A record of a foreign writer has Redis' expiry as its end, and null as `revoked_at`."""
    await service.blacklist("theirs", 60)
    answer = await service.get("/revocations", {"claim": "jti", "value": "theirs"})
    assert answer.json.pop("expires_at") == pytest.approx(time.time() + 60, abs=3)
    assert answer.json.items() >= {"claim": "jti", "value": "theirs", "revoked_at": None}.items()


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?claim=jti",
        "?value=a",
        "?claim=&value=a",
        "?claim=iss&value=a",
        "?claim=JTI&value=a",
        "?claim=all&value=a",
        "?claim=all&value=",
        "?claim=jti&value=",
        "?claim=jti&value=a&more=1",
        "?claim=jti&claim=sid&value=a",
        "?claim=jti&value=" + "x" * 257,
    ],
)
async def test_other_queries_are_errors(service: Service, query: str) -> None:
    """Anything but one known claim and its value is 400 invalid_request."""
    answer = await service.get(f"/revocations{query}")
    assert (answer.status, answer.problem) == (400, "invalid_request")


async def test_scopes(service: Service) -> None:
    """A key with `check` or `admin` may look up a record, and one with `revoke` alone is 403."""
    await service.revoke({"jti": "a"})
    for name, status in {"checker": 200, "both": 200, "ops": 200, "revoker": 403}.items():
        answer = await service.get("/revocations", {"claim": "jti", "value": "a"}, headers=bearer(name))
        assert answer.status == status


async def test_a_store_that_is_away_is_not_404(start_without_redis: Start) -> None:
    """Without Redis, a lookup is 503 store_unavailable with Retry-After, not 404."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    answer = await service.get("/revocations", {"claim": "jti", "value": "a"})
    assert (answer.status, answer.problem) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
