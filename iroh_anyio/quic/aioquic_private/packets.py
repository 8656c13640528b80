"""Packets made without a connection."""

from __future__ import annotations

from aioquic.quic import connection as _connection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicFrameType, QuicPacketType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder

QUIC_VERSION = int(QuicProtocolVersion.VERSION_1)
"""The only version spoken: iroh speaks no other, and a change of version would have aioquic
rebuild the TLS extensions without ours."""

CONNECTION_ID_SIZE = 8
"""Bytes of every connection id issued here; short headers carry no length, so it is fixed."""

PEER = ("peer", 0)
"""The address aioquic is told for every peer. Which path packets take is decided elsewhere, and
QUIC's own migration never sees a change."""


def encode_initial_close(*, source_cid: bytes, destination_cid: bytes, code: int) -> bytes:
    """Return a server's Initial packet that closes a connection nothing is kept of.

    :param source_cid: the destination connection id of the client's Initial, from which the keys
        are derived too (RFC 9001, section 5.2).
    :param destination_cid: the client's source connection id.
    :param code: the QUIC transport error code.
    """
    crypto = CryptoPair()
    crypto.setup_initial(cid=source_cid, is_client=False, version=QUIC_VERSION)
    builder = QuicPacketBuilder(
        host_cid=source_cid,
        is_client=False,
        max_datagram_size=1200,
        peer_cid=destination_cid,
        version=QUIC_VERSION,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    buffer = builder.start_frame(
        QuicFrameType.TRANSPORT_CLOSE, capacity=_connection.TRANSPORT_CLOSE_FRAME_CAPACITY
    )
    buffer.push_uint_var(code)
    buffer.push_uint_var(QuicFrameType.PADDING)
    buffer.push_uint_var(0)
    datagrams, _ = builder.flush()
    return datagrams[0]
