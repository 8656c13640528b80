"""Frames on a stream: the framed form and the websocket form.

Framed, on TCP or TLS behind the HTTP upgrade::

    number  u8       what it is; numbers belong to a dialect
    length  u32be    of the body
    body    length bytes

Websocket: one binary message per frame, ``number (1) || body``, no length; text messages are
skipped. wsproto parses the messages. They are built here, because wsproto takes its masks from the
operating system and not from the machine's ``rng``.

Source: iroh v0.35.0 ``iroh-relay/src/protos/relay.rs``; RFC 6455 section 5.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Literal, Protocol, TypeAlias

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection
from wsproto.events import Ping as WebsocketPing
from wsproto.frame_protocol import CloseReason, Opcode

from iroh_proto.derp.frames import (
    PACKET_LIMIT,
    Frame,
    FrameTable,
    PacketGroups,
    PacketParts,
    RecvPacket,
    SendPacket,
    node_id_of,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, NodeId

Form: TypeAlias = Literal["framed", "websocket"]
"""How frames stand on the stream: one behind the other, or as messages of a websocket."""

HEADER = Struct(">BI")
KEYED_HEADER = Struct(">BI32s")
"""The header of a frame whose body begins with a node id, together with that id."""

RELAYED_PACKET = 5
"""The number of RecvPacket, in every dialect that relays Ed25519 identities in this form."""

_UNREAD_KEYED_HEADER = Struct(">5s32s")
_PACKET_BODY_LIMIT = KEY_SIZE + PACKET_LIMIT
_FINAL = 0x80
_MASKED = 0x80
_MASK_SIZE = 4
_SHORT_LENGTH_LIMIT = 125
_U16_LENGTH = 126
_U64_LENGTH = 127


class FrameCodec(Protocol):
    """What turns a stream into frames and frames into a stream, for one side of a connection.

    Bytes never raise: what came before a fault is returned, and :attr:`error` tells of the fault.
    """

    @property
    def error(self) -> DecodeError | None:
        """The first fault in what was received, after which nothing is decoded."""

    @property
    def is_closed(self) -> bool:
        """Whether the peer closed inside the form (a websocket's closing handshake)."""

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes, in order."""

    def receive_one(self, data: bytes) -> Frame | None:
        """Return the first frame that ``data`` completes; what follows it waits for the next call.

        For a handshake, behind which frames are received in another way.
        """

    def receive_grouped(self, data: bytes, source: NodeId) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server.

        Groups stand where their packets stood among the other frames, ready to be relayed as
        packets from ``source``.
        """

    def encode(self, frame: Frame) -> bytes:
        """Return the bytes of one frame.

        :raises LocalProtocolError: if the dialect has no such frame, or not as long as this.
        """

    def encode_packets(self, node_id: NodeId, payloads: Sequence[bytes]) -> bytes:
        """Return the bytes of one packet per payload, none of them above ``PACKET_LIMIT``.

        ``node_id`` is the destination when a client encodes, the source when a server does.
        """

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return the bytes of packets that another client sent, for a server.

        They come in one piece with all packets framed, or in one piece per packet.
        """

    def replies(self) -> bytes:
        """Return what the form itself answers (a websocket's pongs), and forget it."""

    def goodbye(self) -> bytes:
        """Return what the form says before its stream is closed."""


class FramedCodec:
    """The :class:`FrameCodec` of the framed form.

    Bytes of an unfinished frame are kept, never more than the table allows for that frame.
    """

    __slots__ = ("_is_server", "_partial", "_receives", "_sends", "_table", "_wanted", "error")

    is_closed = False

    def __init__(self, table: FrameTable, *, is_server: bool) -> None:
        self._table = table
        self._is_server = is_server
        self._receives = table.send_packet if is_server else table.recv_packet
        self._sends = table.recv_packet if is_server else table.send_packet
        self._partial = bytearray()
        self._wanted = HEADER.size  # bytes that must be there before another look is worth it
        self.error: DecodeError | None = None

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes, in order."""
        frames: list[Frame] = []
        packet = SendPacket if self._is_server else RecvPacket
        append, unpack, receives = frames.append, KEYED_HEADER.unpack_from, self._receives
        whole = self._whole(data)
        offset, end = 0, len(whole)
        last_keyed = end - KEYED_HEADER.size
        try:
            while True:
                while offset <= last_keyed:
                    number, length, key = unpack(whole, offset)
                    stop = offset + 5 + length
                    if number != receives or not 32 <= length <= _PACKET_BODY_LIMIT or stop > end:
                        break
                    append(packet(node_id_of(key), whole[offset + 37 : stop]))
                    offset = stop
                if (other := self._other(whole, offset)) is None:
                    break
                append(other[0])
                offset = other[1]
        except DecodeError as error:
            self._fail(error)
        else:
            self._keep(whole, offset)
        return frames

    def receive_one(self, data: bytes) -> Frame | None:
        """Return the first frame that ``data`` completes; what follows waits for the next call."""
        whole = self._whole(data)
        try:
            one = self._other(whole, 0)
        except DecodeError as error:
            self._fail(error)
            return None
        if one is None:
            self._keep(whole, 0)
            return None
        self._wanted = HEADER.size
        self._keep(whole, one[1])
        return one[0]

    def receive_grouped(self, data: bytes, source: NodeId) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server."""
        frames: list[Frame | PacketGroups] = []
        groups: dict[bytes, PacketParts] = {}
        whole = self._whole(data)
        offset = 0
        try:
            while True:
                offset = self._group(whole, offset, source, groups)
                if (other := self._other(whole, offset)) is None:
                    break
                if groups:
                    frames.append(PacketGroups(groups))
                    groups = {}
                frames.append(other[0])
                offset = other[1]
        except DecodeError as error:
            self._fail(error)
        else:
            self._keep(whole, offset)
        if groups:
            frames.append(PacketGroups(groups))
        return frames

    def encode(self, frame: Frame) -> bytes:
        """Return the bytes of one frame.

        :raises LocalProtocolError: if the dialect has no such frame, or not as long as this.
        """
        number, body = self._table.number_and_body(frame)
        return HEADER.pack(number, len(body)) + body

    def encode_packets(self, node_id: NodeId, payloads: Sequence[bytes]) -> bytes:
        """Return the bytes of one packet per payload, none of them above ``PACKET_LIMIT``."""
        parts: list[bytes] = []
        append = parts.append
        header, header_length = b"", -1
        for payload in payloads:
            length = len(payload)
            if length != header_length:
                header = KEYED_HEADER.pack(self._sends, KEY_SIZE + length, node_id)
                header_length = length
            append(header)
            append(payload)
        return b"".join(parts)

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return the packets in one piece, as they are."""
        return [b"".join(parts)]

    def replies(self) -> bytes:
        """Return nothing: this form says nothing of its own."""
        return b""

    def goodbye(self) -> bytes:
        """Return nothing: the stream just ends."""
        return b""

    def _whole(self, data: bytes) -> bytes:
        """Return what there is to decode: nothing while a frame is still known to be unfinished."""
        if self.error is not None:
            return b""
        if not self._partial:
            return data
        if len(self._partial) + len(data) < self._wanted:
            self._partial += data
            return b""
        whole = b"".join((self._partial, data))
        self._partial.clear()
        return whole

    def _group(
        self, whole: bytes, start: int, source: NodeId, groups: dict[bytes, PacketParts]
    ) -> int:
        """Take the packets from ``start`` on into groups; return where the first other frame is.

        This is the way of every relayed packet. Packets mostly come in bursts of one length for
        one destination, so that each is looked up only when it is not the one before, and the only
        object made for a packet is a view of it.
        """
        view = memoryview(whole)
        unpack = _UNREAD_KEYED_HEADER.unpack_from
        end = len(whole)
        last_keyed = end - KEYED_HEADER.size
        offset = start
        headers: dict[bytes, tuple[bytes, int]] = {}
        last_head, header, size = b"", b"", 0
        last_destination = b""
        parts: PacketParts = []
        while offset <= last_keyed:
            head, destination = unpack(whole, offset)
            if head != last_head:
                if head in headers:
                    header, size = headers[head]
                else:
                    number, length = HEADER.unpack(head)
                    if number != self._receives or not KEY_SIZE <= length <= _PACKET_BODY_LIMIT:
                        break
                    header = KEYED_HEADER.pack(RELAYED_PACKET, length, source)
                    size = HEADER.size + length
                    headers[head] = header, size
                last_head = head
            payload = offset + 37
            offset += size
            if offset > end:
                return offset - size
            if destination != last_destination:
                if destination in groups:
                    parts = groups[destination]
                else:
                    parts = groups[destination] = []
                last_destination = destination
            parts.append(header)
            parts.append(view[payload:offset])
        return offset

    def _other(self, whole: bytes, offset: int) -> tuple[Frame, int] | None:
        """Decode one frame of any kind; return it and where it ends, or ``None`` if unfinished."""
        start = offset + HEADER.size
        if start > len(whole):
            return None
        number, length = HEADER.unpack_from(whole, offset)
        decode_body = self._table.decoder(number, length)
        stop = start + length
        if stop > len(whole):
            self._wanted = stop - offset
            return None
        return decode_body(whole[start:stop]), stop

    def _keep(self, whole: bytes, offset: int) -> None:
        if offset < len(whole):
            self._partial += whole[offset:] if offset else whole
            if len(self._partial) < HEADER.size:
                self._wanted = HEADER.size

    def _fail(self, error: DecodeError) -> None:
        self.error = error
        self._partial.clear()


class WebsocketCodec:
    """The :class:`FrameCodec` of the websocket form, after its HTTP upgrade.

    :param mask_rng: where a client takes its masks from (RFC 6455 section 5.3); a server, which
        does not mask, gives ``None``.
    """

    __slots__ = (
        "_connection",
        "_mask_rng",
        "_message",
        "_replies",
        "_sends",
        "_table",
        "error",
        "is_closed",
    )

    def __init__(self, table: FrameTable, *, mask_rng: random.Random | None) -> None:
        is_server = mask_rng is None
        self._table = table
        self._mask_rng = mask_rng
        self._sends = table.recv_packet if is_server else table.send_packet
        self._connection = Connection(ConnectionType.SERVER if is_server else ConnectionType.CLIENT)
        self._message = bytearray()
        self._replies: list[bytes] = []
        self.error: DecodeError | None = None
        self.is_closed = False

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes, in order."""
        frames: list[Frame] = []
        try:
            for message in self._messages(data):
                frames.append(self._table.decode_message(message))  # noqa: PERF401  # kept on error
        except DecodeError as error:
            self._fail(error)
        return frames

    def receive_one(self, data: bytes) -> Frame | None:
        """Return the first frame that ``data`` completes; what follows waits for the next call."""
        try:
            for message in self._messages(data):
                return self._table.decode_message(message)
        except DecodeError as error:
            self._fail(error)
        return None

    def receive_grouped(self, data: bytes, source: NodeId) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server."""
        frames: list[Frame | PacketGroups] = []
        groups: dict[bytes, PacketParts] = {}
        packet = bytes((self._table.send_packet,))
        try:
            for message in self._messages(data):
                length = len(message) - 1
                if message[:1] == packet and KEY_SIZE <= length <= _PACKET_BODY_LIMIT:
                    if not groups:
                        frames.append(PacketGroups(groups))
                    parts = groups.setdefault(message[1 : 1 + KEY_SIZE], [])
                    parts.append(KEYED_HEADER.pack(RELAYED_PACKET, length, source))
                    parts.append(message[1 + KEY_SIZE :])
                    continue
                frames.append(self._table.decode_message(message))
                groups = {}
        except DecodeError as error:
            self._fail(error)
        return frames

    def encode(self, frame: Frame) -> bytes:
        """Return the bytes of one frame.

        :raises LocalProtocolError: if the dialect has no such frame, or not as long as this.
        """
        return self._build(Opcode.BINARY, self._table.encode_message(frame))

    def encode_packets(self, node_id: NodeId, payloads: Sequence[bytes]) -> bytes:
        """Return the bytes of one packet per payload, none of them above ``PACKET_LIMIT``."""
        start = bytes((self._sends,)) + node_id
        return b"".join(self._build(Opcode.BINARY, start + payload) for payload in payloads)

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return one piece per packet, which is a message without a length."""
        number = bytes((self._sends,))
        return [
            self._build(Opcode.BINARY, b"".join((number, header[HEADER.size :], payload)))
            for header, payload in zip(parts[::2], parts[1::2], strict=True)
        ]

    def replies(self) -> bytes:
        """Return what the form itself answers (a websocket's pongs), and forget it."""
        if not self._replies:
            return b""
        replies = b"".join(self._replies)
        self._replies.clear()
        return replies

    def goodbye(self) -> bytes:
        """Return the frame that begins the closing handshake."""
        return self._build(Opcode.CLOSE, CloseReason.NORMAL_CLOSURE.to_bytes(2, "big"))

    def _messages(self, data: bytes) -> Iterator[bytes]:
        if self.error is not None or self.is_closed:
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, BytesMessage):
                self._message += event.data
                self._check_size()
                if event.message_finished:
                    message = bytes(self._message)
                    self._message.clear()
                    yield message
            elif isinstance(event, WebsocketPing):
                self._replies.append(self._build(Opcode.PONG, bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                self._take_close(event)

    def _check_size(self) -> None:
        if self._message and len(self._message) - 1 > self._table.longest(self._message[0]):
            raise DecodeError(f"a message of more than {len(self._message) - 1} bytes")

    def _take_close(self, event: CloseConnection) -> None:
        if self._connection.state is not ConnectionState.REMOTE_CLOSING:
            raise DecodeError(f"not a websocket frame: {event.reason}")
        # 1005 stands for a close without a code and must not be sent (RFC 6455 section 7.4.1).
        has_code = event.code != CloseReason.NO_STATUS_RCVD
        code = int(event.code).to_bytes(2, "big") if has_code else b""
        self._replies.append(self._build(Opcode.CLOSE, code))
        self.is_closed = True

    def _fail(self, error: DecodeError) -> None:
        self.error = error
        self._message.clear()

    def _build(self, opcode: Opcode, payload: bytes) -> bytes:
        length = len(payload)
        masked = 0 if self._mask_rng is None else _MASKED
        if length <= _SHORT_LENGTH_LIMIT:
            header = bytes((_FINAL | opcode, masked | length))
        elif length < 1 << 16:
            header = bytes((_FINAL | opcode, masked | _U16_LENGTH)) + length.to_bytes(2, "big")
        else:
            header = bytes((_FINAL | opcode, masked | _U64_LENGTH)) + length.to_bytes(8, "big")
        if self._mask_rng is None:
            return header + payload
        mask = self._mask_rng.randbytes(_MASK_SIZE)
        return header + mask + _apply_mask(payload, mask)


def _apply_mask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    stream = mask * (size // _MASK_SIZE + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(stream[:size], "big")
    return masked.to_bytes(size, "big")
