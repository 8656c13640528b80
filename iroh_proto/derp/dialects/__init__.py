"""The generations of the DERP protocol, one module each behind one interface.

A connection is: TCP or TLS, an HTTP upgrade (:mod:`iroh_proto.derp.upgrade`), a handshake, and
then frames both ways. A :class:`Dialect` says how the last two go, for the client and for the
server. The machines that use it know no generation::

    codec = dialect.server_codec("framed")
    handshake = dialect.server_handshake(secret_key=secret_key, rng=rng)
    stream.write(b"".join(codec.encode(frame) for frame in handshake.begin()))
    # for the first frame that codec.receive(...) gives:
    node_id = handshake.receive(frame)
    stream.write(b"".join(codec.encode(frame) for frame in handshake.accept()))
    # from here on frames are packets, pings, ...

| name | releases of iroh | path | first frame |
|------|------------------|------|-------------|
| v2 | 0.6 to 0.13 | ``/derp`` | server's |
| v3 | 0.14 to 0.90 | ``/relay``, and ``/derp`` before 0.21 | client's |
| relay-v1 | 0.91 and later | ``/relay``, a websocket with a subprotocol | server's |
| relay-v2 | 0.98 and later | as relay-v1 | server's |
| tailscale | Tailscale's own servers | ``/derp``, ``Upgrade: DERP`` | server's |
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeAlias

from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.dialects import relay_v1, tailscale, v2, v3
from iroh_proto.derp.frames import Frame, SendRate
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.send_queue import QueueRule
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.x25519 import X25519PublicKey

ClientKey: TypeAlias = NodeId | X25519PublicKey
"""Whose key a client has proven to hold: that of a node, or with Tailscale's dialect any X25519
key."""


class ClientHandshake(Protocol):
    """The client's side of a handshake. Frames that it returns are to be sent in order."""

    @property
    def is_done(self) -> bool:
        """Whether packets may be sent, and frames received no longer belong to the handshake."""

    @property
    def send_rate(self) -> SendRate | None:
        """How fast the server lets the client send, if it limits that."""

    def begin(self) -> Sequence[Frame]:
        """Return what the client says first, once the HTTP upgrade is done."""

    def receive(self, frame: Frame) -> Sequence[Frame]:
        """Take a frame of the server and return the answer.

        :raises DecodeError: if it is not what the handshake wants now; the connection is over.
        """


class ServerHandshake(Protocol):
    """The server's side of a handshake. Frames that it returns are to be sent in order."""

    @property
    def mesh_key(self) -> MeshKey | None:
        """What the client gave to be taken for a server of the mesh, if it did."""

    def begin(self) -> Sequence[Frame]:
        """Return what the server says first, once the HTTP upgrade is done."""

    def receive(self, frame: Frame) -> ClientKey:
        """Take the client's frame and return who has proved to be there.

        :raises DecodeError: if it is not what the handshake wants, or proves nothing; the
            connection is over.
        """

    def accept(self) -> Sequence[Frame]:
        """Return what lets the client in."""

    def reject(self) -> Sequence[Frame]:
        """Return what there is to say to a client whose frame was no good, before closing."""

    def refuse(self, reason: str | None) -> Sequence[Frame]:
        """Return what tells a client that it may not use this server, before closing.

        :param reason: ``None`` for what upstream's servers usually say.
        """


class Dialect(Protocol):
    """One generation of the protocol."""

    @property
    def name(self) -> str:
        """The key in :data:`DIALECTS`."""

    @property
    def forms(self) -> frozenset[Form]:
        """The forms that the dialect has."""

    @property
    def server_speaks_first(self) -> bool:
        """Whether the first frame after the upgrade is the server's."""

    @property
    def tells_preference(self) -> bool:
        """Whether a client tells a server that it is the client's home."""

    @property
    def keep_alive_interval(self) -> float | None:
        """Seconds between KeepAlive frames that a server sends, ``None`` if it pings instead."""

    @property
    def keep_alive_jitter(self) -> float:
        """Seconds that chance adds at most to that interval, once per connection."""

    @property
    def ping_interval(self) -> float | None:
        """Seconds of silence after which either side pings, ``None`` if only on demand."""

    @property
    def pong_timeout_adapts(self) -> bool:
        """Whether a pong may take some round trips, once one is known, instead of 5 s."""

    @property
    def read_timeout(self) -> float | None:
        """Seconds of silence after which a client gives the connection up."""

    @property
    def queue_rule(self) -> QueueRule:
        """How many packets wait in a server for a slow reader, and which are dropped then."""

    @property
    def older_waits(self) -> bool:
        """Whether the older of two clients with one key stays connected."""

    @property
    def has_curve_keys(self) -> bool:
        """Whether clients are named by X25519 keys, and each packet holds one bare datagram."""

    def standing(self, *, is_active: bool) -> Frame | None:
        """Return what tells a client whether it gets packets while another one has its key.

        ``None`` if there are no words for that.
        """

    def throttled(self) -> Frame | None:
        """Return what tells a client that it is over its rate limit, if there are words for it."""

    def client_codec(self, form: Form, *, rng: random.Random) -> FrameCodec:
        """Return the codec of a client's side."""

    def server_codec(self, form: Form) -> FrameCodec:
        """Return the codec of a server's side."""

    def client_handshake(
        self, *, secret_key: SecretKey, rng: random.Random, mesh_key: MeshKey | None = None
    ) -> ClientHandshake:
        """Return a client's handshake on one connection.

        :param mesh_key: what to give to be taken for a server of the mesh, in a dialect that has
            meshes.
        """

    def server_handshake(self, *, secret_key: SecretKey, rng: random.Random) -> ServerHandshake:
        """Return a server's handshake on one connection."""


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            v2.DIALECT,
            v3.DIALECT,
            relay_v1.DIALECT_V1,
            relay_v1.DIALECT_V2,
            tailscale.DIALECT,
        )
    }
)
"""The dialects by name."""

FRAMED_DIALECTS = frozenset({v2.DIALECT.name, v3.DIALECT.name})
"""Those that clients of iroh speak on ``/derp`` without a websocket."""
