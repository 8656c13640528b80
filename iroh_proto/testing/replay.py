"""Repeats what programs did, from a time line, and says where they do otherwise now.

Each program's machine is made anew from its recipe, with the lots that were drawn, and given the
inputs that were recorded, at their times: commands, datagrams, TCP data, timers, answers to
requests. What comes out is compared with what was recorded:

* events, and the results of commands: all fields;
* datagrams: destination and bytes, in their order; of a disco datagram that was opened because the
  key is kept secret, sender, receiver, nonce and plaintext. Whether a batch is cut elsewhere does
  not matter;
* what was written to TCP: the bytes of each piece that the host fetched;
* payload that came in: from whom, by which way, bytes;
* when timers were due.

QUIC is not repeated: inside aioquic keys and packet contents are other ones each time. A whole
endpoint is repeated from there on where QUIC ends, its paths: encrypted packets are inputs then,
and stay the same.

The time line of a real endpoint does not hold its secret key. It has the two machines that decide
on paths and find the node's addresses, and disco messages opened. The node takes another key here,
and its id is replaced in all lines: messages sealed for that key decide the same. The connections
to DERP servers are not repeated, since what a server says of a key cannot be said of another.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, cast

from iroh_proto.address import Address, UdpAddress
from iroh_proto.derp.relay import DerpServer
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import DatagramMachine, Machine, TcpUser, Transmit
from iroh_proto.magicsock import Magicsock
from iroh_proto.paths.finder import PathFinder
from iroh_proto.paths.own_addresses import OwnAddresses
from iroh_proto.stun.server import StunServer
from iroh_proto.trace.disco import DiscoReader
from iroh_proto.trace.lines import MALFORMED, in_words, read_lines
from iroh_proto.trace.tape import payloads_of
from iroh_proto.trace.values import RESERVED, Json, decode_value, fields_of, plain

MACHINES: Final[Mapping[str, Callable[..., object]]] = MappingProxyType(
    {kind.__name__: kind for kind in (DerpServer, Magicsock, OwnAddresses, PathFinder, StunServer)}
)
"""The machines that can be made from a time line. No other name in it is looked up anywhere."""

_INPUTS = frozenset({"CommandGiven", "TimerHandled", "DatagramsReceived", "TcpDataReceived"})
_MISSING = object()
_CONCEALED = re.compile(r'\{"\$secret_of": "([0-9a-f]{64})"\}')


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a program first did something else than recorded.

    :ivar line: the line's number in the time line, from 1; after the last if something is missing
        at the end.
    :ivar time: seconds, as in the line.
    :ivar program: which one.
    :ivar recorded: what the line says: its kind, and of its fields those that differ if the
        program did something of that kind.
    :ivar repeated: what the program did.
    """

    line: int
    time: float
    program: str
    recorded: str
    repeated: str


@dataclass(slots=True)
class Replay:
    """What came of a replay.

    :ivar difference: the first difference, ``None`` if there is none.
    :ivar inputs: by program, how many inputs were given again.
    :ivar outputs: by program, how many outputs were found to be the same.
    :ivar unknown: by program that was left out, the name of its machine, of which none is known.
    """

    difference: Difference | None = None
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


class _Deviation(Exception):
    """A program does something else than recorded: both as words, or as entries with a kind."""

    def __init__(self, recorded: Json | str, repeated: Json | str) -> None:
        super().__init__(recorded, repeated)
        self.recorded = recorded
        self.repeated = repeated


class _NothingDrawn(_Deviation):
    """A program draws lots after the last that were recorded."""


def replay(
    lines: Iterable[str],
    *,
    is_cut: bool = False,
    machines: Mapping[str, Callable[..., object]] = MACHINES,
) -> Replay:
    """Repeat the programs of a time line, up to the first difference.

    Programs that the time line has no recipe of, or of a machine that is not among ``machines``,
    are left out.

    :param is_cut: whether the end is missing, so that what programs did last may not be there.
    :raises DecodeError: if it is no time line.
    """
    secrets, epoch, entries = _read(lines)
    result = Replay()
    programs: dict[str, _Program] = {}
    number, entry = 1, Json()
    try:
        drawn = _draws(entries)
        for number, entry in entries:  # noqa: B007 - it says where it stopped
            at, kind = str(entry["at"]), entry["kind"]
            if kind == "MachineMade":
                name = str(entry["machine"])
                make = machines.get(name)
                if make is None:
                    result.unknown.setdefault(at, name)
                    programs.pop(at, None)
                    continue
                config = _config(entry, secrets)
                programs[at] = _Program(make, config, drawn[at], secrets, epoch)
                result.inputs.setdefault(at, 0)
                result.outputs.setdefault(at, 0)
            elif at in programs:
                _repeat(programs[at], entry)
                (result.inputs if kind in _INPUTS else result.outputs)[at] += 1
        for at, program in () if is_cut else programs.items():
            number, entry = number + 1, {"at": at, "time": entry["time"]}
            program.expect_nothing("the end")
    except _Deviation as deviation:
        if is_cut and isinstance(deviation, _NothingDrawn):
            return result
        recorded, repeated = _unlike(deviation.recorded, deviation.repeated)
        result.difference = Difference(
            line=number,
            time=_time(entry),
            program=str(entry["at"]),
            recorded=_shown(recorded),
            repeated=_shown(repeated),
        )
    except MALFORMED as error:
        raise DecodeError(f"line {number} cannot be repeated: {in_words(error)}") from error
    return result


def _repeat(program: _Program, entry: Json) -> None:
    try:
        program.repeat(entry)
    except LocalProtocolError as error:
        raise _Deviation("no refusal", f"refused: {error}") from error


class _Program:
    """One machine, given its inputs again."""

    def __init__(
        self,
        make: Callable[..., object],
        config: dict[str, object],
        draws: deque[object],
        secrets: Mapping[str, SecretKey],
        epoch: float,
    ) -> None:
        self._epoch = epoch
        self._time = 0.0
        self._reader = DiscoReader(secrets.values()) if secrets else None
        if "rng" in _parameters(make):
            config = {**config, "rng": _DrawnBefore(draws)}
        self._machine = make(**config)
        self._events: deque[Json] = deque()
        self._datagrams: deque[tuple[object, bytes]] = deque()
        self._payloads: deque[Json] = deque()

    def repeat(self, entry: Json) -> None:
        """Give an input that was recorded, or compare an output."""
        match entry["kind"]:
            case "CommandGiven":
                self._begin(entry)
                self._command(entry)
            case "TimerHandled":
                self._begin(entry)
                self._handle_timer(entry)
            case "DatagramsReceived":
                self._begin(entry)
                batch = [self._sealed(data) for data in _list(entry, "datagrams")]
                machine = cast("DatagramMachine[object]", self._machine)
                machine.receive_datagrams(batch, _address(entry["source"]), now=self._now(entry))
            case "TcpDataReceived":
                self._begin(entry)
                data = bytes.fromhex(str(entry["data"]))
                tcp_id = cast(int, entry["tcp_id"])
                cast(TcpUser, self._machine).receive_tcp_data(tcp_id, data, now=self._now(entry))
            case "TcpDataSent":
                written = cast(TcpUser, self._machine).tcp_data_to_send(cast(int, entry["tcp_id"]))
                _compare_field(entry, "data", bytes(written).hex())
            case "DatagramsSent":
                self._compare_datagrams(entry)
            case "PayloadsTaken":
                for payload in _list(entry, "payloads"):
                    self._compare_payload(cast(Json, payload))
            case "LotsDrawn":
                return
            case _:
                fields = {name: entry[name] for name in entry if name not in RESERVED}
                recorded = {"kind": entry["kind"], **fields}
                if not self._events:
                    raise _Deviation(recorded, "nothing")
                _compare(recorded, self._events.popleft())
        self._drain()

    def expect_nothing(self, recorded: str) -> None:
        """Fail if there is something that was not recorded.

        :raises _Deviation: if so.
        """
        for event in self._events:
            raise _Deviation(recorded, event)
        for addr, data in self._datagrams:
            raise _Deviation(recorded, _sent(addr, data.hex()))
        for payload in self._payloads:
            raise _Deviation(recorded, _taken(payload))

    def _begin(self, entry: Json) -> None:
        """See that what came of the inputs before was all there, before time goes on."""
        if _time(entry) > self._time:
            self.expect_nothing(f"nothing more before {entry['kind']}")
            self._time = _time(entry)

    def _now(self, entry: Json) -> float:
        return _time(entry) + self._epoch

    def _command(self, entry: Json) -> None:
        name = str(entry["command"])
        if name.startswith("_"):
            raise DecodeError(f"no command: {name}")
        args = cast("tuple[object, ...]", decode_value(entry["args"]))
        options = {
            key: decode_value(value) for key, value in cast(Json, entry.get("options", {})).items()
        }
        method = cast("Callable[..., object]", getattr(self._machine, name))
        if "now" in _parameters(method):
            options["now"] = self._now(entry)
        result: object = None
        raised: str | None = None
        try:
            result = method(*args, **options)
        except LocalProtocolError as error:
            raised = str(error)
        _compare_field(entry, "raised", raised)
        _compare_field(entry, "result", plain(result))

    def _handle_timer(self, entry: Json) -> None:
        machine = cast("Machine[object]", self._machine)
        deadline = machine.get_timer()
        _compare_field(entry, "deadline", None if deadline is None else deadline - self._epoch)
        machine.handle_timer(now=self._now(entry))

    def _drain(self) -> None:
        """Take out what there is. A host may take it later, which changes nothing."""
        machine = self._machine
        if hasattr(machine, "next_event"):
            while (event := cast("Machine[object]", machine).next_event()) is not None:
                self._events.append({"kind": type(event).__name__, **fields_of(event)})
        if hasattr(machine, "datagrams_to_send"):
            for transmit in cast("list[Transmit]", machine.datagrams_to_send()):
                self._datagrams += [(transmit.addr, bytes(data)) for data in transmit.datagrams]
        if hasattr(machine, "received_payloads"):
            for payload in payloads_of(machine.received_payloads()):
                self._payloads += _single(payload)

    def _compare_datagrams(self, entry: Json) -> None:
        destination = _address(entry["destination"])
        for recorded in _list(entry, "datagrams"):
            wanted = _sent(destination, recorded)
            if not self._datagrams:
                raise _Deviation(wanted, "nothing")
            addr, data = self._datagrams.popleft()
            _compare(wanted, _sent(addr, self._opened(data, recorded)))

    def _compare_payload(self, recorded: Json) -> None:
        for single in _single(recorded):
            if not self._payloads:
                raise _Deviation(_taken(single), "nothing")
            _compare(_taken(single), _taken(self._payloads.popleft()))

    def _opened(self, data: bytes, recorded: object) -> object:
        """Return what is to be compared of a datagram with what was recorded."""
        if self._reader is None:
            return data.hex()
        if isinstance(recorded, dict) and "to" in recorded:
            self._reader.note_peer(NodeId.from_str(recorded["to"]))
        opened = self._reader.open(data)
        return data.hex() if opened is None else opened

    def _sealed(self, recorded: object) -> bytes:
        if not isinstance(recorded, dict):
            return bytes.fromhex(str(recorded))
        if self._reader is None:
            raise DecodeError("an opened datagram, but no node whose key was left out")
        return self._reader.seal(recorded)


class _DrawnBefore(random.Random):
    """A source of chance that gives what was drawn before."""

    def __new__(cls, draws: deque[object]) -> _DrawnBefore:
        return super().__new__(cls)

    def __init__(self, draws: deque[object]) -> None:
        self._draws = draws

    def random(self) -> float:
        does = "draws a number from 0 to 1"
        drawn = self._next(does)
        if not isinstance(drawn, float):
            raise _Deviation(f"drew {drawn}", does)
        return drawn

    def getrandbits(self, k: int, /) -> int:
        does = f"draws {k} bits"
        drawn = self._next(does)
        if not isinstance(drawn, list) or drawn[0] != k:
            raise _Deviation(f"drew {drawn}", does)
        return int(drawn[1], 16)

    def _next(self, does: str) -> object:
        if not self._draws:
            raise _NothingDrawn("drew nothing more", does)
        return self._draws.popleft()


def _read(lines: Iterable[str]) -> tuple[dict[str, SecretKey], float, list[tuple[int, Json]]]:
    """Return keys for the nodes that kept theirs secret, the epoch, and the numbered lines."""
    text = "\n".join(line.rstrip("\n") for line in lines)
    secrets: dict[str, SecretKey] = {}
    for node_id in dict.fromkeys(_CONCEALED.findall(text)):
        secret_key = SecretKey(hashlib.blake2b(node_id.encode(), digest_size=32).digest())
        text = text.replace(node_id, str(secret_key.public))
        secrets[str(secret_key.public)] = secret_key
    head, entries = read_lines(text.split("\n"))
    epoch = head.get("epoch", 0.0)
    if not isinstance(epoch, int | float) or not math.isfinite(epoch):
        raise DecodeError("no time line: its epoch is no number of seconds")
    return secrets, epoch, entries


def _draws(entries: Iterable[tuple[int, Json]]) -> dict[str, deque[object]]:
    """Return by program what it drew, in order."""
    draws: dict[str, deque[object]] = {}
    for _, entry in entries:
        draws.setdefault(str(entry["at"]), deque()).extend(_list(entry, "drawn"))
    return draws


def _config(entry: Json, secrets: Mapping[str, SecretKey]) -> dict[str, object]:
    config: dict[str, object] = {}
    for name, value in cast(Json, entry["config"]).items():
        owner = value.get("$secret_of") if isinstance(value, dict) else None
        config[name] = decode_value(value) if owner is None else secrets[str(owner)]
    return config


def _parameters(function: Callable[..., object]) -> Mapping[str, object]:
    return inspect.signature(function).parameters


def _list(entry: Json, name: str) -> list[object]:
    return cast("list[object]", entry.get(name, []))


def _time(entry: Json) -> float:
    return cast(float, entry["time"])


def _address(value: object) -> Address:
    return (
        UdpAddress.from_str(value) if isinstance(value, str) else cast(Address, decode_value(value))
    )


def _single(payload: Json) -> Iterator[Json]:
    """Yield a payload for each of its datagrams, since batches may be cut anywhere."""
    for data in _list(payload, "datagrams"):
        yield {**payload, "datagrams": data}


def _sent(addr: object, datagram: object) -> Json:
    """Return the entry of one datagram."""
    return {"kind": "DatagramsSent", "destination": str(addr), "datagrams": [datagram]}


def _taken(payload: Json) -> Json:
    """Return the entry of one payload."""
    return {"kind": "PayloadsTaken", **payload}


def _compare(recorded: Json, repeated: Json) -> None:
    if recorded != repeated:
        raise _Deviation(recorded, repeated)


def _compare_field(entry: Json, name: str, repeated: object) -> None:
    """Compare what may be missing in a line: ``None`` then."""
    _compare({**entry, name: entry.get(name)}, {**entry, name: repeated})


def _unlike(recorded: Json | str, repeated: Json | str) -> tuple[Json | str, Json | str]:
    """Return of two entries of one kind what differs, and anything else as it is."""
    both = (recorded, repeated)
    if isinstance(recorded, str) or isinstance(repeated, str):
        return both
    if recorded.get("kind") != repeated.get("kind"):
        return both
    alike = {name for name in recorded if recorded[name] == repeated.get(name, _MISSING)}
    alike -= {"kind", "command"}
    one, other = ({n: entry[n] for n in entry if n not in alike} for entry in (recorded, repeated))
    return one, other


def _shown(value: Json | str) -> str:
    if isinstance(value, str):
        return value
    fields = {name: value[name] for name in value if name not in RESERVED}
    return f"{value.get('kind')} {json.dumps(fields, default=plain)}"
