"""Networks, what is attached to them, and how a packet finds its way from one to the next."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Protocol, TypeAlias

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing.clock import VirtualClock
from iroh_proto.testing.happenings import Happening
from iroh_proto.testing.links import Link, NetworkStats, Packet

IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


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

    :param subnets: the addresses that belong to it, as text; none for all, as in the internet.
    """

    def __init__(self, fabric: Fabric, name: str, *subnets: str) -> None:
        self.name = name
        self.subnets: tuple[IpNetwork, ...] = tuple(map(ipaddress.ip_network, subnets))
        self.gateway: Attachment | None = None
        self.on_route: Callable[[str], None] | None = None
        """Called with each network that is routed here, so that it is routed to here as well."""
        self._fabric = fabric
        self._members: dict[str, Attachment] = {}
        self._routes: list[tuple[IpNetwork, Attachment]] = []
        self._routed: dict[str, Attachment | None] = {}

    def contains(self, ip: str) -> bool:
        """Say whether an address belongs to this network."""
        address = ipaddress.ip_address(ip)
        return not self.subnets or any(address in subnet for subnet in self.subnets)

    def attach(self, owner: Attached, ip: str | None, link: Link) -> Attachment:
        """Give an owner an address at the end of this link: this one, or a free one.

        :raises LocalProtocolError: if it is taken, or does not belong here.
        """
        if ip is None and not self.subnets:
            raise LocalProtocolError(f"say which address it has in {self.name}")
        ip = self.free_ip(self.subnets[0]) if ip is None else str(ipaddress.ip_address(ip))
        if ip in self._members:
            raise LocalProtocolError(f"{ip} is taken in {self.name}")
        if not self.contains(ip):
            raise LocalProtocolError(f"{ip} is no address of {self.name}")
        attachment = self._members[ip] = Attachment(owner, self, ip, link)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Take an address away."""
        del self._members[attachment.ip]

    def owner_of(self, ip: str) -> Attached | None:
        """Return the host or router that has an address here, or ``None``."""
        found = self._members.get(ip)
        return None if found is None else found.owner

    def route(self, owner: Attached, subnet: str, link: Link) -> Attachment:
        """Have packets for a whole network go to an owner, at the end of this link.

        The network need not be a part of this one: whatever stands above is told as well.
        """
        network = ipaddress.ip_network(subnet)
        attachment = Attachment(owner, self, str(network.network_address), link)
        self._routes.append((network, attachment))
        self._routed.clear()
        if self.on_route is not None:
            self.on_route(subnet)
        return attachment

    def next_hop(self, ip: str, sender: Attachment) -> Attachment | None:
        """Return who takes packets for an address here, or ``None``."""
        found = self._members.get(ip)
        if found is not None:
            return found
        if self._routes:
            found = self._routed_hop(ip)
            if found is not None and found is not sender:
                return found
        return None if self.gateway is sender else self.gateway

    def reaches(self, attachment: Attachment) -> bool:
        """Say whether packets for an attachment still come to it: it may be unplugged."""
        if self._members.get(attachment.ip) is attachment:
            return True
        return any(routed is attachment for _, routed in self._routes)

    def send(self, packet: Packet, sender: Attachment) -> None:
        """Have a packet cross from one attachment to the next hop."""
        fabric = self._fabric
        stats, clock = fabric.stats, fabric.clock
        receiver = self.next_hop(packet.destination.ip, sender)
        if receiver is None:
            stats.unroutable += len(packet.datagrams)
            return
        link = sender.link
        if link.is_ideal and receiver.link.is_ideal and link.is_up and receiver.link.is_up:
            delay = link.latency + receiver.link.latency
            clock.call_later(delay, _Arrival(fabric, receiver, packet))
            return
        for delay, datagrams in link.carry(packet, link.up, clock.now, stats):
            part = packet if datagrams is packet.datagrams else packet.with_datagrams(datagrams)
            arrival = _Arrival(fabric, receiver, part)
            if receiver.link.bandwidth is None:
                arrival.enter(delay)
            else:
                # Who comes first is sent first, so the queue is joined when the packet is there.
                clock.call_later(delay, arrival.enter)

    def free_ip(self, subnet: IpNetwork) -> str:
        """Return the first address of a subnet that nobody has.

        :raises LocalProtocolError: if there is none.
        """
        for ip in subnet.hosts():
            if str(ip) not in self._members:
                return str(ip)
        raise LocalProtocolError(f"no address is free in {self.name}")

    def _routed_hop(self, ip: str) -> Attachment | None:
        """Return the attachment that has the address in its network; the narrowest one."""
        if ip not in self._routed:
            address = ipaddress.ip_address(ip)
            found = [entry for entry in self._routes if address in entry[0]]
            found.sort(key=lambda entry: entry[0].prefixlen)
            self._routed[ip] = found[-1][1] if found else None
        return self._routed[ip]

    def __repr__(self) -> str:
        return f"Segment({', '.join([repr(self.name), *map(str, self.subnets)])})"


class _Arrival:
    """A packet that is about to come in; lighter than a closure, and shows itself."""

    __slots__ = ("_fabric", "_packet", "_receiver")

    def __init__(self, fabric: Fabric, receiver: Attachment, packet: Packet) -> None:
        self._fabric = fabric
        self._receiver = receiver
        self._packet = packet

    def enter(self, delay: float = 0.0) -> None:
        """Have it cross the link of the receiver, so many seconds from now."""
        packet, link, clock = self._packet, self._receiver.link, self._fabric.clock
        for more, datagrams in link.carry(packet, link.down, clock.now, self._fabric.stats):
            arrival = self
            if datagrams is not packet.datagrams:
                arrival = _Arrival(self._fabric, self._receiver, packet.with_datagrams(datagrams))
            clock.call_later(delay + more, arrival)

    def __call__(self) -> None:
        receiver = self._receiver
        if receiver.segment.reaches(receiver):  # it may have been unplugged meanwhile
            receiver.owner.arrive(self._packet, receiver)


def is_loopback(addr: UdpAddress) -> bool:
    """Say whether an address means the host itself."""
    return addr.ip.startswith("127.") or addr.ip == "::1"
