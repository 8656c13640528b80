"""Postcard values and QUIC varints: golden bytes, round trips, and bad bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.errors import DecodeError, LocalProtocolError
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

VARINTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "tickets.json").read_text()
)["varint_examples"]


@pytest.mark.parametrize("example", VARINTS, ids=lambda example: str(example["value"]))
def test_golden_varints_are_written_and_read(example: dict[str, Any]) -> None:
    assert encode_varint(example["value"]).hex() == example["bytes"]
    reader = Reader(bytes.fromhex(example["bytes"]))
    assert reader.varint(32) == example["value"]
    assert reader.remaining == 0


@pytest.mark.parametrize(("bits", "longest"), [(16, 3), (32, 5), (64, 10)])
def test_the_largest_integer_of_each_size_fits_and_one_more_does_not(
    bits: int, longest: int
) -> None:
    largest = encode_varint((1 << bits) - 1)
    assert len(largest) == longest
    assert Reader(largest).varint(bits) == (1 << bits) - 1
    too_large = largest[:-1] + bytes([largest[-1] + 1])
    with pytest.raises(DecodeError, match=f"fit in {bits} bits"):
        Reader(too_large).varint(bits)
    with pytest.raises(DecodeError, match=f"fit in {bits} bits"):
        Reader(b"\x80" * longest + b"\x00").varint(bits)


def test_leading_zeros_of_a_varint_are_accepted() -> None:
    assert Reader(b"\x81\x80\x00").varint(16) == 1


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (-1, "01"), (1, "02"), (-2, "03"), (63, "7e"), (-64, "7f"), (64, "8001")],
)
def test_signed_integers_are_folded(value: int, encoded: str) -> None:
    assert encode_signed(value).hex() == encoded
    assert Reader(bytes.fromhex(encoded)).signed() == value


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_that_no_varint_holds_are_the_callers_mistake(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_varint(value)


@pytest.mark.parametrize("value", [-(1 << 63) - 1, 1 << 63])
def test_signed_integers_have_64_bits(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_signed(value)


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_unsigned_integers_survive(value: int) -> None:
    assert Reader(encode_varint(value)).varint() == value


@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1))
def test_signed_integers_survive(value: int) -> None:
    assert Reader(encode_signed(value)).signed() == value


@given(st.booleans(), st.binary(), st.text(), st.none() | st.text(), st.lists(st.binary()))
def test_a_record_of_everything_survives(
    flag: bool, data: bytes, text: str, maybe: str | None, items: list[bytes]
) -> None:
    encoded = b"".join(
        [
            encode_bool(flag),
            encode_byte_string(data),
            encode_string(text),
            encode_option(None if maybe is None else encode_string(maybe)),
            encode_sequence(encode_byte_string(item) for item in items),
            b"tail",
        ]
    )
    reader = Reader(encoded)
    assert reader.boolean() is flag
    assert reader.byte_string() == data
    assert reader.string() == text
    assert reader.option(reader.string) == maybe
    assert reader.sequence(reader.byte_string) == items
    assert reader.remaining == 4
    assert reader.take(4) == b"tail"


@pytest.mark.parametrize(
    ("read", "data", "reason"),
    [
        (Reader.u8, "", "cut short"),
        (Reader.boolean, "02", "a bool is 0 or 1"),
        (Reader.varint, "80", "cut short"),
        (Reader.byte_string, "0261", "cut short"),
        (Reader.byte_string, "ffffffffffffffffff01", "cut short"),
        (Reader.string, "01ff", "not UTF-8"),
        (lambda reader: reader.option(reader.u8), "02", "an option begins"),
        (lambda reader: reader.option(reader.u8), "01", "cut short"),
        (lambda reader: reader.sequence(reader.u8), "0300", "3 items said"),
        (lambda reader: reader.sequence(reader.u8), "ffffffff0f", "items said"),
    ],
)
def test_bad_bytes_are_named(read: Callable[[Reader], object], data: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read(Reader(bytes.fromhex(data)))


@given(st.binary(max_size=40), st.data())
def test_any_bytes_raise_nothing_but_decode_errors(data: bytes, draw: st.DataObject) -> None:
    reader = Reader(data)
    reads: list[Callable[[], object]] = [
        reader.u8,
        reader.boolean,
        reader.varint,
        reader.signed,
        reader.byte_string,
        reader.string,
        lambda: reader.option(reader.varint),
        lambda: reader.sequence(reader.string),
    ]
    with suppress(DecodeError):
        for index in draw.draw(st.lists(st.integers(0, len(reads) - 1), min_size=1)):
            reads[index]()
    assert 0 <= reader.remaining <= len(data)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
    ],
)
def test_sample_varints_of_rfc_9000(encoded: str, value: int) -> None:
    assert decode_quic_varint(bytes.fromhex(encoded)) == (value, len(encoded) // 2)
    assert encode_quic_varint(value).hex() == encoded


def test_a_quic_varint_may_be_longer_than_needed() -> None:
    assert decode_quic_varint(bytes.fromhex("4025")) == (37, 2)


@pytest.mark.parametrize(
    ("value", "size"),
    [(63, 1), (64, 2), (16_383, 2), (16_384, 4), ((1 << 30) - 1, 4), (1 << 30, 8)],
)
def test_a_quic_varint_is_written_in_the_fewest_bytes(value: int, size: int) -> None:
    assert len(encode_quic_varint(value)) == size


@pytest.mark.parametrize(
    ("encoded", "offset", "reason"),
    [
        ("", 0, "nothing left"),
        ("25", 1, "nothing left"),
        ("25", 5, "nothing left"),
        ("7b", 0, "2 bytes, 1 left"),
        ("259d7f3e", 1, "4 bytes, 3 left"),
        ("c2197c5eff14e8", 0, "8 bytes, 7 left"),
    ],
)
def test_a_quic_varint_that_is_cut_short_is_named(encoded: str, offset: int, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_quic_varint(bytes.fromhex(encoded), offset)


@given(st.integers(min_value=0, max_value=QUIC_VARINT_MAX), st.binary(max_size=9))
def test_quic_varints_survive_anywhere(value: int, before: bytes) -> None:
    encoded = encode_quic_varint(value)
    assert decode_quic_varint(before + encoded + b"tail", len(before)) == (
        value,
        len(before) + len(encoded),
    )


@pytest.mark.parametrize("value", [-1, QUIC_VARINT_MAX + 1])
def test_integers_that_no_quic_varint_holds_are_the_callers_mistake(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_quic_varint(value)


@given(st.binary(max_size=9), st.integers(min_value=0, max_value=12))
def test_any_bytes_are_a_quic_varint_or_cut_short(data: bytes, offset: int) -> None:
    try:
        value, end = decode_quic_varint(data, offset)
    except DecodeError:
        assert len(data) - offset < 8
    else:
        assert 0 <= value <= QUIC_VARINT_MAX
        assert offset < end <= len(data)
