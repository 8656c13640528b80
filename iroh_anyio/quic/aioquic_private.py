"""Every private name of aioquic this package leans on, in one place, checked at import.

aioquic offers no public way to prove a node id, to open flow-control windows as data is consumed
or to enlarge the pacer's bucket. The two classes here turn its private methods into hooks with
names of their own; nothing outside this module touches a private name. Should a release of
aioquic rename one, importing this module fails with a sentence that says which.

Layouts and meanings are those of aioquic 1.7.2: ``aioquic/tls.py``, ``quic/connection.py``,
``quic/recovery.py``, ``quic/stream.py``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection as _connection
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import (
    END_STATES,
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream

from iroh_anyio.quic.pieces import PieceSet

PINNED_VERSION = "1.7.2"
"""The release of aioquic whose private names these are."""

QUIC_VERSION = int(QuicProtocolVersion.VERSION_1)
"""The only version spoken: iroh speaks no other, and a change of version would have aioquic
rebuild the TLS extensions without ours."""

CONNECTION_ID_SIZE = 8
"""Bytes of every connection id issued here; short headers carry no length, so it is fixed."""

PACER_BURST = 0.001
"""Seconds of the pacing rate that may leave at once. aioquic allows 16 datagrams, which timers
that wake once a millisecond turn into a ceiling of some 20 MB/s."""

STREAM_PIECES_LIMIT = 4096
"""Separate pieces of one stream that may wait for the bytes between them: more gaps than losses
tear into a full window, and 64 KiB."""

CRYPTO_PIECES_LIMIT = 32
"""The same for handshake bytes, which strangers send; a ClientHello spans a few packets."""

PEER = ("peer", 0)
"""The address aioquic is told for every peer. Which path packets take is decided elsewhere, and
QUIC's own migration never sees a change."""

Extension: TypeAlias = tuple[int, bytes]


class Signer(Protocol):
    """What signs CertificateVerify."""

    def sign(self, data: bytes, /, *parameters: Any) -> bytes:
        """Return the signature of ``data``."""


class EncodedCertificate:
    """A certificate entry as aioquic wants it: an object with ``public_bytes``."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def public_bytes(self, encoding: object) -> bytes:
        """Return the entry, whatever encoding is asked for."""
        return self._encoded


def make_alert(description: tls.AlertDescription, text: str) -> tls.Alert:
    """Return an alert of any kind; raised inside the handshake it becomes CRYPTO_ERROR."""
    alert = tls.Alert(text)
    alert.description = description
    return alert


class HookedContext(tls.Context):
    """A TLS 1.3 context that leaves every question of identity to its subclass.

    aioquic builds its own context, so instances come about by :meth:`HookedConnection.set_tls`
    and ``__init__`` does not run: a subclass sets itself up in :meth:`prepare`.
    """

    own_scheme: int
    has_peer_certificate: bool

    def prepare(self) -> None:
        """Set up; called once, before anything is sent or received. Extend this."""
        self._request_client_certificate = not self._is_client
        self.has_peer_certificate = False

    def choose_identity(self, client_hello: bytes) -> None:
        """Server: call :meth:`use_identity` to suit the ClientHello message, or raise an alert."""
        raise NotImplementedError

    def check_server_extensions(self, extensions: Sequence[Extension]) -> None:
        """Client: judge the EncryptedExtensions that aioquic does not know; may raise an alert."""
        raise NotImplementedError

    def take_peer_certificates(self, entries: Sequence[bytes]) -> None:
        """Judge the peer's certificate entries (at least one); may raise an alert."""
        raise NotImplementedError

    def check_signature(self, scheme: int, signature: bytes, signed: bytes) -> None:
        """Judge the peer's CertificateVerify; raises an alert if it does not hold."""
        raise NotImplementedError

    def use_identity(
        self,
        *,
        certificate: bytes,
        key: Signer,
        scheme: int,
        accepted_schemes: Sequence[int],
        extensions: Iterable[Extension],
    ) -> None:
        """Present ``certificate``, sign with ``key``, and announce what is accepted."""
        self.certificate = cast(Any, EncodedCertificate(certificate))
        self.certificate_private_key = cast(Any, key)
        self.own_scheme = scheme
        self._signature_algorithms = list(accepted_schemes)
        self.handshake_extensions = [*self.handshake_extensions, *extensions]

    def use_groups(self, groups: Sequence[tls.Group]) -> None:
        """Offer and accept these key exchanges, in this order."""
        self._supported_groups = list(groups)

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        self.choose_identity(input_buf.data_slice(0, input_buf.capacity))
        super()._server_handle_hello(input_buf, initial_buf, handshake_buf)

    def _client_handle_encrypted_extensions(self, input_buf: Buffer) -> None:
        super()._client_handle_encrypted_extensions(input_buf)
        self.check_server_extensions(self.received_extensions or ())

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        if not self.has_peer_certificate:
            raise make_alert(
                tls.AlertDescription.certificate_required, "the client proved no identity"
            )

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        self.take_peer_certificates([entry for entry, _ in certificate.certificates])
        self.has_peer_certificate = True

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        whose = tls.SERVER_CONTEXT_STRING if self._is_client else tls.CLIENT_CONTEXT_STRING
        schedule = self.key_schedule
        assert schedule is not None
        self.check_signature(
            verify.algorithm, verify.signature, schedule.certificate_verify_data(whose)
        )

    def _signature_algorithms_for_private_key(self) -> list[tls.SignatureAlgorithm]:
        return [tls.SignatureAlgorithm(self.own_scheme)]


ContextT = TypeVar("ContextT", bound=HookedContext)


class _SilentLogger:
    """Stands in for aioquic's logger: a log record reads the clock and may be written out."""

    def debug(self, *arguments: object) -> None: ...

    info = warning = error = debug


_SILENT_LOGGER: Any = _SilentLogger()


class _WidePacer(QuicPacketPacer):
    """aioquic's pacer with a bucket that holds at least PACER_BURST."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window, smoothed_rtt)
        if self.bucket_max < PACER_BURST:
            self.bucket_max = PACER_BURST


class WindowLimit(Limit):
    """A limit on the peer (MAX_DATA, MAX_STREAMS) that rises only as ``granted`` does.

    The peer is told in steps of ``step``, so that few frames carry many small advances.
    """

    def __init__(self, limit: Limit, *, value: int, step: int) -> None:
        super().__init__(limit.frame_type, limit.name, value)
        self.granted = value
        self.step = step

    @property
    def is_due(self) -> bool:
        """Whether the peer should be told."""
        return self.granted - self.sent >= self.step

    def grant(self, amount: int) -> None:
        """Allow the peer so much more."""
        self.granted += amount
        self.value = self.granted


class StreamLimit(WindowLimit):
    """A limit on streams: one more is granted for each that both sides are done with.

    aioquic adds to ``value`` when it forgets a stream; :meth:`release` tells that the
    application is done with one. A stream has to be forgotten by both, or a peer that never
    acknowledges could have any number of them kept.
    """

    def __init__(self, limit: Limit, *, value: int) -> None:
        super().__init__(limit, value=value, step=max(1, value // 4))
        self._initial = value
        self._forgotten = 0
        self._released = 0

    def release(self) -> None:
        """Note that the application is done with one stream."""
        self._released += 1
        self.settle()

    def settle(self) -> None:
        """Grant what both sides are done with."""
        self._forgotten += self.value - self.granted
        self.granted = self.value = self._initial + min(self._forgotten, self._released)


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
        self._logger = _SILENT_LOGGER
        self._loss._logger = _SILENT_LOGGER
        self._loss._pacer = _WidePacer(max_datagram_size=configuration.max_datagram_size)
        window = configuration.max_data
        self.data_limit = WindowLimit(self._local_max_data, value=window, step=max(1, window // 4))
        self.bidi_limit = StreamLimit(self._local_max_streams_bidi, value=max_streams)
        self.uni_limit = StreamLimit(self._local_max_streams_uni, value=max_streams)
        self._local_max_data = self.data_limit
        self._local_max_streams_bidi = self.bidi_limit
        self._local_max_streams_uni = self.uni_limit
        self._proving_spaces: tuple[QuicPacketSpace, ...] = ()

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
        loss._pacer = _WidePacer(max_datagram_size=self._max_datagram_size)
        loss._rtt_initialized = False
        loss._rtt_min = math.inf
        loss._rtt_latest = loss._rtt_smoothed = loss._rtt_variance = 0.0
        loss._pto_count = 0

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

    def is_stoppable(self, stream_id: int) -> bool:
        """Whether STOP_SENDING makes sense: the stream is known and its end is not."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.receiver.is_finished

    def is_resettable(self, stream_id: int) -> bool:
        """Whether RESET_STREAM makes sense: the peer has not acknowledged everything."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.sender.is_finished

    # Overrides

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        for stream in self._crypto_streams.values():
            stream.receiver._ranges = _as_ranges(PieceSet())
        self._proving_spaces = (
            self._spaces[tls.Epoch.HANDSHAKE],
            self._spaces[tls.Epoch.ONE_RTT],
        )
        self.prepare_tls()

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

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_crypto_frame(context, frame_type, buf)
        if len(self._crypto_streams[context.epoch].receiver._ranges) > CRYPTO_PIECES_LIMIT:
            raise _flood(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        self.bidi_limit.settle()
        self.uni_limit.settle()
        for limit in (self.data_limit, self.bidi_limit, self.uni_limit):
            if limit.granted - limit.sent >= limit.step:
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
        limit, stream_id = stream.max_stream_data_local, stream.stream_id
        if stream.max_stream_data_local_sent == limit or stream.receiver.is_finished:
            return
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


def _as_ranges(pieces: PieceSet) -> RangeSet:
    """Pass a PieceSet off as what aioquic uses, of which it has all that receivers need."""
    return cast(RangeSet, pieces)


def _flood(code: QuicErrorCode, frame_type: int) -> QuicConnectionError:
    return QuicConnectionError(
        error_code=code, frame_type=frame_type, reason_phrase="too many separate pieces"
    )


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


def _pull_alpn(buf: Buffer) -> str:
    return tls.pull_opaque(buf, 1).decode("latin-1")


def _push_alpn(buf: Buffer, protocol: str) -> None:
    tls.push_opaque(buf, 1, protocol.encode("latin-1"))


_METHODS: dict[type, dict[str, tuple[str, ...]]] = {
    tls.Context: {
        "_server_handle_hello": ("self", "input_buf", "initial_buf", "handshake_buf"),
        "_client_handle_encrypted_extensions": ("self", "input_buf"),
        "_server_handle_certificate": ("self", "input_buf"),
        "_set_peer_certificate": ("self", "certificate"),
        "_check_certificate_verify_signature": ("self", "verify"),
        "_signature_algorithms_for_private_key": ("self",),
    },
    QuicConnection: {
        "_get_or_create_stream": ("self", "frame_type", "stream_id"),
        "_get_or_create_stream_for_send": ("self", "stream_id"),
        "_handle_crypto_frame": ("self", "context", "frame_type", "buf"),
        "_initialize": ("self", "peer_cid"),
        "_write_connection_limits": ("self", "builder", "space"),
        "_write_stream_limits": ("self", "builder", "space", "stream"),
        "_on_connection_limit_delivery": ("self", "delivery", "limit"),
        "_on_max_stream_data_delivery": ("self", "delivery", "stream"),
    },
    QuicPacketPacer: {"update_rate": ("self", "congestion_window", "smoothed_rtt")},
}

_MODULE_NAMES = {
    tls: ("pull_alpn_protocol", "push_alpn_protocol", "pull_opaque", "push_opaque"),
    _connection: (
        "CONNECTION_LIMIT_FRAME_CAPACITY",
        "MAX_STREAM_DATA_FRAME_CAPACITY",
        "TRANSPORT_CLOSE_FRAME_CAPACITY",
    ),
}

_CONTEXT_ATTRIBUTES = (
    "_is_client",
    "_request_client_certificate",
    "_signature_algorithms",
    "_supported_groups",
    "certificate_private_key",
    "handshake_extensions",
    "key_schedule",
    "received_extensions",
)

_CONNECTION_ATTRIBUTES = (
    "_close_at",
    "_close_event",
    "_configuration",
    "_crypto_buffers",
    "_crypto_streams",
    "_datagrams_pending",
    "_host_cids",
    "_local_max_data",
    "_local_max_streams_bidi",
    "_local_max_streams_uni",
    "_logger",
    "_loss",
    "_max_datagram_size",
    "_network_paths",
    "_peer_cid",
    "_quic_logger",
    "_remote_max_datagram_frame_size",
    "_spaces",
    "_state",
    "_streams",
    "_streams_blocked_bidi",
    "_streams_blocked_uni",
)

_RECOVERY_ATTRIBUTES = (
    "_cc",
    "_logger",
    "_pacer",
    "_pto_count",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
    "_rtt_variance",
)


def check_private_names() -> None:
    """Check that every private name exists and takes what it is given.

    :raises ImportError: naming the first that does not, and the release that has it.
    """
    for module, names in _MODULE_NAMES.items():
        _require(module, module.__name__, names)
    for owner, methods in _METHODS.items():
        _require(owner, owner.__name__, methods)
        for name, parameters in methods.items():
            if tuple(inspect.signature(getattr(owner, name)).parameters) != parameters:
                _refuse(f"{owner.__name__}.{name}{parameters}")
    stream = QuicStream(stream_id=0)
    connection = QuicConnection(configuration=QuicConfiguration())
    _require(tls.Context(is_client=True), "Context", _CONTEXT_ATTRIBUTES)
    _require(connection, "QuicConnection", _CONNECTION_ATTRIBUTES)
    _require(connection._loss, "QuicPacketRecovery", _RECOVERY_ATTRIBUTES)
    _require(stream.sender, "QuicStreamSender", ("_buffer_start", "_buffer_stop"))
    _require(stream.receiver, "QuicStreamReceiver", ("_ranges",))
    _require(QuicPacketSpace(), "QuicPacketSpace", ("largest_received_packet",))


def _require(owner: object, label: str, names: Iterable[str]) -> None:
    for name in names:
        if not hasattr(owner, name):
            _refuse(f"{label}.{name}")


def _refuse(what: str) -> None:
    raise ImportError(
        f"this release of aioquic has no {what}; install aioquic=={PINNED_VERSION}, "
        "the release this package is written for"
    )


check_private_names()
# Protocol names are bytes in iroh; aioquic encodes text as ASCII and skips what does not decode.
tls.pull_alpn_protocol = _pull_alpn
tls.push_alpn_protocol = _push_alpn
