"""What a connection to a DERP server has to say to its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from iroh_proto.derp.approach import Approach
from iroh_proto.key import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class DerpConnected:
    """The handshake is done on this side: datagrams may be sent.

    Others reach this node a moment later, when the server has read the end of the handshake: at
    the latest at the first :class:`PongReceived`.

    ``approach`` is what led there, and what to begin with next time.
    """

    dialect: str
    approach: Approach


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """The server says that a node to which this one sent has left. Not every server does."""

    node_id: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReported:
    """The server names a problem with this connection, in words; empty when all is well again."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartAnnounced:
    """The server is about to restart: come back after ``reconnect_in`` s, for ``try_for`` s."""

    reconnect_in: float
    try_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PongReceived:
    """The server answered the last ping, ``latency`` seconds after it was sent."""

    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost:
    """The connection is over, and with it the machine. ``error`` is ``None`` after ``close``.

    ``retry`` is how to begin on a new connection at once, when what the server did says that it
    speaks something else.
    """

    error: Exception | None
    retry: Approach | None = None


DerpClientEvent: TypeAlias = (
    DerpConnected | PeerGone | HealthReported | RestartAnnounced | PongReceived | ConnectionLost
)
"""What a :class:`~iroh_proto.derp.client.DerpClient` emits."""


class ReceivedDatagrams:
    """Datagrams of one node, in the order it sent them."""

    __slots__ = ("datagrams", "node_id")

    def __init__(self, node_id: NodeId, datagrams: list[bytes]) -> None:
        self.node_id = node_id
        self.datagrams = datagrams

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ReceivedDatagrams):
            return NotImplemented
        return self.node_id == other.node_id and self.datagrams == other.datagrams

    __hash__ = None  # type: ignore[assignment]  # mutable content

    def __repr__(self) -> str:
        sizes = [len(datagram) for datagram in self.datagrams]
        return f"ReceivedDatagrams({self.node_id.fmt_short()}, sizes={sizes})"


@dataclass(slots=True)
class DerpClientStats:
    """Counts since the start.

    :ivar datagrams_sent: datagrams queued for the wire.
    :ivar datagrams_received: datagrams that came from other nodes.
    :ivar datagrams_unsent: datagrams that came after the end, or faster than the server allows.
    :ivar packets_dropped: packets, of one datagram or more, that a slow wire pushed out, or that
        waited when the connection was lost.
    :ivar payloads_cut_short: payloads whose last datagram was not whole.
    :ivar payloads_dropped: received payloads that the owner did not take in time.
    :ivar strangers_dropped: datagrams from keys of which it is not known whose they are.
    :ivar replies_dropped: answers not sent because too many were waiting.
    """

    datagrams_sent: int = 0
    datagrams_received: int = 0
    datagrams_unsent: int = 0
    packets_dropped: int = 0
    payloads_cut_short: int = 0
    payloads_dropped: int = 0
    strangers_dropped: int = 0
    replies_dropped: int = 0
