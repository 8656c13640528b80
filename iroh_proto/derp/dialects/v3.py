"""Relay v3, spoken by iroh 0.14 to 0.90, framed or (from 0.20) as a websocket.

The client speaks first and the server says nothing when all is well::

    client -> server   ClientInfo   "RELAY🔑" (9) || node id (32) || signature (64)
                                    || postcard(ClientInfo)

postcard(ClientInfo) is the version, a LEB128 varint; bytes behind it are ignored. The signature is
over exactly those bytes, so that it is the same on each connection: what keeps it from being
replayed is TLS alone. A frame with an unknown number ends the connection.

Source: iroh v0.14.0 ``iroh-net/src/relay/codec.rs``, v0.35.0 ``iroh-relay/src/protos/relay.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from iroh_proto.derp.codec import Form, FrameCodec, FramedCodec
from iroh_proto.derp.frames import (
    FRAME_LIMIT,
    HANDSHAKE_FRAME_LIMIT,
    PACKET_LIMIT,
    PING_SIZE,
    Frame,
    FrameRule,
    FrameTable,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    SendRate,
    node_id_of,
)
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.message_codec import WebsocketCodec
from iroh_proto.derp.send_queue import NEWEST_DROPPED
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, SIGNATURE_SIZE, NodeId, SecretKey
from iroh_proto.wire import Reader, encode_varint

VERSION = 3
MAGIC = "RELAY🔑".encode()

PING_INTERVAL = 15.0
"""Seconds without a frame after which upstream pings, from 0.31 on."""

NOT_AUTHENTICATED = "not authenticated"
"""What upstream's server says to a client that it does not let in, for no other reason."""

_CLIENT_INFO_SIZE = len(MAGIC) + KEY_SIZE + SIGNATURE_SIZE


@dataclass(slots=True)
class ClientInfo(Frame):
    """Client to server, first: who the client is, and its signature over ``info``."""

    node_id: NodeId
    signature: bytes
    info: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return MAGIC + self.node_id + self.signature + self.info

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header.

        :raises DecodeError: if the magic is missing or the key is none.
        """
        if not body.startswith(MAGIC):
            raise DecodeError("a ClientInfo frame without the relay's magic")
        start = len(MAGIC)
        node_id = node_id_of(body[start : start + KEY_SIZE])
        return cls(node_id, body[start + KEY_SIZE : _CLIENT_INFO_SIZE], body[_CLIENT_INFO_SIZE:])


FRAMES = FrameTable(
    (
        FrameRule(2, ClientInfo, _CLIENT_INFO_SIZE, HANDSHAKE_FRAME_LIMIT),
        FrameRule(4, SendPacket, KEY_SIZE, KEY_SIZE + PACKET_LIMIT),
        FrameRule(5, RecvPacket, KEY_SIZE, KEY_SIZE + PACKET_LIMIT),
        FrameRule(6, KeepAlive, 0, 0),
        FrameRule(7, NotePreferred, 1, 1),
        FrameRule(8, PeerGone, KEY_SIZE, KEY_SIZE),
        FrameRule(12, Ping, PING_SIZE, PING_SIZE),
        FrameRule(13, Pong, PING_SIZE, PING_SIZE),
        FrameRule(14, Health, 0, FRAME_LIMIT),
        FrameRule(15, Restarting, 8, 8),
    )
)


FRAMES_OF_CLIENTS = FRAMES.refusing(Health)
"""The table of servers, which from 0.31 on take Health from a client for a fault."""


class V3ClientHandshake:
    """The client's side: one frame, and the server is taken to have liked it."""

    is_done = True
    send_rate: SendRate | None = None

    def __init__(self, *, secret_key: SecretKey) -> None:
        self._secret_key = secret_key

    def begin(self) -> Sequence[Frame]:
        """Return ClientInfo."""
        info = encode_varint(VERSION)
        return (ClientInfo(self._secret_key.public, self._secret_key.sign(info), info),)

    def receive(self, frame: Frame) -> Sequence[Frame]:
        """Take nothing.

        :raises DecodeError: always; no frame of the server belongs to the handshake.
        """
        raise DecodeError(f"{type(frame).__name__} in a handshake that has no answer")


class V3ServerHandshake:
    """The server's side."""

    mesh_key: MeshKey | None = None

    def begin(self) -> Sequence[Frame]:
        """Return nothing: the client speaks first."""
        return ()

    def receive(self, frame: Frame) -> NodeId:
        """Take ClientInfo and return who signed it.

        :raises DecodeError: for any other frame, a wrong signature, or another version than 3.
        """
        if not isinstance(frame, ClientInfo):
            raise DecodeError(f"wanted ClientInfo, got {type(frame).__name__}")
        if not frame.node_id.verify(frame.info, frame.signature):
            raise DecodeError(f"not the signature of {frame.node_id.fmt_short()}")
        version = Reader(frame.info).varint()
        if version != VERSION:
            raise DecodeError(f"the client speaks version {version}, not {VERSION}")
        return frame.node_id

    def accept(self) -> Sequence[Frame]:
        """Return nothing: silence lets the client in."""
        return ()

    def reject(self) -> Sequence[Frame]:
        """Return nothing: upstream closes without a word."""
        return ()

    def refuse(self, reason: str | None) -> Sequence[Frame]:
        """Return a Health frame with the reason."""
        return (Health(reason or NOT_AUTHENTICATED),)


class V3Dialect:
    """The :class:`~iroh_proto.derp.dialects.Dialect` of iroh 0.14 to 0.90."""

    name = "v3"
    forms: frozenset[Form] = frozenset({"framed", "websocket"})
    server_speaks_first = False
    tells_preference = True
    keep_alive_interval: float | None = None
    keep_alive_jitter = 0.0
    ping_interval: float | None = PING_INTERVAL
    pong_timeout_adapts = False
    read_timeout: float | None = None
    queue_rule = NEWEST_DROPPED
    older_waits = False
    has_curve_keys = False

    def standing(self, *, is_active: bool) -> Frame | None:
        """Return nothing: the older of two with one key is closed."""
        return None

    def throttled(self) -> Frame | None:
        """Return nothing: this dialect has no words for it."""
        return None

    def client_codec(self, form: Form, *, rng: random.Random) -> FrameCodec:
        """Return the codec of a client's side."""
        if form == "websocket":
            return WebsocketCodec(FRAMES, mask_rng=rng)
        return FramedCodec(FRAMES, is_server=False)

    def server_codec(self, form: Form) -> FrameCodec:
        """Return the codec of a server's side."""
        if form == "websocket":
            return WebsocketCodec(FRAMES_OF_CLIENTS, mask_rng=None)
        return FramedCodec(FRAMES_OF_CLIENTS, is_server=True)

    def client_handshake(
        self, *, secret_key: SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> V3ClientHandshake:
        """Return a client's handshake on one connection."""
        return V3ClientHandshake(secret_key=secret_key)

    def server_handshake(self, *, secret_key: SecretKey, rng: random.Random) -> V3ServerHandshake:
        """Return a server's handshake on one connection."""
        return V3ServerHandshake()


DIALECT = V3Dialect()
