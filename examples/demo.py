"""`make demo`: Redis, the service, the main API and the gateway on loopback, and a walk through them, step by step.

The walk ends with everything left running to play with, until Ctrl-C. DEMO_ONCE=1 ends it after the walk. The exit
status is 0 only if every step did what it says.
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
"""What a shell says of a program that Ctrl-C ended."""


async def demo() -> int:
    """Start, walk, stay; whatever happens, nothing is left running. The answer is the exit status."""
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
    """Until Ctrl-C, which is how this is meant to end; that one of the parts ends is not."""
    try:
        ended = await parts.first_to_end()
    except asyncio.CancelledError:
        return 0
    raise DemoError(ended)


def _say_where(parts: Parts) -> None:
    """What there is to play with; the walk's commands work as they stand, in this directory."""
    say("\nAll of it stays up until Ctrl-C. To play with it, in another terminal:\n")
    say(f"  cd {parts.directory} && export NO_PROXY=127.0.0.1\n")
    say("and then the commands above (a minute later there are logins again), or as an operator of the service:\n")
    say(f"  curl -sS -H @operator.header {parts.service_url}/revoke -d sub={parts.user}")
    say(f"  curl -sS {parts.service_url}/readyz")
    say(f"  curl -sS {parts.admin_url}/metrics\n")
    say(f"gateway   {parts.gateway_url}  (in a browser: {parts.gateway_url}/docs)")
    say(f"main API  {parts.main_api_url}")
    say(f"service   {parts.service_url}")
    say(f"user      {parts.user}, password in {parts.directory / 'alice.password'}: {parts.password}")
    say(f"logs      {parts.directory}/*.log")


def _cancel_at_first_signal(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[int]") -> None:
    """Ctrl-C and its like end the demo once; more of them do not disturb the clearing up."""
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
    """The exit status."""
    task = asyncio.create_task(demo())
    _cancel_at_first_signal(asyncio.get_running_loop(), task)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED
    except DemoError as error:
        sys.stderr.write(f"\ndemo: {error}\n")
        return 1
    except BrokenPipeError:  # nobody watches any more; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
