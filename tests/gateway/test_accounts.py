"""The limit by account: one account however its name is spelled and wherever it stands, failures alone, exactly."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from multidict import MultiDict
from structlog.testing import capture_logs

from revocation_service.gateway.accounts import BODY_MAX_BYTES, BUFFERED_BODY, AccountNames, Ambiguous, fold
from revocation_service.gateway.settings import Rate
from tests.gateway.logins import LoginApplication, log_in, login_application
from tests.gateway.serving import (
    OK,
    BareUpstream,
    GatewayProcess,
    Visit,
    bare_upstream,
    gateway_before,
    gateway_process,
)
from tests.gateway.throttled import Gateway, throttled
from tests.redis_processes import HOST, Process, eventually, standalone

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = AccountNames(b"a key of twenty characters")
ALICE = NAMES.hashes(b"username=alice")
FORM_TYPE = "application/x-www-form-urlencoded"


def part(
    disposition: str, value: bytes = b"alice", fields: str = "", newline: str = "\r\n", boundary: str = "B"
) -> bytes:
    """A multipart body of one field."""
    head = newline.join([f"--{boundary}", f"Content-Disposition: form-data; {disposition}{fields}", "", ""])
    return head.encode() + value + f"{newline}--{boundary}--{newline}".encode()


BODIES: list[tuple[bytes, str]] = [
    (b"username=alice&password=x", FORM_TYPE),
    (b"username=Alice", FORM_TYPE),
    (b"username=+ALICE%20%09", FORM_TYPE),
    (b"%75ser%6eame=%61l%69ce", FORM_TYPE),
    (b"a=1;username=alice", FORM_TYPE),
    (b"email=alice", FORM_TYPE),
    (b"user[email]=alice", FORM_TYPE),
    (b"user_name=alice", FORM_TYPE),
    (b"User.Name=alice", FORM_TYPE),
    (b"LOGIN=alice", FORM_TYPE),
    ("username=\uff21lice".encode(), FORM_TYPE),
    (b"username=al%c2%adi%e2%80%8bce", FORM_TYPE),
    ("username=alice".encode("utf-16"), f"{FORM_TYPE}; charset=utf-16"),
    ("username=alice".encode("cp037"), f"{FORM_TYPE};charset=cp037"),
    (b"username=alice", "text/plain"),
    (b"username=alice", ""),
    (b"username[]=alice", FORM_TYPE),
    (b"username[0]=alice", FORM_TYPE),
    (b"username%5B0%5D=alice", FORM_TYPE),
    (b"user[name][0]=alice", FORM_TYPE),
    (b"user[email][$eq]=alice", FORM_TYPE),
    (b"login.0.value=alice", FORM_TYPE),
    (b'{"username":["alice"]}', "application/json"),
    (b'{"username":[["alice"]]}', "application/json"),
    (b'{"username":{"$eq":"alice"}}', "application/json"),
    (b'{"username":{"$in":["alice"]}}', "application/json"),
    (b'{"username":{"0":"alice"}}', "application/json"),
    (b'{"user":{"username":{"value":"alice"},"password":"x","tenant":"y"}}', "application/json"),
    (b'{"username[0]":"alice"}', "application/json"),
    (b'{"username":["alice"],}', "application/json"),
    (b'{"username":{"$eq":"alice"},}', "application/json"),
    (b'{"username":"alice","password":"x"}', "application/json"),
    (b' {"username" : "AL\\u0049CE"}', "application/json"),
    (b'{"\\u0075ser\\u006eame":"alice"}', "application/json"),
    (b'{"user":{"name":1,"email":"alice"}}', "application/json"),
    (b'[[{"login":"alice"}]]', "application/json"),
    (b'{"username":"alice"}', "text/plain"),
    (b'{"username":"alice"}', FORM_TYPE),
    (b'{"username":"alice"}', "multipart/form-data; boundary=B"),
    (b'\xef\xbb\xbf{"username":"alice"}', "application/json"),
    ('{"username":"alice"}'.encode("utf-16"), "application/json"),
    ('{"username":"alice"}'.encode("utf-32-be"), "application/json"),
    ('{"username":"alice"}'.encode("utf-7"), "application/json; charset=utf-7"),
    (b'{"username":"alice",}', "application/json"),
    (b'{"a":["X",":"],"username":"alice",,}', "application/json"),
    (b'{"n":' + b"9" * 5000 + b',"username":"alice"}', "application/json"),
    (b"[" * 5000 + b'{"username":"alice"}', "application/json"),
    (b'{}{\'x\':1,"username":"alice"}', "application/json"),
    (part('name="username"'), "multipart/form-data; boundary=B"),
    (part("name=username"), "multipart/form-data; boundary=B"),
    (part('name="username[0]"'), "multipart/form-data; boundary=B"),
    (part('NAME="UserName"'), "Multipart/Form-Data; Boundary=B"),
    (part("name*=utf-8''user%6eame"), "multipart/form-data; boundary=B"),
    (part('name*0="user"; name*1="name"'), "multipart/form-data; boundary=B"),
    (part('name="username"; filename="x"'), "multipart/form-data; boundary=B"),
    (part('name="username"', fields="\r\n--x: y"), "multipart/form-data; boundary=B"),
    (part('name="username"', fields="\r\nContent-Type: text/plain"), "multipart/form-data; boundary=B"),
    (part('\r\n name="username"'), "multipart/form-data; boundary=B"),
    (part('name="username"', newline="\n"), "multipart/form-data; boundary=B"),
    (part('name="username"', boundary="C"), "multipart/form-data; boundary=B; boundary=C"),
    (part('name="username"'), "text/plain"),
]


@pytest.mark.parametrize(("body", "content_type"), BODIES, ids=lambda value: str(value)[:40])
async def test_every_spelling_of_a_body_names_the_same_account(body: bytes, content_type: str) -> None:
    """A name is found in forms, JSON and multipart, whatever the content type says, and all its spellings are one."""
    named = NAMES.hashes(body, content_type=content_type)
    assert named >= ALICE
    others = not body.isascii() or b"%c2" in body  # Latin-1 would be another name
    assert len(named) <= 1 + others


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
async def test_an_encoded_part_names_its_account_too(encoding: str) -> None:
    """A part that a lenient upstream would decode counts for what it decodes to, beside what it is."""
    value = base64.b64encode(b"alice") if encoding == "base64" else b"=61lic=65"
    body = part('name="username"', value, f"\r\nContent-Transfer-Encoding: {encoding}")
    assert NAMES.hashes(body) > ALICE


@pytest.mark.parametrize(
    "body",
    [
        b"username=alice&username=bob",
        b"username=bob&username=alice",
        b"username=alice&email=bob",
        b'{"username":"alice","username":"bob"}',
        b'{"username":"bob","user":{"login":"alice"}}',
        b'{"username":["x"],"username":"alice","email":"bob"}',
        part('name="username"') + part('name="username"', b"bob"),
        part('name="username"', b"bob") + b'{"username":"alice"',
    ],
)
async def test_every_name_of_a_login_is_counted(body: bytes) -> None:
    """A second field, or the first, hides nothing: all the names that the upstream might take are there."""
    bob = NAMES.hashes(b"username=bob")
    assert NAMES.hashes(body) >= ALICE
    assert bob <= NAMES.hashes(body)


async def test_names_in_the_query_and_in_basic_credentials_are_counted() -> None:
    """A login that is not in the body is found as well."""
    assert NAMES.hashes(b"", "password=x&username=Alice") == ALICE
    for text in ("alice:right", "ALICE:x:y"):
        encoded = base64.b64encode(text.encode()).decode()
        for credentials in (f"Basic {encoded}", f"basic   {encoded.rstrip('=')}", f"BASIC {encoded}=="):
            assert NAMES.hashes(b"", authorization=[credentials]) == ALICE
    assert NAMES.hashes(b"", authorization=["Bearer x", "Basic !", "Basic"]) == frozenset()


@pytest.mark.parametrize(
    "body", [b"", b"password=x", b"{}", b"[1]", b"null", b"\xff\xfe\x00", b'{"username":null}', b"username=&email= "]
)
async def test_a_body_without_a_name_names_nobody(body: bytes) -> None:
    """What names no account is counted by address alone."""
    assert NAMES.hashes(body) == frozenset()


async def test_names_differ_where_accounts_do() -> None:
    """Different names and different keys give different hashes, and no hash holds its name."""
    assert NAMES.hashes(b"username=alicia").isdisjoint(ALICE)
    assert AccountNames(b"another key, also long").hashes(b"username=alice").isdisjoint(ALICE)
    assert not any("alice" in each for each in ALICE)
    assert fold(" \u00c5ngstr\u00f6m\u200b ") == fold("a\u030angstro\u0308m") == "\u00e5ngstr\u00f6m"


@pytest.mark.parametrize(
    "body",
    [
        "&".join(f"username=u{n}" for n in range(9)).encode(),
        json.dumps(
            {name: name for name in ("user", "email", "login", "mail", "uid", "upn", "phone", "handle", "mobile")}
        ).encode(),
        b"a=1&" * 2_000,
        part('name="x"') * 101,
    ],
    ids=["names", "members", "fields", "parts"],
)
async def test_what_names_too_many_is_no_login(body: bytes) -> None:
    """A body that names more accounts or has more fields than any login is refused rather than guessed at."""
    with pytest.raises(Ambiguous):
        NAMES.hashes(body)


MOST_TIMES = 10
HARD = [
    b'"',
    b'\\"',
    b'":"',
    b"[",
    b'{"user":',
    b'{"user":[',
    b'"user":["a",',
    b'{"username":"',
    b'"user":x',
    b"content-disposition:",
    b'content-disposition:;name="',
    b"content-disposition:;name=username\n",
    b"Content-Disposition: form-data; name=user\r\n\r\n",
    b";name*=utf-8''%75",
    b"user=%ff;",
    b"a&",
    b"username=\xef\xb7\xba&",
    b"\xcc\x96\xcc\x81",
]


def _seconds(body: bytes, content_type: str = "x; charset=utf-16; charset=utf-7; charset=utf-8") -> float:
    """The least of a few tries, so that what else the machine does is not in it."""
    tries = []
    for _ in range(5):
        began = time.process_time()
        with contextlib.suppress(Ambiguous):
            NAMES.hashes(body, content_type=content_type)
        tries.append(time.process_time() - began)
    return min(tries)


@pytest.mark.parametrize("unit", HARD, ids=lambda unit: repr(unit[:16]))
@pytest.mark.parametrize("before", [b"", b"username=", b'{"username":"'], ids=["", "form", "json"])
async def test_a_body_that_is_hard_to_read_costs_little(unit: bytes, before: bytes) -> None:
    """The longest body that is read costs some ten times what an ordinary one of that length does, whatever it is."""
    ordinary = b'{"username":"alice","password":"x",' + b",".join(b'"a%d":"b"' % n for n in range(200)) + b"}"
    ordinary += b" " * (BODY_MAX_BYTES - len(ordinary))
    hard = (before + unit * BODY_MAX_BYTES)[:BODY_MAX_BYTES]
    assert _seconds(hard) < MOST_TIMES * _seconds(ordinary)


# through the gateway: failures alone, exactly


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[Process]:
    async with standalone() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def application() -> AsyncIterator[LoginApplication]:
    async with login_application() as started:
        yield started


async def judges(request: web.Request) -> web.StreamResponse:
    """401, unless the body asks for another status."""
    fields = dict(pair.split("=") for pair in request[BUFFERED_BODY].decode().split("&"))
    return web.Response(status=int(fields.get("status", 401)))


@contextlib.asynccontextmanager
async def by_account(url: str | None, count: int = 3, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway that allows so many failures by account, and any number by address."""
    limits = {"login_limit": Rate(1_000, 60), "account_limit": Rate(count, 60), "account_key": b"k" * 20}
    async with throttled(url, **{"answer": judges, **limits, **options}) as gateway:
        yield gateway


def _statuses(told: Iterable[Any]) -> list[int]:
    return sorted(each.status for each in told)


@pytest.fixture(params=["redis", "memory"])
def url(request: pytest.FixtureRequest, redis: Process) -> str | None:
    """The same with Redis and without."""
    return redis.url if request.param == "redis" else None


async def test_guesses_from_many_addresses_are_one_count(url: str | None) -> None:
    """A hundred guesses at once from a hundred addresses at one account: exactly three are passed on."""
    async with by_account(url) as gateway:
        told = await asyncio.gather(*(gateway.log_in(f"203.0.113.{n}", data="username=alice&n=1") for n in range(100)))
        assert _statuses(told) == [401] * 3 + [429] * 97
        assert len(gateway.reached) == 3
        denied = next(each for each in told if each.status == 429)
        assert denied.code == "too_many_attempts"
        assert 50 <= int(denied.headers["Retry-After"]) <= 60
        assert (denied.headers["X-RateLimit-Limit"], denied.remaining) == ("3", 0)
        assert denied.headers["RateLimit-Policy"] == '"login";q=1000;w=60, "account";q=3;w=60'
        assert denied.headers["RateLimit"].startswith('"login";r=999;t=60, "account";r=0;t=')
        assert (await gateway.log_in(data="username=bob&n=1")).status == 401


async def test_a_login_denied_by_the_account_limit_is_logged(url: str | None) -> None:
    """The log has the address and the path of a login that the account limit denies, and no account."""
    async with by_account(url) as gateway:
        with capture_logs() as logged:
            for _ in range(4):
                await gateway.log_in("203.0.113.9", data="username=alice&n=1")
    (denied,) = (event for event in logged if event["event"] == "login_denied")
    assert (denied["address"], denied["path"], denied["limit"], denied["quota"]) == (
        "203.0.113.9",
        "/auth/login",
        "account",
        3,
    )
    assert "alice" not in str(denied)


async def test_successes_do_not_count(url: str | None) -> None:
    """An account that logs in rightly, also many times at once in turn, is never shut out; its failures still count."""
    async with by_account(url) as gateway:
        for _ in range(12):
            assert (await gateway.log_in(data="username=alice&status=200")).status == 200
        assert [(await gateway.log_in(data="username=alice&n=1")).status for _ in range(2)] == [401, 401]
        for _ in range(4):
            assert (await gateway.log_in(data="username=alice&status=302", allow_redirects=False)).status == 302
        assert [(await gateway.log_in(data="username=alice&n=1")).status for _ in range(2)] == [401, 429]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 423])
async def test_what_counts_as_a_failure(url: str | None, status: int) -> None:
    """Every 4xx of the upstream may tell a guesser that he was wrong, and counts."""
    async with by_account(url, 2) as gateway:
        told = [await gateway.log_in(data=f"username=alice&status={status}") for _ in range(4)]
        assert [each.status for each in told] == [status, status, 429, 429]


@pytest.mark.parametrize("status", [200, 204, 303, 500, 503])
async def test_what_does_not(url: str | None, status: int) -> None:
    """Neither a success nor a failure of the upstream itself counts."""
    async with by_account(url, 2) as gateway:
        data = f"username=alice&status={status}"
        told = [await gateway.log_in(data=data, allow_redirects=False) for _ in range(5)]
        assert [each.status for each in told] == [status] * 5


async def test_an_upstream_that_is_away_locks_nobody_out(url: str | None) -> None:
    """An error on the way to the upstream gives the place back."""

    async def fails(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPGatewayTimeout

    async with by_account(url, 2, answer=fails) as gateway:
        assert [(await gateway.log_in(data="username=alice&n=1")).status for _ in range(6)] == [504] * 6


LOGIN = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"


async def _leaves(port: int, body: bytes, wait_for: bytes) -> None:
    """A login whose client leaves once it has read that."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(LOGIN % (len(body), body))
    async with asyncio.timeout(10):
        await reader.readuntil(wait_for)
    writer.close()
    await writer.wait_closed()


async def _leaves_when_passed_on(port: int, upstream: BareUpstream, number: int) -> None:
    _reader, writer = await asyncio.open_connection(HOST, port)
    body = b"username=alice&password=1"

    async def passed_on() -> bool:
        return upstream.requests > number

    async def ended() -> bool:
        return upstream.visits[-1].over.is_set()

    writer.write(LOGIN % (len(body), body))
    await eventually(passed_on, "the login at the upstream", 10)
    writer.close()
    await eventually(ended, "the end of the login at the upstream", 10)


async def _hesitates(visit: Visit) -> None:
    """Answers 200 to carol, begins a 401 to bob, and says nothing to anybody else."""
    await visit.until(b"password")
    if b"carol" in visit.received:
        await visit.send(OK)
    elif b"bob" in visit.received:
        await visit.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 1000\r\n\r\nbegun")
    await visit.to_the_end()


async def test_who_leaves_without_an_answer_locks_nobody_out() -> None:
    """A login that was cancelled gives its place back; one whose status was sent keeps it, though its body never came.

    Else a guesser would read the status, leave, and guess again.
    """
    limits = {"ACCOUNT_LIMIT": "2/minute", "LOGIN_LIMIT": "500/minute"}
    async with bare_upstream(_hesitates) as upstream, gateway_before(upstream.url, **limits) as gateway:
        for number in range(5):
            await _leaves_when_passed_on(gateway.port, upstream, number)
        for _ in range(2):
            await _leaves(gateway.port, b"username=bob&password=1", b"begun")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            assert (await log_in(session, gateway.url, data="username=bob&password=2")).status == 429

            async def free() -> bool:
                return (await log_in(session, gateway.url, data="username=alice&email=carol&password=2")).status == 200

            await eventually(free, "a place for alice", 10)


async def test_a_denied_account_gives_the_other_its_place_back(url: str | None) -> None:
    """A login that names two accounts, one of them shut out, costs the other nothing."""
    async with by_account(url, 2) as gateway:
        for _ in range(2):
            await gateway.log_in(data="username=alice&n=1")
        for _ in range(4):
            assert (await gateway.log_in(data="username=alice&email=bob")).status == 429
            assert (await gateway.log_in(data="username=bob&email=alice")).status == 429
        assert [(await gateway.log_in(data="username=bob&n=1")).status for _ in range(3)] == [401, 401, 429]


async def test_bodies_that_cannot_be_read_are_refused() -> None:
    """With the limit on, a login's body is at most 8 KiB, not compressed, and names a few accounts."""
    async with by_account(None) as gateway:
        too_long = b"username=alice&x=" + b"x" * 8_192

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(9):
                yield b"x" * 1_000

        told = [
            await gateway.log_in(data=too_long),
            await gateway.log_in(data=pieces()),
            await gateway.log_in(data=b"x", headers={"Content-Encoding": "gzip"}),
            await gateway.log_in(data="&".join(f"username={n}" for n in range(20))),
            await log_in(
                gateway.client.session,
                str(gateway.client.make_url("")).rstrip("/"),
                data=b"x",
                headers=MultiDict([("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]),
            ),
        ]
        assert [(each.status, each.code) for each in told] == [
            (413, "body_too_large"),
            (413, "body_too_large"),
            (415, "unsupported_media_type"),
            (400, "ambiguous_login"),
            (415, "unsupported_media_type"),
        ]
        assert [each.remaining for each in told] == [999, 998, 997, 996, 999]
        assert gateway.reached == []
        assert (await gateway.log_in(data="username=alice&status=200&x=" + "x" * 8_000)).status == 200


async def test_a_login_whose_body_is_no_http_is_refused() -> None:
    """A malformed chunk in a login that has to be read first is 400, reaches nobody, and is no error of the gateway."""
    async with bare_upstream() as upstream, gateway_before(upstream.url, ACCOUNT_LIMIT="2/minute") as gateway:
        head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await gateway.talk(head + b"5\r\nuser", b"zz\r\nnonsense\r\n\r\n")
        assert answer.statuses == [400]
        assert upstream.requests == 0


async def test_without_the_limit_no_body_is_read(application: LoginApplication) -> None:
    """With the account limit off, which is the default, a login's body passes as any other, however long it is."""
    await application.forget()
    async with gateway_before(application.url) as gateway:
        told = await log_in(application.session, gateway.url, data={"username": "x" * 200_000, "password": "right"})
        assert told.status == 200
        assert await application.seen() == ["x" * 200_000]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(
    tmp_path_factory: pytest.TempPathFactory, redis: Process, application: LoginApplication
) -> AsyncIterator[GatewayProcess]:
    settings = {"ACCOUNT_LIMIT": "4/hour", "ACCOUNT_KEY": "k" * 24, "LOGIN_LIMIT": "1000/hour", "KEY_PREFIX": "real:"}
    directory = tmp_path_factory.mktemp("accounts") / "gateway"
    async with gateway_process(directory, application.url, REDIS_URL=redis.url, **settings) as gateway:
        yield gateway


async def test_every_spelling_that_fastapi_takes_is_one_account(
    real: GatewayProcess, application: LoginApplication
) -> None:
    """Forms, multipart and JSON of one name, in any order, reach FastAPI four times in all, unchanged."""
    await application.forget()
    json_path, form_path = "/api/v1/auth/login", "/auth/login"
    multipart = aiohttp.FormData({"username": "Alice ", "password": "wrong"}, default_to_multipart=True)
    doubled = MultiDict([("username", "bob1"), ("username", "alice"), ("password", "wrong")])
    attempts: list[tuple[str, dict[str, Any]]] = [
        (form_path, {"data": {"username": "alice", "password": "wrong"}}),
        (form_path, {"data": multipart}),
        (json_path, {"json": {"username": "ALICE", "password": "wrong"}}),
        (form_path, {"data": doubled}),
        (form_path, {"data": {"username": "\uff41lice", "password": "wrong"}}),
        (json_path, {"json": {"username": "al\u00adice", "password": "right"}}),
        (form_path + "/", {"data": {"username": "alice", "password": "right"}}),
    ]
    statuses = []
    for path, options in attempts:
        statuses.append((await log_in(application.session, real.url, path, **options)).status)
    assert statuses == [401] * 4 + [429] * 3
    assert await application.seen() == ["alice", "Alice ", "ALICE", "alice"]


async def test_the_right_password_passes_through_unchanged(real: GatewayProcess, application: LoginApplication) -> None:
    """A login with the right password is answered 200 as often as it is made, of any kind, and its body is whole."""
    for _ in range(6):
        data = {"username": "carol", "password": "right"}
        form = aiohttp.FormData(data, default_to_multipart=True)
        assert (await log_in(application.session, real.url, data=data)).status == 200
        assert (await log_in(application.session, real.url, data=form)).status == 200
        assert (await log_in(application.session, real.url, "/api/v1/auth/login", json=data)).status == 200
