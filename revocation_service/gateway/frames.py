"""Where the frames of a WebSocket stream begin and end (RFC 6455 section 5.2): enough to say goodbye between. Pure."""

import secrets
from typing import Final

GOING_AWAY: Final = 1001
"""An endpoint leaves: a server goes down (RFC 6455 section 7.4.1)."""

_CLOSE: Final = 0x8
_FINAL: Final = 0x80
_MASKED: Final = 0x80
_EXTENDED: Final = {126: 2, 127: 8}


class Frames:
    """Follows the bytes of one direction, and knows whether a frame is under way."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._payload_left = 0
        self.closed = False
        """Whether a close frame has begun: nothing may follow it."""

    @property
    def between(self) -> bool:
        """Whether the next byte begins a frame."""
        return not self._payload_left and not self._head

    def feed(self, data: bytes) -> None:
        """Take note of what passes."""
        at = self._skip(data, 0)
        while at < len(data):
            self._head.append(data[at])
            at += 1
            if self._head_is_whole():
                self.closed = self.closed or self._head[0] & 0x0F == _CLOSE
                self._payload_left = self._payload_bytes()
                self._head.clear()
                at = self._skip(data, at)

    def _skip(self, data: bytes, at: int) -> int:
        """Where the payload under way ends, as far as it is there."""
        here = min(self._payload_left, len(data) - at)
        self._payload_left -= here
        return at + here

    def _head_is_whole(self) -> bool:
        if len(self._head) < 2:
            return False
        length, masked = self._head[1] & 0x7F, self._head[1] & _MASKED
        return len(self._head) == 2 + _EXTENDED.get(length, 0) + (4 if masked else 0)

    def _payload_bytes(self) -> int:
        length = self._head[1] & 0x7F
        extended = _EXTENDED.get(length, 0)
        return int.from_bytes(self._head[2 : 2 + extended]) if extended else length


def close_frame(code: int, *, masked: bool) -> bytes:
    """A close frame; what goes to a server is masked (RFC 6455 section 5.3)."""
    payload = code.to_bytes(2)
    if not masked:
        return bytes([_FINAL | _CLOSE, len(payload)]) + payload
    mask = secrets.token_bytes(4)
    return (
        bytes([_FINAL | _CLOSE, _MASKED | len(payload)])
        + mask
        + bytes(a ^ b for a, b in zip(payload, mask, strict=False))
    )
