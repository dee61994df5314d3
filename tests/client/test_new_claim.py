"""A claim that is added to the table `CLAIMS`, and to nothing else, is honoured by every part (contract, section 1)."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from revocation_client import Revocation, RevocationClient
from revocation_client.claims import CLAIMS, Claim
from revocation_client.counters import Counters
from revocation_client.feed_events import Change, Event, Parser, Snapshot, Synced
from revocation_client.local_mirror import LocalMirror
from revocation_client.testing import InMemoryRevocationClient
from tests.api.serving import API_KEYS, KEYS, Service, serving
from tests.client.test_follower import HANG_SECONDS, until
from tests.redis_processes import Process

CUTOFF = 1_700_000_000.0


@pytest.fixture(autouse=True)
def device_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add one row to `CLAIMS`."""
    monkeypatch.setitem(CLAIMS, "device_id", Claim("device_id", ("device_id",), cutoff="always"))


@pytest.fixture
async def service(redis: Process) -> AsyncIterator[Service]:
    """A real service over HTTP."""
    async with serving(redis, API_KEYS=API_KEYS) as running:
        yield running


def claims(device: str, iat: float = CUTOFF) -> dict[str, Any]:
    """Return the claims of a token of this device."""
    return {"jti": "a", "device_id": device, "iat": iat}


def token(device: str, iat: float = CUTOFF) -> str:
    """Return a token of this device with a made-up signature."""
    parts = ({"alg": "HS256"}, claims(device, iat))
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "c2ln"])


async def revoke(service: Service, device: str) -> Any:
    """Revoke the tokens of a device that were issued until the cutoff."""
    return await service.revoke({"device_id": device, "issued_before": CUTOFF})


def client_of(service: Service) -> RevocationClient:
    """Return a client of this service that is not started yet."""
    return RevocationClient(str(service.url), api_key=KEYS["checker"])


async def test_revoke_stores_it_with_a_cutoff_that_defaults_to_now(service: Service) -> None:
    """A revocation by the new claim is stored with a cutoff of now, and `GET /revocations` finds it."""
    done = await service.revoke({"device_id": "lost"})
    assert (done["result"], done["claim"], done["value"]) == ("revoked", "device_id", "lost")
    assert abs(done["issued_before"] - time.time()) < HANG_SECONDS
    assert await service.stored_keys() == {service.keyspace.key("device_id", "lost")}
    found = await service.get("/revocations", {"claim": "device_id", "value": "lost"})
    assert (found.status, found.json["value"]) == (200, "lost")


async def test_check_by_claims_and_by_token_considers_it(service: Service) -> None:
    """Checks by claims and by token consider the new claim. Other values and later tokens are not revoked."""
    await revoke(service, "lost")
    for revoked, device, iat in ((True, "lost", CUTOFF), (False, "kept", CUTOFF), (False, "lost", CUTOFF + 1)):
        for question in ({"device_id": device, "iat": iat}, {"token": token(device, iat)}):
            answer = await service.check(question)
            assert answer["revoked"] is revoked
            assert "device_id" in answer["considered"]


async def test_the_feed_carries_it(service: Service) -> None:
    """The feed carries revocations by the new claim, in its snapshot and as changes."""
    await revoke(service, "lost")
    events: list[Event | None] = []
    parser = Parser()
    async with client_of(service) as client:
        assert await client.mirror_ready(HANG_SECONDS)  # so the service's own mirror is in sync
    async with service.session.get(service.url / "feed", headers=service.headers) as stream:
        while not any(isinstance(event, Change) for event in events):
            for event, unknown in parser.feed(await stream.content.readany()):
                assert unknown is None
                events.append(event)
                if isinstance(event, Synced):
                    await revoke(service, "stolen")
    told = [
        [one.value for event in events if isinstance(event, kind) for one in event.revocations]
        for kind in (Snapshot, Change)
    ]
    assert told == [["lost"], ["stolen"]]


async def test_the_clients_mirror_answers_by_it(service: Service) -> None:
    """The mirror learns revocations by the new claim from the snapshot and from changes, and answers by them alone."""
    await revoke(service, "lost")
    async with client_of(service) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        assert client.is_revoked_now(claims("stolen")) is False
        await revoke(service, "stolen")
        await until(lambda: client.is_revoked_now(claims("stolen")))
        for device in ("lost", "stolen"):
            verdict = await client.check(claims(device))
            assert (verdict.revoked, verdict.source) == (True, "mirror")
            assert "device_id" in verdict.considered
            assert client.is_revoked_now(token(device)) is True
            assert await client.is_revoked(claims(device))
            assert not await client.is_revoked(claims(device, CUTOFF + 1))
        assert not await client.is_revoked(claims("kept"))
        assert client.counters.requests == 0


async def test_a_client_without_a_mirror_asks_by_it(service: Service) -> None:
    """A client without a mirror sends the new claim in its questions, so the service answers by it."""
    await revoke(service, "lost")
    async with RevocationClient(str(service.url), api_key=KEYS["checker"], mirror=False) as client:
        assert await client.is_revoked(claims("lost"))
        assert not await client.is_revoked(claims("kept"))


async def test_the_stand_in_revokes_and_checks_by_it() -> None:
    """The stand-in revokes by the new claim with a default cutoff, and checks it by claims and by token."""
    async with InMemoryRevocationClient() as client:
        await client._revoke(device_id="lost")
        (record,) = client.revocations
        assert (record.claim, record.value) == ("device_id", "lost")
        assert record.issued_before is not None
    async with InMemoryRevocationClient(mirror=False) as client:
        await client._revoke(device_id="lost")
        for question in (claims("lost"), token("lost")):
            verdict = await client.check(question)
            assert (verdict.revoked, verdict.source) == (True, "redis")
        assert not await client.is_revoked(claims("kept"))


@pytest.mark.parametrize("value", ["", "a\n", "x" * 257, 1.5, True, ["lost"]])
def test_the_fast_path_looks_it_up(value: object) -> None:
    """The fast path admits another device, but neither a revoked one nor a value that the service would refuse."""
    memory = LocalMirror(5.0, Counters(), time.time, time.monotonic)
    memory.learn(Revocation("device_id", "lost", None, None, CUTOFF))
    memory.mark_fresh(0.0, complete=True, connected=True)
    assert memory.admits(claims("kept"))
    assert not memory.admits(claims("lost"))
    assert not memory.admits(claims("kept") | {"device_id": value})
