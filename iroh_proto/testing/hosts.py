"""Hosts of the simulated network and the machines that run on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, cast

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import DatagramMachine, TcpRequested, TcpUser, Transmit
from iroh_proto.testing.happenings import (
    DatagramsReceived,
    DatagramsSent,
    TcpDataReceived,
    TcpDataSent,
    TimerHandled,
)
from iroh_proto.testing.hosting import Hosted
from iroh_proto.testing.links import Link, Packet
from iroh_proto.testing.tcp import TcpEnd
from iroh_proto.testing.topology import Attachment, Fabric, Segment, is_loopback

if TYPE_CHECKING:
    from iroh_proto.testing.network import Network

MachineT = TypeVar("MachineT")
AnyProgram: TypeAlias = "Program[object]"

ANY_IPV4 = "0.0.0.0"
ANY_IPV6 = "::"

FIRST_EPHEMERAL_PORT = 49_152
"""The first port for those who do not care which (RFC 6335)."""


class _Listener(Protocol):
    def accept_tcp(self, tcp_id: int, *, now: float) -> None: ...


class Program(Hosted[MachineT]):
    """A machine as it runs on a host, with its sockets. Made by :meth:`Host.run`.

    ``machine`` is another one after :meth:`start`. ``on_event`` and ``on_payload`` are called
    with everything that comes out; ``answers`` holds, by the name of an event's class, what the
    host does when the machine asks for something.
    """

    machine: MachineT

    def __init__(
        self,
        host: Host,
        name: str,
        factory: Callable[[random.Random], MachineT],
        *,
        sockets: Sequence[UdpAddress],
        tcp_ports: Sequence[int],
        tls_ports: Sequence[int],
        begin: Callable[[MachineT, Sequence[UdpAddress], float], None] | None,
        on_event: Callable[[object], None] | None,
        on_payload: Callable[[object], None] | None,
    ) -> None:
        super().__init__(host.fabric.clock, cast(MachineT, None), on_event=on_event)
        self.host = host
        self.name = name
        self.sockets = sockets
        self.tcp_ports = tuple(tcp_ports)
        self.tls_ports = tuple(tls_ports)
        self.on_payload = on_payload
        self.is_running = False
        self.answers = dict(ANSWERS)
        self._factory = factory
        self._begin = begin
        self._tcp: dict[int, TcpEnd] = {}
        self._pending_tcp: dict[int, TcpRequested] = {}
        self._next_tcp_id = 0

    def start(self) -> None:
        """Make a new machine, and begin."""
        if self.is_running:
            raise LocalProtocolError(f"{self.name} is running")
        self.is_running = True
        rng, make_machine = self.host.fabric.chance(), self.host.network.make_machine
        if make_machine is None:
            self.machine = self._factory(rng)
        else:
            self.machine = make_machine(self.name, self._factory, rng)
        if self._begin is not None:
            self._begin(self.machine, self.sockets, self.clock.now)
        self.flush()

    def stop(self) -> None:
        """End the process: its connections close, its machine is forgotten."""
        for end in list(self._tcp.values()):
            end.close()
        self._end()

    def vanish(self) -> None:
        """End it as a power cut does, telling nobody."""
        for end in list(self._tcp.values()):
            end.vanish()
        self._end()

    def flush(self) -> None:
        """Take everything out of the machine, and see when it wants to be woken."""
        if self.is_running:
            super().flush()

    # What comes in

    def receive_datagrams(
        self, batch: Sequence[bytes], source: UdpAddress, *, number: int = 0
    ) -> None:
        """Give the machine datagrams, of the packet that recorders know by a number."""
        if self.host.fabric.recorders:
            happening = DatagramsReceived(packet=number, source=source, datagrams=tuple(batch))
            self.host.fabric.record(self.name, happening)
        machine = cast("DatagramMachine[object]", self.machine)
        machine.receive_datagrams(batch, source, now=self.clock.now)
        self.flush()

    def accept_tcp(self, make_end: Callable[[AnyProgram, int], TcpEnd]) -> None:
        """Give the machine a connection that somebody made to it."""
        tcp_id, self._next_tcp_id = self._next_tcp_id, self._next_tcp_id + 1
        self._tcp[tcp_id] = make_end(cast(AnyProgram, self), tcp_id)
        cast(_Listener, self.machine).accept_tcp(tcp_id, now=self.clock.now)
        self.flush()

    def complete_tcp(self, tcp_id: int, end: TcpEnd | None, error: str | None = None) -> None:
        """Tell the machine of a connection that it waits for."""
        del self._pending_tcp[tcp_id]
        if end is not None:
            self._tcp[tcp_id] = end
        cast(TcpUser, self.machine).complete_tcp(tcp_id, error=error, now=self.clock.now)
        self.flush()

    def wants_tcp(self, tcp_id: int) -> bool:
        """Say whether the machine waits for a connection."""
        return self.is_running and tcp_id in self._pending_tcp

    def receive_tcp(self, tcp_id: int, data: bytes) -> None:
        """Give the machine bytes of a connection."""
        if self.host.fabric.recorders:
            self.host.fabric.record(self.name, TcpDataReceived(tcp_id=tcp_id, data=data))
        cast(TcpUser, self.machine).receive_tcp_data(tcp_id, data, now=self.clock.now)
        self.flush()

    def lose_tcp(self, tcp_id: int) -> None:
        """Tell the machine that a connection is over."""
        del self._tcp[tcp_id]
        cast(TcpUser, self.machine).receive_tcp_eof(tcp_id, now=self.clock.now)
        self.flush()

    # What goes out

    def send_datagrams(self, transmit: Transmit) -> None:
        """Send from the socket of the destination's family."""
        assert isinstance(transmit.addr, UdpAddress), f"no host sends to {transmit.addr}"
        number = self.host.fabric.next_packet_number()
        if self.host.fabric.recorders:
            happening = DatagramsSent(
                packet=number, destination=transmit.addr, datagrams=tuple(transmit.datagrams)
            )
            self.host.fabric.record(self.name, happening)
        self.host.send(self.sockets, transmit.addr, transmit.datagrams, number)

    def send_tcp(self) -> None:
        """Write to the connections that take bytes."""
        user = cast(TcpUser, self.machine)
        for tcp_id in user.tcp_to_send():
            end = self._tcp.get(tcp_id)
            while end is not None and end.has_room and (data := user.tcp_data_to_send(tcp_id)):
                self._write_tcp(end, bytes(data))

    def handle_timer(self, deadline: float) -> None:
        """Tell the recorders that the machine is woken."""
        if self.host.fabric.recorders:
            self.host.fabric.record(self.name, TimerHandled(deadline=deadline))

    def handle_event(self, event: object) -> None:
        """Tell the observers, and do what the machine asks for."""
        for observe in self.host.network.observers:
            observe(self.clock.now, self.name, event)
        answer = self.answers.get(type(event).__name__)
        if answer is not None:
            answer(cast(AnyProgram, self), event)

    def handle_payload(self, payload: object) -> None:
        """Pass a payload on."""
        if self.on_payload is not None:
            self.on_payload(payload)

    def want_tcp(self, request: TcpRequested) -> None:
        """Have the network make a connection."""
        self._pending_tcp[request.tcp_id] = request
        self.host.network.connect_tcp(cast(AnyProgram, self), request)

    def close_tcp(self, tcp_id: int) -> None:
        """Send what the machine has left for a connection, and close it."""
        self._pending_tcp.pop(tcp_id, None)
        end = self._tcp.pop(tcp_id, None)
        if end is None:
            return
        while data := cast(TcpUser, self.machine).tcp_data_to_send(tcp_id):
            self._write_tcp(end, bytes(data))
        end.close()

    def _write_tcp(self, end: TcpEnd, data: bytes) -> None:
        if self.host.fabric.recorders:
            self.host.fabric.record(self.name, TcpDataSent(tcp_id=end.tcp_id, data=data))
        end.write(data)

    def _end(self) -> None:
        self.disarm()
        self.is_running = False
        self._tcp.clear()
        self._pending_tcp.clear()


class Host:
    """A computer: addresses, and programs that share them.

    Made by :meth:`iroh_proto.testing.network.Network.add_host`.
    """

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.is_up = True
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

    def attach(
        self, segment: Segment, ip: str | None = None, *, latency: float = 0.0
    ) -> Attachment:
        """Plug in another interface."""
        attachment = segment.attach(self, ip, latency)
        self.attachments.append(attachment)
        return attachment

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
    ) -> Program[MachineT]:
        """Make a machine and run it here.

        :param factory: makes the machine, again each time the program is started.
        :param udp: where its UDP sockets are bound; a port of 0 is any free one.
        :param tcp_ports: ports on which it accepts TCP (``accept_tcp`` of the machine).
        :param tls_ports: ports on which it does so behind TLS.
        :param begin: called with the machine, the bound addresses and the time.
        :param on_event: called with each event; may give the machine commands.
        :param on_payload: called with each item of ``received_payloads``.
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
        )
        self.programs.append(cast(AnyProgram, program))
        program.start()
        return program

    def cut_power(self) -> None:
        """Go down without telling anybody."""
        self.is_up = False
        for program in self.programs:
            program.vanish()

    def boot(self) -> None:
        """Come up again, with new machines."""
        self.is_up = True
        for program in self.programs:
            program.start()

    # What comes in and goes out

    def arrive(self, packet: Packet, attachment: Attachment | None) -> None:
        """Give a packet to the program that has its port."""
        stats, count = self.network.stats, len(packet.datagrams)
        if attachment is not None and self.network.blocks_udp(packet.origin, self):
            stats.blocked += count
            return
        program = self._listener_of(packet.destination)
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

        The one in whose subnet the address is, else the first of its family that has a way out.
        """
        is_ipv6 = ":" in ip
        usable = [
            attachment
            for attachment in self.attachments
            if (":" in attachment.ip) == is_ipv6 and bound in (ANY_IPV4, ANY_IPV6, attachment.ip)
        ]
        near = [one for one in usable if one.segment.subnet and one.segment.contains(ip)]
        return next(iter(near or usable), None)

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


class _Asker(Protocol):
    def complete_interfaces(self, request_id: int, ips: Sequence[str], *, now: float) -> None: ...

    def complete_dns(self, request_id: int, ips: Sequence[str], *, now: float) -> None: ...


class _Request(Protocol):
    request_id: int


class _DnsRequest(_Request, Protocol):
    host: str


def answer_interfaces(program: AnyProgram, event: object) -> None:
    """Tell a machine the addresses of its host."""
    request_id = cast(_Request, event).request_id
    machine = cast(_Asker, program.machine)
    machine.complete_interfaces(request_id, program.host.ips, now=program.clock.now)


def answer_dns(program: AnyProgram, event: object) -> None:
    """Tell a machine the addresses of a host name, when the answer is there."""
    request, machine = cast(_DnsRequest, event), cast(_Asker, program.machine)

    def complete(ips: Sequence[str]) -> None:
        if program.is_running and program.machine is machine:
            machine.complete_dns(request.request_id, ips, now=program.clock.now)
            program.flush()

    program.host.network.resolve(request.host, complete)


def answer_tcp(program: AnyProgram, event: object) -> None:
    """Have a connection made."""
    program.want_tcp(cast(TcpRequested, event))


def answer_tcp_close(program: AnyProgram, event: object) -> None:
    """Have a connection closed."""
    program.close_tcp(cast(TcpRequested, event).tcp_id)


ANSWERS: dict[str, Callable[[AnyProgram, object], None]] = {
    "InterfacesRequested": answer_interfaces,
    "DnsRequested": answer_dns,
    "TcpRequested": answer_tcp,
    "TcpCloseRequested": answer_tcp_close,
}
"""What a host does when a machine asks for something, by the class name of the event."""
