"""Hosts of the simulated network."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing.links import Link, Packet
from iroh_proto.testing.programs import AnyProgram, Program
from iroh_proto.testing.topology import Attachment, Fabric, Segment, is_loopback

if TYPE_CHECKING:
    from iroh_proto.testing.network import Network

MachineT = TypeVar("MachineT")

ANY_IPV4 = "0.0.0.0"
ANY_IPV6 = "::"

FIRST_EPHEMERAL_PORT = 49_152
"""The first port for those who do not care which (RFC 6335)."""


class Host:
    """A computer: addresses, and programs that share them.

    Made by :meth:`iroh_proto.testing.network.Network.add_host`.
    """

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.is_up = True
        self.is_asleep = False
        self.programs: list[AnyProgram] = []
        self.attachments: list[Attachment] = []
        self._next_port = FIRST_EPHEMERAL_PORT

    @property
    def fabric(self) -> Fabric:
        """What the network shares."""
        return self.network

    @property
    def ips(self) -> list[str]:
        """The addresses of the interfaces."""
        return [attachment.ip for attachment in self.attachments]

    @property
    def ip(self) -> str:
        """The address of the first interface."""
        return self.attachments[0].ip

    @property
    def link(self) -> Link:
        """The cable of the first interface."""
        return self.attachments[0].link

    @property
    def is_awake(self) -> bool:
        """Whether it does anything."""
        return self.is_up and not self.is_asleep

    @property
    def up_ips(self) -> list[str]:
        """The addresses of the interfaces whose cables are."""
        return [attachment.ip for attachment in self.attachments if attachment.link.is_up]

    def attach(
        self,
        segment: Segment,
        ip: str | None = None,
        *,
        latency: float = 0.0,
        link: Link | None = None,
    ) -> Attachment:
        """Plug in another interface, or give one that is there another address.

        :param ip: its address, a free one unless given.
        :param latency: seconds that its cable takes, one way.
        :param link: the cable, that of another address, instead of a new one.
        :raises LocalProtocolError: if the address is taken, or does not belong there.
        """
        cable = link or Link(self.fabric.chance(), latency=latency)
        attachment = segment.attach(self, ip, cable)
        self.attachments.append(attachment)
        return attachment

    def plug_in(
        self, segment: Segment, ips: Sequence[str] = (), *, latency: float = 0.0
    ) -> list[Attachment]:
        """Plug in another interface with some addresses.

        :param ips: its addresses; one of each subnet unless given.
        :param latency: seconds that its cable takes, one way.
        :raises LocalProtocolError: if an address is taken, or does not belong there.
        """
        wanted = list(ips) or [segment.free_ip(subnet) for subnet in segment.subnets]
        first = self.attach(segment, wanted[0] if wanted else None, latency=latency)
        return [first, *(self.attach(segment, ip, link=first.link) for ip in wanted[1:])]

    def detach(self, attachment: Attachment) -> None:
        """Unplug an interface: its address is gone."""
        self.attachments.remove(attachment)
        attachment.segment.detach(attachment)

    def run(
        self,
        factory: Callable[[random.Random], MachineT],
        *,
        name: str = "program",
        udp: Sequence[UdpAddress] = (),
        tcp_ports: Sequence[int] = (),
        tls_ports: Sequence[int] = (),
        begin: Callable[[MachineT, Sequence[UdpAddress], float], None] | None = None,
        on_event: Callable[[object], None] | None = None,
        on_payload: Callable[[object], None] | None = None,
        keeps: bool = True,
    ) -> Program[MachineT]:
        """Make a machine and run it here.

        :param factory: makes the machine, again each time the program is started.
        :param udp: where its UDP sockets are bound; a port of 0 is any free one.
        :param tcp_ports: ports on which it accepts TCP (``accept_tcp`` of the machine).
        :param tls_ports: ports on which it does so behind TLS.
        :param begin: called with the machine, the bound addresses and the time.
        :param on_event: called with each event; may give the machine commands.
        :param on_payload: called with each item of ``received_payloads``.
        :param keeps: whether the program's ``events`` and ``payloads`` keep what came out.
        :raises LocalProtocolError: if a port is taken.
        """
        sockets = [self._bind(addr) for addr in udp]
        self._check_tcp_ports([*tcp_ports, *tls_ports])
        program = Program(
            self,
            f"{self.name}/{name}",
            factory,
            sockets=sockets,
            tcp_ports=tcp_ports,
            tls_ports=tls_ports,
            begin=begin,
            on_event=on_event,
            on_payload=on_payload,
            keeps=keeps,
        )
        self.programs.append(cast(AnyProgram, program))
        program.start()
        return program

    # Mishaps

    def move(self, segment: Segment | None = None, *ips: str, latency: float | None = None) -> None:
        """Be somewhere else, or there with other addresses, and notice it.

        All interfaces are unplugged, and one is plugged in.

        :param segment: where to; the network of the first interface unless given.
        :param ips: the new addresses; free ones unless given.
        :param latency: seconds that the cable takes; as long as before unless given.
        """
        former = list(self.attachments)
        segment = segment or former[0].segment
        latency = former[0].link.latency if latency is None else latency
        # The old addresses are still taken when the new ones are chosen.
        self.plug_in(segment, ips, latency=latency)
        for attachment in former:
            self.detach(attachment)
        self.notice_change()

    def set_links(self, *, is_up: bool) -> None:
        """Pull all cables, or put them back, and notice it."""
        for attachment in self.attachments:
            attachment.link.is_up = is_up
        self.notice_change()

    def notice_change(self) -> None:
        """Tell the programs that interfaces, addresses or routes changed."""
        if self.is_awake:
            for program in self.programs:
                program.tell("network_changed")

    def sleep(self) -> None:
        """Freeze: nothing comes in, nothing goes out, no timer is due. Time passes all the same."""
        self.is_asleep = self.is_up
        for program in self.programs:
            program.disarm()

    def wake(self) -> None:
        """Go on after :meth:`sleep`: the programs are told ``resumed``, then what is overdue."""
        if not self.is_asleep:
            return
        self.is_asleep = False
        for program in self.programs:
            program.tell("resumed")

    def cut_power(self) -> None:
        """Go down without telling anybody."""
        self.is_up, self.is_asleep = False, False
        for program in self.programs:
            program.vanish()

    def boot(self) -> None:
        """Come up again, with new machines."""
        self.is_up = True
        for program in self.programs:
            if not program.is_running:
                program.start()

    # What comes in and goes out

    def arrive(self, packet: Packet, attachment: Attachment | None) -> None:
        """Give a packet to the program that has its port."""
        stats, count = self.network.stats, len(packet.datagrams)
        if attachment is not None and self.network.blocks_udp(packet.origin, self):
            stats.blocked += count
            return
        program = None if self.is_asleep else self._listener_of(packet.destination)
        if program is None:
            stats.unheard += count
            return
        stats.delivered += count
        program.receive_datagrams(packet.datagrams, packet.source, number=packet.number)

    def send(
        self,
        sockets: Sequence[UdpAddress],
        destination: UdpAddress,
        datagrams: Sequence[bytes],
        number: int = 0,
    ) -> None:
        """Send datagrams from one of these sockets, or drop them where none can.

        :param number: what the packet is known by to the recorders.
        """
        stats = self.network.stats
        stats.sent += len(datagrams)
        for socket in sockets:
            if socket.is_ipv6 != destination.is_ipv6:
                continue
            if self._send(socket, destination, datagrams, number):
                return
        stats.unroutable += len(datagrams)

    def _send(
        self,
        socket: UdpAddress,
        destination: UdpAddress,
        datagrams: Sequence[bytes],
        number: int,
    ) -> bool:
        if is_loopback(destination):
            source = UdpAddress(destination.ip, socket.port)
            packet = Packet(source, destination, list(datagrams), self, number)
            self.network.clock.call_later(0.0, lambda: self.arrive(packet, None))
            return True
        attachment = self.interface_for(destination.ip, socket.ip)
        if attachment is None:
            return False
        source = UdpAddress(attachment.ip, socket.port)
        packet = Packet(source, destination, datagrams, self, number)
        attachment.segment.send(packet, attachment)
        return True

    def interface_for(self, ip: str, bound: str = ANY_IPV4) -> Attachment | None:
        """Return the interface that packets to an address leave by.

        The one in whose subnet the address is, else the first of its family; one whose cable is
        out only if all are.
        """
        is_ipv6 = ":" in ip
        usable = [
            attachment
            for attachment in self.attachments
            if (":" in attachment.ip) == is_ipv6 and bound in (ANY_IPV4, ANY_IPV6, attachment.ip)
        ]
        if len(usable) > 1:
            usable = [one for one in usable if one.link.is_up] or usable
            near = [one for one in usable if one.segment.subnets and one.segment.contains(ip)]
            usable = near or usable
        return usable[0] if usable else None

    def listener_on(self, port: int) -> tuple[AnyProgram, bool] | None:
        """Return the running program that accepts TCP on a port, and whether behind TLS."""
        for program in self.programs:
            if program.is_running and port in (*program.tcp_ports, *program.tls_ports):
                return program, port in program.tls_ports
        return None

    def _listener_of(self, destination: UdpAddress) -> AnyProgram | None:
        wildcard = ANY_IPV6 if destination.is_ipv6 else ANY_IPV4
        wanted = (destination, UdpAddress(wildcard, destination.port))
        for program in self.programs:
            if program.is_running and any(socket in wanted for socket in program.sockets):
                return program
        return None

    def _bind(self, addr: UdpAddress) -> UdpAddress:
        taken = set(self._udp_ports())
        if addr.port in taken:
            raise LocalProtocolError(f"{addr} is taken on {self.name}")
        port = addr.port
        while port == 0:
            port = self._next_port if self._next_port not in taken else 0
            self._next_port += 1
        return UdpAddress(addr.ip, port)

    def _udp_ports(self) -> Iterator[int]:
        for program in self.programs:
            for socket in program.sockets:
                yield socket.port

    def _check_tcp_ports(self, ports: Sequence[int]) -> None:
        for program in self.programs:
            if set(ports) & {*program.tcp_ports, *program.tls_ports}:
                raise LocalProtocolError(f"a port of {ports} is taken on {self.name}")

    def __repr__(self) -> str:
        return f"Host({self.name!r}, {self.ips})"
