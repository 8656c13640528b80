"""One QUIC connection to a node: the handshake, time, and what aioquic reports.

A connection goes ``handshaking -> established -> closing -> gone``. It sends nothing itself:
the endpoint feeds it datagrams, flushes it once it has been touched, and looks at ``deadline``
and ``reason``. While it is closing it answers what still arrives with its CONNECTION_CLOSE, less
and less often (RFC 9000, section 10.2.1).

Whatever a peer sends, nothing is raised here. Should aioquic raise, the connection fails and
says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping, Sequence
from math import inf, nextafter

from aioquic.quic import events as quic_events

from iroh_anyio.quic.aioquic_private import PEER
from iroh_anyio.quic.close_reason import explain_close
from iroh_anyio.quic.events import (
    CloseReason,
    ConnectionEstablished,
    ConnectionStats,
    EndpointEvent,
    QuicDatagramReceived,
)
from iroh_anyio.quic.node_quic import NodeQuic
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.parameters import PeerParameters, peer_parameters
from iroh_anyio.quic.streams import StreamTable
from iroh_anyio.quic.tls import NodeContext
from iroh_anyio.quic.upkeep import Closing, KeepAlive
from iroh_proto.address import Address
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId
from iroh_proto.magicsock import PayloadKey
from iroh_proto.timers import earliest

TIMER_GRANULARITY = 0.001
"""Seconds. A deadline is never nearer than this: what hosts sleep on is no finer."""

CLOSE_TEXT_SIZE = 512
"""Bytes of the text that goes with CONNECTION_CLOSE, so that it fits beside other packets."""

CODE_LIMIT = 1 << 62
"""Application error codes are variable-length integers below this."""

DATAGRAM_OVERHEAD = 1 + 2 + 16 + 1 + 2
"""Bytes of a packet around a QUIC datagram besides the connection id: first byte, packet number,
authentication tag, frame type, length."""

UNACKNOWLEDGED_LIMIT = 256
"""Packets without an acknowledgement, of some 500 bytes each, before one is asked for by a PING.
A peer that only sends is sent nothing but acknowledgements, which it never acknowledges."""

INTERNAL_ERROR = 1
"""The QUIC transport error code for trouble of one's own (RFC 9000, section 20.1)."""

_PING = 1


class NodeConnection:
    """One connection, dialled or accepted.

    ``node_id`` is the peer, for an accepted connection ``None`` until it proved itself.
    ``heard`` says that the last datagrams held something only the peer can have sent, and
    nothing older. ``reason`` is set when the connection is over, ``is_gone`` when it may be
    forgotten. ``failures`` counts exceptions of aioquic.

    ``keys`` (where its datagrams go, and how many bytes more may), ``sources`` (where the peer was
    heard of late), ``initial_cid`` (of the first packet accepted), ``tier`` (the nature of its
    path) and ``is_reported`` (whether its end was told) are its owner's notes.

    :param number: the connection's number in events.
    :param routes: which connection a connection id belongs to; kept up to date for this one.
    :param events: where the events of an established connection are appended, but for its end.
    """

    __slots__ = (
        "_closing",
        "_datagrams_dropped",
        "_events",
        "_handshake_deadline",
        "_keep_alive",
        "_options",
        "_ping_outstanding",
        "_quic",
        "_routes",
        "_streams",
        "alpn",
        "bytes_received",
        "bytes_sent",
        "deadline",
        "failures",
        "heard",
        "incoming",
        "initial_cid",
        "is_reported",
        "keys",
        "node_id",
        "number",
        "packets_received",
        "packets_sent",
        "parameters",
        "reason",
        "sources",
        "tier",
    )

    def __init__(
        self,
        *,
        quic: NodeQuic,
        number: int,
        incoming: bool,
        keys: dict[PayloadKey, float],
        options: EndpointOptions,
        routes: MutableMapping[bytes, NodeConnection],
        events: deque[EndpointEvent],
        now: float,
    ) -> None:
        self.number = number
        self.incoming = incoming
        self.keys = keys
        self.initial_cid: bytes | None = None
        self.node_id: NodeId | None = None
        self.alpn = b""
        self.parameters: PeerParameters | None = None
        self.deadline: float | None = None
        self.heard = False
        self.reason: CloseReason | None = None
        self.is_reported = False
        self.tier: str | None = None
        self.sources: dict[Address, None] = {}
        self.failures = 0
        self.packets_sent = self.packets_received = 0
        self.bytes_sent = self.bytes_received = 0
        self._options = options
        self._routes = routes
        self._events = events
        self._handshake_deadline: float | None = now + options.handshake_timeout
        self._keep_alive = KeepAlive(options.keep_alive_interval)
        self._ping_outstanding = False
        self._streams: StreamTable | None = None
        self._closing = Closing()
        self._datagrams_dropped = 0
        self._quic = quic
        routes[quic.host_cid] = self

    # State

    @property
    def is_established(self) -> bool:
        """Whether the handshake is complete, even if the connection is over since."""
        return self._streams is not None

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left to send or to wait for."""
        return self._quic.is_terminated

    @property
    def has_begun(self) -> bool:
        """Whether any packet from the peer could be read."""
        return self._quic.has_begun

    @property
    def context(self) -> NodeContext | None:
        """The handshake's TLS, once it began."""
        return self._quic.context

    @property
    def rtt(self) -> float | None:
        """The smoothed round-trip time in seconds, if there is a sample."""
        return self._quic.smoothed_rtt

    @property
    def stats(self) -> ConnectionStats:
        """A snapshot of the counts."""
        return ConnectionStats(
            packets_sent=self.packets_sent,
            packets_received=self.packets_received,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            congestion_window=self._quic.congestion_window,
            bytes_in_flight=self._quic.bytes_in_flight,
            datagrams_dropped=self._datagrams_dropped,
        )

    @property
    def streams(self) -> StreamTable:
        """The streams.

        :raises LocalProtocolError: unless the connection is established and not over.
        """
        if self._streams is None:
            raise LocalProtocolError(f"connection {self.number} is not established yet")
        if self.reason is not None:
            raise LocalProtocolError(f"connection {self.number} is closed: {self.reason.text}")
        return self._streams

    @property
    def max_datagram_payload(self) -> int | None:
        """The most bytes a QUIC datagram can carry now, ``None`` if the peer takes none."""
        limit = self._quic.peer_max_datagram_frame
        if limit is None or not self._options.datagrams:
            return None
        packet = self._quic.max_datagram_size - DATAGRAM_OVERHEAD - self._quic.peer_cid_size
        return max(0, min(packet, limit - 3))

    # Input

    def dial(self, now: float) -> None:
        """Begin the handshake as client."""
        try:
            self._quic.connect(PEER, now)
        except Exception as error:  # noqa: BLE001  # see receive
            self._fail(error)

    def replace(self, quic: NodeQuic, now: float) -> None:
        """Begin a dial anew, within the time left, as if nothing had happened."""
        self.forget_routes()
        self._quic = quic
        self._routes[quic.host_cid] = self
        self.reason = None
        self._closing = Closing()
        self.dial(now)

    def hurry(self, deadline: float) -> None:
        """Give up the handshake at ``deadline`` unless it is given up before."""
        if self._handshake_deadline is not None:
            self._handshake_deadline = min(deadline, self._handshake_deadline)

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams that are addressed to this connection."""
        self.heard = False
        self.packets_received += len(datagrams)
        if self.reason is not None:
            self._closing.note_heard(len(datagrams))
            return
        quic = self._quic
        before = quic.progress
        try:
            for datagram in datagrams:
                quic.receive_datagram(datagram, PEER, now)
                self.bytes_received += len(datagram)
        except Exception as error:  # noqa: BLE001  # whatever it was, it is this peer's trouble
            self._fail(error)
            return
        if quic.progress > before:
            self.heard = True
            self._keep_alive.note_heard(now)
        self._collect(now)

    def handle_timer(self, now: float) -> None:
        """Let deadlines expire. A flush is owed."""
        if self._handshake_deadline is not None and self._handshake_deadline <= now:
            self._expire_handshake()
        if self._keep_alive.expire(now):
            self._ping()
        if self._quic.is_terminated:
            return
        try:
            self._quic.handle_timer(now)
        except Exception as error:  # noqa: BLE001  # see receive
            self._fail(error)
            return
        self._collect(now)

    def flush(self, now: float) -> list[bytes]:
        """Return the datagrams to send, and bring ``deadline`` up to date."""
        if repeated := self._closing.take():
            self.packets_sent += len(repeated)
            return repeated
        if self._quic.unacknowledged > UNACKNOWLEDGED_LIMIT and not self._quic.bytes_in_flight:
            self._ping()
        try:
            datagrams = [data for data, _ in self._quic.datagrams_to_send(now)]
            timer = self._quic.get_timer()
        except Exception as error:  # noqa: BLE001  # see receive
            self._fail(error)
            datagrams, timer = [], now  # once more: to tell the peer, or to give up
        self._collect(now)
        if self._streams is not None and self.reason is None:
            self._streams.on_progress()
        if self.reason is not None:
            self._closing.keep(datagrams)
        else:
            timer = earliest(timer, self._keep_alive.deadline, self._handshake_deadline)
        self.deadline = timer
        if timer is not None and timer < now + TIMER_GRANULARITY:
            self.deadline = max(now + TIMER_GRANULARITY, nextafter(now, inf))
        self.packets_sent += len(datagrams)
        self.bytes_sent += sum(map(len, datagrams))
        return datagrams

    # Commands

    def send_datagram(self, data: bytes) -> None:
        """Queue a QUIC datagram; the oldest make room for it if need be.

        :raises LocalProtocolError: if the connection is not open, the peer takes no datagrams,
            or this one is too large.
        :raises TypeError: if it is not made of bytes.
        """
        self.check_open()
        data = bytes(memoryview(data))  # what is no bytes aioquic would not write, but too late
        limit = self.max_datagram_payload
        if limit is None:
            raise LocalProtocolError("the peer takes no QUIC datagrams")
        if len(data) > limit:
            raise LocalProtocolError(f"a QUIC datagram holds {limit} bytes here, not {len(data)}")
        self._quic.send_datagram_frame(data)
        self._datagrams_dropped += self._quic.trim_datagrams(self._options.datagram_queue)

    def make_challenge(self, data: bytes, *, full_size: bool) -> bytes | None:
        """Return a datagram that has the peer say ``data`` if it arrives, for one address alone.

        ``None`` if that cannot be now. What came back is in :meth:`take_challenge_answers`.
        """
        if self.reason is not None or self._streams is None:
            return None
        try:
            datagram = self._quic.make_challenge(data, full_size=full_size)
        except Exception as error:  # noqa: BLE001  # see receive
            self._fail(error)
            return None
        self.packets_sent += 1
        self.bytes_sent += len(datagram)
        return datagram

    def take_challenge_answers(self) -> list[bytes]:
        """Return the challenges that were answered, and forget them."""
        answers = self._quic.challenge_answers
        if not answers:
            return answers
        self._quic.challenge_answers = []
        return answers

    def close(self, code: int, text: str) -> None:
        """Close with an application error code. Nothing happens if it is over already.

        :raises LocalProtocolError: if the code is not 0 to 2^62 - 1, or the text has no UTF-8.
        """
        check_code(code)
        check_text(text)
        if self.reason is not None:
            return
        clipped = text.encode()[:CLOSE_TEXT_SIZE].decode(errors="ignore")
        self.reason = CloseReason(kind="local", code=code, text=text, by_peer=False)
        self._quic.close(error_code=code, reason_phrase=clipped)

    def check_open(self) -> None:
        """Check that the connection can carry data.

        :raises LocalProtocolError: unless it is established and not over.
        """
        _ = self.streams

    def note_path_change(self, now: float, *, restart: bool) -> None:
        """Note that packets take another way now; with ``restart`` one of another nature.

        What was learnt of the old way is then forgotten. Either way, what may have been lost is
        not left to a back-off: a handshake is repeated at once, and later a PING goes out whose
        acknowledgement shows what was lost.
        """
        if self.reason is not None:
            return
        if self._streams is None:
            self._quic.repeat_handshake(now)
        elif restart:
            self._quic.restart_estimates()
        else:
            self._quic.restart_probes()
        if self._streams is not None and self._quic.bytes_in_flight:
            self._ping()

    def forget_routes(self) -> None:
        """Let no packet be routed here any more."""
        for cid in (*self._quic.open_cids(), self.initial_cid):
            if cid is not None and self._routes.get(cid) is self:
                del self._routes[cid]

    # Helpers

    def _collect(self, now: float) -> None:
        """Pass on what aioquic reports."""
        quic = self._quic
        event = quic.next_event()
        while event is not None:
            if type(event) is quic_events.StreamDataReceived:
                event = self._deliver(event)
            else:
                self._handle(event, now)
                event = quic.next_event()
        if self.reason is None and quic.is_over:
            self._note_end()

    def _deliver(self, event: quic_events.StreamDataReceived) -> quic_events.QuicEvent | None:
        """Pass on bytes of a stream, and return the next event that is something else."""
        quic, stream_id = self._quic, event.stream_id
        pieces, end = [event.data], event.end_stream
        following = quic.next_event()
        while (
            type(following) is quic_events.StreamDataReceived and following.stream_id == stream_id
        ):
            pieces.append(following.data)
            end = following.end_stream
            following = quic.next_event()
        if self._streams is not None:
            self._streams.on_data(stream_id, b"".join(pieces), end=end)
        return following

    def _handle(self, event: quic_events.QuicEvent, now: float) -> None:
        streams = self._streams
        match event:
            case quic_events.HandshakeCompleted():
                self._establish(event, now)
            case quic_events.ConnectionIdIssued(connection_id=cid):
                self._routes[cid] = self
            case quic_events.ConnectionIdRetired(connection_id=cid):
                self._routes.pop(cid, None)
            case quic_events.PingAcknowledged():
                self._ping_outstanding = False
            case quic_events.DatagramFrameReceived(data=data):
                self._events.append(QuicDatagramReceived(connection=self.number, data=data))
            case quic_events.StreamReset() if streams is not None:
                streams.on_reset(event.stream_id, event.error_code)
            case quic_events.StopSendingReceived() if streams is not None:
                streams.on_stopped(event.stream_id, event.error_code)
            case _:
                pass  # the end is read from the connection's state, sooner than it is reported

    def _establish(self, event: quic_events.HandshakeCompleted, now: float) -> None:
        quic, context = self._quic, self._quic.context
        if context is None or context.peer_id is None or event.alpn_protocol is None:
            self._fail(AssertionError("a handshake completed without identity or protocol"))
            return
        self.node_id = context.peer_id
        self.alpn = event.alpn_protocol.encode("latin-1")
        self._handshake_deadline = None
        quic.release_handshake_buffers()
        self.parameters = peer_parameters(quic.received_extensions)
        if self.parameters.max_udp_payload_size is not None:
            quic.reduce_datagram_size(self.parameters.max_udp_payload_size)
        self._keep_alive.begin(now, self._options.idle_timeout, self.parameters.idle_timeout)
        self._streams = StreamTable(
            quic=quic,
            number=self.number,
            is_client=not self.incoming,
            options=self._options,
            events=self._events,
        )
        self._events.append(
            ConnectionEstablished(
                connection=self.number,
                node_id=context.peer_id,
                alpn=self.alpn,
                incoming=self.incoming,
            )
        )

    def _note_end(self) -> None:
        event = self._quic.close_event
        if event is not None:
            self.reason = explain_close(
                event, by_peer=self._quic.close_by_peer, context=self._quic.context
            )

    def _expire_handshake(self) -> None:
        self._handshake_deadline = None
        if self.reason is not None:
            return
        text = (
            "the node answered, but the handshake did not complete in time"
            if self._quic.has_begun
            else "no address of the node answered in time"
        )
        self.reason = CloseReason(kind="unreachable", code=0, text=text, by_peer=False)
        self._quic.close()

    def _ping(self) -> None:
        if not self._ping_outstanding:
            self._ping_outstanding = True
            self._quic.send_ping(_PING)

    def _fail(self, error: Exception) -> None:
        """End the connection because aioquic raised."""
        self.failures += 1
        if self.reason is None:
            self.reason = CloseReason(
                kind="transport",
                code=INTERNAL_ERROR,
                text=f"aioquic failed: {type(error).__name__}: {error}",
                by_peer=False,
            )
        self._quic.close(error_code=INTERNAL_ERROR, frame_type=0, reason_phrase="internal error")
        if self.failures > 1:
            self._quic.give_up()


def check_code(code: int) -> None:
    """Check an application error code.

    :raises LocalProtocolError: if it is not 0 to 2^62 - 1.
    """
    if not 0 <= code < CODE_LIMIT:
        raise LocalProtocolError(f"an application error code is 0 to 2^62 - 1, not {code}")


def check_text(text: str) -> None:
    """Check the reason that goes with an application error code (RFC 9000, section 19.19).

    :raises LocalProtocolError: if it has no UTF-8, as half of a surrogate pair has none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"a reason to close is sent as UTF-8: {error}") from error
