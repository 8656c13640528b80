"""The frames that carry datagrams between clients and relays of iroh 0.91 and later.

Their content is described in :mod:`iroh_proto.derp.segments`.

Source: iroh v1.0.3 ``iroh-relay/src/protos/relay.rs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from iroh_proto.derp.frames import Frame, node_id_of
from iroh_proto.derp.segments import ECN_MASK, segments
from iroh_proto.key import KEY_SIZE, NodeId

SHORTEST_SINGLE = KEY_SIZE + 1
"""Bytes of a single datagram's body without the datagram."""

SHORTEST_BATCH = KEY_SIZE + 3
"""Bytes of a batch's body without the datagrams."""

_SEGMENT_SIZE = Struct(">H")


@dataclass(slots=True)
class SendDatagram(Frame):
    """Client to server: a datagram. Body: ``dst (32) || ecn (1) || datagram``."""

    dst: NodeId
    ecn: int
    data: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return _encode_single(self.dst, self.ecn, self.data)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number."""
        return cls(*_decode_single(body))


@dataclass(slots=True)
class SendDatagramBatch(Frame):
    """Client to server: datagrams of one size, of which the last may be shorter.

    Body: ``dst (32) || ecn (1) || segment size (u16be) || datagrams``. A segment size of 0 says
    that there is but one.
    """

    dst: NodeId
    ecn: int
    segment_size: int
    data: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return _encode_batch(self.dst, self.ecn, self.segment_size, self.data)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number."""
        return cls(*_decode_batch(body))


@dataclass(slots=True)
class RecvDatagram(Frame):
    """Server to client: a datagram. Body: ``src (32) || ecn (1) || datagram``."""

    src: NodeId
    ecn: int
    data: bytes

    def datagrams(self) -> list[bytes]:
        """Return the datagram; none for an empty one."""
        return segments(self.data, 0)

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return _encode_single(self.src, self.ecn, self.data)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number."""
        return cls(*_decode_single(body))


@dataclass(slots=True)
class RecvDatagramBatch(Frame):
    """Server to client: datagrams of one size, of which the last may be shorter.

    Body: ``src (32) || ecn (1) || segment size (u16be) || datagrams``.
    """

    src: NodeId
    ecn: int
    segment_size: int
    data: bytes

    def datagrams(self) -> list[bytes]:
        """Return the datagrams."""
        return segments(self.data, self.segment_size)

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return _encode_batch(self.src, self.ecn, self.segment_size, self.data)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number."""
        return cls(*_decode_batch(body))


def _encode_single(node_id: NodeId, ecn: int, data: bytes) -> bytes:
    return b"".join((node_id, bytes((ecn & ECN_MASK,)), data))


def _decode_single(body: bytes) -> tuple[NodeId, int, bytes]:
    return node_id_of(body[:KEY_SIZE]), body[KEY_SIZE] & ECN_MASK, body[SHORTEST_SINGLE:]


def _encode_batch(node_id: NodeId, ecn: int, segment_size: int, data: bytes) -> bytes:
    size = _SEGMENT_SIZE.pack(segment_size)
    return b"".join((node_id, bytes((ecn & ECN_MASK,)), size, data))


def _decode_batch(body: bytes) -> tuple[NodeId, int, int, bytes]:
    node_id, ecn, _ = _decode_single(body)
    return node_id, ecn, _SEGMENT_SIZE.unpack_from(body, SHORTEST_SINGLE)[0], body[SHORTEST_BATCH:]
