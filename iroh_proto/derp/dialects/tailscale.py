"""Tailscale's DERP, framed or as a websocket with the subprotocol ``derp``.

The server speaks first. The client proves its key by a box that only it and the server can make::

    server -> client   ServerKey    "DERP🔑" (8) || server's key (32)
    client -> server   ClientInfo   client's key (32) || sealed JSON
    server -> client   ServerInfo   sealed JSON

Sealed means :class:`~iroh_proto.x25519.NaclBox`. JSON of a client, absent what is false or none::

    {"meshKey": "<64 hex digits>", "version": 2, "CanAckPings": true, "IsProber": true}

and of a server ``{"version": 2}``, to which ``TokenBucketBytesPerSecond`` and
``TokenBucketBytesBurst`` may come. Names count in any case, unknown ones not at all.

Keys are X25519. A node here is known by that of its node id. One packet holds one datagram, without
a prefix; that is how two nodes of iroh meet at such a server, which never looks further than
whether a datagram is a disco message.

Source: Tailscale ``derp/derp.go``, ``derp/derp_client.go``, ``derp/derpserver/derpserver.go``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.curve_codec import CurveCodec, CurveWebsocketCodec
from iroh_proto.derp.curve_frames import ClientInfo, ServerInfo, ServerKey
from iroh_proto.derp.frames import HEADER, LENGTH_PREFIX_SIZE, Frame, SendRate
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.send_queue import QueueRule
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import KEY_SIZE, SecretKey
from iroh_proto.x25519 import NACL_NONCE_SIZE, NaclBox, X25519PublicKey, X25519SecretKey

VERSION = 2

QUEUED_PACKETS_LIMIT = 32
"""Packets waiting for one client, as in Tailscale's server, which drops the oldest beyond."""

KEEP_ALIVE_INTERVAL = 60.0
"""Seconds between KeepAlive frames, without the jitter."""

KEEP_ALIVE_JITTER = 5.0
"""Seconds at most that chance adds to the interval of one connection."""

READ_TIMEOUT = 120.0
"""Seconds without any frame after which a client gives up."""

_PACKET_OVERHEAD = HEADER.size + KEY_SIZE - LENGTH_PREFIX_SIZE
_LARGEST_INT = (1 << 63) - 1  # Go's int, in which upstream keeps numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDetails:
    """What a client says of itself inside the box."""

    version: int = VERSION
    mesh_key: MeshKey | None = None
    can_ack_pings: bool = True
    is_prober: bool = False
    app_name: str = ""

    def encode(self) -> bytes:
        """Return the JSON, in upstream's order."""
        fields: dict[str, object] = {}
        if self.mesh_key is not None:
            fields["meshKey"] = self.mesh_key.to_bytes().hex()
        fields |= {"version": self.version, "CanAckPings": self.can_ack_pings}
        if self.is_prober:
            fields["IsProber"] = True
        if self.app_name:
            fields["AppName"] = self.app_name
        return _encode(fields)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the JSON.

        :raises DecodeError: if it is none, or a field is not what it should be.
        """
        fields = _decode(data)
        mesh_key = _field(fields, "meshKey", "")
        return cls(
            version=_field(fields, "version", 0),
            mesh_key=_received_mesh_key(mesh_key),
            can_ack_pings=_field(fields, "CanAckPings", False),
            is_prober=_field(fields, "IsProber", False),
            app_name=_field(fields, "AppName", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDetails:
    """What a server says of itself inside the box; a rate of 0 is none."""

    version: int = VERSION
    bytes_per_second: int = 0
    burst_bytes: int = 0

    def encode(self) -> bytes:
        """Return the JSON, in upstream's order."""
        fields: dict[str, object] = {"version": self.version}
        if self.bytes_per_second:
            fields["TokenBucketBytesPerSecond"] = self.bytes_per_second
        if self.burst_bytes:
            fields["TokenBucketBytesBurst"] = self.burst_bytes
        return _encode(fields)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the JSON.

        :raises DecodeError: if it is none, or a field is not what it should be.
        """
        fields = _decode(data)
        return cls(
            version=_field(fields, "version", 0),
            bytes_per_second=_field(fields, "TokenBucketBytesPerSecond", 0),
            burst_bytes=_field(fields, "TokenBucketBytesBurst", 0),
        )


class TailscaleClientHandshake:
    """The client's side. ``server_key`` is the server's once it said so."""

    def __init__(
        self, *, secret_key: X25519SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> None:
        self._secret_key = secret_key
        self._rng = rng
        self._details = ClientDetails(mesh_key=mesh_key)
        self._box: NaclBox | None = None
        self.server_key: X25519PublicKey | None = None
        self.is_done = False
        self.send_rate: SendRate | None = None

    def begin(self) -> Sequence[Frame]:
        """Return nothing: the server speaks first."""
        return ()

    def receive(self, frame: Frame) -> Sequence[Frame]:
        """Take ServerKey, answered by ClientInfo, and then ServerInfo.

        :raises DecodeError: for any other frame, a key that no box can be made with, or a box that
            does not open.
        """
        if self._box is None:
            if not isinstance(frame, ServerKey):
                raise DecodeError(f"wanted ServerKey, got {type(frame).__name__}")
            self.server_key = frame.key
            self._box = NaclBox(self._secret_key, frame.key)
            nonce = self._rng.randbytes(NACL_NONCE_SIZE)
            return (
                ClientInfo(self._secret_key.public, self._box.seal(self._details.encode(), nonce)),
            )
        if not isinstance(frame, ServerInfo):
            raise DecodeError(f"wanted ServerInfo, got {type(frame).__name__}")
        details = ServerDetails.decode(self._box.open(frame.sealed))
        if details.bytes_per_second and details.burst_bytes:
            self.send_rate = SendRate(
                details.bytes_per_second, details.burst_bytes, _PACKET_OVERHEAD
            )
        self.is_done = True
        return ()


class TailscaleServerHandshake:
    """The server's side. ``details`` is what the client said of itself."""

    def __init__(self, *, secret_key: X25519SecretKey, rng: random.Random) -> None:
        self._secret_key = secret_key
        self._rng = rng
        self._box: NaclBox | None = None
        self.details: ClientDetails | None = None

    @property
    def mesh_key(self) -> MeshKey | None:
        """The mesh key that the client gave."""
        return None if self.details is None else self.details.mesh_key

    def begin(self) -> Sequence[Frame]:
        """Return ServerKey."""
        return (ServerKey(self._secret_key.public),)

    def receive(self, frame: Frame) -> X25519PublicKey:
        """Take ClientInfo and return who sealed it. Its version is not checked, as upstream.

        :raises DecodeError: for any other frame, a key that no box can be made with, or a box
            that does not open.
        """
        if not isinstance(frame, ClientInfo):
            raise DecodeError(f"wanted ClientInfo, got {type(frame).__name__}")
        box = NaclBox(self._secret_key, frame.key)
        self.details = ClientDetails.decode(box.open(frame.sealed))
        self._box = box
        return frame.key

    def accept(self) -> Sequence[Frame]:
        """Return ServerInfo.

        :raises LocalProtocolError: before :meth:`receive` told who the client is.
        """
        if self._box is None:
            raise LocalProtocolError("no client has proved its key yet")
        nonce = self._rng.randbytes(NACL_NONCE_SIZE)
        return (ServerInfo(self._box.seal(ServerDetails().encode(), nonce)),)

    def reject(self) -> Sequence[Frame]:
        """Return nothing: this dialect has no words for it."""
        return ()

    def refuse(self, reason: str | None) -> Sequence[Frame]:
        """Return nothing: this dialect has no words for it."""
        return ()


class TailscaleDialect:
    """The :class:`~iroh_proto.derp.dialects.Dialect` of Tailscale's servers and clients."""

    name = "tailscale"
    forms: frozenset[Form] = frozenset({"framed", "websocket"})
    server_speaks_first = True
    tells_preference = True
    keep_alive_interval: float | None = KEEP_ALIVE_INTERVAL
    keep_alive_jitter = KEEP_ALIVE_JITTER
    ping_interval: float | None = None
    pong_timeout_adapts = False
    read_timeout: float | None = READ_TIMEOUT
    queue_rule = QueueRule(QUEUED_PACKETS_LIMIT, drops_oldest=True)
    older_waits = True
    has_curve_keys = True

    def standing(self, *, is_active: bool) -> Frame | None:
        """Return nothing: neither client with one key is told."""
        return None

    def throttled(self) -> Frame | None:
        """Return nothing: this dialect has no words for it."""
        return None

    def client_codec(self, form: Form, *, rng: random.Random) -> FrameCodec:
        """Return the codec of a client's side."""
        if form == "websocket":
            return CurveWebsocketCodec(mask_rng=rng)
        return CurveCodec(is_server=False)

    def server_codec(self, form: Form) -> FrameCodec:
        """Return the codec of a server's side."""
        return (
            CurveWebsocketCodec(mask_rng=None)
            if form == "websocket"
            else CurveCodec(is_server=True)
        )

    def client_handshake(
        self, *, secret_key: SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> TailscaleClientHandshake:
        """Return a client's handshake on one connection."""
        return TailscaleClientHandshake(
            secret_key=X25519SecretKey.of(secret_key), rng=rng, mesh_key=mesh_key
        )

    def server_handshake(
        self, *, secret_key: SecretKey, rng: random.Random
    ) -> TailscaleServerHandshake:
        """Return a server's handshake on one connection."""
        return TailscaleServerHandshake(secret_key=X25519SecretKey.of(secret_key), rng=rng)


DIALECT = TailscaleDialect()

SUBPROTOCOLS = {"derp": DIALECT.name}
"""The dialect of the websocket subprotocol that there is on ``/derp``."""


def _encode(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def _decode(data: bytes) -> dict[str, object]:
    """Return the fields by their names in lower case; those that are null are left out."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise DecodeError("what is in the box is no JSON") from None
    if not isinstance(fields, dict):
        raise DecodeError("what is in the box is no JSON object")
    return {name.lower(): value for name, value in fields.items() if value is not None}


def _field(fields: Mapping[str, object], name: str, default: Any) -> Any:
    """Return the value of a field, which is of the type of its default."""
    value = fields.get(name.lower(), default)
    if type(value) is not type(default):
        raise DecodeError(f"{name} is not of type {type(default).__name__}")
    if type(value) is int and not 0 <= value <= _LARGEST_INT:
        raise DecodeError(f"{name} is out of range")
    return value


def _received_mesh_key(text: str) -> MeshKey | None:
    if not text:
        return None
    try:
        return MeshKey.received(bytes.fromhex(text))
    except ValueError:
        raise DecodeError("meshKey is not 64 hex digits") from None
