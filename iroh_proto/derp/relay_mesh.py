"""A DERP server's part in a mesh: what it does for other servers, and what they do for it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TypeAlias, assert_never

from iroh_proto.derp.curve_frames import CurveClosePeer, CurveForwardPacket
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.dialects.v2 import ClosePeer, ForwardPacket
from iroh_proto.derp.frames import PacketParts, WatchConns
from iroh_proto.derp.mesh import (
    RETRY_INTERVAL,
    DerpMesh,
    LinkLost,
    MeshServer,
    MeshServerConnected,
    MeshServerLost,
    MeshStats,
    PeersTold,
)
from iroh_proto.derp.mesh_frames import MeshRequest, forwarded_parts
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.router import DerpRouter
from iroh_proto.derp.server import DerpServerConnection
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from iroh_proto.x25519 import x25519_of

RelayMeshEvent: TypeAlias = TcpRequested | TcpCloseRequested | MeshServerConnected | MeshServerLost
"""What a :class:`RelayMesh` has to say to the host of its server."""


class RelayMesh:
    """The mesh of one server. Its methods put what they find into connections of clients.

    Look at :meth:`take_touched` after each input: those connections have something to say, or are
    over.

    :param connections: those of the server, by number.
    :raises LocalProtocolError: if there are servers and no key, or as :class:`DerpMesh`.
    """

    def __init__(
        self,
        *,
        router: DerpRouter,
        connections: Mapping[int, DerpServerConnection],
        servers: Sequence[MeshServer],
        mesh_key: MeshKey | None,
        secret_key: SecretKey,
        rng: random.Random,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        if servers and mesh_key is None:
            raise LocalProtocolError("a mesh needs its key")
        self._router = router
        self._connections = connections
        self._own_keys = (secret_key.public, x25519_of(secret_key.public))
        self._watchers: dict[int, None] = {}
        self._touched: dict[int, None] = {}
        self._events: deque[RelayMeshEvent] = deque()
        self._links: DerpMesh | None = None
        if mesh_key is not None:
            self._links = DerpMesh(
                servers=servers,
                secret_key=secret_key,
                mesh_key=mesh_key,
                rng=rng,
                retry_interval=retry_interval,
            )

    @property
    def stats(self) -> MeshStats:
        """A copy of the counts."""
        return MeshStats() if self._links is None else self._links.stats

    @property
    def has_news(self) -> bool:
        """Whether there are events, or connections that something was done to."""
        return bool(self._events or self._touched)

    # Connections to other servers

    def start(self, *, now: float) -> None:
        """Dial the other servers.

        :raises LocalProtocolError: if it was started before.
        """
        if self._links is not None:
            self._links.start(now=now)
            self._gather(self._links, now)

    def close(self, *, now: float) -> None:
        """Close the connections to other servers."""
        if self._links is not None:
            self._links.close(now=now)
            self._gather(self._links, now)

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that a connection stands, or with ``error`` why it does not.

        :raises LocalProtocolError: if it was not asked for, or is complete already.
        """
        links = self._expect_links(tcp_id)
        links.complete_tcp(tcp_id, error=error, now=now)
        self._gather(links, now)

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection.

        :raises LocalProtocolError: if it was not asked for, or is not complete.
        """
        links = self._expect_links(tcp_id)
        links.receive_tcp_data(tcp_id, data, now=now)
        self._gather(links, now)

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection.

        :raises LocalProtocolError: if it was not asked for, or is not complete.
        """
        links = self._expect_links(tcp_id)
        links.receive_tcp_eof(tcp_id, now=now)
        self._gather(links, now)

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        return [] if self._links is None else self._links.tcp_to_send()

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
        return b"" if self._links is None else self._links.tcp_data_to_send(tcp_id)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        if self._links is not None:
            self._links.handle_timer(now=now)
            self._gather(self._links, now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return None if self._links is None else self._links.get_timer()

    def next_event(self) -> RelayMeshEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def forward(self, *, now: float) -> None:
        """Send on what the router has for other servers."""
        if self._links is not None:  # else there is nobody that it could have anything for
            for forward in self._router.take_forwards():
                self._links.forward(forward, now=now)

    # Connections from other servers

    def serve(self, tcp_id: int, requests: Sequence[MeshRequest], *, now: float) -> None:
        """Do what another server asks for."""
        for way, group in groupby(requests, _way_of):
            if way is None:
                for request in group:
                    self._heed(tcp_id, request, now)
            else:
                # Packets of one client to another come in runs, and are worth one look together.
                parts = [part for frame in group for part in _parts_of(frame)]
                self._deliver(tcp_id, *way, parts, now)

    def forget(self, tcp_id: int) -> None:
        """Take that a connection is over, which may have been another server's."""
        self._watchers.pop(tcp_id, None)
        self._router.is_watched = bool(self._watchers)

    def tell_watchers(self, *, now: float) -> None:
        """Tell other servers which clients came and went."""
        for presence in self._router.take_presences():
            for watcher in self._watchers:
                self._connections[watcher].send_presence(presence, now=now)
                self._touched[watcher] = None

    def take_touched(self) -> list[int]:
        """Return the connections that something was done to, and forget them."""
        touched, self._touched = list(self._touched), {}
        return touched

    def _watch(self, tcp_id: int, now: float) -> None:
        connection = self._connections[tcp_id]
        if connection.node_id in self._own_keys:
            return
        self._watchers[tcp_id] = None
        self._router.is_watched = True
        self._touched[tcp_id] = None
        for presence in self._router.presences():
            connection.send_presence(presence, now=now)

    def _heed(self, tcp_id: int, request: MeshRequest, now: float) -> None:
        assert not isinstance(request, ForwardPacket | CurveForwardPacket), "these have a way"
        match request:
            case WatchConns():
                self._watch(tcp_id, now)
            case ClosePeer(key) | CurveClosePeer(key):
                for target in self._router.clients_of(key):
                    self._connections[target].close(now=now)
                    self._touched[target] = None
            case _:
                assert_never(request)

    def _deliver(
        self, tcp_id: int, source: ClientKey, destination: ClientKey, parts: PacketParts, now: float
    ) -> None:
        deliveries = self._router.route_forwarded(source, destination, parts)
        for target, known in deliveries:
            self._connections[target].send_packets(known, now=now)
            self._touched[target] = None
        for missing in self._router.take_missing():
            self._connections[tcp_id].send_not_here(missing, now=now)

    def _expect_links(self, tcp_id: int) -> DerpMesh:
        if self._links is None:
            raise LocalProtocolError(f"TCP connection {tcp_id} was not asked for")
        return self._links

    def _gather(self, links: DerpMesh, now: float) -> None:
        """Pass on what the connections to other servers have to say."""
        while (event := links.next_event()) is not None:
            match event:
                case PeersTold():
                    self._take_peers(event, now)
                case LinkLost():
                    self._tell_gone(self._router.remove_link(event.link), now)
                case TcpRequested() | TcpCloseRequested():
                    self._events.append(event)
                case MeshServerConnected() | MeshServerLost():
                    self._events.append(event)
                case _:
                    assert_never(event)

    def _take_peers(self, told: PeersTold, now: float) -> None:
        for key, is_present in told.peers:
            if is_present:
                self._router.add_remote(told.link, key)
            else:
                self._tell_gone(self._router.remove_remote(told.link, key), now)

    def _tell_gone(self, told: Sequence[tuple[int, ClientKey]], now: float) -> None:
        for target, key in told:
            self._connections[target].send_peer_gone(key, now=now)
            self._touched[target] = None


def _parts_of(request: MeshRequest) -> PacketParts:
    assert isinstance(request, ForwardPacket | CurveForwardPacket)
    return forwarded_parts(request)


def _way_of(request: MeshRequest) -> tuple[ClientKey, ClientKey] | None:
    """Return from whom to whom a packet is forwarded, if one is."""
    if isinstance(request, ForwardPacket | CurveForwardPacket):
        return request.src, request.dst
    return None
