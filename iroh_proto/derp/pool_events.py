"""What a pool of connections to DERP servers has to say to its owner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from iroh_proto.address import DerpAddress, DerpUrl
from iroh_proto.derp.events import DerpClientStats
from iroh_proto.key import NodeId
from iroh_proto.machine import TcpCloseRequested, TcpRequested


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeDerpChanged:
    """This server is the home now, where others reach this node.

    It stays that when its connection is lost, until another server is there instead.
    """

    url: DerpUrl


@dataclass(frozen=True, slots=True, kw_only=True)
class DerpServerConnected:
    """A connection to a server stands, in this dialect."""

    url: DerpUrl
    dialect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DerpServerLost:
    """A connection that stood is over; ``error`` is ``None`` if it was no longer needed."""

    url: DerpUrl
    error: Exception | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DerpServerUnreachable:
    """A server could not be connected to. It is tried again in ``retry_in`` s."""

    url: DerpUrl
    error: str
    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DerpServerTroubled:
    """A server names a problem with its connection, in words; empty when all is well again."""

    url: DerpUrl
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DerpPeerGone:
    """A server says that a node is no longer connected to it. Not every server does."""

    url: DerpUrl
    node_id: NodeId


DerpPoolEvent: TypeAlias = (
    TcpRequested
    | TcpCloseRequested
    | HomeDerpChanged
    | DerpServerConnected
    | DerpServerLost
    | DerpServerUnreachable
    | DerpServerTroubled
    | DerpPeerGone
)
"""What a :class:`~iroh_proto.derp.pool.DerpPool` emits."""


class DerpDatagrams:
    """Datagrams of one node that came through one server, in the order it sent them."""

    __slots__ = ("address", "datagrams")

    def __init__(self, address: DerpAddress, datagrams: list[bytes]) -> None:
        self.address = address
        self.datagrams = datagrams

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DerpDatagrams):
            return NotImplemented
        return self.address == other.address and self.datagrams == other.datagrams

    __hash__ = None  # type: ignore[assignment]  # mutable content

    def __repr__(self) -> str:
        sizes = [len(datagram) for datagram in self.datagrams]
        return f"DerpDatagrams({self.address}, sizes={sizes})"


@dataclass(slots=True)
class DerpPoolStats:
    """Counts since the start.

    :ivar dials: TCP connections asked for.
    :ivar dials_failed: those that led to no connection to a server.
    :ivar datagrams_expired: datagrams dropped because their server was away for too long.
    :ivar datagrams_pushed_out: datagrams dropped because too many waited for their server.
    :ivar datagrams_refused: datagrams dropped because the pool was closed, or let go of
        their server.
    :ivar payloads_dropped: received payloads that the owner did not take in time.
    :ivar clients: the sums over all connections.
    """

    dials: int = 0
    dials_failed: int = 0
    datagrams_expired: int = 0
    datagrams_pushed_out: int = 0
    datagrams_refused: int = 0
    payloads_dropped: int = 0
    clients: DerpClientStats = field(default_factory=DerpClientStats)
