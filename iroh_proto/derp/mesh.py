"""A server's connections to the other servers of its mesh.

Servers of a mesh serve the same clients together: each tells the others who is connected to it, and
passes on packets for their clients. A server dials all others, watches who is there, and forwards;
what the others forward to it comes on connections that they have dialled. So nothing is forwarded
twice, and there are no loops.

States of one link::

    resting -> dialling -> talking -> watching        self (it leads to this server: for good)
       ^----------'-----------'----------'

The mesh asks its host for TCP connections as any TCP user does; their numbers are negative, so that
they may be those of the same host program as the connections that it accepts.

Source: iroh v0.12.0 ``iroh-net/src/derp/http/mesh_clients.rs``; Tailscale
``derp/derphttp/mesh_client.go``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, assert_never

from iroh_proto.address import DerpUrl
from iroh_proto.derp.client import CONNECT_TIMEOUT
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.events import (
    ConnectionLost,
    DerpConnected,
    HealthReported,
    PeerGone,
    PongReceived,
    RestartAnnounced,
)
from iroh_proto.derp.mesh_client import MeshClient
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.router_reports import Forward
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from iroh_proto.timers import LatestTime, earliest
from iroh_proto.x25519 import x25519_of

MESH_DIALECTS = ("v2", "tailscale")
"""The dialects that have meshes."""

RETRY_INTERVAL = 5.0
"""Seconds between attempts to reach a server (upstream's, in both dialects)."""

SERVERS_LIMIT = 256
"""Servers in a mesh; with n of them there are n * (n - 1) connections."""

PULL_SIZE = 64 * 1024
"""Bytes handed to the host at a time. What it holds cannot be pushed out by newer packets."""


class MeshServer(NamedTuple):
    """Another server of the mesh, and how to speak to it: one of :data:`MESH_DIALECTS`.

    Servers of this project may be given twice, once in each: by v2 they are told of clients as
    nodes, which is all that clients of iroh need, by Tailscale's of X25519 keys.
    """

    url: DerpUrl
    dialect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshServerConnected:
    """A connection to another server of the mesh stands."""

    server: MeshServer


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshServerLost:
    """A connection to another server of the mesh is over, or none was had."""

    server: MeshServer
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersTold:
    """Another server tells who came (true) and went (false). For the owner of the mesh."""

    link: int
    peers: list[tuple[ClientKey, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost:
    """Nobody can be reached through another server any more. For the owner of the mesh."""

    link: int


MeshEvent: TypeAlias = (
    TcpRequested | TcpCloseRequested | MeshServerConnected | MeshServerLost | PeersTold | LinkLost
)


@dataclass(slots=True)
class MeshStats:
    """Counts since the start.

    :ivar dials: TCP connections asked for.
    :ivar dials_failed: those that led to no connection to a server.
    :ivar packets_unsent: packets whose server was not connected.
    """

    dials: int = 0
    dials_failed: int = 0
    packets_unsent: int = 0


class _Link:
    """What there is to one server."""

    __slots__ = ("client", "dial_deadline", "is_self", "retry_at", "server", "tcp_id")

    def __init__(self, server: MeshServer) -> None:
        self.server = server
        self.client: MeshClient | None = None
        self.tcp_id: int | None = None
        self.dial_deadline: float | None = None
        self.retry_at: float | None = None
        self.is_self = False


class DerpMesh:
    """The connections to the other servers of a mesh. A link is named by its place in ``servers``.

    :param secret_key: that of this server, by which the others know it.
    :param retry_interval: seconds between attempts to reach a server.
    :raises LocalProtocolError: for a dialect without meshes, or too many servers.
    """

    def __init__(
        self,
        *,
        servers: Sequence[MeshServer],
        secret_key: SecretKey,
        mesh_key: MeshKey,
        rng: random.Random,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        for server in servers:
            if server.dialect not in MESH_DIALECTS:
                raise LocalProtocolError(f"no meshes in DERP dialect {server.dialect!r}")
        if len(servers) > SERVERS_LIMIT:
            raise LocalProtocolError(f"a mesh has at most {SERVERS_LIMIT} servers")
        self._secret_key = secret_key
        self._own_keys = (secret_key.public, x25519_of(secret_key.public))
        self._mesh_key = mesh_key
        self._rng = rng
        self._retry_interval = retry_interval
        self._time = LatestTime()
        self._links = [_Link(server) for server in servers]
        self._by_tcp_id: dict[int, int] = {}
        self._last_tcp_id = 0
        self._is_started = False
        self._events: deque[MeshEvent] = deque()
        self._stats = MeshStats()

    @property
    def stats(self) -> MeshStats:
        """A copy of the counts."""
        return replace(self._stats)

    def start(self, *, now: float) -> None:
        """Dial the servers.

        :raises LocalProtocolError: if it was started before.
        """
        now = self._time.advance(now)
        if self._is_started:
            raise LocalProtocolError("a mesh is started once")
        self._is_started = True
        for link in self._links:
            self._dial(link, now)

    def forward(self, forward: Forward, *, now: float) -> None:
        """Send packets to a client of another server."""
        now = self._time.advance(now)
        client = self._links[forward.link].client
        if client is None or not client.is_connected:
            self._stats.packets_unsent += len(forward.parts) // 2
        else:
            client.forward(forward, now=now)

    def close(self, *, now: float) -> None:
        """Close all connections, for good."""
        now = self._time.advance(now)
        for link in self._links:
            self._let_go(link)
            link.retry_at = None

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that a connection stands, or with ``error`` why it does not.

        :raises LocalProtocolError: if it was not asked for, or is complete already.
        """
        now = self._time.advance(now)
        link = self._find(tcp_id)
        if link is None:
            return
        if link.client is not None:
            raise LocalProtocolError(f"TCP connection {tcp_id} is complete already")
        if error is not None:
            self._fail(link, error, now)
            return
        link.client = MeshClient(
            url=link.server.url,
            secret_key=self._secret_key,
            mesh_key=self._mesh_key,
            rng=self._rng,
            dialect=link.server.dialect,
        )
        link.client.start(now=now)

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection.

        :raises LocalProtocolError: if it was not asked for, or is not complete.
        """
        now = self._time.advance(now)
        if (link := self._expect_complete(tcp_id)) is not None and link.client is not None:
            link.client.receive_data(data, now=now)
            self._gather(link, link.client, now)

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection, orderly or not.

        :raises LocalProtocolError: if it was not asked for, or is not complete.
        """
        now = self._time.advance(now)
        if (link := self._expect_complete(tcp_id)) is not None and link.client is not None:
            link.client.receive_eof(now=now)
            self._gather(link, link.client, now)

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        return [
            link.tcp_id
            for link in self._links
            if link.tcp_id is not None and link.client is not None and link.client.has_data_to_send
        ]

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
        number = self._by_tcp_id.get(tcp_id)
        client = None if number is None else self._links[number].client
        return b"" if client is None else client.data_to_send(PULL_SIZE)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        for link in self._links:
            if link.dial_deadline is not None and link.dial_deadline <= now:
                self._fail(link, f"no connection within {CONNECT_TIMEOUT:g} s", now)
            if link.client is not None:
                link.client.handle_timer(now=now)
                self._gather(link, link.client, now)
            if link.retry_at is not None and link.retry_at <= now:
                self._dial(link, now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        deadlines: list[float | None] = []
        for link in self._links:
            deadlines += [link.retry_at, link.dial_deadline]
            if link.client is not None:
                deadlines.append(link.client.get_timer())
        return earliest(*deadlines)

    def next_event(self) -> MeshEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def _find(self, tcp_id: int) -> _Link | None:
        """Return whose connection that is, or ``None`` if it is closed."""
        if not self._last_tcp_id <= tcp_id < 0:
            raise LocalProtocolError(f"TCP connection {tcp_id} was not asked for")
        number = self._by_tcp_id.get(tcp_id)
        return None if number is None else self._links[number]

    def _expect_complete(self, tcp_id: int) -> _Link | None:
        link = self._find(tcp_id)
        if link is not None and link.client is None:
            raise LocalProtocolError(f"TCP connection {tcp_id} is not complete")
        return link

    def _dial(self, link: _Link, now: float) -> None:
        self._last_tcp_id -= 1
        link.tcp_id = self._last_tcp_id
        self._by_tcp_id[link.tcp_id] = self._links.index(link)
        link.retry_at = None
        link.dial_deadline = now + CONNECT_TIMEOUT
        self._stats.dials += 1
        url = link.server.url
        self._events.append(
            TcpRequested(tcp_id=link.tcp_id, host=url.host, port=url.port, tls=url.is_tls)
        )

    def _gather(self, link: _Link, client: MeshClient, now: float) -> None:
        """Pass on what a connection has to say."""
        number = self._links.index(link)
        while (event := client.next_event()) is not None:
            match event:
                case DerpConnected():
                    self._connected(link, client)
                case ConnectionLost():
                    self._fail(link, str(event.error), now)
                    return
                case PeerGone() | HealthReported() | PongReceived() | RestartAnnounced():
                    pass
                case _:
                    assert_never(event)
        told = [peer for peer in client.take_told() if peer[0] not in self._own_keys]
        if told and not link.is_self:
            self._events.append(PeersTold(link=number, peers=told))

    def _connected(self, link: _Link, client: MeshClient) -> None:
        link.dial_deadline = None
        if client.server_key in self._own_keys:
            link.is_self = True
            self._let_go(link)
        else:
            self._events.append(MeshServerConnected(server=link.server))

    def _fail(self, link: _Link, error: str, now: float) -> None:
        """Be without a connection for a while."""
        if link.dial_deadline is not None:
            self._stats.dials_failed += 1
        self._let_go(link)
        link.retry_at = now + self._retry_interval
        self._events.append(MeshServerLost(server=link.server, error=error))

    def _let_go(self, link: _Link) -> None:
        self._events.append(LinkLost(link=self._links.index(link)))
        link.client = None
        link.dial_deadline = None
        if link.tcp_id is not None:
            del self._by_tcp_id[link.tcp_id]
            self._events.append(TcpCloseRequested(tcp_id=link.tcp_id))
            link.tcp_id = None
