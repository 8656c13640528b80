"""The relay protocol of iroh 0.91 and later: a websocket, and a proof of the key by challenge.

The server speaks first. The signature is over
``BLAKE3 derive_key("iroh-relay handshake v1 challenge signature", challenge)``, 32 bytes::

    server -> client   ServerChallenge      challenge (16), at random
    client -> server   ClientAuth           node id (32) || 0x40 || signature (64)
    server -> client   ServerConfirmsAuth   empty
                       ServerDeniesAuth     reason: varint length || UTF-8; the server closes

Over TLS a client may prove its key in a header of the request instead, by TLS's keying material.
Neither side here does: no such material is at hand without sockets, and a server that does not
look at the header just sends its challenge.

Two versions differ in one frame. With the websocket subprotocol ``iroh-relay-v1`` (0.91 to 0.97)
the server tells of problems by Health, in words, with ``iroh-relay-v2`` (0.98 and later) by
Status, a number. A frame with another number, or of the wrong direction, ends the connection.

How long a pong may take follows the last round trip, as in 0.98 and later. Up to 0.97 it was always
5 s; that is nothing which the other side could tell.

Source: iroh v1.0.3 ``iroh-relay/src/{http,protos/handshake,protos/relay}.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from blake3 import blake3

from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.datagram_frames import (
    SHORTEST_BATCH,
    SHORTEST_SINGLE,
    RecvDatagram,
    RecvDatagramBatch,
    SendDatagram,
    SendDatagramBatch,
)
from iroh_proto.derp.frames import (
    HANDSHAKE_FRAME_LIMIT,
    PING_SIZE,
    RECOVERED,
    SAME_NODE_ID_PROBLEM,
    STATUS_HEALTHY,
    STATUS_RATE_LIMITED,
    STATUS_SAME_NODE_ID,
    Frame,
    FrameRule,
    FrameTable,
    Health,
    PeerGone,
    Ping,
    Pong,
    Restarting,
    SendRate,
    Status,
    node_id_of,
)
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.relay_codec import BODY_LIMIT, SENT_BATCH, SENT_DATAGRAM, RelayCodec
from iroh_proto.derp.segments import RELAYED_BATCH, RELAYED_DATAGRAM
from iroh_proto.derp.send_queue import NEWEST_DROPPED
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, SIGNATURE_SIZE, NodeId, SecretKey
from iroh_proto.wire import Reader, encode_byte_string, encode_string

SIGNATURE_CONTEXT = "iroh-relay handshake v1 challenge signature"
CHALLENGE_SIZE = 16

PING_INTERVAL = 15.0
"""Seconds without a frame after which either side pings."""

SIGNATURE_INVALID = "signature invalid"
"""What upstream's server says to a client that signed something else."""

NOT_AUTHORIZED = "not authorized"
"""What it says to a client that it does not let in, for no other reason."""

_CLIENT_AUTH_SIZE = KEY_SIZE + 1 + SIGNATURE_SIZE


@dataclass(slots=True)
class ServerChallenge(Frame):
    """Server to client, first: what to sign. Body: ``challenge (16)``."""

    challenge: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return self.challenge

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number."""
        return cls(body)


@dataclass(slots=True)
class ClientAuth(Frame):
    """Client to server: who the client is. Body: ``node id (32) || 0x40 || signature (64)``."""

    node_id: NodeId
    signature: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return self.node_id + encode_byte_string(self.signature)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number.

        :raises DecodeError: if the key is none, or the signature has another length.
        """
        reader = Reader(body)
        node_id = node_id_of(reader.take(KEY_SIZE))
        signature = reader.byte_string()
        if len(signature) != SIGNATURE_SIZE:
            raise DecodeError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
        return cls(node_id, signature)


@dataclass(slots=True)
class ServerConfirmsAuth(Frame):
    """Server to client: the client is in. Empty body."""


@dataclass(slots=True)
class ServerDeniesAuth(Frame):
    """Server to client: the client is not let in. Body: ``varint length || reason``, UTF-8."""

    reason: str

    def encode_body(self) -> bytes:
        """Return the bytes behind the number."""
        return encode_string(self.reason)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the number.

        :raises DecodeError: if it is cut short or not UTF-8.
        """
        return cls(Reader(body).string())


FRAMES = FrameTable(
    (
        FrameRule(0, ServerChallenge, CHALLENGE_SIZE, CHALLENGE_SIZE),
        FrameRule(1, ClientAuth, _CLIENT_AUTH_SIZE, HANDSHAKE_FRAME_LIMIT),
        FrameRule(2, ServerConfirmsAuth, 0, 0),
        FrameRule(3, ServerDeniesAuth, 1, HANDSHAKE_FRAME_LIMIT),
        FrameRule(SENT_DATAGRAM, SendDatagram, SHORTEST_SINGLE, BODY_LIMIT),
        FrameRule(SENT_BATCH, SendDatagramBatch, SHORTEST_BATCH, BODY_LIMIT),
        FrameRule(RELAYED_DATAGRAM, RecvDatagram, SHORTEST_SINGLE, BODY_LIMIT),
        FrameRule(RELAYED_BATCH, RecvDatagramBatch, SHORTEST_BATCH, BODY_LIMIT),
        FrameRule(8, PeerGone, KEY_SIZE, KEY_SIZE),
        FrameRule(9, Ping, PING_SIZE, PING_SIZE),
        FrameRule(10, Pong, PING_SIZE, PING_SIZE),
        FrameRule(11, Health, 0, BODY_LIMIT),
        FrameRule(12, Restarting, 8, 8),
        FrameRule(13, Status, 1, BODY_LIMIT),
    )
)
"""All frames of both versions."""

FRAMES_OF_CLIENTS = FRAMES.refusing(
    ServerChallenge,
    ServerConfirmsAuth,
    ServerDeniesAuth,
    RecvDatagram,
    RecvDatagramBatch,
    PeerGone,
    Health,
    Restarting,
    Status,
)
"""The table of servers, of either version."""

_FRAMES_OF_SERVERS = FRAMES.refusing(ClientAuth, SendDatagram, SendDatagramBatch)
FRAMES_OF_V1_SERVERS = _FRAMES_OF_SERVERS.refusing(Status)
FRAMES_OF_V2_SERVERS = _FRAMES_OF_SERVERS.refusing(Health)


def message_to_sign(challenge: bytes) -> bytes:
    """Return the 32 bytes that a client signs for a challenge."""
    return blake3(challenge, derive_key_context=SIGNATURE_CONTEXT).digest()


class RelayClientHandshake:
    """The client's side."""

    send_rate: SendRate | None = None

    def __init__(self, *, secret_key: SecretKey) -> None:
        self._secret_key = secret_key
        self._has_signed = False
        self.is_done = False

    def begin(self) -> Sequence[Frame]:
        """Return nothing: the server speaks first."""
        return ()

    def receive(self, frame: Frame) -> Sequence[Frame]:
        """Take the challenge, answered by the proof, and then the server's consent.

        :raises DecodeError: for a denial, or any other frame.
        """
        match frame:
            case ServerChallenge() if not self._has_signed:
                self._has_signed = True
                signature = self._secret_key.sign(message_to_sign(frame.challenge))
                return (ClientAuth(self._secret_key.public, signature),)
            case ServerConfirmsAuth() if self._has_signed:
                self.is_done = True
                return ()
            case ServerDeniesAuth():
                raise DecodeError(f"the server does not let this client in: {frame.reason}")
            case _:
                raise DecodeError(f"{type(frame).__name__} has no place in the handshake now")


class RelayServerHandshake:
    """The server's side."""

    mesh_key: MeshKey | None = None

    def __init__(self, *, rng: random.Random) -> None:
        self._challenge = rng.randbytes(CHALLENGE_SIZE)
        self._is_forged = False

    def begin(self) -> Sequence[Frame]:
        """Return the challenge."""
        return (ServerChallenge(self._challenge),)

    def receive(self, frame: Frame) -> NodeId:
        """Take ClientAuth and return who signed the challenge.

        :raises DecodeError: for any other frame, or a wrong signature.
        """
        if not isinstance(frame, ClientAuth):
            raise DecodeError(f"wanted ClientAuth, got {type(frame).__name__}")
        if not frame.node_id.verify(message_to_sign(self._challenge), frame.signature):
            self._is_forged = True
            raise DecodeError(f"not the signature of {frame.node_id.fmt_short()}")
        return frame.node_id

    def accept(self) -> Sequence[Frame]:
        """Return ServerConfirmsAuth."""
        return (ServerConfirmsAuth(),)

    def reject(self) -> Sequence[Frame]:
        """Return a denial for a wrong signature; other faults are not answered, as upstream."""
        return self.refuse(SIGNATURE_INVALID) if self._is_forged else ()

    def refuse(self, reason: str | None) -> Sequence[Frame]:
        """Return ServerDeniesAuth."""
        return (ServerDeniesAuth(reason or NOT_AUTHORIZED),)


class RelayDialect:
    """The :class:`~iroh_proto.derp.dialects.Dialect` of iroh 0.91 and later.

    :param name: the key in ``DIALECTS``.
    :param has_status: whether a server tells of problems by Status, and not by Health.
    """

    forms: frozenset[Form] = frozenset({"websocket"})
    server_speaks_first = True
    tells_preference = False
    keep_alive_interval: float | None = None
    keep_alive_jitter = 0.0
    ping_interval: float | None = PING_INTERVAL
    pong_timeout_adapts = True
    read_timeout: float | None = None
    queue_rule = NEWEST_DROPPED
    older_waits = True
    has_curve_keys = False

    def __init__(self, *, name: str, has_status: bool) -> None:
        self.name = name
        self._has_status = has_status
        self._frames_of_servers = FRAMES_OF_V2_SERVERS if has_status else FRAMES_OF_V1_SERVERS

    def standing(self, *, is_active: bool) -> Frame | None:
        """Return what tells a client whether it gets packets while another one has its key."""
        if self._has_status:
            return Status(STATUS_HEALTHY if is_active else STATUS_SAME_NODE_ID)
        return Health(RECOVERED if is_active else SAME_NODE_ID_PROBLEM)

    def throttled(self) -> Frame | None:
        """Return what tells a client that it is over its rate limit, which v1 does not."""
        return Status(STATUS_RATE_LIMITED) if self._has_status else None

    def client_codec(self, form: Form, *, rng: random.Random) -> FrameCodec:
        """Return the codec of a client's side."""
        return RelayCodec(self._frames_of_servers, mask_rng=rng)

    def server_codec(self, form: Form) -> FrameCodec:
        """Return the codec of a server's side."""
        return RelayCodec(FRAMES_OF_CLIENTS, mask_rng=None)

    def client_handshake(
        self, *, secret_key: SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> RelayClientHandshake:
        """Return a client's handshake on one connection."""
        return RelayClientHandshake(secret_key=secret_key)

    def server_handshake(
        self, *, secret_key: SecretKey, rng: random.Random
    ) -> RelayServerHandshake:
        """Return a server's handshake on one connection."""
        return RelayServerHandshake(rng=rng)


DIALECT_V1 = RelayDialect(name="relay-v1", has_status=False)
"""With the subprotocol ``iroh-relay-v1``."""

DIALECT_V2 = RelayDialect(name="relay-v2", has_status=True)
"""With the subprotocol ``iroh-relay-v2``."""

SUBPROTOCOLS = {"iroh-relay-v2": DIALECT_V2.name, "iroh-relay-v1": DIALECT_V1.name}
"""The dialect of each websocket subprotocol, the best first."""
