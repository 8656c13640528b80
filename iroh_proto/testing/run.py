"""One life of a machine under test: inputs given as values, outputs drained and written down.

A script is a list of operations. Each is a value with a readable ``repr``, so that a failing
property shows the shortest list of them that fails, and a regression test can repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, cast

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import (
    DatagramMachine,
    Machine,
    StreamMachine,
    TcpCloseRequested,
    TcpRequested,
    TcpUser,
)
from iroh_proto.testing.snapshot import Snapshot, snapshot

MachineT = TypeVar("MachineT")
AnyMachineT = TypeVar("AnyMachineT")

# A machine that wakes every second is not asked to live through an hour in each example.
WAKES_PER_WAIT_LIMIT = 20

# Where bytes come from when a run has not seen any address yet (RFC 5737).
STRANGER = UdpAddress("192.0.2.1", 4242)


class ContractBroken(AssertionError):
    """A machine broke a rule of :mod:`iroh_proto.machine`; the text says which and how."""


class Operation(Protocol[MachineT]):
    """One line of a script. It yields the calls it stands for, as the run goes on."""

    def calls(self, run: Run[MachineT]) -> Iterable[Call]:
        """Return the calls to make now; may move ``run.now`` forward."""


class Call:
    """A method of the machine with its arguments, ``now`` excepted.

    ``Call("ping", addr)`` becomes ``machine.ping(addr, now=...)``.
    """

    __slots__ = ("args", "is_timeless", "name", "options")

    def __init__(self, name: str, /, *args: object, **options: object) -> None:
        self.name = name
        self.args = args
        self.options = options
        self.is_timeless = False

    @classmethod
    def timeless(cls, name: str, /, *args: object, **options: object) -> Call:
        """Return a call of a method that takes no ``now``."""
        call = cls(name, *args, **options)
        call.is_timeless = True
        return call

    @property
    def is_from_peer(self) -> bool:
        """Whether the call brings bytes, or their end, from a wire."""
        return self.name.startswith("receive_")

    def make(self, machine: object, *, now: float) -> object:
        """Call the method and return its result."""
        method = cast("Callable[..., object]", getattr(machine, self.name))
        if self.is_timeless:
            return method(*self.args, **self.options)
        return method(*self.args, **self.options, now=now)

    def cut(self, sizes: Sequence[int]) -> list[Call]:
        """Return calls that bring the same bytes or datagrams in pieces of these sizes, cycled."""
        place = _PLACE_OF_BYTES.get(self.name)
        if place is None or not self.args[place]:
            return [self]
        whole = cast("bytes | Sequence[bytes]", self.args[place])
        head, tail = self.args[:place], self.args[place + 1 :]
        return [Call(self.name, *head, piece, *tail) for piece in _pieces(whole, sizes)]

    def calls(self, run: Run[AnyMachineT]) -> Iterable[Call]:
        """Return the call itself."""
        return [self]

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        how = "Call.timeless" if self.is_timeless else "Call"
        return f"{how}({', '.join([repr(self.name), *map(repr, self.args), *options])})"


# Which argument of a call can be cut.
_PLACE_OF_BYTES = {"receive_data": 0, "receive_tcp_data": 1, "receive_datagrams": 0}

HANDLE_TIMER = Call("handle_timer")


@dataclass(frozen=True, slots=True, repr=False)
class React(Generic[MachineT]):
    """Calls that depend on what the machine did so far, such as the answer of a peer.

    ``function`` must depend on nothing but the run. Keep the state of a scripted peer in
    ``run.context``, so that it begins anew with each run.
    """

    label: str
    function: Callable[[Run[MachineT]], Iterable[Call]]

    def calls(self, run: Run[MachineT]) -> Iterable[Call]:
        """Return what the function says."""
        return self.function(run)

    def __repr__(self) -> str:
        return f"React({self.label!r})"


@dataclass(frozen=True, slots=True)
class Wait:
    """Let seconds pass on a host that wakes the machine exactly when it asked for it."""

    seconds: float

    def calls(self, run: Run[AnyMachineT]) -> Iterable[Call]:
        """Move time from deadline to deadline, then to the end of the wait."""
        end = run.now + self.seconds
        for _ in range(WAKES_PER_WAIT_LIMIT):
            deadline = run.timer
            if deadline is None or deadline > end:
                break
            run.now = max(run.now, deadline)
            yield HANDLE_TIMER
        run.now = end
        yield HANDLE_TIMER


@dataclass(frozen=True, slots=True)
class Oversleep:
    """Let seconds pass on a host that was suspended, and wakes the machine once, late."""

    seconds: float

    def calls(self, run: Run[AnyMachineT]) -> Iterable[Call]:
        """Move time, then call ``handle_timer`` once."""
        run.now += self.seconds
        yield HANDLE_TIMER


@dataclass(slots=True)
class Output:
    """What one drain of a machine gave."""

    events: list[object] = field(default_factory=list)
    datagrams: list[tuple[Address, bytes]] = field(default_factory=list)
    stream: bytes = b""
    tcp: list[tuple[int, bytes]] = field(default_factory=list)
    payloads: list[tuple[Snapshot, bytes]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.events or self.datagrams or self.stream or self.tcp or self.payloads)

    @classmethod
    def joined(cls, outputs: Iterable[Output]) -> Output:
        """Return what several drains gave as if it had been one, in an order that repeats."""
        joined, tcp = cls(), dict[int, bytes]()
        for output in outputs:
            joined.events += output.events
            joined.datagrams += output.datagrams
            joined.stream += output.stream
            joined.payloads += output.payloads
            for tcp_id, data in output.tcp:
                tcp[tcp_id] = tcp.get(tcp_id, b"") + data
        joined.datagrams.sort(key=lambda item: repr(item[0]))
        joined.tcp = sorted(tcp.items())
        return joined


class Run(Generic[MachineT]):
    """One life of a machine, from ``start`` seconds on.

    ``context`` is whatever a scripted peer needs to remember. ``events`` holds all events,
    ``results`` what calls returned, ``refusals`` the calls that raised
    :class:`~iroh_proto.errors.LocalProtocolError`; ``sent`` and ``received`` the pieces of bytes
    that went to and came from wires, ``tcp_sent`` the bytes sent on each TCP connection;
    ``wanted_tcp`` the requests for TCP connections that were not answered, and ``tcp_ids`` the
    connections that stand.
    """

    def __init__(self, machine: MachineT, *, start: float = 0.0, context: object = None) -> None:
        self.machine = machine
        self.now = start
        self.context = context
        self.events: list[object] = []
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.addresses: list[Address] = []
        self.tcp_ids: list[int] = []
        self.tcp_sent: dict[int, bytes] = {}
        self.wanted_tcp: list[TcpRequested] = []
        self.results: list[object] = []
        self.refusals: list[Call] = []
        self.has_ended = False
        self._closing: list[int] = []

    @property
    def timer(self) -> float | None:
        """What ``get_timer`` says."""
        return cast("Machine[object]", self.machine).get_timer()

    def has(self, method: str) -> bool:
        """Say whether the machine has a method."""
        return hasattr(self.machine, method)

    def state(self) -> Snapshot:
        """Describe everything that the machine remembers."""
        return snapshot(self.machine)

    def give(self, call: Call, *, now: float | None = None) -> None:
        """Make a call at ``now``, or the current time.

        A refusal of a command is noted in ``refusals``.

        :raises ContractBroken: if the call raised anything else, or refused bytes from a peer.
        """
        try:
            result = call.make(self.machine, now=self.now if now is None else now)
        except LocalProtocolError as error:
            if call.is_from_peer and not self.has_ended:
                raise ContractBroken(f"rule 4: bytes from a peer raised {error!r}") from error
            self.refusals.append(call)
        except Exception as error:
            rule = "rule 4: bytes from a peer" if call.is_from_peer else "rule 5: a call"
            raise ContractBroken(f"{rule} raised {error!r} in {call}") from error
        else:
            self.results.append(result)
            self._note_result(call)

    def drain(self) -> Output:
        """Take everything out of the machine as a host does: events first, then bytes."""
        output = self.drain_all_but_streams()
        if self.has("data_to_send"):
            output.stream = cast("StreamMachine[object]", self.machine).data_to_send()
        if self.has("tcp_to_send"):
            output.tcp = self._drain_tcp()
        return output

    def drain_all_but_streams(self) -> Output:
        """Take out what a host takes while its streams are congested."""
        output = Output()
        machine = cast("Machine[object]", self.machine)
        while (event := machine.next_event()) is not None:
            output.events.append(event)
            self._note_event(event)
        if self.has("datagrams_to_send"):
            for transmit in cast("DatagramMachine[object]", self.machine).datagrams_to_send():
                output.datagrams += [(transmit.addr, bytes(data)) for data in transmit.datagrams]
        if self.has("received_payloads"):
            output.payloads = _payloads(self.machine)
        return output

    def note_output(self, output: Output) -> None:
        """Write down what went to the wires, for peers to answer it or send it back."""
        output = Output.joined([output])
        self.sent += [data for _, data in output.datagrams]
        self.sent += [data for _, data in output.tcp]
        self.sent += [output.stream] if output.stream else []
        self.addresses += [addr for addr, _ in output.datagrams]
        for tcp_id, data in output.tcp:
            self.tcp_sent[tcp_id] = self.tcp_sent.get(tcp_id, b"") + data

    def _drain_tcp(self) -> list[tuple[int, bytes]]:
        user = cast(TcpUser, self.machine)
        taken: list[tuple[int, bytes]] = []
        for tcp_id in [*user.tcp_to_send(), *self._closing]:
            while data := user.tcp_data_to_send(tcp_id):
                taken.append((tcp_id, bytes(data)))
        self._closing.clear()
        return taken

    def note_input(self, call: Call) -> None:
        """Write down what comes from the wires, for hostile peers to send it again."""
        if call.name == "receive_datagrams":
            batch, addr = cast("tuple[Sequence[bytes], Address]", call.args)
            self.received += batch
            self.addresses.append(addr)
        elif call.name in ("receive_data", "receive_tcp_data"):
            self.received.append(cast(bytes, call.args[-1]))

    def _note_result(self, call: Call) -> None:
        if call.name == "accept_tcp":
            self.tcp_ids.append(cast(int, call.args[0]))
        elif call.name == "complete_tcp":
            self._forget_tcp(cast(int, call.args[0]))
            if call.options.get("error") is None:
                self.tcp_ids.append(cast(int, call.args[0]))
        elif call.name == "receive_tcp_eof":
            self._forget_tcp(cast(int, call.args[0]))
        elif call.name == "receive_eof":
            self.has_ended = True

    def _note_event(self, event: object) -> None:
        self.events.append(event)
        if isinstance(event, TcpRequested):
            self.wanted_tcp.append(event)
        elif isinstance(event, TcpCloseRequested):
            self._closing.append(event.tcp_id)
            self._forget_tcp(event.tcp_id)

    def _forget_tcp(self, tcp_id: int) -> None:
        self.wanted_tcp = [wanted for wanted in self.wanted_tcp if wanted.tcp_id != tcp_id]
        if tcp_id in self.tcp_ids:
            self.tcp_ids.remove(tcp_id)


def transcript(outputs: Iterable[Output], blur: Callable[[bytes], Hashable] = bytes) -> Snapshot:
    """Describe what came out of a run, whichever way it was cut.

    Events stand in their order; bytes are joined per stream; datagrams and payloads are listed in
    their order per address. ``blur`` says what is compared of a datagram or stream.
    """
    events: list[object] = []
    stream = bytearray()
    datagrams: dict[Address, list[Hashable]] = {}
    payloads: dict[Snapshot, list[Hashable]] = {}
    tcp: dict[int, bytearray] = {}
    for output in outputs:
        events += output.events
        stream += output.stream
        for addr, data in output.datagrams:
            datagrams.setdefault(addr, []).append(blur(data))
        for key, data in output.payloads:
            payloads.setdefault(key, []).append(blur(data))
        for tcp_id, data in output.tcp:
            tcp.setdefault(tcp_id, bytearray()).extend(data)
    blurred = {tcp_id: blur(bytes(data)) for tcp_id, data in tcp.items()}
    by_address = sorted(datagrams.items(), key=repr)
    return snapshot((events, by_address, blur(bytes(stream)), sorted(blurred.items()), payloads))


def inputs(run: Run[MachineT], script: Iterable[Operation[MachineT]]) -> Iterator[Call]:
    """Yield the calls of a script one by one, each when the one before was made."""
    for operation in script:
        for call in operation.calls(run):
            run.note_input(call)
            yield call


def _payloads(machine: object) -> list[tuple[Snapshot, bytes]]:
    """Drain ``received_payloads``, one item per datagram with everything else beside it."""
    taken: list[tuple[Snapshot, bytes]] = []
    for payload in cast("Callable[[], list[object]]", machine.received_payloads)():  # type: ignore[attr-defined]
        datagrams = cast("Sequence[bytes]", getattr(payload, "datagrams"))  # noqa: B009
        names = sorted(getattr(type(payload), "__slots__", None) or vars(payload))
        key = snapshot([getattr(payload, name) for name in names if name != "datagrams"])
        taken += [(key, bytes(data)) for data in datagrams]
    return taken


def _pieces(
    whole: bytes | Sequence[bytes], sizes: Sequence[int]
) -> Iterator[bytes | Sequence[bytes]]:
    start = index = 0
    while start < len(whole):
        size = sizes[index % len(sizes)]
        yield whole[start : start + size]
        start += size
        index += 1
