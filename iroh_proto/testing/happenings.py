"""What happens to programs and routers of a simulated network, besides the events of machines.

Given to the recorders of a network (:class:`~iroh_proto.testing.topology.Fabric`). A ``packet`` is
a number that stays the same on all of a packet's way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from iroh_proto.address import UdpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramsSent:
    """A program sent datagrams."""

    packet: int
    destination: UdpAddress
    datagrams: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramsReceived:
    """A program was given datagrams."""

    packet: int
    source: UdpAddress
    datagrams: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketTranslated:
    """A NAT let a packet pass with another source (outwards) or destination (inwards)."""

    packet: int
    source: UdpAddress
    destination: UdpAddress
    new_source: UdpAddress
    new_destination: UdpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketFiltered:
    """A NAT did not let a packet pass."""

    packet: int
    source: UdpAddress
    destination: UdpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpDataSent:
    """A program wrote to a TCP connection."""

    tcp_id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpDataReceived:
    """A program was given bytes of a TCP connection."""

    tcp_id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerHandled:
    """The timer of a program's machine was due at ``deadline``, and is handled now."""

    deadline: float


Happening: TypeAlias = (
    DatagramsSent
    | DatagramsReceived
    | PacketTranslated
    | PacketFiltered
    | TcpDataSent
    | TcpDataReceived
    | TimerHandled
)
