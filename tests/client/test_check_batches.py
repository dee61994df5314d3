"""Concurrent checks are sent as one request, and a check never joins a request that was sent before it was asked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from revocation_client import NotStarted, RequestRefused, RevocationClient, ServiceUnavailable
from revocation_client.service_calls import BODY_MAX_BYTES
from tests.client.scripted import Gate, Scripted, as_the_service, not_revoked, scripted
from tests.redis_processes import WAIT_SECONDS


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """A server that records its requests."""
    async with scripted() as running:
        yield running


@pytest.fixture
async def client(server: Scripted) -> AsyncIterator[RevocationClient]:
    """A client of that server, with a long timeout."""
    async with server.client(timeout_seconds=20) as started:
        yield started


async def test_concurrent_checks_are_one_request(client: RevocationClient, server: Scripted) -> None:
    """64 concurrent checks are sent as one request, in the order in which they were asked. Each gets its own answer."""

    async def odd_ones(_request: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response({"results": [revoked_if_odd(element) for element in body["checks"]]})

    server.script = odd_ones
    found = await asyncio.gather(*(client.check_jti(str(number)) for number in range(64)))
    assert [verdict.revoked for verdict in found] == [number % 2 == 1 for number in range(64)]
    assert server.asked == [[str(number) for number in range(64)]]
    assert (client.counters.batches, client.counters.revoked, client.counters.not_revoked) == (1, 32, 32)


def revoked_if_odd(element: dict[str, Any]) -> dict[str, Any]:
    if int(element["jti"]) % 2 == 0:
        return not_revoked(element)
    record = {"claim": "jti", "value": element["jti"], "revoked_at": 1, "expires_at": 2}
    return not_revoked(element) | {"revoked": True, "revocation": record}


async def test_a_check_never_joins_a_request_that_was_sent(client: RevocationClient, server: Scripted) -> None:
    """A check that repeats one under way is sent again, because the token may have been revoked meanwhile."""
    gate = Gate()
    server.script = gate
    first = asyncio.create_task(client.check_jti("same"))
    await server.until_asked(1)
    second = asyncio.create_task(client.check_jti("same"))
    await server.until_asked(2)
    gate.open()
    await asyncio.gather(first, second)
    assert server.asked == [["same"], ["same"]]


async def test_batches_split_by_count(client: RevocationClient, server: Scripted) -> None:
    """No request has more than the thousand checks that the service accepts."""
    await client.check_many([{"jti": str(number)} for number in range(2500)])
    assert sorted(len(batch) for batch in server.asked) == [500, 1000, 1000]


async def test_batches_split_by_bytes(client: RevocationClient, server: Scripted) -> None:
    """No request is larger than the mebibyte that the service accepts, and each is as full as it can be."""
    tokens = [f"{number:04d}" + "x" * 99_996 for number in range(25)]
    assert len(await client.check_many(tokens)) == 25
    assert sorted(len(body["checks"]) for body in server.bodies) == [5, 10, 10]
    assert max(server.sizes) <= BODY_MAX_BYTES


async def test_a_token_that_fills_a_request_is_sent_alone_and_a_larger_one_is_refused(
    client: RevocationClient, server: Scripted
) -> None:
    """The largest token that the service accepts is sent; one byte more is refused as the service would refuse it."""
    largest = "x" * (BODY_MAX_BYTES - len(b'{"checks":[{"token":""}]}'))
    found = await asyncio.gather(
        client.check_jti("small"), client.check(largest), client.check(largest + "x"), return_exceptions=True
    )
    refused = found[2]
    assert isinstance(refused, RequestRefused)
    assert refused.status == 413
    assert not [one for one in found[:2] if isinstance(one, BaseException)]
    assert max(server.sizes) == BODY_MAX_BYTES


async def test_an_error_reaches_only_its_own_check(client: RevocationClient, server: Scripted) -> None:
    """A refused, an unavailable and a malformed result affect only their own checks. The others get their answers."""
    problem = {"type": "about:blank", "title": "t", "detail": "d"}
    bad: dict[str, Any] = {
        "refused": {"error": problem | {"status": 400, "code": "invalid_token"}},
        "away": {"error": problem | {"status": 503, "code": "keys_unavailable"}},
        "strange": {"revoked": "no"},
    }

    async def some_bad(_request: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response({"results": [bad.get(one["jti"]) or not_revoked(one) for one in body["checks"]]})

    server.script = some_bad
    names = ["fine", "refused", "away", "strange", "good"]
    found = await asyncio.gather(*(client.check_jti(name) for name in names), return_exceptions=True)
    assert len(server.requests) == 1
    assert [type(one).__name__ for one in found] == [
        "Verdict",
        "RequestRefused",
        "Verdict",
        "UnexpectedAnswer",
        "Verdict",
    ]
    assert [one.source for one in found if not isinstance(one, BaseException)] == ["redis", "policy", "redis"]


async def test_an_error_of_the_whole_request_is_a_separate_object_for_each_check(
    client: RevocationClient, server: Scripted
) -> None:
    """Each check of a refused request raises its own exception. A shared one would collect the tracebacks of all."""

    async def refuse(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(status=401)

    server.script = refuse
    found = await asyncio.gather(*(client.check_jti(str(number)) for number in range(3)), return_exceptions=True)
    assert all(isinstance(one, RequestRefused) and one.status == 401 for one in found)
    assert len({id(one) for one in found}) == 3


async def test_a_cancelled_check_cancels_no_other(client: RevocationClient, server: Scripted) -> None:
    """If one check of a request under way is cancelled, the same request still answers the others."""
    gate = Gate()
    server.script = gate
    tasks = [asyncio.create_task(client.check_jti(str(number))) for number in range(3)]
    await server.until_asked(1)
    tasks[0].cancel()
    gate.open()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert not [one for one in found[1:] if isinstance(one, BaseException)]
    assert len(server.requests) == 1


async def test_closing_ends_the_checks_under_way_with_not_started(server: Scripted) -> None:
    """Closing the client ends checks and revocations with NotStarted. The policy admits none of them."""
    server.script = Gate()
    client = server.client()
    await client.start()
    under_way = asyncio.create_task(client.check_jti("under way"))
    await server.until_asked(1)
    queued = asyncio.create_task(client.check_jti("queued"))
    logout = asyncio.create_task(client.revoke_jti("logout"))
    await server.until_asked(2)
    await client.aclose()
    found = await asyncio.gather(under_way, queued, logout, return_exceptions=True)
    assert [type(one) for one in found] == [NotStarted, NotStarted, NotStarted]
    assert client.counters.policy_allowed == 0


async def test_closing_that_is_cancelled_still_ends_every_check_and_every_connection(server: Scripted) -> None:
    """If `aclose` is cancelled, the check under way still raises NotStarted, and the connections are still closed."""
    slow = SlowToEnd(server.url)
    await slow.start()
    check = asyncio.create_task(slow.check_jti("under way"))
    await slow.asked.wait()
    closing = asyncio.create_task(slow.aclose())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    with pytest.raises(NotStarted):
        await asyncio.wait_for(check, WAIT_SECONDS)
    assert slow.closed


class SlowToEnd(RevocationClient):
    """A client whose requests take 0.2 s to end after they are cancelled."""

    def __init__(self, url: str) -> None:
        super().__init__(url, mirror=False)
        self.asked = asyncio.Event()
        self.closed = False

    def _http(self, url: str, api_key: str | None) -> Any:
        return self

    async def post(self, *_request: object, **_options: object) -> None:
        """Wait without an answer until the request is cancelled."""
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.sleep(0.2))

    async def aclose(self) -> None:
        """Close the client, and then its connections."""
        if self._service is None:
            self.closed = True
        else:
            await super().aclose()


async def test_connections_are_kept(client: RevocationClient, server: Scripted) -> None:
    """Fifty checks one after the other, with revocations between them, use one connection."""
    for number in range(50):
        await client.check_jti(str(number))
        await client.revoke_jti(str(number))
    assert len(server.connections) == 1


async def test_a_kept_connection_that_breaks_off_is_no_outage(client: RevocationClient, server: Scripted) -> None:
    """A check whose connection breaks off is sent again, and the policy does not decide it."""

    async def break_off(request: web.Request, _body: Any) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        server.script = as_the_service
        return web.Response()

    await client.check_jti("before")
    server.script = break_off
    assert (await client.check_jti("after")).source == "redis"
    assert server.asked == [["before"], ["after"], ["after"]]
    assert (client.counters.retries, client.counters.policy_allowed) == (1, 0)


async def test_where_connections_break_off_another_instance_may_still_answer(
    client: RevocationClient, server: Scripted
) -> None:
    """A check is sent again after each broken connection: behind a load balancer, another instance may answer."""

    async def break_off(request: web.Request, _body: Any) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        if len(server.requests) == 8:
            server.script = as_the_service
        return web.Response()

    server.script = break_off
    assert (await client.check_jti("x")).source == "redis"
    assert len(server.requests) == 9


async def test_a_service_that_always_breaks_off_is_unavailable(server: Scripted) -> None:
    """If every connection breaks off, a check is sent again until its timeout. Then the policy decides."""

    async def break_off(request: web.Request, _body: Any) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.script = break_off
    async with RevocationClient(server.url, mirror=False, timeout_seconds=1.0) as client:
        assert (await client.check_jti("x")).source == "policy"
    assert len(server.requests) > 4


async def test_a_fault_of_the_client_itself_admits_no_token(server: Scripted) -> None:
    """An unexpected exception in the client is raised. It is not taken for an outage, so the policy admits no token."""

    class Broken(RevocationClient):
        _feeds = False

        def _http(self, url: str, api_key: str | None) -> Any:
            return BrokenService()

    class BrokenService:
        async def post(self, *_args: Any, **_options: Any) -> Any:
            raise ZeroDivisionError

        async def aclose(self) -> None:
            pass

    async with Broken(server.url) as client:
        with pytest.raises(ZeroDivisionError):
            await client.check_jti("x")
        assert client.counters.policy_allowed == 0


async def test_deny_raises_unavailable_for_each_of_a_batch(server: Scripted) -> None:
    """With `on_unavailable="deny"`, every `ensure_active` of a failed request raises ServiceUnavailable."""

    async def away(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "7"})

    server.script = away
    async with server.client(on_unavailable="deny") as client:
        asked = (client.ensure_active({"jti": str(number)}) for number in range(5))
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert [one.retry_after_seconds for one in found if isinstance(one, ServiceUnavailable)] == [7.0] * 5


async def test_a_cancelled_check_many_sends_nothing_more(client: RevocationClient, server: Scripted) -> None:
    """If `check_many` is cancelled, those of its checks that were not sent yet are never sent."""
    gate = Gate()
    server.script = gate
    many = asyncio.create_task(client.check_many([{"jti": str(number)} for number in range(3000)]))
    await server.until_asked(1)
    many.cancel()
    gate.open()
    server.script = as_the_service
    await client.check_jti("after")
    assert server.asked[-1] == ["after"]
    assert sum(len(batch) for batch in server.asked) < 3000
