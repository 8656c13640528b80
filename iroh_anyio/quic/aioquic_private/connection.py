"""aioquic's connection with windows that open as data is consumed, and its state readable.

Layouts and meanings are those of ``aioquic/quic/connection.py``, ``recovery.py`` and
``stream.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection as _connection
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import (
    END_STATES,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from iroh_anyio.quic.aioquic_private.bulk import Burst, find_burst, has_control
from iroh_anyio.quic.aioquic_private.context import Extension, HookedContext
from iroh_anyio.quic.aioquic_private.limits import StreamLimit, WidePacer, WindowLimit
from iroh_anyio.quic.aioquic_private.packets import QUIC_VERSION
from iroh_anyio.quic.aioquic_private.recovery import BoundedRecovery
from iroh_anyio.quic.pieces import PieceSet

STREAM_PIECES_LIMIT = 4096
"""Separate pieces of one stream that may wait for the bytes between them: more gaps than losses
tear into a full window, and 64 KiB."""

CRYPTO_PIECES_LIMIT = 32
"""The same for handshake bytes, which strangers send; a ClientHello spans a few packets."""

TLS_MESSAGE_LIMIT = 16_384
"""Bytes of TLS messages that are not complete, before and after a gap each. A message may claim
to be 16 MiB long, and strangers begin handshakes; certificates and ClientHellos are below 2 KiB."""

CHALLENGE_SIZE = 8
"""Bytes of a PATH_CHALLENGE (RFC 9000, section 19.17)."""

OPEN_CHALLENGES_LIMIT = 512
"""Challenges made whose answers still count; past it the oldest do not. All addresses of a peer
are challenged at once, which are fewer."""

IDLE_SLACK = 30.0
"""Seconds by which a connection may outlast its idle time-out, for the peer's sake: three probe
time-outs (RFC 9000, section 10.1), which a peer can stretch by answering ever later. They are this
long at a round-trip time of some three seconds."""

CLOSING_LIMIT = 10.0
"""Seconds that a connection which is over is kept to answer what still arrives: three probe
time-outs (RFC 9000, section 10.2), and no more than this."""

ContextT = TypeVar("ContextT", bound=HookedContext)


class _SilentLogger:
    """Stands in for aioquic's logger: a log record reads the clock and may be written out."""

    def debug(self, *arguments: object) -> None: ...

    info = warning = error = debug


_SILENT_LOGGER: Any = _SilentLogger()


class HookedConnection(QuicConnection):
    """A QUIC connection whose windows open as data is consumed, and with its state readable.

    :param stream_window: bytes of one stream a peer may send ahead of :meth:`open_window`.
    :param max_streams: streams of each kind a peer may have open.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        max_streams: int,
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_cid,
            retry_source_connection_id=retry_source_cid,
        )
        self._open_challenges: dict[bytes, None] = {}
        self.challenge_answers: list[bytes] = []
        """Challenges that the peer answered, for the owner to take."""
        self._logger = _SILENT_LOGGER
        self._loss: BoundedRecovery = BoundedRecovery(
            congestion_control_algorithm=configuration.congestion_control_algorithm,
            initial_rtt=configuration.initial_rtt,
            max_datagram_size=configuration.max_datagram_size,
            peer_completed_address_validation=not self._is_client,
            quic_logger=self._quic_logger,
            send_probe=self._send_probe,
            logger=_SILENT_LOGGER,
        )
        self._loss._pacer = WidePacer(max_datagram_size=configuration.max_datagram_size)
        window = configuration.max_data
        self.data_limit = WindowLimit(self._local_max_data, value=window, step=max(1, window // 4))
        self.bidi_limit = StreamLimit(self._local_max_streams_bidi, value=max_streams)
        self.uni_limit = StreamLimit(self._local_max_streams_uni, value=max_streams)
        self._local_max_data = self.data_limit
        self._local_max_streams_bidi = self.bidi_limit
        self._local_max_streams_uni = self.uni_limit
        self._proving_spaces: tuple[QuicPacketSpace, ...] = ()
        self._application_space = QuicPacketSpace(is_application_data=True)

    # Hooks

    def prepare_tls(self) -> None:
        """Set up the TLS context by :meth:`set_tls`.

        Called before it is used, and once more with a new one after a Retry.
        """
        raise NotImplementedError

    def set_tls(self, context_class: type[ContextT]) -> ContextT:
        """Turn the fresh TLS context into one of ``context_class``; its ``prepare`` is owed."""
        self.tls.__class__ = context_class
        return cast(ContextT, self.tls)

    # State

    @property
    def is_over(self) -> bool:
        """Whether the connection is closing, draining or gone."""
        return self._close_event is not None or self._state in END_STATES

    @property
    def is_terminated(self) -> bool:
        """Whether nothing is left to do, not even to wait."""
        return self._state is QuicConnectionState.TERMINATED

    @property
    def close_event(self) -> events.ConnectionTerminated | None:
        """Why the connection is over, as soon as it is."""
        return self._close_event

    @property
    def close_by_peer(self) -> bool:
        """Whether the peer's CONNECTION_CLOSE ended the connection."""
        return self._state is QuicConnectionState.DRAINING

    @property
    def has_begun(self) -> bool:
        """Whether a packet of the peer could be read; a server's answers to garbage nothing."""
        return bool(self._network_paths) and self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def progress(self) -> int:
        """A number that grows whenever the peer is heard, and by nobody else's doing.

        It grows when a packet arrives whose keys only the peer has (Handshake and 1-RTT) with a
        higher number than any before it, so neither forged nor repeated packets count.
        """
        return sum(space.largest_received_packet for space in self._proving_spaces)

    @property
    def smoothed_rtt(self) -> float | None:
        """The smoothed round-trip time in seconds, if there is a sample."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight."""
        return self._loss.congestion_window

    @property
    def bytes_in_flight(self) -> int:
        """Bytes sent and neither acknowledged nor lost."""
        return self._loss.bytes_in_flight

    @property
    def unacknowledged(self) -> int:
        """Packets sent and neither acknowledged nor lost, those that ask for no answer included."""
        return len(self._application_space.sent_packets)

    @property
    def peer_max_datagram_frame(self) -> int | None:
        """The largest DATAGRAM frame the peer takes, type and length included."""
        return self._remote_max_datagram_frame_size

    @property
    def peer_cid_size(self) -> int:
        """Bytes of the connection id that packets to the peer carry."""
        return len(self._peer_cid.cid)

    @property
    def max_datagram_size(self) -> int:
        """The largest UDP payload sent, in bytes."""
        return self._max_datagram_size

    @property
    def received_extensions(self) -> Sequence[Extension]:
        """The peer's TLS extensions that aioquic does not know by name."""
        return self.tls.received_extensions or ()

    def open_cids(self) -> list[bytes]:
        """Return the connection ids by which the peer may address this connection."""
        return [connection_id.cid for connection_id in self._host_cids]

    # Commands

    def reduce_datagram_size(self, size: int) -> None:
        """Send no UDP payload larger than ``size`` bytes from now on."""
        self._max_datagram_size = min(self._max_datagram_size, size)

    def release_handshake_buffers(self) -> None:
        """Give back the three 16 KiB buffers that only the handshake writes to."""
        self._crypto_buffers = {}

    def restart_estimates(self) -> None:
        """Forget what was learnt of the path: round-trip time, congestion window, back-off.

        Packets in flight stay accounted for and are lost or acknowledged as before.
        """
        loss = self._loss
        fresh = create_congestion_control(
            self._configuration.congestion_control_algorithm,
            max_datagram_size=self._max_datagram_size,
        )
        fresh.bytes_in_flight = loss._cc.bytes_in_flight
        loss._cc = fresh
        loss._pacer = WidePacer(max_datagram_size=self._max_datagram_size)
        loss._rtt_initialized = False
        loss._rtt_min = math.inf
        loss._rtt_latest = loss._rtt_smoothed = loss._rtt_variance = 0.0
        loss._pto_count = 0

    def repeat_handshake(self, now: float) -> None:
        """Send the handshake's bytes again that are not acknowledged, and forget the back-off."""
        self._loss._pto_count = 0
        self._loss.reschedule_data(now=now, speed_up_handshake=True)

    def restart_probes(self) -> None:
        """Forget the back-off of loss probes, as after a path came back."""
        self._loss._pto_count = 0

    def trim_datagrams(self, count: int) -> int:
        """Drop the oldest QUIC datagrams waiting beyond ``count``, and say how many."""
        waiting = self._datagrams_pending
        dropped = max(0, len(waiting) - count)
        for _ in range(dropped):
            waiting.popleft()
        return dropped

    def give_up(self) -> None:
        """End at once and silently, for a connection whose state is not to be trusted."""
        self._state = QuicConnectionState.TERMINATED
        self._close_at = None

    # Paths

    def make_challenge(self, data: bytes, *, full_size: bool) -> bytes:
        """Return a datagram with a PATH_CHALLENGE, for one address alone.

        The handshake must be complete. Nothing is kept for the challenge's retransmission. Its
        answer is added to ``challenge_answers``.
        """
        crypto = self._cryptos[tls.Epoch.ONE_RTT]
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=self._max_datagram_size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=QUIC_VERSION,
        )
        if not full_size:
            # aioquic pads a challenge with whatever may be in flight.
            header_size = 3 + len(self._peer_cid.cid)
            builder.max_flight_bytes = header_size + 1 + CHALLENGE_SIZE + crypto.aead_tag_size
        builder.start_packet(QuicPacketType.ONE_RTT, crypto)
        frame = builder.start_frame(QuicFrameType.PATH_CHALLENGE, capacity=1 + CHALLENGE_SIZE)
        frame.push_bytes(data)
        datagrams, _ = builder.flush()
        self._packet_number = builder.packet_number
        self._open_challenges[data] = None
        if len(self._open_challenges) > OPEN_CHALLENGES_LIMIT:
            del self._open_challenges[next(iter(self._open_challenges))]
        return datagrams[0]

    # Streams

    def receive_offset(self, stream_id: int) -> int | None:
        """Return the end of the highest byte received, or ``None`` for a forgotten stream."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.receiver.highest_offset

    def open_window(self, stream_id: int, limit: int, step: int) -> bool:
        """Let the peer send a stream up to ``limit``; say whether a frame is due for it."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished:
            return False
        if limit - stream.max_stream_data_local < step:
            return False
        stream.max_stream_data_local = limit
        return True

    def buffered(self, stream_id: int) -> int | None:
        """Return the bytes written and not yet acknowledged, ``None`` for a forgotten stream."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return None
        sender = stream.sender
        return sender._buffer_stop - sender._buffer_start

    def blocked_streams(self, *, bidirectional: bool) -> int:
        """Return how many streams wait for the peer to allow them."""
        waiting = self._streams_blocked_bidi if bidirectional else self._streams_blocked_uni
        return len(waiting)

    def is_allowed(self, stream_id: int) -> bool:
        """Whether a stream need not wait for the peer to allow it."""
        stream = self._streams.get(stream_id)
        return stream is None or not stream.is_blocked

    def is_stoppable(self, stream_id: int) -> bool:
        """Whether STOP_SENDING makes sense: the stream is known and its end is not."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.receiver.is_finished

    def is_resettable(self, stream_id: int) -> bool:
        """Whether RESET_STREAM makes sense: the peer has not acknowledged everything."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.sender.is_finished

    # Overrides

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """Return what is to be sent now, and the address of each."""
        datagrams = super().datagrams_to_send(now)
        self._loss.forget_acknowledgements()
        return datagrams

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        for stream in self._crypto_streams.values():
            stream.receiver._ranges = _as_ranges(PieceSet())
        self._application_space = self._spaces[tls.Epoch.ONE_RTT]
        self._proving_spaces = (self._spaces[tls.Epoch.HANDSHAKE], self._application_space)
        self.prepare_tls()

    def _idle_timeout(self) -> float:
        agreed = self._configuration.idle_timeout
        if self._remote_max_idle_timeout is not None:
            agreed = min(agreed, self._remote_max_idle_timeout)
        return min(super()._idle_timeout(), agreed + IDLE_SLACK)

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        super()._close_begin(is_initiator, now)
        assert self._close_at is not None
        self._close_at = min(self._close_at, now + CLOSING_LIMIT)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = super()._get_or_create_stream(frame_type, stream_id)
            self._watch_pieces()
        elif len(stream.receiver._ranges) > STREAM_PIECES_LIMIT:
            raise _flood(QuicErrorCode.FLOW_CONTROL_ERROR, frame_type)
        return stream

    def _get_or_create_stream_for_send(self, stream_id: int) -> QuicStream:
        stream = super()._get_or_create_stream_for_send(stream_id)
        self._watch_pieces()
        return stream

    def _watch_pieces(self) -> None:
        """Give the streams made last our own list of pieces."""
        for stream in reversed(self._streams.values()):
            if type(stream.receiver._ranges) is not RangeSet:
                break
            stream.receiver._ranges = _as_ranges(PieceSet())

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        largest = buf.pull_uint_var()
        buf.seek(start)
        # Packets of all spaces are numbered in one row.
        if largest >= self._packet_number:
            raise QuicConnectionError(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=frame_type,
                reason_phrase="acknowledges a packet that was not sent",
            )
        super()._handle_ack_frame(context, frame_type, buf)

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        receiver = self._crypto_streams[context.epoch].receiver
        # Before aioquic makes room for it, up to 512 KiB for one packet of a stranger.
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end - receiver.starting_offset() > TLS_MESSAGE_LIMIT:
            raise _flood(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type)
        super()._handle_crypto_frame(context, frame_type, buf)
        if (
            len(receiver._ranges) > CRYPTO_PIECES_LIMIT
            or len(self.tls._receive_buffer) > TLS_MESSAGE_LIMIT
        ):
            raise _flood(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type)

    def _handle_path_response_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        data = buf.pull_bytes(CHALLENGE_SIZE)
        if data in self._open_challenges:
            del self._open_challenges[data]
            self.challenge_answers.append(data)
        buf.seek(start)
        super()._handle_path_response_frame(context, frame_type, buf)

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        burst = None
        if self._handshake_confirmed and self._quic_logger is None:
            burst = find_burst(self)
        if burst is not None:
            if self._has_due_limit() or has_control(self, now):
                self._write_control(burst, builder, network_path, now)
            burst.write(builder, now)
        super()._write_application(builder, network_path, now)

    def _write_control(
        self, burst: Burst, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        """Have aioquic write all that is due but the bytes of the burst."""
        burst.sender.buffer_is_empty = True
        try:
            super()._write_application(builder, network_path, now)
        finally:
            burst.sender.buffer_is_empty = False

    def _has_due_limit(self) -> bool:
        self.bidi_limit.settle()
        self.uni_limit.settle()
        return (
            self.data_limit.is_due
            or self.bidi_limit.is_due
            or self.uni_limit.is_due
            or any(map(_is_limit_due, self._streams.values()))
        )

    def _write_reset_stream_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        # aioquic holds back the bytes of a stream that the peer has yet to allow, not the word
        # that it is given up, at which the peer would close the connection. It stays pending.
        if not stream.is_blocked:
            super()._write_reset_stream_frame(builder, stream)

    def _write_stop_sending_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        if not stream.is_blocked:  # see above
            super()._write_stop_sending_frame(builder, stream)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit in (self.bidi_limit, self.uni_limit):
            if limit.value != limit.granted:
                limit.settle()
            if limit.granted - limit.sent >= limit.step:
                self._write_limit(builder, limit)
        if self.data_limit.is_due:
            self._write_limit(builder, self.data_limit)

    def _write_limit(self, builder: QuicPacketBuilder, limit: WindowLimit) -> None:
        buffer = builder.start_frame(
            limit.frame_type,
            capacity=_connection.CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buffer.push_uint_var(limit.granted)
        limit.sent = limit.granted
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            builder.quic_logger_frames.append(
                self._quic_logger.encode_connection_limit_frame(
                    frame_type=limit.frame_type, maximum=limit.granted
                )
            )

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        if not _is_limit_due(stream):
            return
        limit, stream_id = stream.max_stream_data_local, stream.stream_id
        buffer = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=_connection.MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream_id is not None
        buffer.push_uint_var(stream_id)
        buffer.push_uint_var(limit)
        stream.max_stream_data_local_sent = limit
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            builder.quic_logger_frames.append(
                self._quic_logger.encode_max_stream_data_frame(maximum=limit, stream_id=stream_id)
            )


def _is_limit_due(stream: QuicStream) -> bool:
    return (
        stream.max_stream_data_local_sent != stream.max_stream_data_local
        and not stream.receiver.is_finished
    )


def _as_ranges(pieces: PieceSet) -> RangeSet:
    """Pass a PieceSet off as what aioquic uses, of which it has all that receivers need."""
    return cast(RangeSet, pieces)


def _flood(code: QuicErrorCode, frame_type: int) -> QuicConnectionError:
    return QuicConnectionError(
        error_code=code, frame_type=frame_type, reason_phrase="too much to keep"
    )
