"""Full packets of one stream, put together without aioquic's general machinery.

While one stream has more to send than fits a packet and nothing else is due, packets differ in
nothing but their number and their bytes. Building them here takes about half the time. Whatever
is out of the ordinary, the last packets of a burst included, is left to aioquic.

Layout of a packet (RFC 9000, sections 17.3.1 and 19.8)::

    first byte     0x40 | spin bit << 5 | key phase << 2 | 1 (two bytes of packet number)
    destination    the peer's connection id
    number         u16, the low bits of the packet number
    frame          type 0x0e (STREAM with offset and length), stream id, offset, length u16
    bytes, authentication tag
"""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from iroh_proto.wire import encode_quic_varint

MIN_BURST = 2
"""Packets that must be ready; for fewer, finding out costs more than it saves."""

_TAG_SIZE = 16
_FRAME_TYPE = b"\x0e"
_LENGTH_PREFIX = 0x4000


def find_burst(connection: QuicConnection) -> Burst | None:
    """Return the full packets there are to send, if one stream alone has something to say.

    The handshake must be confirmed.
    """
    stream = _only_sender(connection)
    if stream is None:
        return None
    burst = Burst(connection, stream)
    return burst if burst.limit >= MIN_BURST * burst.chunk else None


class Burst:
    """A run of packets of one stream: ``limit`` bytes in pieces of ``chunk``."""

    def __init__(self, connection: QuicConnection, stream: QuicStream) -> None:
        sender = stream.sender
        assert stream.stream_id is not None
        self.sender = sender
        self._connection = connection
        self._cid = connection._peer_cid.cid
        self._stream_id = encode_quic_varint(stream.stream_id)
        self.start = sender._pending[0].start
        wide = self.start >= 1 << 29
        # Offsets are written four bytes wide, or eight throughout once that may not do.
        self._offset_size, self._offset_mark = (8, 3 << 62) if wide else (4, 2 << 30)
        head = 3 + len(self._cid) + 1 + len(self._stream_id) + self._offset_size + 2
        self.chunk = connection._max_datagram_size - head - _TAG_SIZE
        window = connection._remote_max_data - connection._remote_max_data_used
        stop = min(
            sender._pending[0].stop,
            sender.highest_offset + window,
            stream.max_stream_data_remote,
            self.start + (1 << 29),
        )
        # A packet that holds the end of the stream has to say so, and is not written here.
        if sender._buffer_fin is not None:
            stop = min(stop, sender._buffer_fin - 1)
        self.limit = stop - self.start

    def write(self, builder: QuicPacketBuilder, now: float) -> None:
        """Add packets to ``builder`` as congestion and pacing allow, and note what was sent."""
        connection, sender = self._connection, self.sender
        size, chunk = connection._max_datagram_size, self.chunk
        pacer = connection._loss._pacer
        count = self.limit // chunk
        if builder.max_flight_bytes is not None:
            count = min(count, (builder.max_flight_bytes - builder._flight_bytes) // size)
        if pacer.packet_time is not None:
            pacer.update_bucket(now=now)
            count = min(count, _paced_count(pacer))
        if count <= 0:
            return
        self._write_packets(builder, count)
        if pacer.packet_time is not None:
            pacer.bucket_time = max(0.0, pacer.bucket_time - count * pacer.packet_time)
        stop = self.start + count * chunk
        sender._pending.subtract(self.start, stop)
        if stop > sender.highest_offset:
            connection._remote_max_data_used += stop - sender.highest_offset
            sender.highest_offset = stop
        builder._flight_bytes += count * size
        builder._total_bytes += count * size
        builder._datagram_init = True  # what room there is has to be reckoned again

    def _write_packets(self, builder: QuicPacketBuilder, count: int) -> None:
        connection, sender = self._connection, self.sender
        crypto = connection._cryptos[Epoch.ONE_RTT]
        first_byte = 0x41 | connection._spin_bit << 5 | crypto.key_phase << 2
        prefix = bytes((first_byte,)) + self._cid
        frame = _FRAME_TYPE + self._stream_id
        chunk, size = self.chunk, connection._max_datagram_size
        length = (chunk | _LENGTH_PREFIX).to_bytes(2, "big")
        offset_size, mark = self._offset_size, self._offset_mark
        deliver, epoch, kind = sender.on_data_delivery, Epoch.ONE_RTT, QuicPacketType.ONE_RTT
        datagrams, packets, number = builder._datagrams, builder._packets, builder._packet_number
        start, base = self.start, self.start - sender._buffer_start
        with memoryview(sender._buffer) as view:
            for _ in range(count):
                offset = (start | mark).to_bytes(offset_size, "big")
                with view[base : base + chunk] as data:
                    plain = b"".join((frame, offset, length, data))
                header = prefix + (number & 0xFFFF).to_bytes(2, "big")
                datagrams.append(crypto.encrypt_packet(header, plain, number))
                packets.append(
                    QuicSentPacket(
                        epoch=epoch,
                        in_flight=True,
                        is_ack_eliciting=True,
                        is_crypto_packet=False,
                        packet_number=number,
                        packet_type=kind,
                        sent_bytes=size,
                        delivery_handlers=[(deliver, (start, start + chunk, False))],
                    )
                )
                number += 1
                start += chunk
                base += chunk
        builder._packet_number = number


def _only_sender(connection: QuicConnection) -> QuicStream | None:
    """Return the stream that has bytes to send, if it is the only one with anything to say."""
    found: QuicStream | None = None
    for stream in connection._streams_queue:
        sender = stream.sender
        if stream.is_blocked:
            continue
        if stream.receiver.stop_pending or sender.reset_pending or stream.is_finished:
            return None
        if not sender.buffer_is_empty:
            if found is not None or not len(sender._pending):
                return None
            found = stream
    return found


def has_control(connection: QuicConnection, now: float) -> bool:
    """Say whether anything but bytes of streams and new limits is to be sent."""
    space = connection._spaces[Epoch.ONE_RTT]
    path = connection._network_paths[0]
    return bool(
        (space.ack_at is not None and space.ack_at <= now)
        or connection._ping_pending
        or connection._probe_pending
        or connection._datagrams_pending
        or connection._retire_connection_ids
        or connection._streams_blocked_pending
        or connection._handshake_done_pending
        or path.remote_challenges
        or not path.is_validated
        or not connection._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
        or any(not cid.was_sent for cid in connection._host_cids)
    )


def _paced_count(pacer: QuicPacketPacer) -> int:
    """Return how many packets may leave now: the last one may empty the bucket."""
    assert pacer.packet_time is not None
    return 0 if pacer.bucket_time <= 0 else 1 + int(pacer.bucket_time / pacer.packet_time)
