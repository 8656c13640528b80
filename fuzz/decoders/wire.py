"""Integers and records: postcard, and QUIC's varint."""

from __future__ import annotations

from fuzz import seeds
from fuzz.target import Choices, Target, decoded
from iroh_proto.errors import DecodeError
from iroh_proto.wire import (
    QUIC_VARINT_MAX,
    Reader,
    decode_quic_varint,
    encode_bool,
    encode_byte_string,
    encode_option,
    encode_quic_varint,
    encode_sequence,
    encode_signed,
    encode_string,
    encode_varint,
)

_KINDS = 9


def check_postcard(data: bytes) -> None:
    """Each value that is read is written in the fewest bytes, which read as that value."""
    choices = Choices(data)
    kinds = [choices.below(_KINDS) for _ in range(1 + choices.below(8))]
    reader = Reader(choices.rest)
    for kind in kinds:
        start = reader.position
        try:
            written = _rewritten(reader, kind)
        except DecodeError:
            assert 0 <= start <= reader.position <= len(choices.rest)
            return
        assert len(written) <= reader.position - start
        again = Reader(written)
        assert _rewritten(again, kind) == written
        assert again.remaining == 0


def _rewritten(reader: Reader, kind: int) -> bytes:
    """Read one value and return it written anew."""
    match kind:
        case 0:
            return bytes((reader.u8(),))
        case 1:
            return encode_bool(reader.boolean())
        case 2 | 3:
            bits = 16 if kind == 2 else 64
            value = reader.varint(bits)
            assert 0 <= value < 1 << bits
            return encode_varint(value)
        case 4:
            return encode_signed(reader.signed(32))
        case 5:
            return encode_byte_string(reader.byte_string())
        case 6:
            return encode_string(reader.string())
        case 7:
            text = reader.option(reader.string)
            return encode_option(None if text is None else encode_string(text))
        case _:
            return encode_sequence(map(encode_varint, reader.sequence(reader.varint)))


def check_quic_varint(data: bytes) -> None:
    """What is read is written in the fewest bytes, which read as the same number."""
    read = decoded(decode_quic_varint, data, 0)
    assert (read is None) == (not data or len(data) < 1 << (data[0] >> 6))
    if read is not None:
        value, end = read
        assert 0 <= value <= QUIC_VARINT_MAX
        written = encode_quic_varint(value)
        assert len(written) <= end
        assert decode_quic_varint(b"\xff" + written, 1) == (value, 1 + len(written))


TARGETS = {
    "postcard": Target(
        check_postcard,
        lambda: [
            *seeds.noise("postcard", count=6, size=64),
            *seeds.steered([bytes((kind, 0)) for kind in range(_KINDS)], [b"\xff\xff\x03abc", b""]),
            *seeds.packets("tickets.json"),
        ],
    ),
    "quic-varint": Target(
        check_quic_varint, lambda: [b"\x25", b"\x7b\xbd", b"\x9d\x7f\x3e\x7d", b"\xc2" + bytes(7)]
    ),
}
