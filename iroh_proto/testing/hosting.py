"""What every host does for a machine, in virtual time.

After each input: events out, then bytes, and last a look at the timer. A subclass says where the
bytes go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    ``events`` and ``payloads`` hold what came out so far; clear them as you like, or set
    ``keeps`` to false: hours of a thousand machines are too many. ``on_event`` is called for each
    event, and may give commands straight to the machine.

    ``inputs`` counts how often it was given something, be it time, bytes, an answer or a command;
    ``wakeups`` how often that was time.
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
        self.keeps = True
        self.inputs = 0
        self.wakeups = 0
        self.events: list[Recorded] = []
        self.payloads: list[Recorded] = []
        self._appointment: Appointment | None = None
        self._deadline: float | None = None
        # What the machine has, found out once for each: a flush follows every input.
        self._outputs: tuple[Callable[[], None], ...] = ()
        self._outputs_of: object = None

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
        self.inputs += 1
        if self._outputs_of is not self.machine:
            self._outputs_of, self._outputs = self.machine, tuple(self._find_outputs())
        self._take_events()
        for take in self._outputs:
            take()
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
        event: object = None
        for _ in range(EVENTS_PER_INPUT_LIMIT):
            event = machine.next_event()
            if event is None:
                return
            if self.keeps:
                self.events.append(Recorded(self.clock.now, event))
            self.handle_event(event)
            if self.on_event is not None:
                self.on_event(event)
        raise ContractBroken(f"{self.machine!r} has event after event: {event}")

    def _find_outputs(self) -> Iterator[Callable[[], None]]:
        """Yield what to do besides, in the order in which it is to be done."""
        outputs = {
            "received_payloads": self._take_all_payloads,
            "datagrams_to_send": self._take_datagrams,
            "data_to_send": self._take_data,
            "tcp_to_send": self.send_tcp,
        }
        for method, take in outputs.items():
            if hasattr(self.machine, method):
                yield take

    def _take_all_payloads(self) -> None:
        while self._take_payloads():  # whoever took one may have given commands
            self._take_events()

    def _take_payloads(self) -> bool:
        """Pass on the payloads there are; say whether there were any."""
        source = cast("Callable[[], list[object]]", self.machine.received_payloads)  # type: ignore[attr-defined]
        payloads = source()
        for payload in payloads:
            if self.keeps:
                self.payloads.append(Recorded(self.clock.now, payload))
            self.handle_payload(payload)
        return bool(payloads)

    def _take_datagrams(self) -> None:
        for transmit in cast("DatagramMachine[object]", self.machine).datagrams_to_send():
            self.send_datagrams(transmit)

    def _take_data(self) -> None:
        data = cast("StreamMachine[object]", self.machine).data_to_send()
        if data:
            self.send_data(data)

    def _arm(self) -> None:
        """Make an appointment for the machine's timer."""
        self._deadline = cast("Machine[object]", self.machine).get_timer()
        self._make_appointment(self._deadline)

    def _make_appointment(self, deadline: float | None) -> None:
        """Be woken at a deadline.

        An appointment that is too early stays: making another one then is cheaper than to move it
        each time that the timer moves, which is with every packet.
        """
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
        deadline, now = self._deadline, self.clock.now
        if deadline is None or deadline > now:
            self._make_appointment(deadline)
            return
        machine = cast("Machine[object]", self.machine)
        self.wakeups += 1
        self.handle_timer(deadline)
        machine.handle_timer(now=now)
        after = machine.get_timer()
        if after is not None and after <= now:
            raise ContractBroken(f"handled at {now}, the timer is {after}")
        self.flush()
