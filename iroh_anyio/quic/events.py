"""What an endpoint tells its host about connections and streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from iroh_proto.key import NodeId

if TYPE_CHECKING:
    from iroh_proto.magicsock import MagicsockEvent, PathInfo

CloseKind: TypeAlias = Literal[
    "application",
    "transport",
    "idle",
    "local",
    "unreachable",
    "identity",
    "alpn",
    "refused",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseReason:
    """Why a connection is over.

    ``kind`` is one of

    - ``application``: the peer's application closed it, with ``code`` and ``text``;
    - ``local``: this side's :meth:`~EndpointMachine.close_connection` or ``close`` did;
    - ``idle``: nothing came from the peer for the idle time-out;
    - ``unreachable``: a dial got no usable answer in time;
    - ``identity``: one side did not prove to be the node the other side expected;
    - ``alpn``: the dialled node does not serve the protocol asked for;
    - ``refused``: the dialled node takes no connection now;
    - ``transport``: anything else that QUIC itself reports (RFC 9000, section 20).

    ``code`` is the QUIC error code, ``by_peer`` says whose word it is.
    """

    kind: CloseKind
    code: int
    text: str
    by_peer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEstablished:
    """A handshake is complete and the peer proved to be ``node_id``.

    For a dialled connection the peer has yet to judge us: should it refuse, a
    :class:`ConnectionClosed` follows.
    """

    connection: int
    node_id: NodeId
    alpn: bytes
    incoming: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionClosed:
    """A connection is over; no event for it follows. For a failed dial it is the only event."""

    connection: int
    reason: CloseReason


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The peer opened a stream. Streams of a kind are reported in the order of their ids."""

    connection: int
    stream_id: int
    bidirectional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDataReceived:
    """The next bytes of a stream; ``end`` says that none follow.

    The host owes a :meth:`~EndpointMachine.consume` for them once the application has read
    them. For an end without bytes, on a stream that nothing was called on before, it owes one with
    a count of 0 when the application has taken the stream: until then it counts as one of those
    the peer may have open.
    """

    connection: int
    stream_id: int
    data: bytes
    end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReset:
    """The peer gave up sending on a stream; bytes not yet received are lost.

    The windows are open again for those received and not consumed: a host that keeps them has
    them without bound. It owes no ``consume`` for them any more.

    A host that never called anything on this stream owes a ``consume`` of 0 bytes, or a
    ``stop_sending``; until then it counts as one of those the peer may have open.
    """

    connection: int
    stream_id: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingStopped:
    """The peer wants no more of what is sent on a stream. What is unsent is dropped."""

    connection: int
    stream_id: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSendable:
    """The send buffer of a stream, which was filled to more than half, has half its room again."""

    connection: int
    stream_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDelivered:
    """The peer's machine has every byte sent on an ended stream, and its end.

    It does not come for a stream that was reset or that the peer stopped.
    """

    connection: int
    stream_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicDatagramReceived:
    """The peer sent an unreliable datagram (RFC 9221)."""

    connection: int
    data: bytes


QuicEvent: TypeAlias = (
    ConnectionEstablished
    | ConnectionClosed
    | StreamOpened
    | StreamDataReceived
    | StreamReset
    | SendingStopped
    | StreamSendable
    | StreamDelivered
    | QuicDatagramReceived
)

EndpointEvent: TypeAlias = "QuicEvent | MagicsockEvent"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStats:
    """Counts of one connection: UDP payloads and their bytes, duplicates included.

    ``congestion_window`` and ``bytes_in_flight`` are bytes at this moment;
    ``datagrams_dropped`` are QUIC datagrams that outgrew the send buffer.
    """

    packets_sent: int
    packets_received: int
    bytes_sent: int
    bytes_received: int
    congestion_window: int
    bytes_in_flight: int
    datagrams_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """A snapshot of one connection.

    ``node_id`` and ``alpn`` of a dial are those asked for until it is established. ``rtt`` is
    the smoothed round-trip time in seconds, ``None`` before the first sample.
    """

    node_id: NodeId
    alpn: bytes
    incoming: bool
    established: bool
    rtt: float | None
    stats: ConnectionStats
    path: PathInfo


@dataclass(slots=True, kw_only=True)
class EndpointStats:
    """Counts of an endpoint since it began. All are datagrams unless the name says otherwise."""

    received: int = 0
    dropped_unknown: int = 0
    dropped_malformed: int = 0
    dropped_half_open_limit: int = 0
    dropped_connection_limit: int = 0
    refused: int = 0
    retries_sent: int = 0
    bad_tokens: int = 0
    versions_offered: int = 0
    handshakes_begun: int = 0
    handshakes_expired: int = 0
    handshakes_failed: int = 0
    quic_failures: int = 0
