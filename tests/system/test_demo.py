"""`make demo` as a user sees it: what it prints, how it ends, and that it leaves nothing behind."""

import os
import pathlib
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from revocation_service.store.embedded_child import dying_with_parent
from tests.redis_processes import eventually, free_port
from tests.system.service_process import holders

DEMO = pathlib.Path(__file__).parents[2] / "examples" / "demo.py"
PORTS = ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "REVOCATION_PORT", "MAIN_API_PORT")
WALK_SECONDS = 120.0
END_SECONDS = 40.0
STEPS = ("Log in,", "Call the API", "Log out:", "The very next request", "The entry in Redis", "Log in again and again")

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the demo is made of curl commands")


class Demo:
    """The demo in a process of its own, with ports and a temporary directory of its own."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.ports = {variable: str(free_port()) for variable in PORTS}
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """Start the demo in a session of its own, so that no signal of a terminal reaches it."""
        output = self.directory.with_suffix(".out").open("wb")
        with output:
            self._popen = subprocess.Popen(
                dying_with_parent([sys.executable, str(DEMO)]),
                env={**os.environ, "TMPDIR": str(self.directory), **self.ports, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.directory.with_suffix(".out").read_text(errors="replace")

    async def until(self, line: str) -> None:
        """Wait until the demo has printed this."""

        async def printed() -> bool:
            assert line in self.printed or self._running, self.printed
            return line in self.printed

        await eventually(printed, line, WALK_SECONDS)

    @property
    def _running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    async def ended(self, seconds: float = WALK_SECONDS) -> int:
        """Wait until the demo ends, and return its exit status."""

        async def over() -> bool:
            return not self._running

        await eventually(over, f"the demo's end; it printed:\n{self.printed}", seconds)
        assert self._popen is not None
        return self._popen.returncode

    async def nothing_left(self) -> None:
        """Wait until no process has anything open in its directory."""

        async def none() -> bool:
            return not holders(self.directory)

        await eventually(none, "the end of all the demo's processes", END_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the demo."""
        assert self._popen is not None
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill the demo if it is still running."""
        if self._popen is not None and self._running:
            self._popen.kill()
            self._popen.wait(END_SECONDS)


@pytest.fixture
def demo(tmp_path: pathlib.Path) -> Iterator[Demo]:
    """A demo that a test may start."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    made = Demo(directory)
    yield made
    made.kill()


async def test_the_walk_ends_well(demo: Demo) -> None:
    """The demo prints all steps in order with their responses, exits with 0 and leaves nothing behind."""
    demo.start(DEMO_ONCE="1")
    assert await demo.ended() == 0, demo.printed
    found = [demo.printed.index(step) for step in STEPS]
    assert found == sorted(found)
    statuses = [line.split()[1] for line in demo.printed.splitlines() if line.startswith("    HTTP/1.1 ")]
    assert statuses == ["200", "200", "204", "401", "200", "200", "200", "200", "429"]
    gateway = f"http://127.0.0.1:{demo.ports['GATEWAY_PORT']}/api/v1"
    assert demo.printed.count(f"$ curl -sSi -H @access.header {gateway}/users/me") == 2
    assert "X-RateLimit-Remaining: 0" in demo.printed
    assert "Every step did what it says." in demo.printed
    printed = demo.printed.replace(sys.executable, "python").replace(str(demo.directory), "/tmp")
    assert max(map(len, printed.splitlines())) <= 100
    assert "\x1b" not in printed
    assert not holders(demo.directory)
    assert not list(demo.directory.iterdir())


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_a_terminal_without_no_color(no_color: str, coloured: bool) -> None:
    """On a terminal the demo prints ANSI colours, unless NO_COLOR is set. A file gets none (see the first test)."""
    terminal, output = pty.openpty()
    try:
        environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
        command = [sys.executable, "-c", "from walkthrough.shell import say; say('well', 'ok')"]
        subprocess.run(command, cwd=DEMO.parent, env=environment, stdout=output, check=True, timeout=END_SECONDS)
        assert (b"\x1b[32mwell\x1b[0m" in os.read(terminal, 100)) is coloured
    finally:
        os.close(terminal)
        os.close(output)


async def test_a_step_that_fails_fails_the_demo(demo: Demo) -> None:
    """If the gateway has another login limit, the demo says what is wrong, exits with 1 and leaves nothing behind."""
    demo.start(DEMO_ONCE="1", GATEWAY_LOGIN_LIMIT="100/minute")
    assert await demo.ended() == 1
    assert "NOT SO: it should be X-RateLimit-Limit 5" in demo.printed
    assert "Every step did what it says." not in demo.printed
    assert not holders(demo.directory)
    assert not list(demo.directory.iterdir())


async def test_it_stays_until_ctrl_c(demo: Demo) -> None:
    """After the walk, a command that the demo printed works. Then Ctrl-C ends all processes with exit status 0."""
    demo.start(DEMO_ONCE="")
    await demo.until("logs ")
    (line,) = [line for line in demo.printed.splitlines() if line.startswith("  cd ")]
    curl = next(line for line in demo.printed.splitlines() if line.startswith("  curl") and "/revoke" in line)
    played = subprocess.run(["/bin/sh", "-c", f"{line}\n{curl}"], capture_output=True, text=True, check=True)
    assert '"claim":"sub","value":"alice"' in played.stdout
    assert holders(demo.directory)
    demo.signal(signal.SIGINT)
    assert await demo.ended(END_SECONDS) == 0, demo.printed
    assert not holders(demo.directory)


async def test_killed_it_leaves_no_process(demo: Demo) -> None:
    """If the demo is killed (SIGKILL), Redis, service, main API and gateway end too."""
    demo.start()
    await demo.until("The walk, in")
    assert holders(demo.directory)
    demo.signal(signal.SIGKILL)
    await demo.ended(END_SECONDS)
    await demo.nothing_left()


async def test_a_port_that_is_set_and_taken_is_an_error(demo: Demo) -> None:
    """If a configured port is in use, the demo exits with 1 and prints nothing but a line that names it."""
    port = demo.ports["GATEWAY_PORT"]
    with socket.create_server(("127.0.0.1", int(port))):
        demo.start()
        assert await demo.ended() == 1
    assert demo.printed.strip() == (
        f"demo: GATEWAY_PORT={port}: the port is in use; stop what listens there, or set another port"
    )
