"""What a :class:`~iroh_proto.magicsock.Magicsock` tells its host: events and counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from iroh_proto.address import UdpAddress
from iroh_proto.derp.pool import DerpPoolEvent, DerpPoolStats
from iroh_proto.disco.pinger import CallMeMaybeReceived, PingReceived, PongReceived
from iroh_proto.paths.challenges import ChallengeRequested
from iroh_proto.paths.finder import FinderStats, PathChanged
from iroh_proto.paths.own_address_events import (
    DnsRequested,
    InterfacesRequested,
    ObservationRequested,
)
from iroh_proto.stun.probe import StunProbeStats


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAddressesChanged:
    """This node can be reached at other UDP addresses than before."""

    addresses: tuple[UdpAddress, ...]


MagicsockEvent: TypeAlias = (
    InterfacesRequested
    | DnsRequested
    | ObservationRequested
    | ChallengeRequested
    | PathChanged
    | DirectAddressesChanged
    | PingReceived
    | PongReceived
    | CallMeMaybeReceived
    | DerpPoolEvent
)


@dataclass(slots=True)
class MagicsockStats:
    """What a :class:`Magicsock` and the machines within have counted so far, in datagrams."""

    udp_received: int = 0
    udp_sent: int = 0
    derp_received: int = 0
    derp_sent: int = 0
    out_of_season: int = 0
    """Dropped: given or arrived before the start or after the close."""
    malformed: int = 0
    """Dropped on arrival: neither STUN nor disco nor QUIC."""
    strangers_dropped: int = 0
    """Dropped on arrival: through a DERP server from a node there is no room for."""
    unreachable: int = 0
    """Dropped: no way to their peer is known, or none that this node's sockets can take."""
    received_dropped: int = 0
    """Dropped on arrival, being the oldest of too many that were not drained."""
    sent_dropped: int = 0
    """Dropped on their way out, being the oldest of too many that were not drained."""
    paths: FinderStats = field(default_factory=FinderStats)
    stun: StunProbeStats = field(default_factory=StunProbeStats)
    derp: DerpPoolStats = field(default_factory=DerpPoolStats)
