"""`GET /revocations`: the record of one claim and value."""

import time

import pytest

from tests.api.serving import API_KEYS, Service, Start, bearer


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
async def test_the_record_is_shown(service: Service, claim: str) -> None:
    """claim, value, times, reason and who did it; the cutoff where there is one."""
    said = await service.revoke({claim: "v 1/é", "reason": "stolen"})
    answer = await service.get("/revocations", {"claim": claim, "value": "v 1/é"})
    assert answer.status == 200
    expected = {name: said[name] for name in ("claim", "value", "revoked_at", "expires_at", "reason")}
    cutoff = {"issued_before": said["issued_before"]} if claim in {"sub", "client_id"} else {}
    assert answer.json == expected | cutoff | {"revoked_by": "ops"}


async def test_all_has_no_value(service: Service) -> None:
    """`claim=all` alone finds the record of everything."""
    await service.revoke({"all": True})
    answer = await service.get("/revocations", {"claim": "all"})
    assert (answer.status, answer.json["claim"], answer.json["value"]) == (200, "all", "")


async def test_what_is_not_there_is_404(service: Service) -> None:
    """No live revocation of that very claim and value: 404 with a problem of its own code."""
    await service.revoke({"jti": "a"})
    for query in ({"claim": "jti", "value": "b"}, {"claim": "sid", "value": "a"}, {"claim": "all"}):
        answer = await service.get("/revocations", query)
        assert (answer.status, answer.problem) == (404, "revocation_not_found")


async def test_a_foreign_record_is_shown_as_far_as_it_says(service: Service) -> None:
    """Who and when are unknown, the expiry is Redis' own."""
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
    """`check` and `admin` may look, `revoke` may not."""
    await service.revoke({"jti": "a"})
    for name, status in {"checker": 200, "both": 200, "ops": 200, "revoker": 403}.items():
        answer = await service.get("/revocations", {"claim": "jti", "value": "a"}, headers=bearer(name))
        assert answer.status == status


async def test_a_store_that_is_away_is_not_404(start_without_redis: Start) -> None:
    """With Redis away there is no telling: 503 store_unavailable with Retry-After."""
    service = await start_without_redis(API_KEYS=API_KEYS)
    answer = await service.get("/revocations", {"claim": "jti", "value": "a"})
    assert (answer.status, answer.problem) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
