"""The frames of Tailscale's DERP on a stream, and that stream inside a websocket.

Framed they stand as in iroh's DERP. What differs: one does not have to know all of them. A server
skips frames of unknown numbers, a client also those that are too short for their number, whatever
their length; nothing of them is kept. In a websocket the same stream of frames is cut into binary
messages anywhere.

Source: Tailscale ``derp/derp.go``, ``derp/derpserver/websocket.go``, ``net/wsconn/wsconn.go``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from iroh_proto.derp.codec import FramedCodec
from iroh_proto.derp.curve_frames import (
    SHORTEST_SERVER_KEY,
    ClientInfo,
    CurveClosePeer,
    CurveForwardPacket,
    CurvePeerGone,
    CurvePeerPresent,
    CurveRecvPacket,
    CurveSendPacket,
    ServerInfo,
    ServerKey,
)
from iroh_proto.derp.frames import (
    FRAME_LIMIT,
    HANDSHAKE_FRAME_LIMIT,
    HEADER,
    HEADER_SIZE,
    PACKET_LIMIT,
    PING_SIZE,
    RELAYED_PACKET,
    SENT_PACKET,
    Frame,
    FrameRule,
    FrameTable,
    Health,
    KeepAlive,
    NotePreferred,
    PacketGroups,
    PacketParts,
    PacketRun,
    Ping,
    Pong,
    Restarting,
    UnknownFrame,
    WatchConns,
    split_datagrams,
)
from iroh_proto.derp.websocket import WebsocketMessages
from iroh_proto.errors import DecodeError
from iroh_proto.key import CHECKED_KEYS_LIMIT, KEY_SIZE
from iroh_proto.x25519 import NACL_NONCE_SIZE, X25519PublicKey, x25519_of

LONGEST_SERVER_KEY = 1_024
LONGEST_PING = 1_000
"""Most bytes in the body of a client's Ping; those past the eighth are for later versions."""

MESSAGE_LIMIT = 32_768
"""Most bytes of a websocket message: upstream's server ends the connection for a longer one."""

_LONGEST_PACKET = KEY_SIZE + PACKET_LIMIT


def _health(body: bytes) -> Health:
    return Health(body.decode(errors="replace"))


_RULES_OF_CLIENTS = (
    FrameRule(2, ClientInfo, KEY_SIZE + NACL_NONCE_SIZE, HANDSHAKE_FRAME_LIMIT),
    FrameRule(SENT_PACKET, CurveSendPacket, KEY_SIZE, _LONGEST_PACKET),
    FrameRule(7, NotePreferred, 1, 1, lambda body: NotePreferred(body != b"\x00")),
    FrameRule(0x0A, CurveForwardPacket, 2 * KEY_SIZE, KEY_SIZE + _LONGEST_PACKET),
    FrameRule(0x10, WatchConns, 0, 0),
    FrameRule(0x11, CurveClosePeer, KEY_SIZE, KEY_SIZE),
    FrameRule(0x12, Ping, PING_SIZE, LONGEST_PING, lambda body: Ping(body[:PING_SIZE])),
)

FRAMES_OF_CLIENTS = FrameTable(_RULES_OF_CLIENTS)
"""What a server heeds."""

FRAMES_OF_SERVERS = FrameTable(
    (
        FrameRule(1, ServerKey, SHORTEST_SERVER_KEY, LONGEST_SERVER_KEY),
        FrameRule(3, ServerInfo, 0, HANDSHAKE_FRAME_LIMIT),
        FrameRule(RELAYED_PACKET, CurveRecvPacket, KEY_SIZE, _LONGEST_PACKET),
        FrameRule(6, KeepAlive, 0, FRAME_LIMIT),
        FrameRule(8, CurvePeerGone, KEY_SIZE, FRAME_LIMIT),
        FrameRule(9, CurvePeerPresent, KEY_SIZE, FRAME_LIMIT),
        FrameRule(0x12, Ping, PING_SIZE, FRAME_LIMIT, lambda body: Ping(body[:PING_SIZE])),
        FrameRule(0x13, Pong, PING_SIZE, FRAME_LIMIT, lambda body: Pong(body[:PING_SIZE])),
        FrameRule(0x14, Health, 0, FRAME_LIMIT, _health),
        FrameRule(0x15, Restarting, 8, FRAME_LIMIT, lambda body: Restarting.decode_body(body[:8])),
    )
)
"""What a client heeds."""

_SENT_BY_CLIENTS = FrameTable((*_RULES_OF_CLIENTS, FrameRule(0x13, Pong, PING_SIZE, PING_SIZE)))
"""A server skips a Pong, as it never pings."""


class CurveCodec(FramedCodec):
    """The :class:`~iroh_proto.derp.codec.FrameCodec` of the framed form."""

    __slots__ = ("_skipping",)

    _sent = CurveSendPacket
    _relayed = CurveRecvPacket
    _key_of = staticmethod(lru_cache(maxsize=CHECKED_KEYS_LIMIT)(X25519PublicKey))

    def __init__(self, *, is_server: bool) -> None:
        super().__init__(FRAMES_OF_SERVERS if is_server else _SENT_BY_CLIENTS, is_server=is_server)
        self._heeded = FRAMES_OF_CLIENTS if is_server else FRAMES_OF_SERVERS
        self._skipping = 0

    def encode_packets(self, node_id: bytes, payloads: Sequence[bytes]) -> bytes:
        """Return one packet for each datagram that is packed in these payloads, for a client.

        Nothing for a node that can have no X25519 key.
        """
        try:
            key = x25519_of(node_id)
        except DecodeError:
            return b""
        datagrams = [datagram for payload in payloads for datagram in split_datagrams(payload)]
        return super().encode_packets(key, datagrams)

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return the packets in one piece; each has to hold one datagram."""
        return [b"".join(parts)]

    def receive_run(self, data: bytes) -> PacketRun | None:
        """Take ``data`` if it is whole packets for one destination, all as long as the last one."""
        return None if self._skipping else super().receive_run(data)

    def receive_grouped(self, data: bytes, source: bytes) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server."""
        return super().receive_grouped(self._heeded_part(data), source)

    def _whole(self, data: bytes) -> bytes:
        return super()._whole(self._heeded_part(data))

    def _heeded_part(self, data: bytes) -> bytes:
        """Return what is behind the frame that is being skipped."""
        if not self._skipping:
            return data
        skipped = min(self._skipping, len(data))
        self._skipping -= skipped
        return data[skipped:]

    def _other(self, whole: bytes, offset: int) -> tuple[Frame, int] | None:
        start = offset + HEADER_SIZE
        if start > len(whole):
            return None
        number, length = HEADER.unpack_from(whole, offset)
        if not self._is_skipped(number, length):
            return super()._other(whole, offset)
        stop = min(start + length, len(whole))
        self._skipping = start + length - stop
        return UnknownFrame(number), stop

    def _is_skipped(self, number: int, length: int) -> bool:
        shortest = self._heeded.shortest(number)
        if self._is_server:
            return shortest is None
        if length > FRAME_LIMIT:
            raise DecodeError(f"a frame has at most {FRAME_LIMIT} bytes, not {length}")
        return shortest is None or length < shortest


class CurveWebsocketCodec:
    """The :class:`~iroh_proto.derp.codec.FrameCodec` of the websocket form.

    :param mask_rng: where a client takes its masks from; a server gives ``None``.
    """

    __slots__ = ("_frames", "_messages", "_unread", "error")

    def __init__(self, *, mask_rng: random.Random | None) -> None:
        self._frames = CurveCodec(is_server=mask_rng is None)
        self._messages = WebsocketMessages(mask_rng=mask_rng)
        self._unread = b""
        self.error: DecodeError | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the peer began the closing handshake."""
        return self._messages.is_closed

    @property
    def has_news(self) -> bool:
        """Whether there is a fault, a reply, or an end."""
        return self.error is not None or self._messages.has_news

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes, in order."""
        frames: list[Frame] = []
        for piece in self._pieces(data):
            frames += self._frames.receive(piece)
        return frames

    def receive_one(self, data: bytes) -> Frame | None:
        """Return the first frame that ``data`` completes; what follows waits for the next call."""
        for piece in self._pieces(data):
            if (frame := self._frames.receive_one(piece)) is not None:
                return frame
        return None

    def receive_grouped(self, data: bytes, source: bytes) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server."""
        frames: list[Frame | PacketGroups] = []
        for piece in self._pieces(data):
            frames += self._frames.receive_grouped(piece, source)
        return frames

    def encode(self, frame: Frame) -> bytes:
        """Return the bytes of one frame.

        :raises LocalProtocolError: if the dialect has no such frame, or not as long as this.
        """
        return self._build(self._frames.encode(frame))

    def encode_packets(self, node_id: bytes, payloads: Sequence[bytes]) -> bytes:
        """Return one packet for each datagram that is packed in these payloads, for a client."""
        return self._build(self._frames.encode_packets(node_id, payloads))

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return one piece per packet, each in messages of its own."""
        return [
            self._build(b"".join((header, payload)))
            for header, payload in zip(parts[::2], parts[1::2], strict=True)
        ]

    def replies(self) -> bytes:
        """Return what the websocket itself answers, and forget it."""
        return self._messages.replies()

    def goodbye(self) -> bytes:
        """Return the bytes that begin the closing handshake."""
        return self._messages.goodbye()

    def _build(self, stream: bytes) -> bytes:
        """Return the messages that carry a piece of the stream."""
        return b"".join(
            self._messages.build(stream[start : start + MESSAGE_LIMIT])
            for start in range(0, len(stream), MESSAGE_LIMIT)
        )

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what binary messages add to the stream of frames, each piece before the next.

        The websocket's own frames behind a piece are seen to when that was taken, so that nothing
        is answered behind a fault. What is left when the iteration is given up comes with the next.
        """
        if self.error is not None:
            return
        self._unread += data
        yield b""  # frames that are there already
        data, self._unread = self._unread, b""
        pieces = self._messages.receive_stream(data)
        try:
            while self._frames.error is None and (piece := next(pieces, None)) is not None:
                yield piece
        except DecodeError as error:
            self.error = error
        else:
            self.error = self._frames.error
