"""What the servers of a mesh ask of one another, in either of the dialects that have meshes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from iroh_proto.derp.curve_frames import (
    CurveClosePeer,
    CurveForwardPacket,
    CurvePeerGone,
    CurvePeerPresent,
)
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.dialects.v2 import FORWARD_LIMIT, ClosePeer, ForwardPacket, PeerPresent
from iroh_proto.derp.frames import (
    KEYED_HEADER,
    RELAYED_PACKET,
    Frame,
    PacketParts,
    PeerGone,
    WatchConns,
)
from iroh_proto.derp.router_reports import Forward, Presence
from iroh_proto.derp.segments import holds_segments, packed_parts
from iroh_proto.key import KEY_SIZE
from iroh_proto.x25519 import X25519PublicKey

MeshRequest: TypeAlias = (
    WatchConns | ClosePeer | CurveClosePeer | ForwardPacket | CurveForwardPacket
)
"""What a member of the mesh may send, and no other client."""

QUEUED_PRESENCE_BYTES_LIMIT = 32 * 1024 * 1024
"""Bytes of comings and goings that wait for one member of the mesh. It is told of all 65,536
clients when it begins to watch, 56 bytes each, and may read them slowly."""


def gone_frame(key: ClientKey) -> Frame:
    """Return what tells a client that somebody left, by the kind of key that its dialect has."""
    return CurvePeerGone(key) if isinstance(key, X25519PublicKey) else PeerGone(key)


def presence_frame(presence: Presence, *, has_curve_keys: bool) -> Frame | None:
    """Return what tells a member that a client came or went.

    ``None`` if it has no key of the kind that the member's dialect has.
    """
    key: ClientKey | None = presence.curve_key if has_curve_keys else presence.node_id
    if key is None:
        return None
    if not presence.is_present:
        return gone_frame(key)
    if isinstance(key, X25519PublicKey):
        return CurvePeerPresent(key, None, presence.flags)
    return PeerPresent(key)


def forward_frames(forward: Forward) -> Sequence[Frame]:
    """Return the frames that bring packets to another server.

    Those that v2 cannot forward, above ``FORWARD_LIMIT`` bytes, are left out.
    """
    source, destination, parts = forward.source, forward.destination, forward.parts
    if isinstance(source, X25519PublicKey):
        assert isinstance(destination, X25519PublicKey)
        return [CurveForwardPacket(source, destination, bytes(data)) for data in parts[1::2]]
    assert not isinstance(destination, X25519PublicKey)
    if holds_segments(parts):
        parts = packed_parts(parts)
    return [
        ForwardPacket(source, destination, bytes(payload))
        for payload in parts[1::2]
        if len(payload) <= FORWARD_LIMIT
    ]


def forwarded_parts(frame: ForwardPacket | CurveForwardPacket) -> PacketParts:
    """Return the packet that a frame forwards, as if its source had sent it here."""
    length = KEY_SIZE + len(frame.payload)
    return [KEYED_HEADER.pack(RELAYED_PACKET, length, frame.src), frame.payload]
