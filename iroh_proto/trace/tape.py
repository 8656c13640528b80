"""Stands in for a machine and writes down what it is given, what it draws and what it gives.

A host that uses the tape instead of the machine notices nothing. What it calls is written down: a
command with its arguments and result, what arrives, what is drained.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar, cast

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.trace.lines import LineWriter
from iroh_proto.trace.values import Json, encode_value, fields_of, plain

MachineT = TypeVar("MachineT")

TIMELESS_COMMANDS: Final = frozenset({"set_alpns", "open_stream"})
"""Commands without ``now``. Other methods without it tell something and change nothing."""

WIRES: Final = frozenset(
    {"receive_datagrams", "receive_tcp_data", "handle_timer", "datagrams_to_send", "next_event"}
    | {"tcp_data_to_send"}
)
"""What a host may write down itself, since it knows more about it."""


class Recipe(Generic[MachineT]):
    """How a machine is made, written down so that it can be made again.

    ``Recipe(Magicsock, secret_key=key, derp_map=derp_map)`` is called with a source of chance,
    which is passed on as ``rng`` to machines that take one.
    """

    def __init__(self, kind: Callable[..., MachineT], **config: object) -> None:
        self.kind = kind
        self.config = config

    @property
    def name(self) -> str:
        """The class of the machine."""
        return self.kind.__name__

    def __call__(self, rng: random.Random) -> MachineT:
        """Make a machine."""
        if "rng" in inspect.signature(self.kind).parameters:
            return self.kind(**self.config, rng=rng)
        return self.kind(**self.config)

    def to_json(self, *, conceal: bool) -> Json:
        """Return what is written of it.

        :param conceal: whether to write whose key it is instead of a secret key.
        """
        config: Json = {}
        for name, value in self.config.items():
            is_hidden = conceal and isinstance(value, SecretKey)
            config[name] = {"$secret_of": str(value.public)} if is_hidden else encode_value(value)  # type: ignore[attr-defined]
        return {"machine": self.name, "config": config}


class Tape:
    """Stands in for a machine. Made by :meth:`make`."""

    def __init__(
        self,
        lines: LineWriter,
        at: str,
        *,
        time: float,
        epoch: float,
        encode_datagram: Callable[[bytes], object],
        label: Callable[[bytes], str] | None,
        observe: Callable[[object], None] | None,
    ) -> None:
        self._lines = lines
        self._at = at
        self._time = time
        self._epoch = epoch
        self._encode_datagram = encode_datagram
        self._label = label
        self._observe = observe
        self._drawn: list[object] = []
        self._machine: object

    @classmethod
    def make(
        cls,
        recipe: Recipe[MachineT],
        rng: random.Random,
        lines: LineWriter,
        at: str,
        *,
        time: float = 0.0,
        epoch: float = 0.0,
        conceal: bool = False,
        wires: bool = True,
        encode_datagram: Callable[[bytes], object] = bytes.hex,
        label: Callable[[bytes], str] | None = None,
        observe: Callable[[object], None] | None = None,
    ) -> MachineT:
        """Make a machine and return its tape, which has everything that the machine has.

        :param at: what the lines call the program.
        :param time: seconds, when it is made.
        :param epoch: seconds that the times in the lines are counted from, a whole number.
        :param conceal: whether to leave out secret keys.
        :param wires: whether to write down events, datagrams, TCP data and timers, too. A host
            that does so itself writes each line when it calls the machine, or is given it.
        :param encode_datagram: what is written of a datagram.
        :param label: says in words what a datagram is.
        :param observe: told each argument of a command.
        """
        tape = cls(
            lines,
            at,
            time=time,
            epoch=epoch,
            encode_datagram=encode_datagram,
            label=label,
            observe=observe,
        )
        made = recipe.to_json(conceal=conceal)
        tape._add("MachineMade", made)
        machine = recipe(RecordedRandom(rng, tape._drawn))
        tape._settle_draws()
        tape._machine = machine
        tape._prepare(machine, wires=wires)
        return cast(MachineT, tape)

    def __getattr__(self, name: str) -> object:
        if name == "_machine":  # not made yet
            raise AttributeError(name)
        return getattr(self._machine, name)

    def _prepare(self, machine: object, *, wires: bool) -> None:
        """Put the methods that are written down in place of the machine's own."""
        special: dict[str, Callable[..., object]] = {"received_payloads": self._received_payloads}
        if wires:
            special |= {
                "receive_datagrams": self._receive_datagrams,
                "handle_timer": self._handle_timer,
                "datagrams_to_send": self._datagrams_to_send,
                "next_event": self._next_event,
                "receive_tcp_data": self._receive_tcp_data,
                "tcp_data_to_send": self._tcp_data_to_send,
            }
        for name in _written_methods(type(machine)):
            plainly = self._wire if name in WIRES else self._command
            self.__dict__[name] = special.get(name) or plainly(name)

    def _add(self, kind: str, fields: Json) -> Json:
        return self._lines.add(self._time - self._epoch, self._at, kind, fields)

    def _settle_draws(self) -> None:
        if self._drawn:
            self._lines.note_drawn(self._time - self._epoch, self._at, self._drawn)
            self._drawn.clear()

    def _call(self, name: str, *args: object, **options: object) -> object:
        """Call the machine, and write down what it drew; what it raised is the caller's."""
        try:
            return cast("Callable[..., object]", getattr(self._machine, name))(*args, **options)
        finally:
            self._settle_draws()

    def _command(self, name: str) -> Callable[..., object]:
        def command(*args: object, **options: object) -> object:
            self._note_time(options)
            shown = {key: encode_value(value) for key, value in options.items() if key != "now"}
            fields: Json = {"command": name, "args": encode_value(args)}
            line = self._add("CommandGiven", {**fields, **({"options": shown} if shown else {})})
            if self._observe is not None:
                self._observe((*args, *options.values()))
            try:
                result = self._call(name, *args, **options)
            except LocalProtocolError as error:
                line["raised"] = str(error)
                raise
            if result is not None:
                line["result"] = plain(result)
            return result

        return command

    def _wire(self, name: str) -> Callable[..., object]:
        def wire(*args: object, **options: object) -> object:
            self._note_time(options)
            return self._call(name, *args, **options)

        return wire

    def _received_payloads(self) -> object:
        payloads = self._call("received_payloads")
        if payloads:
            self._add("PayloadsTaken", {"payloads": payloads_of(payloads)})
        return payloads

    def _next_event(self) -> object:
        event = self._call("next_event")
        if event is not None:
            self._add(type(event).__name__, fields_of(event))
        return event

    def _receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        self._time = now
        if self._observe is not None:
            self._observe((addr,))
        self._add("DatagramsReceived", self._datagrams("source", addr, batch))
        self._call("receive_datagrams", batch, addr, now=now)

    def _datagrams_to_send(self) -> list[Transmit]:
        transmits = cast("list[Transmit]", self._call("datagrams_to_send"))
        for transmit in transmits:
            fields = self._datagrams("destination", transmit.addr, transmit.datagrams)
            self._add("DatagramsSent", fields)
        return transmits

    def _handle_timer(self, *, now: float) -> None:
        # Who has several machines wakes them all, and most have nothing to do.
        deadline = cast("Callable[[], float | None]", getattr(self._machine, "get_timer"))()  # noqa: B009
        self._time = now
        if deadline is not None and deadline <= now:
            self._add("TimerHandled", {"deadline": deadline - self._epoch})
            self._call("handle_timer", now=now)

    def _receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        self._time = now
        self._add("TcpDataReceived", {"tcp_id": tcp_id, "data": bytes(data).hex()})
        self._call("receive_tcp_data", tcp_id, data, now=now)

    def _tcp_data_to_send(self, tcp_id: int) -> bytes:
        data = cast(bytes, self._call("tcp_data_to_send", tcp_id))
        if data:
            self._add("TcpDataSent", {"tcp_id": tcp_id, "data": bytes(data).hex()})
        return data

    def _datagrams(self, where: str, addr: Address, batch: Sequence[bytes]) -> Json:
        fields: Json = {
            where: str(addr) if isinstance(addr, UdpAddress) else encode_value(addr),
            "datagrams": [self._encode_datagram(bytes(data)) for data in batch],
        }
        if self._label is not None:
            fields["labels"] = [self._label(bytes(data)) for data in batch]
        return fields

    def _note_time(self, options: dict[str, object]) -> None:
        now = options.get("now")
        if isinstance(now, int | float):
            self._time = now


class RecordedRandom(random.Random):
    """A source of chance that notes what it gives. All kinds of draws are made of these two."""

    def __new__(cls, source: random.Random, drawn: list[object]) -> RecordedRandom:
        """Make one without a state of its own."""
        return super().__new__(cls)

    def __init__(self, source: random.Random, drawn: list[object]) -> None:
        self._source = source
        self._drawn = drawn

    def random(self) -> float:
        """Return a number from 0 to 1."""
        number = self._source.random()
        self._drawn.append(number)
        return number

    def getrandbits(self, k: int, /) -> int:
        """Return a number of so many bits."""
        number = self._source.getrandbits(k)
        self._drawn.append([k, f"{number:x}"])
        return number


def payloads_of(payloads: object) -> list[Json]:
    """Return what is written of payloads: whose they are, whence they came, and their bytes."""
    shown: list[Json] = []
    for payload in cast("list[object]", payloads):
        names = sorted(getattr(type(payload), "__slots__", None) or vars(payload))
        shown.append({name: plain(getattr(payload, name)) for name in names})
    return shown


def _written_methods(kind: type) -> tuple[str, ...]:
    """Return the methods of a machine that take an input, or are drained."""
    names: list[str] = []
    timeless = {"received_payloads", *TIMELESS_COMMANDS, *WIRES}
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        takes_time = "now" in inspect.signature(method).parameters
        if not name.startswith("_") and (takes_time or name in timeless):
            names.append(name)
    return tuple(names)
