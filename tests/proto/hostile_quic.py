"""QUIC packets that are sealed as they should be and hold whatever one likes."""

from __future__ import annotations

import random

from aioquic import tls
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from iroh_anyio.quic.aioquic_private import QUIC_VERSION, HookedConnection
from iroh_proto.wire import encode_quic_varint

EPOCHS = {
    QuicPacketType.INITIAL: tls.Epoch.INITIAL,
    QuicPacketType.HANDSHAKE: tls.Epoch.HANDSHAKE,
    QuicPacketType.ONE_RTT: tls.Epoch.ONE_RTT,
}
FRAME_TYPES = (*range(0x20), 0x30, 0x31, 0xAF, 1 << 20)
CRYPTO_FRAME = 0x06


def stranger_initial(frame_type: int, body: bytes, *, number: int) -> bytes:
    """Return a first Initial that anybody could send: its keys follow from the id it goes to."""
    destination = random.Random(number).randbytes(8)
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination, is_client=True, version=QUIC_VERSION)
    builder = QuicPacketBuilder(
        host_cid=number.to_bytes(8, "big"),
        is_client=True,
        max_datagram_size=1200,
        peer_cid=destination,
        version=QUIC_VERSION,
    )
    return _build(builder, QuicPacketType.INITIAL, crypto, frame_type, body)[0].ljust(1200, b"\0")


def crypto_frame(offset: int, data: bytes) -> bytes:
    """Return the body of a CRYPTO frame."""
    return encode_quic_varint(offset) + encode_quic_varint(len(data)) + data


def packet_types(quic: HookedConnection) -> list[QuicPacketType]:
    """Return the types of packets that this side of a connection has keys for."""
    return [
        kind
        for kind, epoch in EPOCHS.items()
        if quic._cryptos.get(epoch) is not None and quic._cryptos[epoch].send.is_valid()
    ]


def forge(
    quic: HookedConnection, kind: QuicPacketType, frame_type: int, body: bytes
) -> list[bytes]:
    """Return datagrams of a connection with a frame that its owner never meant to send."""
    builder = QuicPacketBuilder(
        host_cid=quic.host_cid,
        is_client=quic._is_client,
        max_datagram_size=1200,
        packet_number=quic._packet_number,
        peer_cid=quic._peer_cid.cid,
        version=QUIC_VERSION,
    )
    datagrams = _build(builder, kind, quic._cryptos[EPOCHS[kind]], frame_type, body)
    quic._packet_number = builder.packet_number
    return datagrams


def frame_body(rng: random.Random) -> bytes:
    """Return what may stand in a frame: numbers of all sizes, and noise."""
    parts = []
    for _ in range(rng.randrange(12)):
        bits = rng.choice((2, 6, 14, 30, 62))
        number = rng.choice((rng.getrandbits(bits), (1 << bits) - 1))
        parts.append(encode_quic_varint(number))
        if rng.random() < 0.3:
            parts.append(rng.randbytes(rng.randrange(20)))
    return b"".join(parts)


def _build(
    builder: QuicPacketBuilder,
    kind: QuicPacketType,
    crypto: CryptoPair,
    frame_type: int,
    body: bytes,
) -> list[bytes]:
    builder.start_packet(kind, crypto)
    buffer = builder.start_frame(frame_type, capacity=len(body) + 8)
    buffer.push_bytes(body)
    datagrams, _ = builder.flush()
    return datagrams
