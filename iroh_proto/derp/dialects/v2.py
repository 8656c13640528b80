"""DERP v2, spoken by iroh 0.6 to 0.13.

The server speaks first. The client proves its key by a box that only it and the server can make::

    server -> client   ServerKey    "DERP🔑" (8) || server's node id (32)
    client -> server   ClientInfo   client's node id (32) || sealed postcard(ClientInfo)
    server -> client   ServerInfo   sealed postcard(ServerInfo)

postcard(ClientInfo) is ``version || Option<mesh key (32)> || can_ack_pings || is_prober`` and
postcard(ServerInfo) ``version || bytes per second || burst``, integers as LEB128 varints. Bytes
behind them are ignored. Sealed means :class:`~iroh_proto.box.SharedBox`, nonce last.

Frames 9, 10, 11 and 16 serve meshes of servers, until 0.12. A frame with another number ends the
connection.

Source: iroh v0.12.0 ``iroh-net/src/derp/{codec,types,client,client_conn,server}.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from iroh_proto.box import BOX_NONCE_SIZE, SharedBox
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
    WatchConns,
    node_id_of,
)
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.send_queue import NEWEST_DROPPED
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import KEY_SIZE, NodeId, SecretKey
from iroh_proto.wire import Reader, encode_bool, encode_option, encode_varint

VERSION = 2
MAGIC = "DERP🔑".encode()

KEEP_ALIVE_INTERVAL = 65.0
"""Seconds between KeepAlive frames (upstream: 60 and a jitter that is always 5)."""

READ_TIMEOUT = 120.0
"""Seconds without any frame after which a client gives up (upstream's client)."""

FORWARD_LIMIT = 65_472
"""Most bytes of payload in a ForwardPacket: the decoder counts both keys against a packet."""


@dataclass(slots=True)
class ServerKey(Frame):
    """Server to client, first: who the server is. Body: ``"DERP🔑" (8) || node id (32)``."""

    node_id: NodeId

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return MAGIC + self.node_id

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header.

        :raises DecodeError: if the magic is missing or the key is none.
        """
        if not body.startswith(MAGIC):
            raise DecodeError("a ServerKey frame without DERP's magic")
        return cls(node_id_of(body[len(MAGIC) :]))


@dataclass(slots=True)
class ClientInfo(Frame):
    """Client to server: who the client is. Body: ``node id (32) || sealed``."""

    node_id: NodeId
    sealed: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.node_id + self.sealed

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(node_id_of(body[:KEY_SIZE]), body[KEY_SIZE:])


@dataclass(slots=True)
class ServerInfo(Frame):
    """Server to client: the client is in. Body: ``sealed``."""

    sealed: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.sealed

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(body)


@dataclass(slots=True)
class PeerPresent(Frame):
    """Server to mesh member: ``node_id`` connected. Body: ``node id (32)``."""

    node_id: NodeId

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return bytes(self.node_id)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(node_id_of(body))


@dataclass(slots=True)
class ClosePeer(Frame):
    """Mesh member to server: close the connection of ``node_id``. Body: ``node id (32)``."""

    node_id: NodeId

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return bytes(self.node_id)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(node_id_of(body))


@dataclass(slots=True)
class ForwardPacket(Frame):
    """Mesh member to server: a packet of another server's client.

    Body: ``src (32) || dst (32) || payload``.
    """

    src: NodeId
    dst: NodeId
    payload: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.src + self.dst + self.payload

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        src, dst = body[:KEY_SIZE], body[KEY_SIZE : 2 * KEY_SIZE]
        return cls(node_id_of(src), node_id_of(dst), body[2 * KEY_SIZE :])


FRAMES = FrameTable(
    (
        FrameRule(1, ServerKey, len(MAGIC) + KEY_SIZE, len(MAGIC) + KEY_SIZE),
        FrameRule(2, ClientInfo, KEY_SIZE, HANDSHAKE_FRAME_LIMIT),
        FrameRule(3, ServerInfo, 0, HANDSHAKE_FRAME_LIMIT),
        FrameRule(4, SendPacket, KEY_SIZE, KEY_SIZE + PACKET_LIMIT),
        FrameRule(5, RecvPacket, KEY_SIZE, KEY_SIZE + PACKET_LIMIT),
        FrameRule(6, KeepAlive, 0, 0),
        FrameRule(7, NotePreferred, 1, 1),
        FrameRule(8, PeerGone, KEY_SIZE, KEY_SIZE),
        FrameRule(9, PeerPresent, KEY_SIZE, KEY_SIZE),
        FrameRule(10, WatchConns, 0, 0),
        FrameRule(11, ClosePeer, KEY_SIZE, KEY_SIZE),
        FrameRule(12, Ping, PING_SIZE, PING_SIZE),
        FrameRule(13, Pong, PING_SIZE, PING_SIZE),
        FrameRule(14, Health, 0, FRAME_LIMIT),
        FrameRule(15, Restarting, 8, 8),
        FrameRule(16, ForwardPacket, 2 * KEY_SIZE, 2 * KEY_SIZE + FORWARD_LIMIT),
    )
)


FRAMES_OF_CLIENTS = FRAMES.refusing(Health)
"""The table of servers. Health ends the connection, though not upstream: no client sends it, and it
could fill a server's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDetails:
    """What a client says of itself inside the box."""

    version: int = VERSION
    mesh_key: MeshKey | None = None
    can_ack_pings: bool = True
    is_prober: bool = False

    def encode(self) -> bytes:
        """Return the postcard bytes."""
        fields = (
            encode_varint(self.version),
            encode_option(None if self.mesh_key is None else self.mesh_key.to_bytes()),
            encode_bool(self.can_ack_pings),
            encode_bool(self.is_prober),
        )
        return b"".join(fields)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the postcard bytes; further bytes are ignored.

        :raises DecodeError: if they are cut short or hold what no client writes.
        """
        reader = Reader(data)
        return cls(
            version=reader.varint(),
            mesh_key=MeshKey.received(reader.option(lambda: reader.take(KEY_SIZE))),
            can_ack_pings=reader.boolean(),
            is_prober=reader.boolean(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDetails:
    """What a server says of itself inside the box; a rate of 0 is none."""

    version: int = VERSION
    bytes_per_second: int = 0
    burst_bytes: int = 0

    def encode(self) -> bytes:
        """Return the postcard bytes."""
        numbers = (self.version, self.bytes_per_second, self.burst_bytes)
        return b"".join(encode_varint(number) for number in numbers)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the postcard bytes; further bytes are ignored.

        :raises DecodeError: if they are cut short.
        """
        reader = Reader(data)
        return cls(
            version=reader.varint(),
            bytes_per_second=reader.varint(),
            burst_bytes=reader.varint(),
        )


class V2ClientHandshake:
    """The client's side. ``server_key`` is the server's id once it said so."""

    def __init__(
        self, *, secret_key: SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> None:
        self._secret_key = secret_key
        self._rng = rng
        self._details = ClientDetails(mesh_key=mesh_key)
        self._box: SharedBox | None = None
        self.server_key: NodeId | None = None
        self.is_done = False
        self.send_rate: SendRate | None = None

    def begin(self) -> Sequence[Frame]:
        """Return nothing: the server speaks first."""
        return ()

    def receive(self, frame: Frame) -> Sequence[Frame]:
        """Take ServerKey, answered by ClientInfo, and then ServerInfo.

        :raises DecodeError: for any other frame, a key that no box can be made with, a box that
            does not open, or another version than 2.
        """
        if self._box is None:
            if not isinstance(frame, ServerKey):
                raise DecodeError(f"wanted ServerKey, got {type(frame).__name__}")
            self.server_key = frame.node_id
            self._box = SharedBox(self._secret_key, frame.node_id)
            sealed = self._box.seal(self._details.encode(), self._rng.randbytes(BOX_NONCE_SIZE))
            return (ClientInfo(self._secret_key.public, sealed),)
        if not isinstance(frame, ServerInfo):
            raise DecodeError(f"wanted ServerInfo, got {type(frame).__name__}")
        details = ServerDetails.decode(self._box.open(frame.sealed))
        if details.version != VERSION:
            raise DecodeError(f"the server speaks version {details.version}, not {VERSION}")
        if details.bytes_per_second and details.burst_bytes:
            self.send_rate = SendRate(details.bytes_per_second, details.burst_bytes)
        self.is_done = True
        return ()


class V2ServerHandshake:
    """The server's side. ``details`` is what the client said of itself."""

    def __init__(self, *, secret_key: SecretKey, rng: random.Random) -> None:
        self._secret_key = secret_key
        self._rng = rng
        self._box: SharedBox | None = None
        self.details: ClientDetails | None = None

    @property
    def mesh_key(self) -> MeshKey | None:
        """The mesh key that the client gave."""
        return None if self.details is None else self.details.mesh_key

    def begin(self) -> Sequence[Frame]:
        """Return ServerKey."""
        return (ServerKey(self._secret_key.public),)

    def receive(self, frame: Frame) -> NodeId:
        """Take ClientInfo and return who sealed it. Its version is not checked, as upstream.

        :raises DecodeError: for any other frame, a key that no box can be made with, or a box
            that does not open.
        """
        if not isinstance(frame, ClientInfo):
            raise DecodeError(f"wanted ClientInfo, got {type(frame).__name__}")
        box = SharedBox(self._secret_key, frame.node_id)
        self.details = ClientDetails.decode(box.open(frame.sealed))
        self._box = box
        return frame.node_id

    def accept(self) -> Sequence[Frame]:
        """Return ServerInfo.

        :raises LocalProtocolError: before :meth:`receive` told who the client is.
        """
        if self._box is None:
            raise LocalProtocolError("no client has proved its key yet")
        nonce = self._rng.randbytes(BOX_NONCE_SIZE)
        return (ServerInfo(self._box.seal(ServerDetails().encode(), nonce)),)

    def reject(self) -> Sequence[Frame]:
        """Return nothing: this dialect has no words for it."""
        return ()

    def refuse(self, reason: str | None) -> Sequence[Frame]:
        """Return nothing: this dialect has no words for it."""
        return ()


class V2Dialect:
    """The :class:`~iroh_proto.derp.dialects.Dialect` of iroh 0.6 to 0.13."""

    name = "v2"
    forms: frozenset[Form] = frozenset({"framed"})
    server_speaks_first = True
    tells_preference = True
    keep_alive_interval: float | None = KEEP_ALIVE_INTERVAL
    keep_alive_jitter = 0.0
    ping_interval: float | None = None
    pong_timeout_adapts = False
    read_timeout: float | None = READ_TIMEOUT
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
        return FramedCodec(FRAMES, is_server=False)

    def server_codec(self, form: Form) -> FrameCodec:
        """Return the codec of a server's side."""
        return FramedCodec(FRAMES_OF_CLIENTS, is_server=True)

    def client_handshake(
        self, *, secret_key: SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> V2ClientHandshake:
        """Return a client's handshake on one connection."""
        return V2ClientHandshake(secret_key=secret_key, rng=rng, mesh_key=mesh_key)

    def server_handshake(self, *, secret_key: SecretKey, rng: random.Random) -> V2ServerHandshake:
        """Return a server's handshake on one connection."""
        return V2ServerHandshake(secret_key=secret_key, rng=rng)


DIALECT = V2Dialect()
