"""What the strategies for tests give."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import Address, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.derp.dialects import DIALECTS
from iroh_proto.derp.frames import Frame
from iroh_proto.disco.message import decode_disco_message, is_disco, open_envelope
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.stun.message import StunMessage, decode_stun, is_stun
from iroh_proto.testing.strategies import (
    Splice,
    addresses,
    chunk_sizes,
    chunkings,
    derp_frames,
    derp_urls,
    disco_datagrams,
    mutated,
    node_addrs,
    stun_datagrams,
    stun_messages,
    ticket_texts,
    udp_addresses,
)
from iroh_proto.ticket import parse_ticket

DATA = bytes(range(20))


@given(addr=udp_addresses())
def test_udp_addresses_are_canonical(addr: UdpAddress) -> None:
    assert UdpAddress.from_str(str(addr)) == addr


@given(url=derp_urls())
def test_derp_urls_are_canonical(url: DerpUrl) -> None:
    assert DerpUrl.from_str(str(url)) == url


@given(addr=addresses(), other=addresses())
def test_addresses_can_be_compared_and_used_as_keys(addr: Address, other: Address) -> None:
    assert len({addr, other}) == (1 if addr == other else 2)


@given(addr=node_addrs())
def test_node_addresses_are_equal_by_value(addr: NodeAddr) -> None:
    again = NodeAddr(
        addr.node_id, derp_url=addr.derp_url, direct_addresses=reversed(addr.direct_addresses)
    )
    assert again == addr


@given(chunks=chunkings(DATA))
def test_chunkings_lose_nothing(chunks: list[bytes]) -> None:
    assert b"".join(chunks) == DATA
    assert all(chunks)


@given(chunks=chunkings(b""))
def test_nothing_is_cut_into_nothing(chunks: list[bytes]) -> None:
    assert chunks == []


@given(sizes=chunk_sizes())
def test_chunk_sizes_always_make_progress(sizes: list[int]) -> None:
    assert all(size > 0 for size in itertools.islice(itertools.cycle(sizes), 10))


@given(data=mutated(st.just(DATA)))
def test_mutated_bytes_differ(data: bytes) -> None:
    assert data != DATA


def test_a_splice_takes_away_and_puts_in() -> None:
    assert Splice(0.0, 1, b"").apply(b"abc") == b"bc"
    assert Splice(1.0, 9, b"d").apply(b"abc") == b"abcd"
    assert Splice(0.5, 1, b"XY").apply(b"abcd") == b"abXYd"


ALICE, BOB = (SecretKey(bytes([number]) * 32) for number in (1, 2))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_has_frames(dialect: str) -> None:
    @given(frame=derp_frames(dialect))
    def check(frame: Frame) -> None:
        body = frame.encode_body()
        assert type(frame).decode_body(body) == frame

    check()


def test_frames_of_no_dialect_are_refused() -> None:
    with pytest.raises(LocalProtocolError):
        derp_frames("v1")


@given(datagram=disco_datagrams(ALICE, BOB.public))
def test_disco_datagrams_open_for_the_receiver(datagram: bytes) -> None:
    assert is_disco(datagram)
    sender, sealed = open_envelope(datagram)
    assert sender == ALICE.public
    decode_disco_message(SharedBox(BOB, sender).open(sealed))


@given(message=stun_messages(), datagram=stun_datagrams())
def test_stun_messages_decode(message: StunMessage, datagram: bytes) -> None:
    assert decode_stun(message.encode()) == message
    assert is_stun(datagram)


@given(text=ticket_texts())
def test_ticket_texts_parse(text: str) -> None:
    assert text in {parse_ticket(text).ticket.to_str(one) for one in parse_ticket(text).generations}
