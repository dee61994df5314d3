"""The change log as a reader has it: its entries in order from a cursor, for as long as the cursor can be trusted.

A cursor is `<id>.<nonce>` of an entry. Ids alone are none: another history may use the same ones, or smaller ones, and
a reader that waits there hears nothing. So with every read the cursor's own entry must still be there.
"""

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import structlog

from revocation_client.model import Revocation
from revocation_client.wire import parse_claim
from revocation_service.errors import StoreUnavailable
from revocation_service.store.node import ATTEMPT_SECONDS, FAILURES, Command, Line
from revocation_service.store.redis import Store

READ_MAX_ENTRIES: Final = 500
BLOCK_SECONDS: Final = 1.0
"""How long a read waits for news; heartbeats come as often, so that it seldom does in vain."""

MEMBERS: Final = {"claim", "value", "revoked_at", "expires_at", "issued_before"}
"""Members of a change. One with any other comes from a later version and may mean more than is understood."""

Place = tuple[int, int]
"""Of an entry in the log: milliseconds on the clock of its master, and a number among those of one millisecond."""

NOWHERE: Final[Place] = (0, 0)

_log = structlog.get_logger()


def place_of(cursor: str) -> Place:
    """Where the entry of a cursor stands; NOWHERE for none."""
    milliseconds, _, number = cursor.partition(".")[0].partition("-")
    return (int(milliseconds), int(number)) if cursor else NOWHERE


class CursorLost(StoreUnavailable):
    """The cursor's entry is not in the log: it was trimmed, emptied, or is another history's."""


class Entry(NamedTuple):
    """One entry: a revocation, or the name of a heartbeat."""

    cursor: str
    revocation: Revocation | None
    heartbeat: str | None
    understood: bool = True
    """False for an entry of a later version, or of another program; of a revocation the known part is read."""


class Tail:
    """What is appended behind a cursor, read over one connection."""

    def __init__(self, line: Line, log: str, cursor: str, met_unknown: Callable[[], None]) -> None:
        self._line = line
        self._log = log
        self.cursor = cursor
        self._met_unknown = met_unknown

    async def next(self, block_seconds: float = BLOCK_SECONDS) -> list[Entry]:
        """The entries behind the last one that was given, as soon as there are any; none after `block_seconds`.

        Raises StoreUnavailable; CursorLost where some may have been missed.
        """
        entry_id, _, nonce = self.cursor.partition(".")
        block = ("BLOCK", int(block_seconds * 1000)) if block_seconds else ()
        read: Command = ("XREAD", "COUNT", READ_MAX_ENTRIES, *block, "STREAMS", self._log, entry_id)
        own: Command = ("XRANGE", self._log, entry_id, entry_id)
        try:
            there, news = await _both(self._line, own, read, block_seconds + 2 * ATTEMPT_SECONDS)
        except FAILURES as error:
            raise StoreUnavailable("the change log cannot be read") from error
        if [_fields(fields).get(b"n") for _, fields in there] != [nonce.encode()]:
            raise CursorLost("the change log does not go on from where it was read")
        entries = [_entry(*each) for each in news[0][1]] if news else []
        if entries:
            self.cursor = entries[-1].cursor
        if not all(entry.understood for entry in entries):
            self._met_unknown()
        return entries


async def _both(line: Line, own: Command, read: Command, seconds: float) -> tuple[Any, Any]:
    """The cursor's entry as it was after the read: nothing behind it was trimmed before it was itself."""
    news, there = await line.run([read, own], seconds)
    for reply in (news, there):
        if isinstance(reply, Exception):
            raise reply
    return there, news


@asynccontextmanager
async def open_tail(store: Store, cursor: str, name: str) -> AsyncIterator[Tail]:
    """The log behind `cursor`, over a connection of its own, which the server lists under that name.

    Raises StoreUnavailable.
    """
    log = store.keyspace.change_log
    line = store.connections.owner(log).line()
    try:
        opened = await line.__aenter__()
        await opened.run([("CLIENT", "SETNAME", name)])
    except FAILURES as error:
        raise StoreUnavailable("the master that has the change log cannot be reached") from error
    try:
        yield Tail(opened, log, cursor, store.meet_unknown)
    finally:
        await line.__aexit__(None, None, None)


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=False))


def _entry(entry_id: bytes, flat: Sequence[bytes]) -> Entry:
    fields = _fields(flat)
    cursor = f"{entry_id.decode()}.{fields.get(b'n', b'').decode('ascii', 'replace')}"
    heartbeat = fields.get(b"h")
    if heartbeat is not None:
        return Entry(cursor, None, heartbeat.decode("ascii", "replace"))
    revocation, understood = _revocation(fields.get(b"r", b""))
    return Entry(cursor, revocation, None, understood)


def _revocation(change: bytes) -> tuple[Revocation | None, bool]:
    """Return the change in an entry, and whether it is all understood; a warning where none can be read."""
    try:
        members = json.loads(change)
        cutoff, end = members.get("issued_before"), members["expires_at"]
        revocation = Revocation(
            claim=parse_claim(members["claim"]),
            value=str(members["value"]),
            expires_at=None if end is None else _finite(end),
            revoked_at=None,
            issued_before=None if cutoff is None else _finite(cutoff),
        )
        return revocation, members.keys() <= MEMBERS
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        _log.warning("change_log_entry_unreadable")
        return None, False


def _finite(moment: object) -> float:
    """Epoch seconds; what is no time would stop the mirror of every worker for as long as it is in the log."""
    seconds = float(str(moment))
    if not math.isfinite(seconds):
        raise ValueError
    return seconds
