"""What of a time line is drawn as arrows: where datagrams were.

In a simulated network a packet is followed by its number, from NAT to NAT. A real node sees its own
end alone. What it sent is known to have arrived if a pong says so, or if the lines have the other
end, too (:func:`iroh_proto.testing.merging.merge`), where the nonce tells which message it was.

A recorder that did not know whom a message was for wrote down no more than its size. Whom it went
to follows from who else was heard from that address, and what it said from the other end, which
opened it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, cast

from iroh_proto.box import BOX_OVERHEAD
from iroh_proto.disco.message import Ping, Pong, decode_disco_message
from iroh_proto.errors import DecodeError
from iroh_proto.trace.values import Json

Numbered: TypeAlias = tuple[int, Json]

SHORT_ID: Final = 10
"""Digits of a node id that name a lifeline."""

_SAW: Final = ", saw "  # in the label of a pong, before the address that its ping came from

_HOPS: Final = ("DatagramsSent", "PacketTranslated", "PacketFiltered", "DatagramsReceived")


@dataclass(slots=True)
class Point:
    """Something with a place in the picture: on a lifeline, at a time.

    :ivar mark: ``"cross"`` for what was stopped here, ``"stub"`` for what went nobody knows where,
        ``"box"`` and ``"note"`` for what a node says; else nothing.
    """

    time: float
    lifeline: str
    order: int
    text: str = ""
    mark: str = ""
    y: float = 0.0


@dataclass(slots=True)
class Flight:
    """A datagram, or what a DERP server carries, and where it was.

    :ivar is_certain: whether it is known that it arrived at the last point.
    """

    points: list[Point]
    is_carried: bool
    is_certain: bool = True

    @property
    def is_pong(self) -> bool:
        """Whether it answers a ping."""
        return self.points[0].text.startswith("pong")


def time_of(entry: Json) -> float:
    """Return the time of a line."""
    return cast(float, entry["time"])


def is_about_paths(entry: Json) -> bool:
    """Say whether a line has messages between nodes."""
    return bool(entry.get("carried")) or any(map(_is_disco, _labels(entry)))


def flights_of(
    entries: Sequence[Numbered], *, payload: bool, begin: float, end: float
) -> Iterator[Flight]:
    """Yield everything that took off between two times.

    :param payload: whether payload datagrams belong to it.
    """
    for flight in (*_packets(entries, payload), *_carried(entries), *_Messages(entries).flights()):
        if begin <= flight.points[0].time <= end:
            yield flight


def _is_disco(label: str) -> bool:
    return label.startswith(("ping", "pong", "call me maybe")) or label.endswith("disco")


def _labels(entry: Json) -> list[str]:
    labels = entry.get("labels")
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _packets(entries: Sequence[Numbered], payload: bool) -> Iterator[Flight]:
    by_packet: dict[object, list[Numbered]] = {}
    for number, entry in entries:
        if entry["kind"] in _HOPS and "packet" in entry:
            by_packet.setdefault(entry["packet"], []).append((number, entry))
    for hops in by_packet.values():
        first, last = hops[0][1], hops[-1][1]
        labels = [label for label in _labels(first) if payload or not label.startswith("payload")]
        if first["kind"] != "DatagramsSent" or not labels:
            continue
        points = [_hop(number, entry) for number, entry in hops]
        points[0].text = _with_destination(", ".join(labels), first.get("destination"))
        if last["kind"] not in ("PacketFiltered", "DatagramsReceived"):
            points[-1].mark = "stub"
        yield Flight(points, is_carried=False)


def _hop(number: int, entry: Json) -> Point:
    point = Point(time_of(entry), str(entry["at"]), number)
    if entry["kind"] == "PacketFiltered":
        point.mark, point.text = "cross", f"not let in: {entry.get('source')}"
    elif entry["kind"] == "PacketTranslated" and entry.get("source") != entry.get("new_source"):
        point.text = f"as {entry.get('new_source')}"
    return point


def _carried(entries: Sequence[Numbered]) -> Iterator[Flight]:
    by_key: dict[object, list[Point]] = {}
    for number, entry in entries:
        carried = entry.get("carried")
        for item in carried if isinstance(carried, list) else []:
            points = by_key.setdefault(item["key"], [])
            if not points or points[-1].lifeline != entry["at"]:
                text = "" if points else _carried_title(item["label"])
                points.append(Point(time_of(entry), str(entry["at"]), number, text))
    for points in by_key.values():
        yield Flight(points, is_carried=True)


@dataclass(frozen=True, slots=True)
class _Sight:
    """A message as one node saw it leave or arrive."""

    number: int
    entry: Json
    message: Json
    label: str

    def point(self, text: str = "", mark: str = "") -> Point:
        """Return where and when that was."""
        return Point(time_of(self.entry), self.lifeline, self.number, text, mark)

    def far_point(self, end: str, text: str = "") -> Point:
        """Return the other end, of which the time is not known."""
        return Point(time_of(self.entry), self.lifeline_of(end), self.number, text)

    def lifeline_of(self, end: str) -> str:
        """Return the lifeline of the node that it is ``"from"`` or ``"to"``."""
        return str(self.message.get(end, "unknown"))[:SHORT_ID]

    @property
    def lifeline(self) -> str:
        """Who saw it."""
        return str(self.entry["at"])

    @property
    def sealed_size(self) -> str:
        """The size of its box in bytes, which the recorder of either end knows."""
        if "sealed" in self.message:
            return str(self.message["sealed"])
        return str(len(str(self.message.get("message"))) // 2 + BOX_OVERHEAD)

    @property
    def address(self) -> object:
        """Where it went or came from."""
        return self.entry.get("destination", self.entry.get("source"))

    @property
    def is_carried(self) -> bool:
        """Whether it went through a DERP server."""
        return isinstance(self.address, dict)

    @property
    def title(self) -> str:
        """What stands beside the arrow."""
        if self.is_carried:
            return _carried_title(self.label)
        return _with_destination(self.label, self.address)

    @property
    def origin(self) -> str:
        """What stands where it arrives: the address that it came from."""
        return "" if self.is_carried else f"from {self.address}"


def _with_destination(label: str, address: object) -> str:
    """Return what a datagram is and where it goes, which a pong may have said already."""
    return label if label.endswith(f"{_SAW}{address}") else f"{label} → {address}"


def _carried_title(label: str) -> str:
    """Return what a datagram is that a DERP server carries; from where says nothing then."""
    return f"{label.partition(_SAW)[0]} by DERP"


class _Messages:
    """Disco messages of real nodes, each from one end or from both."""

    def __init__(self, entries: Sequence[Numbered]) -> None:
        self._traced: set[str] = set()
        self._sent: dict[str, _Sight] = {}
        self._received: dict[str, _Sight] = {}
        for number, entry in entries:
            datagrams, labels = entry.get("datagrams"), _labels(entry)
            if not isinstance(datagrams, list) or len(labels) != len(datagrams):
                continue
            seen = self._sent if entry["kind"] == "DatagramsSent" else self._received
            for place, (message, label) in enumerate(zip(datagrams, labels, strict=True)):
                if isinstance(message, dict):
                    self._traced.add(str(entry["at"]))
                    nonce = str(message.get("nonce", f"{number}.{place}"))
                    seen.setdefault(nonce, _Sight(number, entry, message, label))
        self._address_sealed()
        self._open_sealed()
        self._pings_sent = _by_transaction(self._sent, Ping)
        self._pings_received = _by_transaction(self._received, Ping)
        self._pongs_received = _by_transaction(self._received, Pong)

    def _address_sealed(self) -> None:
        """Say of sealed messages whom they are to: who was heard from where they went."""
        heard = {
            (sight.lifeline, str(sight.address)): sight.message["from"]
            for sight in self._received.values()
            if "from" in sight.message
        }
        for key, sight in self._sent.items():
            peer = heard.get((sight.lifeline, str(sight.address)))
            if "to" not in sight.message and peer is not None:
                self._sent[key] = replace(sight, message={**sight.message, "to": peer})

    def _open_sealed(self) -> None:
        """Say of sealed messages what the other end read in them, in the order of their sizes."""
        unsent: dict[tuple[str, str, str], deque[str]] = {}
        for nonce, sight in self._received.items():
            if nonce not in self._sent and "nonce" in sight.message:
                ends = (sight.lifeline_of("from"), sight.lifeline)
                unsent.setdefault((*ends, sight.sealed_size), deque()).append(nonce)
        for key, sight in list(self._sent.items()):
            ends = (sight.lifeline, sight.lifeline_of("to"))
            nonces = unsent.get((*ends, sight.sealed_size))
            if "sealed" in sight.message and nonces:
                nonce = nonces.popleft()
                arrival = self._received[nonce]
                del self._sent[key]
                self._sent[nonce] = replace(sight, message=arrival.message, label=arrival.label)

    def flights(self) -> Iterator[Flight]:
        """Yield each message once."""
        for nonce, sight in self._sent.items():
            arrival = self._received.get(nonce)
            if arrival is not None:
                points = [sight.point(self._title(sight)), arrival.point(self._origin(arrival))]
                yield Flight(points, sight.is_carried)
            else:
                yield self._one_ended(sight)
        for nonce, sight in self._received.items():
            if nonce not in self._sent:
                title = _carried_title(sight.label) if sight.is_carried else sight.label
                points = [sight.far_point("from", title), sight.point(self._origin(sight))]
                yield Flight(points, sight.is_carried)

    def _title(self, sight: _Sight) -> str:
        """Return what stands beside an arrow: no address that stands where its ping arrived."""
        ping = self._pings_received.get(_transaction(sight.message, Pong))
        if ping is None or sight.is_carried or ping.address != sight.address:
            return sight.title
        return sight.label.removesuffix(f"{_SAW}{sight.address}")

    def _origin(self, sight: _Sight) -> str:
        """Return what stands where a message arrives: nothing if it is from where its ping went."""
        ping = self._pings_sent.get(_transaction(sight.message, Pong))
        return "" if ping is not None and ping.address == sight.address else sight.origin

    def _one_ended(self, sight: _Sight) -> Flight:
        if "to" not in sight.message:
            return Flight(
                [sight.point(self._title(sight), "stub")], sight.is_carried, is_certain=False
            )
        far = sight.far_point("to")
        if far.lifeline in self._traced:
            far.mark, far.text = "cross", "did not arrive"
            return Flight([sight.point(self._title(sight)), far], sight.is_carried)
        tx_id = _transaction(sight.message, Ping)
        if tx_id is not None and tx_id not in self._pongs_received:
            point = sight.point(f"{sight.title}: no answer", "unanswered")
            return Flight([point, far], sight.is_carried, is_certain=False)
        points = [sight.point(self._title(sight)), far]
        return Flight(points, sight.is_carried, is_certain=tx_id is not None)


def _by_transaction(
    sights: Mapping[str, _Sight], kind: type[Ping | Pong]
) -> dict[bytes | None, _Sight]:
    """Return the messages of a kind by their transaction ids."""
    found = {_transaction(sight.message, kind): sight for sight in sights.values()}
    found.pop(None, None)
    return found


def _transaction(message: Mapping[str, object], kind: type[Ping | Pong]) -> bytes | None:
    """Return the transaction id of a message of a kind."""
    try:
        decoded = decode_disco_message(bytes.fromhex(str(message.get("message"))))
    except (DecodeError, ValueError):
        return None
    return decoded.tx_id if isinstance(decoded, kind) else None
