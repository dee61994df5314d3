"""All records of all masters, a slice at a time, so that neither this process nor Redis is held up.

Each master is scanned over one connection, and from the beginning if that breaks: a SCAN cursor means nothing to
another process, not even to the next one at the same address.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from revocation_client.model import ClaimName, Revocation
from revocation_client.wire import AGREEMENT_SECONDS, revocation_from_record
from revocation_service.errors import StoreUnavailable
from revocation_service.store.node import FAILURES, GET, LOAD_SCRIPTS, Line, Node, epoch_seconds
from revocation_service.store.redis import Store

SCAN_COUNT: Final = 1_000
SLICE: Final = 200
READ_MAX_KEYS: Final = 250
ATTEMPTS: Final = 3
PAUSE_SECONDS: Final = (0.05, 0.3)

_TOKENS_RECORD: Final = re.compile(rb'\{"revoked_at":(\d{1,12}(?:\.\d+)?),"expires_at":(\d{1,12}(?:\.\d+)?)[,}]')
"""How `put.lua` begins one."""

Records = dict[str, tuple[ClaimName, str]]

Take = Callable[[list[Revocation]], Awaitable[None]]


async def scan(store: Store, take: Take) -> None:
    """Have what there is taken, in slices; what stays for as long as the scan takes is in one of them, or several.

    Raises StoreUnavailable.
    """
    try:
        await _one_after_another(store, take)
        if await store.connections.moving():  # from where it was not yet scanned to where it had been
            await _one_after_another(store, take)
    except FAILURES as error:
        raise StoreUnavailable("a master cannot be scanned") from error


async def _one_after_another(store: Store, take: Take) -> None:
    for node in await store.connections.masters():
        await _steadily(store, node, take)


async def _steadily(store: Store, node: Node, take: Take) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with node.line() as line:
                await line.run(LOAD_SCRIPTS)
                await _scan(store, line, take)
        except FAILURES:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
        else:
            return


async def _scan(store: Store, line: Line, take: Take) -> None:
    cursor = b"0"
    while True:
        command = ("SCAN", cursor, "MATCH", store.keyspace.records_pattern, "COUNT", SCAN_COUNT)
        (reply,) = await line.run([command])
        if isinstance(reply, Exception):
            raise reply
        cursor, names = reply
        await _read(store, line, names, take)
        if cursor == b"0":
            return


async def _read(store: Store, line: Line, names: Sequence[bytes], take: Take) -> None:
    records: Records = {}
    for name in names:
        record = store.keyspace.record(name)
        if record is not None:
            records[name.decode()] = record
        elif store.keyspace.is_cutoff(name):  # of a claim that a later version knows
            store.meet_unknown()
    for keys in _pieces(list(records), SCAN_COUNT):
        groups = [part for group in store.connections.by_slot(keys) for part in _pieces(group, READ_MAX_KEYS)]
        replies = await line.run([GET.call(group) for group in groups])
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):  # the slot is on the move: whoever has it is asked
                await take(await _elsewhere(store, [records[key] for key in group]))
                continue
            for rows in _pieces(reply[2:], SLICE):
                await take([_revocation(records, group, row, epoch_seconds(*reply[:2])) for row in rows])


async def _elsewhere(store: Store, identifiers: Sequence[tuple[ClaimName, str]]) -> list[Revocation]:
    reading = await store.get(identifiers)
    if reading.unread:
        raise StoreUnavailable("a slot of the cluster cannot be read")
    return list(reading.found)


def _revocation(records: Records, keys: Sequence[str], row: Any, now: float) -> Revocation:
    """What a row of `get.lua` says; most are tokens' records of ours, of which only the times are needed."""
    index, record, left = row
    claim, value = records[keys[index - 1]]
    ends = now + left / 1_000 if left >= 0 else None
    ours = _TOKENS_RECORD.match(record) if claim == "jti" else None
    if ours is None or ends is None:
        return revocation_from_record(claim, value, record, ends)
    stated = float(ours[2])
    return Revocation(claim, value, stated if abs(stated - ends) < AGREEMENT_SECONDS else ends, float(ours[1]))


def _pieces(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
