"""The part of a QUIC packet that can be read without keys (RFC 9000, section 17; RFC 8999).

Long header::

    first byte      1 fixed bit, 2 bits of type (version 1), rest protected
    version         u32
    destination id  u8 length, bytes
    source id       u8 length, bytes
    Initial only    token: variable-length integer length, bytes

Short header: first byte, destination id (its length is known to whoever issued it).
"""

from __future__ import annotations

from dataclasses import dataclass

from iroh_proto.errors import DecodeError
from iroh_proto.wire import decode_quic_varint

LONG_HEADER = 0x80
FIXED_BIT = 0x40

INITIAL = 0
"""The type bits of an Initial packet of version 1."""

MAX_CID_SIZE = 20
"""Bytes. Version 1 allows no longer connection id."""


@dataclass(frozen=True, slots=True)
class LongHeader:
    """What a long header says. ``token`` is empty but for Initial packets of version 1."""

    version: int
    kind: int
    fixed_bit: bool
    destination_cid: bytes
    source_cid: bytes
    token: bytes


def long_destination_cid(datagram: bytes) -> bytes:
    """Return the destination connection id of a datagram with a long header.

    It is shorter than it says if the datagram is too short; then nobody issued it.
    """
    return datagram[6 : 6 + datagram[5]] if len(datagram) > 5 else b""


def decode_long_header(datagram: bytes, *, version: int) -> LongHeader:
    """Decode the long header that a datagram begins with.

    :param version: the version whose tokens are understood.
    :raises DecodeError: if there is none, or it breaks off.
    """
    if len(datagram) < 7 or not datagram[0] & LONG_HEADER:
        raise DecodeError("no long header")
    found = int.from_bytes(datagram[1:5], "big")
    destination_cid, position = _pull(datagram, datagram[5], 6)
    if position >= len(datagram):
        raise DecodeError("the header breaks off before the source connection id")
    source_cid, position = _pull(datagram, datagram[position], position + 1)
    kind = datagram[0] >> 4 & 3
    token = b""
    if found == version:
        if max(len(destination_cid), len(source_cid)) > MAX_CID_SIZE:
            raise DecodeError("a connection id is longer than 20 bytes")
        if kind == INITIAL:
            size, position = decode_quic_varint(datagram, position)
            token, position = _pull(datagram, size, position)
    return LongHeader(
        version=found,
        kind=kind,
        fixed_bit=bool(datagram[0] & FIXED_BIT),
        destination_cid=destination_cid,
        source_cid=source_cid,
        token=token,
    )


def _pull(data: bytes, size: int, position: int) -> tuple[bytes, int]:
    end = position + size
    if end > len(data):
        raise DecodeError("the header breaks off")
    return data[position:end], end
