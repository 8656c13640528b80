"""The machines that run on hosts of the simulated network, and what a host does for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
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
from iroh_proto.testing.hosting import Hosted, ResultT
from iroh_proto.testing.tcp import TcpEnd

if TYPE_CHECKING:
    from iroh_proto.testing.hosts import Host

MachineT = TypeVar("MachineT")
AnyProgram: TypeAlias = "Program[object]"


class _Listener(Protocol):
    def accept_tcp(self, tcp_id: int, *, now: float) -> None: ...


class Program(Hosted[MachineT]):
    """A machine as it runs on a host, with its sockets. Made by :meth:`Host.run`.

    ``machine`` is another one after :meth:`start`. ``on_event`` and ``on_payload`` are called
    with everything that comes out; ``answers`` holds, by the name of an event's class, what the
    host does when the machine asks for something.

    :ivar events: what came out so far, each a :class:`~iroh_proto.testing.hosting.Recorded`: the
        virtual ``time``, and the event itself as ``value``.
    :ivar payloads: the items of ``received_payloads``, likewise.
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
        keeps: bool,
    ) -> None:
        super().__init__(host.fabric.clock, cast(MachineT, None), on_event=on_event)
        self.keeps = keeps
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

    def restart(self, *, after: float = 0.0) -> None:
        """End the process, and start it again some seconds later, if nobody did before."""
        self.stop()

        def start() -> None:
            if not self.is_running and self.host.is_up:
                self.start()

        self.clock.call_later(after, start)

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

    def give(self, command: Callable[[MachineT, float], ResultT]) -> ResultT:
        """Give the machine a command: ``give(lambda machine, now: machine.ping(now=now))``.

        :raises LocalProtocolError: if the host sleeps.
        """
        if self.host.is_asleep:
            raise LocalProtocolError(f"{self.host.name} sleeps")
        return super().give(command)

    def tell(self, news: str) -> None:
        """Call a method of the machine, as ``resumed``, with nothing but the time, if it has it."""
        method = getattr(self.machine, news, None)
        if self.is_running and method is not None:
            method(now=self.clock.now)
        self.flush()

    def flush(self) -> None:
        """Take everything out of the machine, and see when it wants to be woken."""
        if self.is_running and not self.host.is_asleep:
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
        return self.is_running and not self.host.is_asleep and tcp_id in self._pending_tcp

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
    machine.complete_interfaces(request_id, program.host.up_ips, now=program.clock.now)


def answer_dns(program: AnyProgram, event: object) -> None:
    """Tell a machine the addresses of a host name, when the answer is there."""
    request, machine = cast(_DnsRequest, event), cast(_Asker, program.machine)

    def complete(ips: Sequence[str]) -> None:
        if program.is_running and program.machine is machine and program.host.is_awake:
            machine.complete_dns(request.request_id, ips, now=program.clock.now)
            program.flush()

    program.host.network.resolve(request.host, complete, asker=program.host)


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
