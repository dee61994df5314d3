"""Whether others may hold what neither the store nor this process has: then nobody's "not revoked" is believed.

Who had everything when the store lost it goes on by heart. Who comes anew, or was cut off, waits until those who know
more have given it back; where the store is so new, or so newly emptied, that they may not have said so yet, it listens.
"""

import asyncio
import math
import time
from contextlib import suppress
from typing import Final

import structlog

from revocation_service.errors import StoreUnavailable
from revocation_service.store.change_log import NOWHERE, Place
from revocation_service.store.changes import Changes
from revocation_service.store.debts import EVERYWHERE, SAID_SECONDS

LISTEN_SECONDS: Final = 2.0
"""Within which a process that follows has noticed that the store was emptied, and said so."""

REBORN_SECONDS: Final = 3.0
"""The same where it was restarted, or another was promoted in its place: it may have come back as an older copy."""

WATCH_SECONDS: Final = 5.0
"""For how long somebody who comes anew looks whether others notice a loss that he could not."""

_log = structlog.get_logger()


class Doubt:
    """What one process may believe of one store; times are of the monotonic clock."""

    def __init__(self, changes: Changes) -> None:
        self.doubtful = True
        """Whether that nothing is known of a token means nothing."""
        self.others_owe = False
        """Whether others said that they hold what this process may lack."""
        self.looked = asyncio.Event()
        """Set once the doubt was over, or to begin has failed."""
        self._changes = changes
        self.sure = False
        """Whether all is known that anybody may have known."""
        self._waits = True
        """Whether it has not believed anything since it came; afterwards only what somebody owes brings a doubt."""
        self.known_to = NOWHERE
        """Up to where the log was known while it was sure; who never was is nowhere."""
        self._owed_to: Place | None = None
        """Up to where the log told what this process may have to give back; None: it owes nothing."""
        self._listen_until = self._watch_until = -math.inf
        self._saying = asyncio.Lock()
        self._listens = False
        """Whether it has said that it listens."""

    @property
    def owes(self) -> bool:
        """Whether something is not known to be given back."""
        return self._owed_to is not None

    def know(self, place: Place) -> None:
        """All the log is known up to there; whoever is not sure of what was before does not know that."""
        if self.sure:
            self.known_to = max(self.known_to, place)

    async def come(self, place: Place) -> None:
        """Say, of one who holds something, that he may have to give it back: all that the log told up to `place`.

        Before any trace is left in a store that may have been emptied. Raises StoreUnavailable.
        """
        self._owed_to = place if self._owed_to is None else max(place, self._owed_to)
        await self._say_what_is_owed()

    async def mark(self) -> None:
        """Say what is owed, or of one who owes nothing that nobody has listened yet: he is about to leave his mark.

        Said each time that he comes, those who come again and again, because a part of the store hangs, would wait for
        one another.
        """
        if self._owed_to is None:
            await self._say_that_i_listen(SAID_SECONDS)
        else:
            await self._say_what_is_owed()

    async def _say_what_is_owed(self) -> None:
        async with self._saying:
            if self._owed_to is not None:
                await self._changes.debts.announce(self._owed_to)

    async def _say_that_i_listen(self, seconds: float) -> None:
        self._listens = False
        with suppress(StoreUnavailable):  # one that takes no writes is read all the same
            await self._changes.debts.announce(EVERYWHERE, seconds)
            self._listens = seconds > 0

    async def settle(self) -> None:
        """Say that all is given back; who listens himself says that instead, or others would believe before he does.

        Raises StoreUnavailable.
        """
        async with self._saying:
            if self._owed_to is None:
                return
            self._owed_to = None
            seconds = self._listen_until - time.monotonic()
            if seconds > 0:
                await self._say_that_i_listen(seconds)
            else:
                await self._changes.debts.withdraw()

    async def begin(self, *, knows_all: bool) -> None:
        """A session begins; `knows_all` who knew it a moment ago, or knows that nothing can have been lost since.

        Raises StoreUnavailable.
        """
        if not knows_all:
            self.sure, self._waits, self._watch_until = False, True, time.monotonic() + WATCH_SECONDS
        seconds = await self._unheard_seconds()
        self._listen_until = max(self._listen_until, time.monotonic() + seconds)
        self._changes.new = self._changes.reborn = False
        seconds = max(0.0, self._listen_until - time.monotonic())
        if self._owed_to is None and (self._listens or seconds):
            await self._say_that_i_listen(seconds)
        await self.look()

    async def _unheard_seconds(self) -> float:
        """For how long others may have something to say, and not have said it yet.

        Who was there before does not listen because a master was restarted, or each restart were an outage.
        """
        if self.sure:
            return 0
        return max(
            await self._changes.unheard_seconds(LISTEN_SECONDS) if self._changes.new else 0,
            REBORN_SECONDS if self._changes.reborn and self.known_to == NOWHERE else 0,
        )

    async def look(self) -> None:
        """Say again what is owed, and see whether others still owe what this process may lack.

        Raises StoreUnavailable.
        """
        await self._say_what_is_owed()
        if self.sure:
            return
        others = await self._changes.debts.of_others()
        now = time.monotonic()
        others_owe = any(self.known_to < known_to < EVERYWHERE for known_to in others)
        listening = now < self._listen_until or (self._waits and EVERYWHERE in others)
        self._believe(others_owe=others_owe, listening=listening)
        self.sure = not self.doubtful and now >= self._watch_until

    def _believe(self, *, others_owe: bool, listening: bool) -> None:
        if others_owe and not self.others_owe:
            _log.warning("store_in_doubt", reason="others have still to write back what it lost")
        elif self.others_owe and not others_owe:
            _log.info("store_believed")
        self.others_owe = others_owe
        self.doubtful = others_owe or listening
        if not self.doubtful:
            self._waits = False
            self.looked.set()
