"""Routers of the simulated network: NAT, firewall and captive portal between a LAN and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing.firewall import Firewall, FirewallRules
from iroh_proto.testing.happenings import PacketFiltered, PacketTranslated
from iroh_proto.testing.links import Lane, Link, Packet
from iroh_proto.testing.nat import Nat, NatKind
from iroh_proto.testing.topology import Attached, Attachment, Fabric, Segment

if TYPE_CHECKING:
    from iroh_proto.testing.hosts import Host


class Router:
    """What stands between a LAN of its own (``inside``) and the network above it.

    Made by :meth:`~iroh_proto.testing.network.Network.add_nat`, where the hosts inside share one
    IPv4 address, and by :meth:`~iroh_proto.testing.network.Network.add_firewall`. IPv6 is never
    translated: its network is routed to the LAN.

    ``firewall`` may be put in, exchanged or removed at any time. TCP goes through a NAT from inside
    only; see :mod:`iroh_proto.testing.tcp`.
    """

    def __init__(
        self,
        fabric: Fabric,
        name: str,
        *,
        subnets: Sequence[str],
        upstream: Segment,
        latency: float,
        kind: NatKind | None = None,
        ip: str | None = None,
        rules: FirewallRules | None = None,
    ) -> None:
        self.name = name
        self.boots = 1
        self.link = Link(fabric.chance(), latency=latency)
        """The cable to the network above."""
        self.inside = Segment(fabric, f"{name} lan", *subnets)
        self.firewall = None if rules is None else Firewall(rules)
        self.portal: Host | None = None
        """The host that answers for everybody else, see :meth:`leave_portal`."""
        self._fabric = fabric
        self._upstream = upstream
        self._translated: Attachment | None = None
        self._routed: list[Attachment] = []
        lan_link = Link(fabric.chance())
        self.nat: Nat | None = None
        if kind is not None:
            self._translated = upstream.attach(self, ip, self.link)
            self.nat = Nat(kind, ip=self._translated.ip, rng=fabric.chance())
        addresses = [self.inside.free_ip(subnet) for subnet in self.inside.subnets]
        self._lan, *_ = [self.inside.attach(self, address, lan_link) for address in addresses]
        self.inside.gateway = self._lan
        self.inside.on_route = self.delegate
        for subnet in self.inside.subnets:
            if self.nat is None or subnet.version == 6:
                self.delegate(str(subnet))

    @property
    def outside(self) -> Attachment:
        """The attachment to the network above: the NAT's, or the first that is routed here."""
        return self._routed[0] if self._translated is None else self._translated

    @property
    def ip(self) -> str:
        """The outer address."""
        return self.outside.ip

    def delegate(self, subnet: str) -> None:
        """Have packets for a whole network come this way; it lies inside, or further in."""
        self._routed.append(self._upstream.route(self, subnet, self.link))

    def reboot(self, *, ip: str | None = None) -> None:
        """Forget all flows and TCP connections; come back with another outer address or not.

        :raises LocalProtocolError: for an address, where there is no NAT.
        """
        if ip is not None and (self.nat is None or self._translated is None):
            raise LocalProtocolError(f"{self.name} has no address of its own")
        self.boots += 1
        if self.firewall is not None:
            self.firewall.clear()
        if self.nat is None or self._translated is None:
            return
        self.nat.clear()
        if ip is not None:
            self._upstream.detach(self._translated)
            self._translated = self._upstream.attach(self, ip, self.link)
            self.nat.ip = self._translated.ip

    def leave_portal(self) -> None:
        """Agree to the terms of the captive portal: from now on packets pass."""
        self.portal = None

    # UDP

    def arrive(self, packet: Packet, attachment: Attachment) -> None:
        """Rewrite a packet and send it on, or drop it."""
        if attachment is self._translated:
            self._let_in_translated(packet)
        elif attachment in self._routed:
            self._let_in(packet)
        else:
            self._let_out(packet)

    def _let_out(self, packet: Packet) -> None:
        now, firewall = self._fabric.clock.now, self.firewall
        passes = firewall is None or firewall.outbound(packet.source, packet.destination, now)
        if self.portal is not None or not passes:
            self._filter(packet)
        elif self.nat is not None and not packet.source.is_ipv6:
            self._translate_out(packet, self.nat, now)
        elif self._routed:
            self._upstream.send(packet, self._routed[0])
        else:
            self._fabric.stats.unroutable += len(packet.datagrams)

    def _translate_out(self, packet: Packet, nat: Nat, now: float) -> None:
        source = nat.outbound(packet.source, packet.destination, now)
        outward = self._translate(packet, source, packet.destination)
        if packet.destination.ip != nat.ip:
            self._upstream.send(outward, self.outside)
        elif nat.kind.hairpins:
            self._let_in_translated(outward)
        else:
            self._filter(outward)

    def _let_in_translated(self, packet: Packet) -> None:
        assert self.nat is not None
        now = self._fabric.clock.now
        inner = self.nat.inbound(packet.destination.port, packet.source, now)
        if inner is None:
            self._filter(packet)
        else:
            self._let_in(self._translate(packet, packet.source, inner))

    def _let_in(self, packet: Packet) -> None:
        now, firewall = self._fabric.clock.now, self.firewall
        if firewall is None or firewall.inbound(packet.destination, packet.source, now):
            self.inside.send(packet, self._lan)
        else:
            self._filter(packet)

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

    # TCP

    def tcp_way(self, arrived_at: Attachment, ip: str, port: int) -> Attachment | None:
        """Return where a connection goes on that arrives at an attachment, or ``None``."""
        if arrived_at is self._translated:
            return None
        if arrived_at in self._routed:
            return self._lan if self.firewall is None or self.firewall.rules.lets_in else None
        if not self.permits_tcp(port):
            return None
        if self._translated is not None and ":" not in ip:
            return self._translated
        return self._routed[0] if self._routed else None

    def permits_tcp(self, port: int) -> bool:
        """Say whether hosts inside may have a connection to a port outside."""
        passes = self.firewall is None or self.firewall.permits_tcp(port)
        return passes and self.portal is None

    def is_inner(self, attachment: Attachment) -> bool:
        """Say whether an attachment is one to the LAN."""
        return attachment.segment is self.inside


@dataclass(frozen=True, slots=True)
class Crossing:
    """A router on the way of a TCP connection, outwards or inwards, and how often it had booted."""

    router: Router
    boots: int
    is_outward: bool


@dataclass(frozen=True, slots=True)
class Route:
    """The way that a TCP connection from ``client`` to ``server`` took when it was made."""

    client: Attachment
    server: Attachment
    port: int
    crossings: tuple[Crossing, ...]

    def links(self) -> Iterator[Link]:
        """Yield the cables of the way."""
        yield self.client.link
        for crossing in self.crossings:
            yield crossing.router.link
        yield self.server.link

    def lanes(self, *, to_server: bool) -> list[tuple[Link, Lane]]:
        """Return the cables of the way with the queue that bytes in one direction wait in."""
        links = list(self.links())
        upward = [True, *(crossing.is_outward for crossing in self.crossings), False]
        if not to_server:
            links, upward = links[::-1], [not is_up for is_up in reversed(upward)]
        return [
            (link, link.up if is_up else link.down)
            for link, is_up in zip(links, upward, strict=True)
        ]

    @property
    def is_limited(self) -> bool:
        """Whether bytes may have to wait for one another somewhere."""
        return any(link.bandwidth is not None for link in self.links())

    @property
    def is_up(self) -> bool:
        """Whether bytes get through now."""
        if not (self.stands and self.client.link.is_up and self.server.link.is_up):
            return False
        return all(
            crossing.router.link.is_up
            and (crossing.router.permits_tcp(self.port) or not crossing.is_outward)
            for crossing in self.crossings
        )

    @property
    def stands(self) -> bool:
        """Whether both ends have their addresses still, and the routers know the connection."""
        client, server = self.client, self.server
        ends_stand = client.segment.reaches(client) and server.segment.reaches(server)
        return ends_stand and all(
            crossing.router.boots == crossing.boots for crossing in self.crossings
        )


def find_route(client: Attachment, ip: str, port: int) -> Route | None:
    """Return the way from an attachment to the host with an address, as TCP finds it."""
    hop, crossings = client, list[Crossing]()
    while True:
        found = hop.segment.next_hop(ip, hop)
        if found is None:
            return None
        router = found.owner
        if not isinstance(router, Router):
            return Route(client, found, port, tuple(crossings))
        is_outward = router.is_inner(found)
        if is_outward and router.portal is not None:
            return Route(client, router.portal.attachments[0], port, tuple(crossings))
        onward = router.tcp_way(found, ip, port)
        if onward is None:
            return None
        crossings.append(Crossing(router, router.boots, is_outward))
        hop = onward


def routers_above(segment: Segment) -> Iterator[Router]:
    """Yield the routers between a network and the internet, the nearest first."""
    gateway = segment.gateway
    while gateway is not None:
        router: Attached = gateway.owner
        if not isinstance(router, Router):
            return
        yield router
        gateway = router.outside.segment.gateway
