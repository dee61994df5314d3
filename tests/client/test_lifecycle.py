"""Starting and closing the client, its event loop, its settings, and the public names of the package."""

import asyncio
import contextlib
import gc
import inspect
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import revocation_client
from revocation_client import (
    ConfigurationError,
    NotStarted,
    RequestRefused,
    Revocation,
    RevocationClient,
    RevocationError,
    ServiceUnavailable,
    TokenNeeded,
    TokenRevoked,
    UnexpectedAnswer,
    Verdict,
    errors,
)
from revocation_client.testing import InMemoryRevocationClient
from tests.client.feed_server import FeedServer, revocation, serving_feed
from tests.client.scripted import scripted
from tests.redis_processes import free_port

CALLS: dict[str, Callable[[RevocationClient], Any]] = {
    "check": lambda client: client.check({"jti": "x"}),
    "check_many": lambda client: client.check_many([{"jti": "x"}]),
    "check_jti": lambda client: client.check_jti("x"),
    "is_revoked": lambda client: client.is_revoked("token"),
    "ensure_active": lambda client: client.ensure_active("token"),
    "revoke": lambda client: client.revoke("token", expires_in=5),
    "revoke_jti": lambda client: client.revoke_jti("x"),
    "revoke_session": lambda client: client.revoke_session("x"),
    "revoke_subject": lambda client: client.revoke_subject("x"),
    "revoke_client": lambda client: client.revoke_client("x"),
    "revoke_all": lambda client: client.revoke_all(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
async def test_a_client_that_was_not_started_says_how(call: Callable[[RevocationClient], Any]) -> None:
    """Before the start and after the close, every call raises NotStarted, under "allow" too, and says how to start."""
    client = InMemoryRevocationClient(on_unavailable="allow")
    for _ in range(2):
        with pytest.raises(NotStarted) as caught:
            await call(client)
        for words in ("lifespan", "async with", "with TestClient(app)"):
            assert words in str(caught.value)
        async with client:
            await call(client)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_another_event_loop_is_refused(call: Callable[[RevocationClient], Any]) -> None:
    """A client belongs to the event loop on which it was started. On another one, every call raises NotStarted."""
    client = RevocationClient(f"http://127.0.0.1:{free_port()}")
    with asyncio.Runner() as home:
        home.run(client.start())

        def elsewhere(what: Callable[[], Any]) -> None:
            with asyncio.Runner() as other, pytest.raises(NotStarted):
                other.run(what())

        _in_thread(lambda: elsewhere(lambda: call(client)))
        _in_thread(lambda: elsewhere(client.start))
        _in_thread(lambda: elsewhere(client.aclose))
        home.run(client.aclose())


def test_a_loop_may_be_run_by_another_thread() -> None:
    """A client belongs to an event loop, not to a thread: another thread may run the loop after the start."""
    client, loop = InMemoryRevocationClient(), asyncio.new_event_loop()
    loop.run_until_complete(client.start())
    running = threading.Thread(target=loop.run_forever)
    running.start()
    try:
        for what in (client.revoke_jti("x"), client.check({"jti": "x"}), client.aclose()):
            asyncio.run_coroutine_threadsafe(what, loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()


def _in_thread(act: Callable[[], None]) -> None:
    with asyncio.Runner() as runner:

        async def run() -> None:
            await asyncio.to_thread(act)

        runner.run(run())


def test_a_closed_client_starts_again_on_another_loop() -> None:
    """A closed client can be started on a new event loop, as in test suites with one loop for each test."""
    port = free_port()
    client = RevocationClient(f"http://127.0.0.1:{port}", on_unavailable="deny")

    async def use() -> None:
        async with scripted(port), client:
            assert not await client.is_revoked({"jti": "x"})

    for _ in range(3):
        asyncio.run(use())
    assert client.counters.not_revoked == 3


def test_a_client_whose_loop_died_can_be_closed_and_started() -> None:
    """A client whose loop was closed raises NotStarted, and can be closed and started again on another loop."""
    client = InMemoryRevocationClient()
    asyncio.run(client.start())

    async def again() -> None:
        with pytest.raises(NotStarted):
            await client.check({"jti": "x"})
        await client.aclose()
        async with client:
            await client.check({"jti": "x"})

    asyncio.run(again())
    asyncio.run(client.start())
    asyncio.run(client.start())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from transports that were left open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_feed_on_a_closed_loop_proved_counts_no_more() -> None:
    """After its loop was closed, a client that is started again asks the service until its new feed is synced."""
    with feed_in_a_thread() as server:
        client = server.client(max_staleness_seconds=5.0)
        abandoned = asyncio.new_event_loop()
        abandoned.run_until_complete(client.start())
        assert abandoned.run_until_complete(client.mirror_ready(10))
        abandoned.close()
        server.log.append(revocation("x"))

        async def again() -> bool:
            async with client:
                return await client.is_revoked({"jti": "x"})

        revoked = asyncio.run(again())
    gc.collect()
    assert revoked


@contextlib.contextmanager
def feed_in_a_thread() -> Iterator[FeedServer]:
    """Run a feed server on an event loop in another thread, and yield it."""
    loop, running = asyncio.new_event_loop(), contextlib.AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(running.enter_async_context(serving_feed()), loop).result(10)
        asyncio.run_coroutine_threadsafe(running.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def test_starting_and_closing_twice_changes_nothing() -> None:
    """`start` and `aclose` can be repeated. `lifespan` starts and closes the client, as `async with` does."""
    client = InMemoryRevocationClient()
    await client.start()
    await client.start()
    assert not await client.is_revoked({"jti": "x"})
    await client.aclose()
    await client.aclose()
    async with client.lifespan(object()):
        assert not await client.is_revoked({"jti": "x"})
    with pytest.raises(NotStarted):
        await client.check({"jti": "x"})


async def test_a_close_ends_the_wait_for_the_first_synchronization() -> None:
    """When the client is closed, a waiting `mirror_ready` returns False. Without a service it would wait forever."""
    client = RevocationClient(f"http://127.0.0.1:{free_port()}")
    await client.start()
    ready = asyncio.create_task(client.mirror_ready())
    await asyncio.sleep(0)
    await client.aclose()
    assert await asyncio.wait_for(ready, 10) is False


async def test_a_start_does_not_wait_for_the_service() -> None:
    """A client starts without a service, and the policy decides its checks."""
    async with RevocationClient(f"http://127.0.0.1:{free_port()}") as client:
        assert (await client.check({"jti": "x"})).source == "policy"


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("url", {"url": "revocation:8080"}),
        ("url", {"url": "redis://revocation"}),
        ("url", {"url": ""}),
        ("url", {"url": "http://"}),
        ("url", {"url": "http://user:secret-word@host"}),
        ("url", {"url": "http://host/?key=secret-word"}),
        ("url", {"url": "http://host:99999"}),
        ("url", {"url": "http://host:0"}),
        ("url", {"url": "http://host/\n"}),
        ("url", {"url": "http:// host"}),
        ("url", {"url": "http://host#"}),
        ("url", {"url": "http://[::1"}),
        ("url", {"url": "http://a..b"}),
        ("url", {"url": f"http://{'a' * 70}.example"}),
        ("url", {"url": None}),
        ("api_key", {"api_key": ""}),
        ("api_key", {"api_key": "secret-word\r\nX-Other: 1"}),
        ("api_key", {"api_key": "secret-word two"}),
        ("api_key", {"api_key": "secret-wörd"}),
        ("on_unavailable", {"on_unavailable": "Allow"}),
        ("timeout_seconds", {"timeout_seconds": 0}),
        ("timeout_seconds", {"timeout_seconds": None}),
        ("revoke_timeout_seconds", {"revoke_timeout_seconds": float("inf")}),
        ("max_staleness_seconds", {"max_staleness_seconds": -1}),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_shown(setting: str, options: dict[str, Any]) -> None:
    """A wrong setting raises an error that begins with its name, and contains no part of a key or a password."""
    with pytest.raises(ConfigurationError) as caught:
        RevocationClient(**{"url": "http://revocation:8080"} | options)
    assert caught.value.setting == setting
    assert str(caught.value).startswith(setting)
    assert "secret-w" not in repr(caught.value)


async def key_sent() -> str | None:
    """Return the Authorization header that a client from the environment sends to a scripted server."""
    async with scripted() as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REVOCATION_URL", f"{server.url}/below")
            async with RevocationClient.from_env(mirror=False) as client:
                assert "the-secret-key" not in repr(client)
                await client.check_jti("x")
        assert server.requests[0].path == "/below/check/batch"
        return server.requests[0].headers.get("Authorization")


async def test_from_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`from_env` reads the URL, and the key from a variable or a file. Its error names what is missing or set twice."""
    for name in ("REVOCATION_URL", "REVOCATION_API_KEY", "REVOCATION_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="REVOCATION_URL"):
        RevocationClient.from_env()
    monkeypatch.setenv("REVOCATION_URL", "http://revocation:8080/below")
    monkeypatch.setenv("REVOCATION_API_KEY", "  \n")
    with pytest.raises(ConfigurationError, match="REVOCATION_API_KEY is set but empty"):
        RevocationClient.from_env()
    monkeypatch.setenv("REVOCATION_API_KEY", "the-secret-key")
    assert await key_sent() == "Bearer the-secret-key"
    (tmp_path / "key").write_text("the-secret-key\n")
    monkeypatch.setenv("REVOCATION_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ConfigurationError, match="both set"):
        RevocationClient.from_env()
    monkeypatch.delenv("REVOCATION_API_KEY")
    assert await key_sent() == "Bearer the-secret-key"
    monkeypatch.setenv("REVOCATION_API_KEY_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="REVOCATION_API_KEY_FILE"):
        RevocationClient.from_env()


async def test_a_path_before_the_services_own_is_kept() -> None:
    """Requests are sent to paths below the path of the client's URL, for a service behind a gateway."""
    async with scripted() as server, RevocationClient(f"{server.url}/below/") as client:
        await client.check_jti("x")
        await client.revoke_jti("x")
    assert [request.path for request in server.requests] == ["/below/check/batch", "/below/revoke"]
    assert "Authorization" not in server.requests[0].headers


ERRORS: list[RevocationError] = [
    TokenRevoked(Verdict(True, "redis", Revocation("jti", "secret-jti", 1.0, 1.0))),
    TokenNeeded(),
    NotStarted(),
    ConfigurationError("url", "is wrong"),
    RequestRefused(400, "invalid_token", "no"),
    UnexpectedAnswer("no JSON", 200),
    ServiceUnavailable("no answer", 503, "store_unavailable", 1.0, 3),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_can_be_pickled_and_raised_again(error: RevocationError) -> None:
    """Pickled errors and the copies that `again` makes have all fields of the original."""
    for copy in (pickle.loads(pickle.dumps(error)), error.again()):
        assert copy is not error
        assert (type(copy), copy.__dict__, str(copy)) == (type(error), error.__dict__, str(error))
    assert "secret-jti" not in str(error)


def test_every_error_is_exported_and_has_an_example() -> None:
    """Every error class is exported by the package, and has an example in `ERRORS`."""
    found = {name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, RevocationError)}
    assert found <= set(revocation_client.__all__)
    assert {type(error).__name__ for error in ERRORS} | {"RevocationError"} == found


def test_every_public_name_is_exported_and_documented() -> None:
    """`__all__` has exactly the public names. Public classes, functions and methods of the client have docstrings."""
    shown = {
        name for name, one in vars(revocation_client).items() if not name.startswith("_") and not inspect.ismodule(one)
    }
    assert shown == set(revocation_client.__all__)
    assert sorted(revocation_client.__all__) == revocation_client.__all__
    for name in shown:
        one = getattr(revocation_client, name)
        if inspect.isclass(one) or inspect.isfunction(one):
            assert one.__doc__, name
    methods = [one for name, one in vars(RevocationClient).items() if inspect.isfunction(one) and name[0] != "_"]
    assert len(methods) > 10
    assert all(one.__doc__ for one in methods)


def test_frameworks_are_not_imported_unless_asked_for() -> None:
    """No module outside `integrations` mentions `integrations`, `import starlette` or `aiohttp.web`."""
    for path in Path(revocation_client.__path__[0]).rglob("*.py"):
        if "integrations" not in path.parts:
            source = path.read_text()
            assert "integrations" not in source
            assert "import starlette" not in source
            assert "aiohttp.web" not in source
