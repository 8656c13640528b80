"""What every host does for a machine, in virtual time.

After each input: events out, then bytes, and last a look at the timer. A subclass says where the
bytes go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar, cast

from iroh_proto.machine import DatagramMachine, Machine, StreamMachine, Transmit
from iroh_proto.testing.clock import Appointment, VirtualClock
from iroh_proto.testing.run import ContractBroken

MachineT = TypeVar("MachineT")
ResultT = TypeVar("ResultT")

# Events that one input may cause, commands given because of them included. More is a loop.
EVENTS_PER_INPUT_LIMIT = 100_000


class Recorded(NamedTuple):
    """Something that came out of a machine, and the virtual time when."""

    time: float
    value: object


class Hosted(Generic[MachineT]):
    """A machine with its timer on a virtual clock.

    ``events`` and ``payloads`` hold what came out so far; clear them as you like. ``on_event``
    is called for each event, and may give commands straight to the machine.
    """

    def __init__(
        self,
        clock: VirtualClock,
        machine: MachineT,
        *,
        on_event: Callable[[object], None] | None = None,
    ) -> None:
        self.clock = clock
        self.machine = machine
        self.on_event = on_event
        self.events: list[Recorded] = []
        self.payloads: list[Recorded] = []
        self._appointment: Appointment | None = None

    def give(self, command: Callable[[MachineT, float], ResultT]) -> ResultT:
        """Give the machine a command: ``give(lambda machine, now: machine.ping(now=now))``."""
        result = command(self.machine, self.clock.now)
        self.flush()
        return result

    def seen(self, kind: type[ResultT]) -> list[ResultT]:
        """Return the events of one class, in their order."""
        return [event.value for event in self.events if isinstance(event.value, kind)]

    def flush(self) -> None:
        """Take everything out of the machine, and see when it wants to be woken."""
        self._take_events()
        if hasattr(self.machine, "received_payloads"):
            while self._take_payloads():  # whoever took one may have given commands
                self._take_events()
        if hasattr(self.machine, "datagrams_to_send"):
            for transmit in cast("DatagramMachine[object]", self.machine).datagrams_to_send():
                self.send_datagrams(transmit)
        if hasattr(self.machine, "data_to_send"):
            data = cast("StreamMachine[object]", self.machine).data_to_send()
            if data:
                self.send_data(data)
        if hasattr(self.machine, "tcp_to_send"):
            self.send_tcp()
        self._arm()

    def handle_event(self, event: object) -> None:
        """Do what an event asks of a host. Nothing, unless a subclass knows better."""

    def handle_timer(self, deadline: float) -> None:
        """Learn that the machine is about to be woken. Nothing, unless a subclass knows better."""

    def handle_payload(self, payload: object) -> None:
        """Take a payload. Nothing, unless a subclass knows better."""

    def send_datagrams(self, transmit: Transmit) -> None:
        """Put datagrams on a wire."""
        raise NotImplementedError

    def send_data(self, data: bytes) -> None:
        """Put bytes of the machine's stream on a wire."""
        raise NotImplementedError

    def send_tcp(self) -> None:
        """Put bytes of the machine's TCP connections on their wires, as far as they take them."""
        raise NotImplementedError

    def disarm(self) -> None:
        """Wake the machine no more, until something comes in."""
        if self._appointment is not None:
            self._appointment.cancel()
            self._appointment = None

    def _take_events(self) -> None:
        machine = cast("Machine[object]", self.machine)
        for _ in range(EVENTS_PER_INPUT_LIMIT):
            event = machine.next_event()
            if event is None:
                return
            self.events.append(Recorded(self.clock.now, event))
            self.handle_event(event)
            if self.on_event is not None:
                self.on_event(event)
        raise ContractBroken(f"{self.machine!r} has event after event: {self.events[-1]}")

    def _take_payloads(self) -> bool:
        """Pass on the payloads there are; say whether there were any."""
        source = cast("Callable[[], list[object]]", self.machine.received_payloads)  # type: ignore[attr-defined]
        payloads = source()
        for payload in payloads:
            self.payloads.append(Recorded(self.clock.now, payload))
            self.handle_payload(payload)
        return bool(payloads)

    def _arm(self) -> None:
        """Make an appointment for the machine's timer.

        One that is too early stays: asking the machine again then is cheaper than to move it
        each time that the timer moves, which is with every packet.
        """
        deadline = cast("Machine[object]", self.machine).get_timer()
        if deadline is None:
            self.disarm()
            return
        if self._appointment is not None:
            if self._appointment.when <= deadline:
                return
            self._appointment.cancel()
        self._appointment = self.clock.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._appointment = None
        machine = cast("Machine[object]", self.machine)
        deadline = machine.get_timer()
        if deadline is not None and deadline <= self.clock.now:
            self.handle_timer(deadline)
            machine.handle_timer(now=self.clock.now)
            after = machine.get_timer()
            if after is not None and after <= self.clock.now:
                raise ContractBroken(f"handled at {self.clock.now}, the timer is {after}")
            self.flush()
        else:
            self._arm()
