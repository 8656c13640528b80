"""What :class:`~iroh_proto.paths.own_addresses.OwnAddresses` asks of its host, and tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from iroh_proto.address import UdpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacesRequested:
    """The host is to list the IP addresses of its interfaces that are up.

    Answered by ``complete_interfaces(request_id, ips, now=now)``, with none if it cannot.
    """

    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsRequested:
    """The host is to resolve a name.

    Answered by ``complete_dns(request_id, ips, now=now)``, with none if it cannot.
    """

    request_id: int
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationRequested:
    """The host is to ask a QAD server where it sees this node, from the socket of its IP version.

    Answered by ``complete_observation(request_id, address, now=now)``, with ``None`` if it cannot.
    ``server_name`` is what the server's certificate has to be for.
    """

    request_id: int
    address: UdpAddress
    server_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressServer:
    """A server that tells clients where it sees them, by STUN, by QAD or by both."""

    host: str
    stun_port: int | None
    quic_port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAddressesFound:
    """A round ended.

    ``addresses`` are for peers, ``hidden`` are this node's as well but of no use to them;
    ``ipv6_works`` says whether there is an IPv6 address that others can answer to.
    """

    addresses: tuple[UdpAddress, ...]
    hidden: tuple[UdpAddress, ...]
    ipv6_works: bool


OwnAddressesEvent: TypeAlias = (
    InterfacesRequested | DnsRequested | ObservationRequested | OwnAddressesFound
)
