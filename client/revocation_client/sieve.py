"""Which hashes are surely not held, said from one byte of memory. Pure; knows no I/O.

A dict of a million entries is too large for a processor's caches, so that a look into it, which goes to several places
one after another, takes many times as long as into one of a thousand. Nearly every question is about something that is
not held, and most of those end here.

Where a C compiler is found this file is compiled as the client is installed, with the types that `sieve.pxd` states,
and then the one place can be asked for before it is needed. Else it is run as it stands.
"""

from collections.abc import Callable, Collection, Hashable
from typing import Any, Final

SHARDS: Final = 64
"""Into how many parts hashes are divided, so that none takes long to be made anew."""

SHARD_BITS: Final = SHARDS - 1
"""The bits of a hash that say in which part it is."""

PLACE_SHIFT: Final = 6
"""Where the bits begin that say at which place of its part it is."""

MARK_SHIFT: Final = 54
"""Where the six bits of a hash are that say which bits of its byte are its mark: the highest that mirrors keep."""

MARKS: Final = bytes([each for each in range(256) if each.bit_count() == 3] * 2)[:64]
"""Three bits of eight; there are 56 of them, so the first few come twice."""

FEWEST_BYTES: Final = 16
"""Of a part, to begin with."""


class Sieve:
    """A byte for some hashes, and in it three bits for each (a blocked Bloom filter).

    Of what was not added, one in a hundred finds its bits set: there are at least four bytes for each addition. What is
    forgotten leaves its bits behind. But each part has room for a number of additions, and is then made anew from what
    is held: that ends what was left behind, costs about what the growth of a dict does, and happens as seldom.

    It begins with a KiB and never becomes smaller: it takes about sixteen bytes at most for each of the most hashes
    that were ever held at once.
    """

    __slots__ = ("_hash_of", "_room", "slots")

    def __init__(self, hash_of: Callable[[Any], int]) -> None:
        self._hash_of = hash_of
        """Of what is held: `hash` of values, `int` of hashes, whose own hash may be another (32 bits)."""
        self.slots = bytearray(SHARDS * FEWEST_BYTES)
        """The bytes; their number is a power of two, and the lowest bits of a hash say where its own is.

        So the bytes of a part do not lie together: each is as far from the next as there are parts.
        """
        self._room = [FEWEST_BYTES // 4] * SHARDS

    def fetch(self, hashed: int) -> None:
        """Have the processor fetch what `lets_through` will look at; only what is compiled can tell it so."""
        slots = self.slots
        prefetch(slots, hashed & (len(slots) - 1))  # type: ignore[name-defined]  # noqa: F821 - sieve.pxd

    def lets_through(self, hashed: int) -> bool:
        """False: it is not held."""
        slots = self.slots  # once, because another thread may put others in their place meanwhile
        mark = MARKS[hashed >> MARK_SHIFT & 63]
        return slots[hashed & (len(slots) - 1)] & mark == mark

    def add(self, hashed: int, held: Collection[Hashable]) -> None:
        """Let this through from now on; `held` is what else is held of its part.

        To be called before it is held: if this fails, for want of memory, nothing is held that is not let through.
        """
        part = hashed & SHARD_BITS
        if not self._room[part]:
            self._renew(part, held)
        self._room[part] -= 1
        slots = self.slots
        slots[hashed & (len(slots) - 1)] |= MARKS[hashed >> MARK_SHIFT & 63]

    def _renew(self, part: int, held: Collection[Hashable]) -> None:
        """Mark of a part what is held, and nothing else. Who asks meanwhile finds it as it was, or as it is then."""
        slots = self.slots
        if len(held) * SHARDS * 8 > len(slots):
            slots = slots + slots  # one more bit of a hash counts now, and whatever it is, its mark is there
        own = bytearray(len(slots) // SHARDS)
        for hashed in map(self._hash_of, held):
            own[hashed >> PLACE_SHIFT & (len(own) - 1)] |= MARKS[hashed >> MARK_SHIFT & 63]
        slots[part::SHARDS] = own
        self.slots = slots
        self._room[part] = len(own) // 4 - len(held)
