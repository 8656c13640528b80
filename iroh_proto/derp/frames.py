"""What DERP clients and servers tell each other, whatever the dialect.

A :class:`Frame` is a number and a body; a :class:`FrameTable` gives the numbers and the lengths of
bodies in one dialect, and :mod:`iroh_proto.derp.codec` puts frames on a stream. Frames are plain
slotted classes because one is made for each packet that a client receives.

The payload of a packet carries datagrams, up to 65,504 bytes of them, each as
``length (u16le) || datagram`` (:func:`pack_datagrams`, :func:`split_datagrams`).

Source: iroh v0.12.0 ``iroh-net/src/derp/codec.rs``, v0.35.0 ``iroh-relay/src/protos/relay.rs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, Self, TypeAlias

from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import CHECKED_KEYS_LIMIT, KEY_SIZE, NodeId

PACKET_LIMIT = 65_536
"""Most bytes of payload in one packet; longer ones end the connection, in every generation."""

PACKED_LIMIT = PACKET_LIMIT - KEY_SIZE
"""Most bytes that iroh packs into one payload, prefixes included: it counts the key as well."""

LENGTH_PREFIX_SIZE = 2
"""Bytes of the length before each datagram in a payload."""

DATAGRAM_LIMIT = PACKED_LIMIT - LENGTH_PREFIX_SIZE
"""Most bytes in one relayed datagram, which is packed behind its two-byte length."""

FRAME_LIMIT = 1_048_576
"""Most bytes in the body of any frame (upstream's ``MAX_FRAME_SIZE``)."""

HANDSHAKE_FRAME_LIMIT = 4_096
"""Most bytes in the body of a handshake frame. Real ones have some 120; a stranger may not make
the other side buffer more."""

PING_SIZE = 8
"""Bytes of data in a Ping and its Pong."""

HEADER = Struct(">BI")
"""What comes before the body of a framed frame: its number and the body's length."""

KEYED_HEADER = Struct(">BI32s")
"""The header of a frame whose body begins with a node id, together with that id."""

HEADER_SIZE = HEADER.size
PAYLOAD_AT = KEYED_HEADER.size
"""Where the payload of a framed packet begins."""

SENT_PACKET = 4
"""The number of SendPacket, in every dialect that has it."""

RELAYED_PACKET = 5
"""The number of RecvPacket, in every dialect that has it."""

STATUS_HEALTHY = 0
STATUS_SAME_NODE_ID = 1
STATUS_RATE_LIMITED = 2

SAME_NODE_ID_PROBLEM = (
    "Another endpoint connected with the same endpoint id. No more messages will be received."
)
"""What a server says to a client that gave way to a newer one (upstream's words, since 0.98)."""

RECOVERED = "The connection is healthy and has recovered from previous problems"
"""What a server of 0.91 or later says in a Health frame when a problem is over."""

STATUS_PROBLEMS = {
    STATUS_HEALTHY: "",
    STATUS_SAME_NODE_ID: SAME_NODE_ID_PROBLEM,
    STATUS_RATE_LIMITED: "the server limits the rate of this connection",
}

_LENGTH_PREFIX = Struct("<H")
_RESTARTING = Struct(">II")


class Frame:
    """What one side tells the other; the base of all frames."""

    __slots__ = ()

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return b""

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header; the frame table has checked their number.

        :raises DecodeError: if the content is wrong.
        """
        return cls()


@dataclass(slots=True)
class SendPacket(Frame):
    """Client to server: a payload for ``dst``. Body: ``dst (32) || payload``."""

    dst: NodeId
    payload: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.dst + self.payload

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(node_id_of(body[:KEY_SIZE]), body[KEY_SIZE:])


@dataclass(slots=True)
class RecvPacket(Frame):
    """Server to client: a payload from ``src``. Body: ``src (32) || payload``."""

    src: NodeId
    payload: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.src + self.payload

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(node_id_of(body[:KEY_SIZE]), body[KEY_SIZE:])


PacketParts: TypeAlias = list[bytes | memoryview]
"""Packets of one source on their way through a server, in turn the header and the payload of each.
The header is that of a framed RecvPacket, ``5 || length (u32be) || source (32)``, which is the same
in all dialects up to v3; those after it have another kind of both, for all packets of a list
(:mod:`iroh_proto.derp.segments`). Payloads may be views of what was received."""


@dataclass(slots=True)
class PacketGroups:
    """Packets that arrived without another frame between them, grouped by destination.

    Not a frame itself: it stands for many, so that a server need not make an object for each.
    ``groups`` keeps the order of packets for one destination; across them it does not matter.
    Destinations are not checked to be node ids: what is none is nobody's either.
    """

    groups: dict[bytes, PacketParts]


PacketRun: TypeAlias = tuple[bytes, bytes, int]
"""Packets of one size for one destination, joined as they are written to a framed client:
the destination, framed RecvPackets, and how many of them there are. A plain tuple, as one is made
for nearly each read."""


def parts_of_run(run: PacketRun) -> PacketParts:
    """Return the packets one by one, for who writes them in another form."""
    _, data, count = run
    view, size = memoryview(data), len(data) // count
    header = data[:PAYLOAD_AT]
    parts: PacketParts = []
    for start in range(0, len(data), size):
        parts += (header, view[start + PAYLOAD_AT : start + size])
    return parts


@dataclass(slots=True)
class UnknownFrame(Frame):
    """A frame that was skipped, in a dialect where those that one does not know are."""

    number: int


@dataclass(slots=True)
class KeepAlive(Frame):
    """Server to client: the connection lives. Empty body."""


@dataclass(slots=True)
class NotePreferred(Frame):
    """Client to server: whether this server is the client's home. Body: one byte, 1 or 0."""

    preferred: bool

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return b"\x01" if self.preferred else b"\x00"

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header.

        :raises DecodeError: if the byte is neither 0 nor 1.
        """
        if body not in (b"\x00", b"\x01"):
            raise DecodeError(f"NotePreferred says 0 or 1, not {body.hex()}")
        return cls(body == b"\x01")


@dataclass(slots=True)
class WatchConns(Frame):
    """Mesh member to server: tell who comes and goes. Empty body."""


@dataclass(slots=True)
class PeerGone(Frame):
    """Server to client: ``node_id`` left. Body: ``node_id (32)``. Do not depend on it."""

    node_id: NodeId

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return bytes(self.node_id)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(node_id_of(body))


@dataclass(slots=True)
class Ping(Frame):
    """Both ways: to be answered by a :class:`Pong` with the same 8 bytes."""

    data: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.data

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(body)


@dataclass(slots=True)
class Pong(Frame):
    """Both ways: the answer to the :class:`Ping` with these 8 bytes."""

    data: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.data

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(body)


@dataclass(slots=True)
class Health(Frame):
    """Server to client: a problem with this connection, in words. Body: UTF-8 text."""

    problem: str

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.problem.encode()

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header.

        :raises DecodeError: if it is not UTF-8.
        """
        try:
            return cls(body.decode())
        except UnicodeDecodeError:
            raise DecodeError("a Health frame that is not UTF-8") from None


@dataclass(slots=True)
class Status(Frame):
    """Server to client, iroh 0.98 and later: how this connection is. Body: a code, one byte.

    Bytes behind it are ignored. A code that is not in :data:`STATUS_PROBLEMS` is unknown.
    """

    code: int

    @property
    def problem(self) -> str:
        """The problem in words, empty if there is none."""
        return STATUS_PROBLEMS.get(self.code, f"unknown status {self.code}")

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return bytes((self.code,))

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(body[0])


@dataclass(slots=True)
class Restarting(Frame):
    """Server to client: come back in ``reconnect_in`` ms, for up to ``try_for`` ms.

    Body: both as u32be.
    """

    reconnect_in: int
    try_for: int

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return _RESTARTING.pack(self.reconnect_in, self.try_for)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(*_RESTARTING.unpack(body))


class SendRate(NamedTuple):
    """How fast a server wants a client to send.

    :ivar overhead: bytes that each packet counts beside its payload of packed datagrams: the key.
    """

    bytes_per_second: int
    burst_bytes: int
    overhead: int = KEY_SIZE


class FrameRule(NamedTuple):
    """One row of a dialect's table: the number of a frame and the lengths its body may have.

    :ivar decode: what reads the body, if the dialect is more lenient than the frame itself.
    """

    number: int
    frame: type[Frame]
    shortest: int
    longest: int
    decode: Callable[[bytes], Frame] | None = None


class FrameTable:
    """The frames of one dialect whose messages are a number byte and a body.

    :param rules: one row for each frame of the dialect, of either direction.
    """

    __slots__ = ("_numbers", "_rules")

    def __init__(self, rules: Iterable[FrameRule]) -> None:
        self._rules = {rule.number: rule for rule in rules}
        self._numbers = {rule.frame: rule for rule in self._rules.values()}

    def refusing(self, *frames: type[Frame]) -> FrameTable:
        """Return a table that has the same frames, but takes these for faults when they arrive."""
        table = FrameTable(self._numbers.values())
        refused = {self.number_of(frame) for frame in frames}
        table._rules = {
            number: rule for number, rule in self._rules.items() if number not in refused
        }
        return table

    def number_of(self, frame: type[Frame]) -> int:
        """Return the number of a frame that the dialect has.

        :raises LocalProtocolError: if it has none.
        """
        return self._rule_of(frame).number

    def longest(self, number: int) -> int:
        """Return the most bytes that the body of a frame with this number may have.

        :raises DecodeError: for a number that the dialect lacks.
        """
        rule = self._rules.get(number)
        if rule is None:
            raise DecodeError(f"unknown frame number {number}")
        return rule.longest

    def decoder(self, number: int, length: int) -> Callable[[bytes], Frame]:
        """Return what reads a body of this length, judged before the body arrives.

        :raises DecodeError: for a number that the dialect lacks, or a length that its frame
            cannot have.
        """
        rule = self._rules.get(number)
        if rule is None:
            raise DecodeError(f"unknown frame number {number}")
        if not rule.shortest <= length <= rule.longest:
            name = rule.frame.__name__
            raise DecodeError(f"{name} has {rule.shortest} to {rule.longest} bytes, not {length}")
        return rule.decode or rule.frame.decode_body

    def shortest(self, number: int) -> int | None:
        """Return the fewest bytes of a body with this number; ``None`` if the dialect lacks it."""
        rule = self._rules.get(number)
        return None if rule is None else rule.shortest

    def number_and_body(self, frame: Frame) -> tuple[int, bytes]:
        """Return the number and the body that ``frame`` has in this dialect.

        :raises LocalProtocolError: if the dialect has no such frame, or not as long as this.
        """
        rule = self._rule_of(type(frame))
        body = frame.encode_body()
        if not rule.shortest <= len(body) <= rule.longest:
            raise LocalProtocolError(f"{type(frame).__name__} cannot have {len(body)} bytes")
        return rule.number, body

    def decode_message(self, message: bytes) -> Frame:
        """Decode a websocket message: ``number (1) || body``.

        :raises DecodeError: if it is empty or no frame of the dialect.
        """
        if not message:
            raise DecodeError("an empty message")
        return self.decoder(message[0], len(message) - 1)(message[1:])

    def encode_message(self, frame: Frame) -> bytes:
        """Return the websocket message of a frame.

        :raises LocalProtocolError: if the dialect has no such frame.
        """
        number, body = self.number_and_body(frame)
        return bytes((number,)) + body

    def _rule_of(self, frame: type[Frame]) -> FrameRule:
        rule = self._numbers.get(frame)
        if rule is None:
            raise LocalProtocolError(f"this dialect has no {frame.__name__}")
        return rule


def pack_datagrams(datagrams: Sequence[bytes]) -> list[bytes]:
    """Return payloads that carry these datagrams in order, as few as hold them.

    :raises LocalProtocolError: for a datagram above :data:`DATAGRAM_LIMIT` bytes.
    """
    payloads: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for datagram in datagrams:
        length = len(datagram)
        if length > DATAGRAM_LIMIT:
            raise LocalProtocolError(f"a relayed datagram has at most {DATAGRAM_LIMIT} bytes")
        size += LENGTH_PREFIX_SIZE + length
        if size > PACKED_LIMIT:
            payloads.append(b"".join(parts))
            parts.clear()
            size = LENGTH_PREFIX_SIZE + length
        parts.append(_LENGTH_PREFIX.pack(length))
        parts.append(datagram)
    if parts:
        payloads.append(b"".join(parts))
    return payloads


def split_datagrams(payload: bytes, *, limit: int | None = None) -> list[bytes]:
    """Return the datagrams in a payload; a datagram that is cut short at the end is left out.

    :param limit: how many to return at most, from 1 on.
    """
    size = len(payload)
    if size < LENGTH_PREFIX_SIZE:
        return []
    length = _LENGTH_PREFIX.unpack_from(payload)[0]
    if length + LENGTH_PREFIX_SIZE == size:  # most payloads carry one
        return [payload[LENGTH_PREFIX_SIZE:]]
    datagrams: list[bytes] = []
    start = LENGTH_PREFIX_SIZE
    while start + length <= size:
        datagrams.append(payload[start : start + length])
        start += length + LENGTH_PREFIX_SIZE
        if start > size or len(datagrams) == limit:
            break
        length = _LENGTH_PREFIX.unpack_from(payload, start - LENGTH_PREFIX_SIZE)[0]
    return datagrams


def packed_size(datagrams: Sequence[bytes]) -> int:
    """Return the bytes that these datagrams take in a payload."""
    if len(datagrams) == 1:
        return LENGTH_PREFIX_SIZE + len(datagrams[0])
    return sum(map(len, datagrams)) + LENGTH_PREFIX_SIZE * len(datagrams)


@lru_cache(maxsize=CHECKED_KEYS_LIMIT)
def node_id_of(data: bytes) -> NodeId:
    """Return ``NodeId(data)``, remembered: relays name the same few nodes in every frame.

    :raises DecodeError: if they are not 32 bytes or not a point of the curve.
    """
    return NodeId(data)
