"""Frames that are one binary message of a websocket each, ``number || body`` without a length.

Up to v3 the number takes one byte, and the bodies are those of framed frames
(:class:`WebsocketCodec`). Relays of 0.91 and later have frames of their own
(:mod:`iroh_proto.derp.relay_codec`).

Source: iroh v0.35.0 ``iroh-relay/src/protos/relay.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from iroh_proto.derp.codec import PACKET_BODY_LIMIT
from iroh_proto.derp.frames import (
    HEADER_SIZE,
    KEYED_HEADER,
    RELAYED_PACKET,
    Frame,
    FrameTable,
    PacketGroups,
    PacketParts,
    RecvPacket,
    SendPacket,
)
from iroh_proto.derp.segments import holds_segments, packed_parts
from iroh_proto.derp.websocket import WebsocketMessages
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE


class MessageCodec:
    """What is the same for all frames that are messages, after the HTTP upgrade.

    :param mask_rng: where a client takes its masks from (RFC 6455 section 5.3); a server, which
        does not mask, gives ``None``.
    :param check: raises :class:`DecodeError` for a message that is too long, given its first byte
        and the bytes behind it.
    """

    __slots__ = ("_messages", "_table", "error")

    def __init__(
        self,
        table: FrameTable,
        *,
        mask_rng: random.Random | None,
        check: Callable[[int, int], None],
    ) -> None:
        self._table = table
        self._messages = WebsocketMessages(mask_rng=mask_rng, check=check)
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
        try:
            for message in self._take(data):
                frames.append(self._table.decode_message(message))  # noqa: PERF401  # kept on error
        except DecodeError as error:
            self.error = error
        return frames

    def receive_one(self, data: bytes) -> Frame | None:
        """Return the first frame that ``data`` completes; what follows waits for the next call."""
        try:
            for message in self._take(data):
                return self._table.decode_message(message)
        except DecodeError as error:
            self.error = error
        return None

    def encode(self, frame: Frame) -> bytes:
        """Return the bytes of one frame.

        :raises LocalProtocolError: if the dialect has no such frame, or not as long as this.
        """
        return self._messages.build(self._table.encode_message(frame))

    def replies(self) -> bytes:
        """Return what the form itself answers (a websocket's pongs), and forget it."""
        return self._messages.replies()

    def goodbye(self) -> bytes:
        """Return the frame that begins the closing handshake."""
        return self._messages.goodbye()

    def _take(self, data: bytes) -> Iterator[bytes]:
        return iter(()) if self.error is not None else self._messages.receive(data)


class WebsocketCodec(MessageCodec):
    """The :class:`~iroh_proto.derp.codec.FrameCodec` of the websocket form up to v3.

    :param mask_rng: where a client takes its masks from; a server gives ``None``.
    """

    __slots__ = ("_sends",)

    def __init__(self, table: FrameTable, *, mask_rng: random.Random | None) -> None:
        super().__init__(table, mask_rng=mask_rng, check=self._check_length)
        self._sends = table.number_of(SendPacket if mask_rng is not None else RecvPacket)

    def receive_grouped(self, data: bytes, source: bytes) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with packets as groups, for a server."""
        frames: list[Frame | PacketGroups] = []
        groups: dict[bytes, PacketParts] = {}
        packet = bytes((self._table.number_of(SendPacket),))
        try:
            for message in self._take(data):
                length = len(message) - 1
                if message[:1] == packet and KEY_SIZE <= length <= PACKET_BODY_LIMIT:
                    if not groups:
                        frames.append(PacketGroups(groups))
                    parts = groups.setdefault(message[1 : 1 + KEY_SIZE], [])
                    parts.append(KEYED_HEADER.pack(RELAYED_PACKET, length, source))
                    parts.append(message[1 + KEY_SIZE :])
                    continue
                frames.append(self._table.decode_message(message))
                groups = {}
        except DecodeError as error:
            self.error = error
        return frames

    def encode_packets(self, node_id: bytes, payloads: Sequence[bytes]) -> bytes:
        """Return the bytes of one packet per payload, none of them above ``PACKET_LIMIT``."""
        start = bytes((self._sends,)) + node_id
        return b"".join(self._messages.build(start + payload) for payload in payloads)

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return one piece per packet, which is a message without a length."""
        if holds_segments(parts):
            parts = packed_parts(parts)
        number = bytes((self._sends,))
        return [
            self._messages.build(number, header[HEADER_SIZE:], payload)
            for header, payload in zip(parts[::2], parts[1::2], strict=True)
        ]

    def _check_length(self, number: int, length: int) -> None:
        longest = self._table.longest(number)
        if length > longest:
            raise DecodeError(f"a message of more than {longest} bytes")
