"""Peers that hold the keys and break the rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch
from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic.aioquic_private.recovery import ACK_ONLY_LIMIT
from iroh_anyio.quic.options import EndpointOptions
from tests.proto.hostile_quic import forge
from tests.proto.quic_pair import QuicPair

PING, ACK = 0x01, 0x02

FRAME_TYPES = st.one_of(st.sampled_from([*range(0x20), 0x30, 0x31]), st.integers(0, 255))
OPTIONS = EndpointOptions(stream_window=50_000, connection_window=100_000, max_streams=20)


def varint(value: int) -> bytes:
    for size, mark in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << (8 * size - 2):
            return (value | mark << (8 * size - 2)).to_bytes(size, "big")
    raise AssertionError(value)


VARINTS = st.one_of(
    st.integers(0, 40), st.integers(0, 200_000), st.sampled_from([2**30, 2**60, 2**62 - 1])
).map(varint)
FRAMES = st.one_of(
    st.tuples(FRAME_TYPES, st.lists(VARINTS, max_size=5), st.binary(max_size=40)).map(
        lambda parts: bytes([parts[0]]) + b"".join(parts[1]) + parts[2]
    ),
    st.binary(min_size=1, max_size=60),
)


def seal(pair: QuicPair, payload: bytes, *, number: int) -> bytes:
    """Encrypt a packet as the client would."""
    quic = pair.client.connection._quic
    crypto = quic._cryptos[Epoch.ONE_RTT]
    header = bytes([0x41 | crypto.key_phase << 2]) + quic._peer_cid.cid
    header += (number & 0xFFFF).to_bytes(2, "big")
    return crypto.encrypt_packet(header, payload.ljust(4, b"\0"), number)


def send(pair: QuicPair, payloads: list[bytes]) -> None:
    number = pair.client.connection._quic._packet_number
    packets = [seal(pair, payload, number=number + 1 + i) for i, payload in enumerate(payloads)]
    pair.server.connection.receive(packets, pair.now)
    pair.server.connection.flush(pair.now)


@given(st.lists(st.lists(FRAMES, min_size=1, max_size=4).map(b"".join), min_size=1, max_size=4))
def test_no_frame_brings_anything_but_an_orderly_end(payloads: list[bytes]) -> None:
    pair = QuicPair(client=OPTIONS, server=OPTIONS).establish()
    server = pair.server.connection
    send(pair, payloads)
    pair.run_for(60.0)
    assert server.failures == 0, server.reason
    if server.reason is not None:
        assert server.is_gone


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x0e\x00" + varint(50_000) + varint(1) + b"x", 0x3),
        (b"\x08" + varint(4 * 20) + b"x", 0x4),
        (b"\x08\x03x", 0x5),
        (b"\x0b\x00\x01x\x0e\x00\x01\x01y", 0x6),
        (b"\x04\x00\x00" + varint(50_001), 0x3),
        (b"\x1e", 0xA),
        (b"\x21", 0x7),
        (b"\x18\x01\x02\x08" + bytes(24), 0xA),
        (b"\x02\x01\x00\x00\x02", 0x7),
        (b"\x02" + varint(1000) + bytes(3), 0xA),
        (b"\x02" + varint(2**40) + bytes(2) + varint(2**40), 0xA),
    ],
    ids=[
        "beyond the window",
        "too many streams",
        "our own stream",
        "beyond the end",
        "reset beyond the window",
        "handshake done",
        "unknown frame",
        "retires the future",
        "negative packet",
        "a packet never sent",
        "all packets there could be",
    ],
)
def test_a_broken_rule_ends_the_connection_with_its_code(payload: bytes, code: int) -> None:
    pair = QuicPair(client=OPTIONS, server=OPTIONS).establish()
    send(pair, [payload])
    reason = pair.server.connection.reason
    assert reason is not None
    assert (reason.kind, reason.code, reason.by_peer) == ("transport", code, False)


def give(pair: QuicPair, frame_type: int, body: bytes) -> None:
    """Have the server receive one frame of the client's, and answer."""
    packets = forge(pair.client.connection._quic, QuicPacketType.ONE_RTT, frame_type, body)
    pair.server.connection.receive(packets, pair.now)
    pair.server.connection.flush(pair.now)


def have_acknowledged(pair: QuicPair, count: int) -> None:
    """Have the server send so many acknowledgements, each of two PINGs."""
    for _ in range(2 * count):
        pair.now += 0.002
        give(pair, PING, b"")


def test_of_a_peer_that_never_acknowledges_little_is_kept() -> None:
    pair = QuicPair().establish()
    server = pair.server.connection
    have_acknowledged(pair, 3 * ACK_ONLY_LIMIT)
    assert server.stats.packets_sent > 3 * ACK_ONLY_LIMIT
    # Besides acknowledgements, the PING that asks for one.
    assert ACK_ONLY_LIMIT // 2 <= server._quic.unacknowledged <= ACK_ONLY_LIMIT + 1
    assert server._quic.bytes_in_flight > 0
    assert server.reason is None


class CountedPackets(dict[int, QuicSentPacket]):
    """Packets that count how many of their numbers are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[int]:
        for number in super().__iter__():
            self.looks += 1
            yield number


def test_a_stale_acknowledgement_is_not_searched_for() -> None:
    pair = QuicPair().establish()
    have_acknowledged(pair, ACK_ONLY_LIMIT // 2)
    space = pair.server.connection._quic._application_space
    kept = space.sent_packets = CountedPackets(space.sent_packets)
    give(pair, ACK, bytes(4) + (bytes((ACK,)) + bytes(4)) * 199)
    assert len(kept) >= ACK_ONLY_LIMIT // 2
    assert kept.looks == 200
    newest = next(reversed(kept))
    give(pair, ACK, varint(newest) + b"\0\0" + varint(0))
    assert newest not in kept


def test_the_last_packet_sent_may_be_acknowledged_and_none_after_it() -> None:
    pair = QuicPair().establish()
    server = pair.server.connection
    for ahead, code in ((0, None), (1, 0xA)):
        last = server._quic._packet_number - 1
        packets = forge(
            pair.client.connection._quic,
            QuicPacketType.ONE_RTT,
            ACK,
            varint(last + ahead) + bytes(3),
        )
        server.receive(packets, pair.now)
        assert (server.reason and server.reason.code) == code
