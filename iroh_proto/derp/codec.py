"""Frames on a stream, what is common to their forms, and the framed form.

Framed, on TCP or TLS behind the HTTP upgrade::

    number  u8       what it is; numbers belong to a dialect
    length  u32be    of the body
    body    length bytes

Websocket: one binary message per frame, ``number (1) || body``, no length
(:mod:`iroh_proto.derp.message_codec`).

Source: iroh v0.35.0 ``iroh-relay/src/protos/relay.rs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Literal, Protocol, TypeAlias

from iroh_proto.derp.frames import (
    HEADER,
    HEADER_SIZE,
    KEYED_HEADER,
    PACKET_LIMIT,
    PAYLOAD_AT,
    RELAYED_PACKET,
    SENT_PACKET,
    Frame,
    FrameTable,
    PacketGroups,
    PacketParts,
    PacketRun,
    RecvPacket,
    SendPacket,
    node_id_of,
)
from iroh_proto.derp.segments import packed_parts
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, NodeId

Form: TypeAlias = Literal["framed", "websocket"]
"""How frames stand on the stream: one behind the other, or as messages of a websocket."""

RUN_LIMIT = 64
"""Most packets that are relayed in one piece. A read that has more has tiny ones."""

RUN_LAYOUTS_LIMIT = 256
"""Ways of taking bursts apart that are kept at hand, each for one size and number of packets. With
64 packets one takes some 4 KiB."""

_UNREAD_KEYED_HEADER = Struct(">5s32s")
PACKET_BODY_LIMIT = KEY_SIZE + PACKET_LIMIT
"""Most bytes in the body of a packet."""


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

    @property
    def has_news(self) -> bool:
        """Whether there is a fault, a reply, or an end."""

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes, in order."""

    def receive_one(self, data: bytes) -> Frame | None:
        """Return the first frame that ``data`` completes; what follows it waits for the next call.

        For a handshake, behind which frames are received in another way.
        """

    def receive_grouped(self, data: bytes, source: bytes) -> list[Frame | PacketGroups]:
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

    __slots__ = (
        "_heeded",
        "_is_server",
        "_last_head",
        "_last_header",
        "_last_size",
        "_partial",
        "_receives",
        "_sends",
        "_table",
        "_wanted",
        "error",
        "has_news",
    )

    is_closed = False
    _sent: Callable[[Any, bytes], Frame] = SendPacket
    _relayed: Callable[[Any, bytes], Frame] = RecvPacket
    _key_of: Callable[[bytes], Any] = staticmethod(node_id_of)

    def __init__(self, table: FrameTable, *, is_server: bool) -> None:
        self._table = self._heeded = table
        self._is_server = is_server
        self._receives = SENT_PACKET if is_server else RELAYED_PACKET
        self._sends = RELAYED_PACKET if is_server else SENT_PACKET
        self._partial = bytearray()
        self._wanted = HEADER_SIZE  # bytes that must be there before another look is worth it
        # The header of the last packet, what it becomes, and the size of the whole frame.
        self._last_head: bytes | None = None
        self._last_header = b""
        self._last_size = 0
        self.error: DecodeError | None = None
        self.has_news = False

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes, in order."""
        frames: list[Frame] = []
        packet = self._sent if self._is_server else self._relayed
        key_of = self._key_of
        append, unpack, receives = frames.append, KEYED_HEADER.unpack_from, self._receives
        whole = self._whole(data)
        offset, end = 0, len(whole)
        last_keyed = end - PAYLOAD_AT
        try:
            while True:
                while offset <= last_keyed:
                    number, length, key = unpack(whole, offset)
                    stop = offset + HEADER_SIZE + length
                    if number != receives or not 32 <= length <= PACKET_BODY_LIMIT or stop > end:
                        break
                    append(packet(key_of(key), whole[offset + PAYLOAD_AT : stop]))
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
        self._wanted = HEADER_SIZE
        self._keep(whole, one[1])
        return one[0]

    def receive_run(self, data: bytes) -> PacketRun | None:
        """Take ``data`` if it is whole packets for one destination, all as long as the last one.

        That is what most reads are: one packet of a quiet connection, or a burst. Anything else is
        left to :meth:`receive_grouped`, whose ``source`` is the one of these packets, too.
        """
        if data[:HEADER_SIZE] != self._last_head or self._partial:
            return None
        size = self._last_size
        if len(data) == size:
            return data[HEADER_SIZE:PAYLOAD_AT], self._last_header + data[PAYLOAD_AT:], 1
        count, rest = divmod(len(data), size)
        if rest or count > RUN_LIMIT:
            return None
        pieces = _run_layout(size, count).unpack(data)
        if pieces[::2] != pieces[:1] * count:
            return None
        joined = self._last_header.join((b"", *pieces[1::2]))
        return data[HEADER_SIZE:PAYLOAD_AT], joined, count

    def receive_grouped(self, data: bytes, source: bytes) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server."""
        groups: dict[bytes, PacketParts] = {}
        whole = self._whole(data) if self._partial or self.error is not None else data
        offset = self._group(whole, 0, source, groups)
        if offset == len(whole):
            return [PacketGroups(groups)] if groups else []
        frames: list[Frame | PacketGroups] = []
        try:
            while (other := self._other(whole, offset)) is not None:
                if groups:
                    frames.append(PacketGroups(groups))
                    groups = {}
                frames.append(other[0])
                offset = self._group(whole, other[1], source, groups)
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

    def encode_packets(self, node_id: bytes, payloads: Sequence[bytes]) -> bytes:
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
        """Return the packets in one piece, up to v3 as they are."""
        if parts[0][0] != RELAYED_PACKET:  # holds_segments(), without a call
            parts = packed_parts(parts)
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
        self, whole: bytes, start: int, source: bytes, groups: dict[bytes, PacketParts]
    ) -> int:
        """Take the packets from ``start`` on into groups; return where the first other frame is.

        This is the way of every relayed packet. Packets mostly come in bursts of one length for
        one destination, so that each is looked up only when it is not the one before, and the only
        object made for a packet is a view of it.
        """
        end = len(whole)
        last_keyed = end - PAYLOAD_AT
        if start > last_keyed:
            return start
        view, unpack = memoryview(whole), _UNREAD_KEYED_HEADER.unpack_from
        offset = start
        last_head, header, size = self._last_head, self._last_header, self._last_size
        last_destination = b""
        parts: PacketParts = []
        while offset <= last_keyed:
            head, destination = unpack(whole, offset)
            if head != last_head:
                number, length = HEADER.unpack(head)
                if number != self._receives or not KEY_SIZE <= length <= PACKET_BODY_LIMIT:
                    break
                last_head, size = head, HEADER_SIZE + length
                header = KEYED_HEADER.pack(RELAYED_PACKET, length, source)
            stop = offset + size
            if stop > end:
                break
            if destination != last_destination:
                if destination in groups:
                    parts = groups[destination]
                else:
                    parts = groups[destination] = []
                last_destination = destination
            parts.append(header)
            parts.append(view[offset + PAYLOAD_AT : stop])
            offset = stop
        if last_head is not self._last_head:
            self._last_head, self._last_header, self._last_size = last_head, header, size
        return offset

    def _other(self, whole: bytes, offset: int) -> tuple[Frame, int] | None:
        """Decode one frame of any kind; return it and where it ends, or ``None`` if unfinished."""
        start = offset + HEADER_SIZE
        if start > len(whole):
            return None
        number, length = HEADER.unpack_from(whole, offset)
        decode_body = self._heeded.decoder(number, length)
        stop = start + length
        if stop > len(whole):
            self._wanted = stop - offset
            return None
        return decode_body(whole[start:stop]), stop

    def _keep(self, whole: bytes, offset: int) -> None:
        if offset < len(whole):
            self._partial += whole[offset:] if offset else whole
            if len(self._partial) < HEADER_SIZE:
                self._wanted = HEADER_SIZE

    def _fail(self, error: DecodeError) -> None:
        self.error = error
        self.has_news = True
        self._partial.clear()
        self._last_head = None


@lru_cache(maxsize=RUN_LAYOUTS_LIMIT)
def _run_layout(size: int, count: int) -> Struct:
    """Return what takes so many packets of one size apart, each into its header and its payload."""
    return Struct(f"{PAYLOAD_AT}s{size - PAYLOAD_AT}s" * count)
