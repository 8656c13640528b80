"""A decoder that is broken on purpose, in a place that chance alone does not find."""

from __future__ import annotations

from fuzz.target import Target, decoded
from iroh_proto.errors import DecodeError
from iroh_proto.wire import Reader

_MAGIC = b"iroh"


def check_planted(data: bytes) -> None:
    """This invariant does not hold: a record of version 7 raises what is no DecodeError."""
    decoded(_decode_record, data)


def _decode_record(data: bytes) -> int:
    reader = Reader(data)
    for expected in _MAGIC:
        if reader.u8() != expected:
            raise DecodeError("no magic")
    version = reader.varint(16)
    if version == 7:
        raise IndexError("the planted defect")
    return version


TARGET = Target(check_planted, lambda: [b"", b"record"])
