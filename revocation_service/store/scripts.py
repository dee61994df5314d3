"""The Lua scripts of `lua/`, known to a server by their SHA-1."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Command = tuple[str | bytes | int | float, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """The source of a script, and its SHA-1 in hexadecimal digits."""

    source: str
    sha: str

    @classmethod
    def load(cls, name: str) -> "Script":
        """Return the script in `lua/<name>.lua`."""
        source = files("revocation_service.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
        return cls(source, sha1(source.encode(), usedforsecurity=False).hexdigest())

    async def run(self, redis: Redis, keys: Sequence[str], arguments: Sequence[str | bytes | int] = ()) -> Any:
        """Run the script, and return its reply; load it first if the server lacks it. Raises redis-py's errors."""
        try:
            return await redis.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            await redis.script_load(self.source)
            return await redis.evalsha(self.sha, len(keys), *keys, *arguments)

    async def run_with(
        self, redis: Redis, keys: Sequence[str], arguments: Sequence[str | bytes | int], *behind: Command
    ) -> list[Any]:
        """Run the script, then the commands in `behind`, on one connection in one round trip. Return all replies.

        If Redis refuses a command, the reply to it is the error. Errors of the script and the connection are raised.
        If the first reply is NoScriptError, the script did not run, and is loaded now. Then send everything again,
        because a WAIT behind the script confirmed an older write.
        """
        async with redis.pipeline(transaction=False) as pipeline:
            pipeline.evalsha(self.sha, len(keys), *keys, *arguments)
            for command in behind:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        if isinstance(replies[0], NoScriptError):
            await redis.script_load(self.source)
        elif isinstance(replies[0], Exception):
            raise replies[0]
        return replies


ASK: Final = Script.load("ask")
BEAT: Final = Script.load("beat")
GET: Final = Script.load("get")
HIT: Final = Script.load("hit")
MERGE: Final = Script.load("merge")
