"""Two ways to write integers and records: postcard, and the varint of QUIC.

**Postcard** is how iroh serialises records. Nothing describes itself, so reader and writer must
agree on the layout:

=================  ===================================================================
u8, bool           one byte
u16, u32, u64      LEB128: 7 bits per byte, low bits first, the top bit says "more"
i16, i32, i64      zigzag (0, -1, 1, -2, ...), then as unsigned
byte string        varint length, then the bytes; text is UTF-8
option             ``00``, or ``01`` and the value
sequence           varint count, then the items
enum               varint index of the variant, then its content
struct, array      the fields, nothing else
=================  ===================================================================

**QUIC's varint** (RFC 9000 section 16) is big-endian in 1, 2, 4 or 8 bytes; the two top bits of
the first byte say how many.

Source: the postcard wire specification 1.0; postcard 1.0 ``src/de/deserializer.rs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from iroh_proto.errors import DecodeError, LocalProtocolError

ValueT = TypeVar("ValueT")

QUIC_VARINT_MAX = (1 << 62) - 1


class Reader:
    """Reads postcard values one after the other from the start of some bytes.

    Every method raises :class:`DecodeError` if the bytes end too soon or are not what they
    should be. What is left at the end is for the caller to judge: postcard itself ignores it.
    """

    __slots__ = ("_data", "position")

    position: int
    """How many bytes were read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.position

    def take(self, size: int) -> bytes:
        """Read so many bytes: an array, whose size is not on the wire."""
        end = self.position + size
        if end > len(self._data):
            raise DecodeError(f"cut short: {size} bytes wanted, {self.remaining} left")
        data = self._data[self.position : end]
        self.position = end
        return data

    def u8(self) -> int:
        """Read one byte."""
        return self.take(1)[0]

    def boolean(self) -> bool:
        """Read a truth value."""
        value = self.u8()
        if value > 1:
            raise DecodeError(f"a bool is 0 or 1, not {value}")
        return value == 1

    def varint(self, bits: int = 64) -> int:
        """Read an unsigned integer of at most 16, 32 or 64 ``bits``.

        Needless leading zeros are accepted, as postcard does, but no more bytes than the largest
        value takes.
        """
        value = 0
        for shift in range(0, bits, 7):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    break
                return value
        raise DecodeError(f"this varint does not fit in {bits} bits")

    def signed(self, bits: int = 64) -> int:
        """Read a signed integer of at most 16, 32 or 64 ``bits``."""
        folded = self.varint(bits)
        return folded >> 1 ^ -(folded & 1)

    def byte_string(self) -> bytes:
        """Read bytes that say their own length."""
        return self.take(self.varint())

    def string(self) -> str:
        """Read text."""
        try:
            return self.byte_string().decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"text that is not UTF-8: {error.reason}") from None

    def option(self, read: Callable[[], ValueT]) -> ValueT | None:
        """Read a value with ``read`` if there is one."""
        flag = self.u8()
        if flag > 1:
            raise DecodeError(f"an option begins with 0 or 1, not {flag}")
        return read() if flag else None

    def sequence(self, read: Callable[[], ValueT]) -> list[ValueT]:
        """Read any number of items, of at least one byte each, with ``read``."""
        count = self.varint()
        if count > self.remaining:
            raise DecodeError(f"cut short: {count} items said, {self.remaining} bytes left")
        return [read() for _ in range(count)]


def encode_varint(value: int) -> bytes:
    """Return an unsigned integer of up to 64 bits as postcard writes it.

    :raises LocalProtocolError: if it is negative or longer.
    """
    if value >> 64:  # for negative numbers too
        raise LocalProtocolError(f"a varint holds 0 to 2**64 - 1, not {value}")
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_signed(value: int) -> bytes:
    """Return a signed integer of up to 64 bits as postcard writes it.

    :raises LocalProtocolError: if it is longer.
    """
    return encode_varint(value << 1 if value >= 0 else ~(value << 1))


def encode_bool(value: bool) -> bytes:
    """Return a truth value as postcard writes it."""
    return b"\x01" if value else b"\x00"


def encode_byte_string(data: bytes) -> bytes:
    """Return bytes with their length before them."""
    return encode_varint(len(data)) + data


def encode_string(text: str) -> bytes:
    """Return text as postcard writes it."""
    return encode_byte_string(text.encode())


def encode_option(encoded: bytes | None) -> bytes:
    """Return an optional value, itself encoded already."""
    return b"\x00" if encoded is None else b"\x01" + encoded


def encode_sequence(items: Iterable[bytes]) -> bytes:
    """Return a sequence of items, themselves encoded already."""
    encoded = list(items)
    return encode_varint(len(encoded)) + b"".join(encoded)


def encode_quic_varint(value: int) -> bytes:
    """Return an integer from 0 to 2**62 - 1 in the fewest bytes QUIC's varint takes.

    :raises LocalProtocolError: if it is negative or larger.
    """
    if 0 <= value < 1 << 6:
        return bytes([value])
    if 0 <= value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if 0 <= value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if 0 <= value <= QUIC_VARINT_MAX:
        return (value | 3 << 62).to_bytes(8, "big")
    raise LocalProtocolError(f"QUIC's varint holds 0 to 2**62 - 1, not {value}")


def decode_quic_varint(data: bytes, offset: int = 0) -> tuple[int, int]:
    """Return the integer at an offset, and the offset after it.

    Needlessly long forms are accepted, as RFC 9000 has it.

    :raises DecodeError: if the bytes end too soon.
    """
    if offset >= len(data):
        raise DecodeError("cut short: a QUIC varint wanted, nothing left")
    size = 1 << (data[offset] >> 6)
    end = offset + size
    if end > len(data):
        raise DecodeError(f"cut short: a QUIC varint of {size} bytes, {len(data) - offset} left")
    value = int.from_bytes(data[offset:end], "big") & ((1 << 8 * size - 2) - 1)
    return value, end
