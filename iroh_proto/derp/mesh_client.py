"""A server's connection to another server of its mesh: a client that may ask for more.

Once connected it asks for who is there, and is told of all who come and go. What it forwards is
bounded as what a client sends: the oldest packets go first.

Source: iroh v0.12.0 ``iroh-net/src/derp/client.rs``; Tailscale ``derp/derp_client.go``.
"""

from __future__ import annotations

import random

from iroh_proto.address import DerpUrl
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.curve_frames import CurvePeerGone, CurvePeerPresent
from iroh_proto.derp.dialects import ClientHandshake, ClientKey, Dialect
from iroh_proto.derp.dialects.tailscale import TailscaleClientHandshake
from iroh_proto.derp.dialects.v2 import PeerPresent, V2ClientHandshake
from iroh_proto.derp.frames import Frame, PeerGone, WatchConns
from iroh_proto.derp.mesh_frames import forward_frames
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.ping_tracker import PingTracker
from iroh_proto.derp.router_reports import Forward
from iroh_proto.key import SecretKey

TOLD_LIMIT = 524_288
"""News of clients that wait for the owner of the connection. A host that drains after each input
never meets it; past it the news are lost and with them the connection."""


class MeshClient(DerpClient):
    """One connection to another server of the mesh, from the HTTP request on.

    After each input drain :meth:`take_told` before the events.

    :param dialect: ``"v2"`` or ``"tailscale"``.
    :ivar server_key: the key that the server gave itself, once connected.
    """

    def __init__(
        self,
        *,
        url: DerpUrl,
        secret_key: SecretKey,
        mesh_key: MeshKey,
        rng: random.Random,
        dialect: str,
    ) -> None:
        super().__init__(url=url, secret_key=secret_key, rng=rng, dialect=dialect)
        self._mesh_key = mesh_key
        self._told: list[tuple[ClientKey, bool]] = []
        self.server_key: ClientKey | None = None

    def forward(self, forward: Forward, *, now: float) -> None:
        """Send packets to a client of the server. Before and after the connection they are lost."""
        self._time.advance(now)
        if self._codec is None or not self.is_connected:
            self._stats.datagrams_unsent += len(forward.parts) // 2
            return
        for frame in forward_frames(forward):
            data = self._codec.encode(frame)
            self._stats.packets_dropped += self._queue.push_packets(data, 1)

    def take_told(self) -> list[tuple[ClientKey, bool]]:
        """Return who came (true) and went (false) at the server, and forget it."""
        told, self._told = self._told, []
        return told

    def _new_handshake(self, dialect: Dialect) -> ClientHandshake:
        return dialect.client_handshake(
            secret_key=self._secret_key, rng=self._rng, mesh_key=self._mesh_key
        )

    def _connect(self, handshake: ClientHandshake, now: float) -> None:
        assert isinstance(handshake, V2ClientHandshake | TailscaleClientHandshake)
        self.server_key = handshake.server_key
        super()._connect(handshake, now)
        self._send(WatchConns())

    def _receive_other(self, tracker: PingTracker, frame: Frame, now: float) -> None:
        match frame:
            case PeerPresent(node_id):
                self._told.append((node_id, True))
            case CurvePeerPresent(key):
                self._told.append((key, True))
            case PeerGone(node_id):
                self._told.append((node_id, False))
            case CurvePeerGone(key):
                self._told.append((key, False))
            case _:
                super()._receive_other(tracker, frame, now)
        if len(self._told) > TOLD_LIMIT:
            self._lose("nobody asked for what the server tells")
