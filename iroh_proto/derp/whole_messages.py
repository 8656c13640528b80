"""Binary messages of a websocket that are one frame each, which nearly all are.

This is the way of every packet that comes by a websocket, so it does without an object for each
frame. Whatever is not such a message, well formed or not, is left to wsproto.

::

    0x82                        final, binary
    0x80 * masked | length      7 bits; 126: u16be follows, 127: u64be follows
    mask (4)                    if masked: byte i of the payload is xored with byte i % 4

Source: RFC 6455 section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

try:
    from websockets.speedups import apply_mask  # thirteen times as fast
except ImportError:  # no compiler, no wheel for this platform
    from websockets.utils import apply_mask

__all__ = ["MASK_SIZE", "WholeMessages", "apply_mask"]

MASK_SIZE = 4

_FINAL_BINARY = 0x82
_MASKED = 0x80
_LENGTH_BITS = 0x7F
_U16_LENGTH = 126
_LONG_MASKED = (_FINAL_BINARY << 8) | _MASKED | _U16_LENGTH
_LONG_MASKED_HEADER = Struct(f">HH{MASK_SIZE}s")
_U64_LENGTH = 127


class WholeMessages:
    """Takes such messages out of a stream, until something else comes.

    :param is_masked: whether they have to be, as those of a client.
    :param check: is given the first byte of a message and how many are behind it, as soon as these
        are known, and raises :class:`DecodeError` for too many.
    :ivar is_over: whether something else came, which the :meth:`rest` begins with.
    """

    __slots__ = ("_check", "_data", "_mask_bit", "_offset", "_unfinished", "_wanted", "is_over")

    def __init__(self, *, is_masked: bool, check: Callable[[int, int], None]) -> None:
        self._mask_bit = _MASKED if is_masked else 0
        self._check = check
        # What was not looked at yet when an iteration was given up, and from where on.
        self._data = b""
        self._offset = 0
        self._unfinished = bytearray()
        self._wanted = 0  # bytes that must be there before another look is worth it
        self.is_over = False

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that ``data`` completes, in order.

        What is left when the iteration is given up comes with the next call.

        :raises DecodeError: what ``check`` raises; receive no more then.
        """
        if self._data:
            data = self._data[self._offset :] + data
        elif self._unfinished:
            self._unfinished += data
            if len(self._unfinished) < self._wanted:
                return
            data = bytes(self._unfinished)
            self._unfinished.clear()
        self._data, self._offset = data, 0
        last_header = len(data) - _LONG_MASKED_HEADER.size if self._mask_bit else -1
        while True:
            offset = self._offset
            if offset < last_header:
                # Nearly every packet of a client; _find() would find the same.
                start, size, mask = _LONG_MASKED_HEADER.unpack_from(data, offset)
                stop = offset + _LONG_MASKED_HEADER.size + size
                if start == _LONG_MASKED and size >= _U16_LENGTH and stop <= len(data):
                    self._check(data[stop - size] ^ mask[0], size - 1)
                    self._offset = stop
                    yield apply_mask(data[stop - size : stop], mask)
                    continue
            if (found := self._find(data, offset)) is None:
                break
            start, stop = found
            self._offset = stop
            if self._mask_bit:
                yield apply_mask(data[start:stop], data[start - MASK_SIZE : start])
            else:
                yield data[start:stop]
        if self._offset < len(data):
            self._unfinished += data[self._offset :]
        self._data = b""

    def rest(self) -> bytes:
        """Return what is no such message and all behind it, once, if there was something else."""
        if not self.is_over:
            return b""
        rest = bytes(self._unfinished)
        self._unfinished.clear()
        return rest

    def _find(self, data: bytes, offset: int) -> tuple[int, int] | None:
        """Return where the payload of the message at ``offset`` begins and ends, if it is whole."""
        end = len(data)
        start = offset + 2
        self._wanted = 0
        if end < start:
            return None
        size = data[offset + 1] - self._mask_bit
        if data[offset] != _FINAL_BINARY or not 0 <= size <= _LENGTH_BITS:
            self.is_over = True
            return None
        if size >= _U16_LENGTH:
            width, shortest = (2, _U16_LENGTH) if size == _U16_LENGTH else (8, 1 << 16)
            start += width
            if end < start:
                return None
            size = int.from_bytes(data[start - width : start], "big")
            if size < shortest:  # RFC 6455 wants the shortest form
                self.is_over = True
                return None
        if self._mask_bit:
            start += MASK_SIZE
        if size and end > start:
            first = data[start] ^ data[start - MASK_SIZE] if self._mask_bit else data[start]
            self._check(first, size - 1)
        stop = start + size
        if stop > end:
            self._wanted = (stop if end > start else min(start + 1, stop)) - offset
            return None
        return start, stop
