"""If an upstream normalizes a path before it routes it, no spelling of a login path goes uncounted."""

import pytest

from tests.gateway.dot_resolvers import UPSTREAMS, spellings
from tests.gateway.serving import gateway_before

REACHING = {
    "nginx": [
        "//auth//login",
        "/auth%2Flogin",
        "/auth/x/../login",
        "/auth/%2e/login",
        "/x%5cy/%2e%2e/auth/login",
        "/x%3by/.%2E/auth/login",
    ],
    "node": ["/a%2fb/%2e%2e/auth/login", "/a%252fb/%2e%2e/auth/login", "/x%5cy/%2e%2e/auth/login"],
    "resolver": [
        "/a%2fb/%2e%2e/auth/login",
        "/a%252fb/%2e%2e/auth/login",
        "/x%5cy/%2e%2e/auth/login",
        "/x\\y/../auth/login",
        "/auth/a%2fb/%2e%2e/login",
        "/auth/login/a%2fb/%2e%2e",
    ],
}
"""Spellings that are known to reach each upstream's login."""


def _post(target: str) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("name", UPSTREAMS)
async def test_every_spelling_that_reaches_the_login_is_counted(name: str) -> None:
    """Each spelling is counted as one attempt, or gets 400. The known ones do reach the upstream's login."""
    async with UPSTREAMS[name]() as url, gateway_before(url, LOGIN_LIMIT="5000/hour") as gateway:
        left, reached = 5000, set()
        for target in spellings():
            answer = await gateway.talk(_post(target))
            if answer.statuses != [400] or "X-RateLimit-Remaining" in answer.headers:
                left -= 1
                assert answer.headers.get("X-RateLimit-Remaining") == str(left), target
            if answer.statuses == [401]:
                reached.add(target)
    assert reached >= set(REACHING[name])


@pytest.mark.parametrize("name", UPSTREAMS)
async def test_of_fifty_spellings_five_reach_the_upstream(name: str) -> None:
    """Of fifty attempts in spellings that all reach the login, five are passed on."""
    known = REACHING[name]
    async with UPSTREAMS[name]() as url, gateway_before(url, LOGIN_LIMIT="5/hour") as gateway:
        answers = [await gateway.talk(_post(known[number % len(known)])) for number in range(50)]
    assert [answer.statuses for answer in answers] == [[401]] * 5 + [[429]] * 45
