"""The frames of relays of iroh 0.91 and later: one per binary message of a websocket.

A message is ``number (QUIC varint) || body``. All numbers there are take one byte; longer ways to
write them decode as well. A message without its number has at most 65,536 bytes, more end the
connection.

Source: iroh v1.0.3 ``iroh-relay/src/protos/{common,relay,streams}.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from iroh_proto.derp.datagram_frames import (
    SHORTEST_BATCH,
    SHORTEST_SINGLE,
    SendDatagram,
    SendDatagramBatch,
)
from iroh_proto.derp.frames import Frame, FrameTable, PacketGroups, PacketParts, split_datagrams
from iroh_proto.derp.message_codec import MessageCodec
from iroh_proto.derp.segments import (
    BATCH_HEADER,
    ECN_MASK,
    RELAYED_BATCH,
    RELAYED_DATAGRAM,
    SINGLE_HEADER,
    batches,
    holds_segments,
    unpacked_parts,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, NodeId
from iroh_proto.wire import decode_quic_varint

MESSAGE_LIMIT = 65_536
"""Most bytes of a message that is passed on, its number included (upstream's for sending)."""

BODY_LIMIT = 65_536
"""Most bytes behind the number of a received message."""

SENT_DATAGRAM = 4
"""The number of :class:`~iroh_proto.derp.datagram_frames.SendDatagram`."""

SENT_BATCH = 5
"""The number of :class:`~iroh_proto.derp.datagram_frames.SendDatagramBatch`."""

_SENT_DATAGRAM = bytes((SENT_DATAGRAM,))
_ECN_AT = 1 + KEY_SIZE
_LONGEST_NUMBER = 8
_ONE_BYTE_NUMBERS = 1 << 6
_DATA_OF_SINGLE = 1 + SHORTEST_SINGLE
_DATA_OF_BATCH = 1 + SHORTEST_BATCH
_SEGMENT_SIZE_AT = _DATA_OF_BATCH - 2


class RelayCodec(MessageCodec):
    """The :class:`~iroh_proto.derp.codec.FrameCodec` of these relays, after the HTTP upgrade.

    :param mask_rng: where a client takes its masks from; a server gives ``None``.
    """

    __slots__ = ()

    def __init__(self, table: FrameTable, *, mask_rng: random.Random | None) -> None:
        super().__init__(table, mask_rng=mask_rng, check=_check_length)

    def receive_grouped(self, data: bytes, source: bytes) -> list[Frame | PacketGroups]:
        """Return the frames that ``data`` completes, with datagrams as groups, for a server.

        Datagrams that no receiver would take, empty or too long, come as frames.
        """
        frames: list[Frame | PacketGroups] = []
        groups: dict[bytes, PacketParts] = {}
        if self.error is not None:
            return frames
        single = SINGLE_HEADER.pack(RELAYED_DATAGRAM, source, 0)
        try:
            for message in self._messages.receive(data):
                if (
                    message[:1] == _SENT_DATAGRAM
                    and _DATA_OF_SINGLE < len(message) <= MESSAGE_LIMIT
                    and not message[_ECN_AT] & ECN_MASK
                ):  # nearly always
                    packet = single, message[_DATA_OF_SINGLE:]
                else:
                    message = _with_short_number(message)
                    other = _relayed(message, source)
                    if other is None:
                        frames.append(self._table.decode_message(message))
                        groups = {}
                        continue
                    packet = other
                if not groups:
                    frames.append(PacketGroups(groups))
                destination = message[1 : 1 + KEY_SIZE]
                parts = groups.get(destination)
                if parts is None:
                    groups[destination] = [*packet]
                else:
                    parts += packet
        except DecodeError as error:
            self.error = error
        return frames

    def encode_packets(self, node_id: NodeId, payloads: Sequence[bytes]) -> bytes:
        """Return the frames with the datagrams that are packed in these payloads, for a client."""
        frames: list[bytes] = []
        for payload in payloads:
            for segment_size, data in batches(split_datagrams(payload)):
                if segment_size:
                    frame: Frame = SendDatagramBatch(node_id, 0, segment_size, data)
                else:
                    frame = SendDatagram(node_id, 0, data)
                frames.append(self.encode(frame))
        return b"".join(frames)

    def encode_relayed(self, parts: PacketParts) -> list[bytes]:
        """Return one piece per frame. Packed datagrams become as few frames as hold them."""
        if holds_segments(parts):
            return self._messages.build_pairs(parts)
        build = self._messages.build
        return [
            build(BATCH_HEADER.pack(RELAYED_BATCH, source, 0, segment_size), data)
            if segment_size
            else build(SINGLE_HEADER.pack(RELAYED_DATAGRAM, source, 0), data)
            for source, segment_size, data in unpacked_parts(parts)
        ]

    def _take(self, data: bytes) -> Iterator[bytes]:
        """Yield messages, their numbers in one byte."""
        if self.error is not None:
            return
        for message in self._messages.receive(data):
            yield _with_short_number(message)


def _with_short_number(message: bytes) -> bytes:
    """Return a message with its number in one byte.

    :raises DecodeError: if it does not fit.
    """
    if message[:1] < b"\x40":
        return message
    number, size = decode_quic_varint(message)
    if number >= _ONE_BYTE_NUMBERS:
        raise DecodeError(f"unknown frame number {number}")
    return bytes((number,)) + message[size:]


def _check_length(first: int, length: int) -> None:
    if length >= BODY_LIMIT + _LONGEST_NUMBER:
        raise DecodeError(f"a message of more than {BODY_LIMIT} bytes")


def _relayed(message: bytes, source: bytes) -> tuple[bytes, bytes] | None:
    """Return header and data of datagrams for their receiver; ``None`` if it is not for one."""
    number = message[0] if len(message) <= MESSAGE_LIMIT and message else None
    if number == SENT_DATAGRAM and len(message) > _DATA_OF_SINGLE:
        ecn = message[1 + KEY_SIZE] & ECN_MASK
        return SINGLE_HEADER.pack(RELAYED_DATAGRAM, source, ecn), message[_DATA_OF_SINGLE:]
    if number == SENT_BATCH and len(message) > _DATA_OF_BATCH:
        ecn = message[1 + KEY_SIZE] & ECN_MASK
        data = message[_DATA_OF_BATCH:]
        segment_size = int.from_bytes(message[_SEGMENT_SIZE_AT:_DATA_OF_BATCH], "big")
        if 0 < segment_size < len(data):
            return BATCH_HEADER.pack(RELAYED_BATCH, source, ecn, segment_size), data
        return SINGLE_HEADER.pack(RELAYED_DATAGRAM, source, ecn), data
    return None
