"""A place in the change log. Pure."""

from typing import NamedTuple


class Cursor(NamedTuple):
    """An entry of the change log. In another history, an entry may have the same id, but it has another nonce."""

    milliseconds: int
    sequence: int
    nonce: str

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor that `<milliseconds>-<sequence>.<nonce>` stands for."""
        entry_id, _, nonce = text.partition(".")
        milliseconds, _, sequence = entry_id.partition("-")
        return cls(int(milliseconds), int(sequence), nonce)

    @property
    def id(self) -> str:
        """The id of the entry in the stream."""
        return f"{self.milliseconds}-{self.sequence}"

    def __str__(self) -> str:
        return f"{self.id}.{self.nonce}"

    def reaches(self, other: "Cursor") -> bool:
        """Return whether this entry is `other` or a later one. Both must be of the same history."""
        return self[:2] >= other[:2]
