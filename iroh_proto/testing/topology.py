"""Networks, what is attached to them, and the routers between them."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing.clock import VirtualClock
from iroh_proto.testing.happenings import Happening, PacketFiltered, PacketTranslated
from iroh_proto.testing.links import Link, Packet, crossings
from iroh_proto.testing.nat import Nat, NatKind


@dataclass(slots=True)
class NetworkStats:
    """What became of the datagrams that hosts sent, each counted once per copy."""

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    """Lost on a link, or sent into one that is down."""
    blocked: int = 0
    """Stopped by :meth:`~iroh_proto.testing.network.Network.block_udp`."""
    filtered: int = 0
    """Not let in by a NAT."""
    unroutable: int = 0
    """To an address that nobody has."""
    unheard: int = 0
    """To a port that no program has, or a host that is down."""


class Fabric:
    """What every part of one simulated network shares: time, chance and counts.

    ``recorders`` are called with the time, the name of a program or router, and each
    :data:`~iroh_proto.testing.happenings.Happening` there.
    """

    def __init__(self, *, rng: random.Random, start: float = 0.0) -> None:
        self.clock = VirtualClock(start)
        self.stats = NetworkStats()
        self.recorders: list[Callable[[float, str, Happening], None]] = []
        self._rng = rng
        self._packets = 0

    def chance(self) -> random.Random:
        """Return a source of chance for one part, so that the others' draws do not matter."""
        return random.Random(self._rng.getrandbits(64))

    def next_packet_number(self) -> int:
        """Return a number that no packet had."""
        self._packets += 1
        return self._packets

    def record(self, name: str, happening: Happening) -> None:
        """Tell the recorders. Look at ``recorders`` first where it happens often."""
        for recorder in self.recorders:
            recorder(self.clock.now, name, happening)


class Attached(Protocol):
    """A host or a router, to which packets arrive."""

    def arrive(self, packet: Packet, attachment: Attachment) -> None:
        """Take a packet that came in by one of its attachments."""


class Attachment:
    """An address in a network and the cable to it."""

    __slots__ = ("ip", "link", "owner", "segment")

    def __init__(self, owner: Attached, segment: Segment, ip: str, link: Link) -> None:
        self.owner = owner
        self.segment = segment
        self.ip = ip
        self.link = link

    def __repr__(self) -> str:
        return f"Attachment({self.ip} in {self.segment.name})"


class Segment:
    """A network in which every attachment reaches every other: the internet, or a LAN.

    :param subnet: the addresses that belong to it, as text; ``None`` for all, as in the internet.
    """

    def __init__(self, fabric: Fabric, name: str, subnet: str | None = None) -> None:
        self.name = name
        self.subnet = None if subnet is None else ipaddress.ip_network(subnet)
        self.gateway: Attachment | None = None
        self._fabric = fabric
        self._members: dict[str, Attachment] = {}

    def contains(self, ip: str) -> bool:
        """Say whether an address belongs to this network."""
        return self.subnet is None or ipaddress.ip_address(ip) in self.subnet

    def attach(self, owner: Attached, ip: str | None, latency: float) -> Attachment:
        """Give an owner an address: this one, or a free one of the subnet.

        :raises LocalProtocolError: if it is taken, or does not belong here.
        """
        ip = self._free_ip() if ip is None else str(ipaddress.ip_address(ip))
        if ip in self._members or not self.contains(ip):
            raise LocalProtocolError(f"{ip} is taken, or is not of {self.name}")
        link = Link(self._fabric.chance(), latency=latency)
        attachment = self._members[ip] = Attachment(owner, self, ip, link)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Take an address away."""
        del self._members[attachment.ip]

    def owner_of(self, ip: str) -> Attached | None:
        """Return the host or router that has an address here, or ``None``."""
        found = self._members.get(ip)
        return None if found is None else found.owner

    def next_hop(self, ip: str, sender: Attachment) -> Attachment | None:
        """Return who takes packets for an address here, or ``None``."""
        found = self._members.get(ip)
        if found is None and self.gateway is not sender:
            return self.gateway
        return found

    def send(self, packet: Packet, sender: Attachment) -> None:
        """Have a packet cross from one attachment to the next hop."""
        stats, clock = self._fabric.stats, self._fabric.clock
        receiver = self.next_hop(packet.destination.ip, sender)
        if receiver is None:
            stats.unroutable += len(packet.datagrams)
            return
        arrivals = crossings(packet.datagrams, sender.link, receiver.link)
        arrived = sum(len(datagrams) for _, datagrams in arrivals)
        stats.lost += max(0, len(packet.datagrams) - arrived)
        for delay, datagrams in arrivals:
            copy = Packet(
                packet.source, packet.destination, datagrams, packet.origin, packet.number
            )
            clock.call_later(delay, _Arrival(receiver, copy))

    def _free_ip(self) -> str:
        if self.subnet is None:
            raise LocalProtocolError(f"say which address it has in {self.name}")
        for ip in self.subnet.hosts():
            if str(ip) not in self._members:
                return str(ip)
        raise LocalProtocolError(f"no address is free in {self.name}")

    def __repr__(self) -> str:
        return f"Segment({self.name!r}, {self.subnet})"


class _Arrival:
    """A packet that is about to come in; lighter than a closure, and shows itself."""

    __slots__ = ("packet", "receiver")

    def __init__(self, receiver: Attachment, packet: Packet) -> None:
        self.receiver = receiver
        self.packet = packet

    def __call__(self) -> None:
        # It may have been unplugged meanwhile.
        if self.receiver.segment.next_hop(self.receiver.ip, self.receiver) is self.receiver:
            self.receiver.owner.arrive(self.packet, self.receiver)


class Router:
    """A NAT between a LAN of its own and the network above it.

    TCP goes through it from inside only; see :mod:`iroh_proto.testing.tcp`.
    """

    def __init__(
        self,
        fabric: Fabric,
        name: str,
        *,
        kind: NatKind,
        ip: str | None,
        subnet: str,
        upstream: Segment,
        latency: float,
    ) -> None:
        self.name = name
        self.inside = Segment(fabric, f"{name} lan", subnet)
        self.boots = 1
        self._fabric = fabric
        self._outside = upstream.attach(self, ip, latency)
        self._lan = self.inside.gateway = self.inside.attach(self, None, 0.0)
        self.nat = Nat(kind, ip=self._outside.ip, rng=fabric.chance())

    @property
    def ip(self) -> str:
        """The outer address."""
        return self._outside.ip

    @property
    def link(self) -> Link:
        """The cable to the network above."""
        return self._outside.link

    @property
    def outside(self) -> Attachment:
        """The attachment to the network above."""
        return self._outside

    def reboot(self, *, ip: str | None = None) -> None:
        """Forget all mappings and TCP connections; come back with another outer address or not."""
        self.boots += 1
        self.nat.clear()
        if ip is not None:
            old, upstream = self._outside, self._outside.segment
            upstream.detach(old)
            self._outside = upstream.attach(self, ip, old.link.latency)
            self.nat.ip = self._outside.ip

    def arrive(self, packet: Packet, attachment: Attachment) -> None:
        """Rewrite a packet and send it on, or drop it."""
        if attachment is self._outside:
            self._let_in(packet)
            return
        source = self.nat.outbound(packet.source, packet.destination, self._fabric.clock.now)
        outward = self._translate(packet, source, packet.destination)
        if packet.destination.ip != self.ip:
            self._outside.segment.send(outward, self._outside)
        elif self.nat.kind.hairpins:
            self._let_in(outward)
        else:
            self._filter(outward)

    def _let_in(self, packet: Packet) -> None:
        now = self._fabric.clock.now
        inner = self.nat.inbound(packet.destination.port, packet.source, now)
        if inner is None:
            self._filter(packet)
            return
        self.inside.send(self._translate(packet, packet.source, inner), self._lan)

    def _translate(self, packet: Packet, source: UdpAddress, destination: UdpAddress) -> Packet:
        if self._fabric.recorders:
            happening = PacketTranslated(
                packet=packet.number,
                source=packet.source,
                destination=packet.destination,
                new_source=source,
                new_destination=destination,
            )
            self._fabric.record(self.name, happening)
        return Packet(source, destination, packet.datagrams, packet.origin, packet.number)

    def _filter(self, packet: Packet) -> None:
        self._fabric.stats.filtered += len(packet.datagrams)
        if self._fabric.recorders:
            happening = PacketFiltered(
                packet=packet.number, source=packet.source, destination=packet.destination
            )
            self._fabric.record(self.name, happening)


@dataclass(frozen=True, slots=True)
class Route:
    """The way that a TCP connection from ``client`` to ``server`` took when it was made."""

    client: Attachment
    server: Attachment
    routers: tuple[tuple[Router, int], ...]

    def links(self) -> Iterator[Link]:
        """Yield the cables of the way."""
        yield self.client.link
        for router, _ in self.routers:
            yield router.link
        yield self.server.link

    @property
    def is_up(self) -> bool:
        """Whether bytes get through now."""
        return self.stands and all(link.is_up for link in self.links())

    @property
    def stands(self) -> bool:
        """Whether both ends have their addresses still, and the NATs know the connection."""
        ends_stand = all(
            end.segment.next_hop(end.ip, end) is end for end in (self.client, self.server)
        )
        return ends_stand and all(router.boots == boots for router, boots in self.routers)


def find_route(client: Attachment, ip: str) -> Route | None:
    """Return the way from an attachment to the host with an address, through NATs from inside."""
    hop, routers = client, list[tuple[Router, int]]()
    while True:
        found = hop.segment.next_hop(ip, hop)
        if found is None:
            return None
        if not isinstance(found.owner, Router):
            return Route(client, found, tuple(routers))
        if found is found.owner.outside:
            return None
        routers.append((found.owner, found.owner.boots))
        hop = found.owner.outside


def is_loopback(addr: UdpAddress) -> bool:
    """Say whether an address means the host itself."""
    return addr.ip.startswith("127.") or addr.ip == "::1"
