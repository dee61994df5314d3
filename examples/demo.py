"""`make demo`: run Redis, the service, the main API and the gateway on loopback, and walk through them step by step.

After the walk everything keeps running until Ctrl-C, so that the user can try it; with DEMO_ONCE=1 the demo ends. The
exit status is 0 only if every step did what it says.
"""

import asyncio
import os
import pathlib
import shutil
import signal
import sys
import tempfile

from walkthrough.parts import DemoError, Parts, ports_from
from walkthrough.shell import Shell, say
from walkthrough.steps import walk

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended."""


async def demo() -> int:
    """Start the parts, walk, and stay. Return the exit status. All parts are stopped, whatever happens."""
    if shutil.which("curl") is None:
        raise DemoError("the walk is made of curl commands, and there is no curl on the PATH; please install it")
    ports = ports_from(os.environ)
    with tempfile.TemporaryDirectory(prefix="revocation-demo-", ignore_cleanup_errors=True) as directory:
        async with Parts(pathlib.Path(directory), ports) as parts:
            await walk(Shell(parts.directory), parts)
            if os.environ.get("DEMO_ONCE") == "1":
                return 0
            _say_where(parts)
            return await _stay(parts)


async def _stay(parts: Parts) -> int:
    """Wait for Ctrl-C. Raises DemoError if one of the parts ends."""
    try:
        ended = await parts.first_to_end()
    except asyncio.CancelledError:
        return 0
    raise DemoError(ended)


def _say_where(parts: Parts) -> None:
    """Print what can be tried now; the commands of the walk work in this directory."""
    say("\nEverything keeps running until Ctrl-C. To try it, in another terminal:\n", "title")
    say(f"  cd {parts.directory} && export NO_PROXY=127.0.0.1\n")
    say("and then the commands above (logins work again after a minute), or as an operator of the service:\n")
    say(f"  curl -sS -H @operator.header {parts.service_url}/revoke -d sub={parts.user}")
    say(f"  curl -sS {parts.service_url}/readyz")
    say(f"  curl -sS {parts.admin_url}/metrics\n")
    say(f"gateway   {parts.gateway_url}  (in a browser: {parts.gateway_url}/docs)")
    say(f"main API  {parts.main_api_url}")
    say(f"service   {parts.service_url}")
    say(f"user      {parts.user}, password {parts.password} (also in alice.password)")
    say(f"logs      {parts.directory}/*.log")


def _cancel_at_first_signal(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[int]") -> None:
    """Cancel the task at the first signal. Later signals are ignored, so that all parts are stopped."""
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked:
            asked = True
            task.cancel()
            say("\nStopping …")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)


async def main() -> int:
    """Run the demo and return the exit status."""
    task = asyncio.create_task(demo())
    _cancel_at_first_signal(asyncio.get_running_loop(), task)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED
    except DemoError as error:
        sys.stderr.write(f"\ndemo: {error}\n")
        return 1
    except BrokenPipeError:  # the reader of our output has left; what is still to be flushed is dropped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
