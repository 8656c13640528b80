r"""Writes down what happens in a simulated network, as JSON lines.

The first line names the format and the lifelines: hosts and routers, in an order that puts
each next to its neighbours. Every other line is an object with ``time`` (seconds), ``at`` (a
program, ``"host/program"``, or a router), ``kind`` (the class of an event or of a
:data:`~iroh_proto.testing.happenings.Happening`) and its fields; bytes are hexadecimal, addresses
are text. Beside datagrams stand ``labels``, which say in words what they are; beside TCP data
stands ``carried``: what of disco is inside, with a ``key`` that is the same where it is sent and
where it arrives.

::

    pair = NatPair(PORT_RESTRICTED, PORT_RESTRICTED, seed=1)
    timeline = Timeline(pair.network, secret_keys=pair.secret_keys)
    pair.run()
    text = "\n".join(timeline.lines())
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from iroh_proto.box import SharedBox
from iroh_proto.disco.message import (
    DISCO_MAGIC,
    CallMeMaybe,
    Ping,
    Pong,
    decode_disco_message,
    is_disco,
    open_envelope,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.paths.select import PathInfo
from iroh_proto.stun.message import decode_binding_request, decode_binding_response, is_stun
from iroh_proto.testing.happenings import (
    DatagramsReceived,
    DatagramsSent,
    Happening,
    TcpDataReceived,
    TcpDataSent,
)
from iroh_proto.testing.network import Host, Network
from iroh_proto.testing.routers import Router, routers_above

FORMAT: Final = "iroh-timeline/1"

KEY_SIZE: Final = 8
"""Bytes of a nonce that tell one sealed message from another."""

RESERVED: Final = ("time", "at", "kind")
"""What every line has. A field of such a name has ``event_`` before it."""

_NONCE_SIZE: Final = 24
_LENGTH_SIZE: Final = 2  # bytes before each datagram in a packet of a DERP server, little-endian

Json: TypeAlias = dict[str, object]


class Timeline:
    """Records a network from now on.

    :param secret_keys: the nodes' keys, with which disco messages are opened to label them.
        Sealed ones are labelled as such.
    """

    def __init__(self, network: Network, *, secret_keys: Iterable[SecretKey] = ()) -> None:
        self._network = network
        self._reader = Reader(secret_keys)
        self._entries: list[Json] = []
        network.observers.append(self._observe)
        network.recorders.append(self._record)

    def stop(self) -> None:
        """Record no more."""
        self._network.observers.remove(self._observe)
        self._network.recorders.remove(self._record)

    def lines(self) -> Iterator[str]:
        """Yield the lines so far, without line ends."""
        yield json.dumps({"format": FORMAT, "lifelines": lifelines(self._network)})
        for entry in self._entries:
            yield json.dumps(entry)

    def _observe(self, time: float, name: str, event: object) -> None:
        self._add(time, name, event)

    def _record(self, time: float, name: str, happening: Happening) -> None:
        entry = self._add(time, name, happening)
        if isinstance(happening, DatagramsSent | DatagramsReceived):
            entry["labels"] = [self._reader.label(data) for data in happening.datagrams]
        elif isinstance(happening, TcpDataSent | TcpDataReceived):
            entry["carried"] = self._reader.carried(happening.data)

    def _add(self, time: float, name: str, value: object) -> Json:
        entry: Json = {"time": time, "at": name, "kind": type(value).__name__, **_fields(value)}
        self._entries.append(entry)
        return entry


class Reader:
    """Says in words what datagrams are."""

    def __init__(self, secret_keys: Iterable[SecretKey] = ()) -> None:
        self._secrets = tuple(secret_keys)
        self._boxes: dict[NodeId, list[SharedBox]] = {}

    def label(self, datagram: bytes) -> str:
        """Return a few words."""
        if is_disco(datagram):
            return self._disco(datagram)
        if is_stun(datagram):
            return _stun(datagram)
        return f"payload of {len(datagram)} bytes"

    def carried(self, data: bytes) -> list[Json]:
        """Return key and label of each disco datagram in a piece of a DERP connection."""
        found: list[Json] = []
        place = data.find(DISCO_MAGIC)
        while place >= 0:
            size = int.from_bytes(data[max(0, place - _LENGTH_SIZE) : place], "little")
            sealed = data[place : place + size]
            key = sealed[-_NONCE_SIZE:][:KEY_SIZE].hex()
            found.append({"key": key, "label": self.label(sealed)})
            place = data.find(DISCO_MAGIC, place + 1)
        return found

    def _disco(self, datagram: bytes) -> str:
        try:
            sender, sealed = open_envelope(datagram)
        except DecodeError:
            return "broken disco"
        for box in self._boxes_of(sender):
            try:
                message = decode_disco_message(box.open(sealed))
            except DecodeError:
                continue
            return _words(message)
        return "sealed disco"

    def _boxes_of(self, sender: NodeId) -> list[SharedBox]:
        boxes = self._boxes.get(sender)
        if boxes is None:
            others = [secret for secret in self._secrets if secret.public != sender]
            boxes = [SharedBox(secret, sender) for secret in others]
            if any(secret.public == sender for secret in self._secrets):
                self._boxes[sender] = boxes  # strangers' are not kept: there may be many
        return boxes


def lifelines(network: Network) -> list[str]:
    """Return hosts and routers: NATs beside their hosts, public hosts in the middle."""
    chains = [
        [host.name, *(router.name for router in _routers_of(host))]
        for host in network.hosts.values()
    ]
    behind = [chain for chain in chains if len(chain) > 1]
    public = [chain[0] for chain in chains if len(chain) == 1]
    half = (len(behind) + 1) // 2
    left = [name for names in behind[:half] for name in names]
    right = [name for names in behind[half:] for name in reversed(names)]
    return list(dict.fromkeys([*left, *public, *right]))


def _routers_of(host: Host) -> Iterable[Router]:
    return routers_above(host.attachments[0].segment) if host.attachments else ()


def _words(message: object) -> str:
    match message:
        case Ping():
            return f"ping {message.tx_id[:2].hex()}"
        case Pong():
            return f"pong {message.tx_id[:2].hex()}, saw {message.observed}"
        case CallMeMaybe():
            return f"call me maybe ({len(message.addresses)} addresses)"
        case _:
            return type(message).__name__


def _stun(datagram: bytes) -> str:
    try:
        decode_binding_request(datagram)
    except DecodeError:
        pass
    else:
        return "STUN request"
    try:
        return f"STUN: you are {decode_binding_response(datagram)[1]}"
    except DecodeError:
        return "broken STUN"


def _fields(value: object) -> Json:
    if not dataclasses.is_dataclass(value):
        return {"value": repr(value)}
    names = [field.name for field in dataclasses.fields(value)]
    return {
        f"event_{name}" if name in RESERVED else name: _plain(getattr(value, name))
        for name in names
    }


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, NodeId):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, PathInfo):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]  # type: ignore[attr-defined]
    return str(value)
