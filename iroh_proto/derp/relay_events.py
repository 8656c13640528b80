"""What a DERP server tells its host, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.mesh import MeshServerConnected, MeshServerLost, MeshStats
from iroh_proto.derp.router_reports import RouterStats
from iroh_proto.derp.server_events import ConnectionStats
from iroh_proto.errors import RemoteProtocolError
from iroh_proto.machine import (
    TcpCloseRequested,
    TcpPauseRequested,
    TcpRequested,
    TcpResumeRequested,
)


@dataclass(slots=True)
class DerpServerStats:
    """Counts since the start.

    :ivar connections_accepted: connections taken, also those that are gone.
    :ivar connections_refused: connections closed at once because there were too many, or the
        server closes.
    :ivar connections_over_rate: those of them that came too fast one after the other.
    :ivar strangers_displaced: connections closed to make room for newer ones, since too many had
        not proven a key.
    :ivar write_timeouts: connections closed because their reader had stopped reading.
    :ivar connections: what happened on connections.
    :ivar router: what happened between them.
    :ivar mesh: what happened on connections to other servers.
    """

    connections_accepted: int = 0
    connections_refused: int = 0
    connections_over_rate: int = 0
    strangers_displaced: int = 0
    write_timeouts: int = 0
    connections: ConnectionStats = field(default_factory=ConnectionStats)
    router: RouterStats = field(default_factory=RouterStats)
    mesh: MeshStats = field(default_factory=MeshStats)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequested:
    """A client has proven its key and waits to be let in, by ``complete_access(tcp_id, ...)``.

    Unless it is answered within :data:`~iroh_proto.derp.access.ACCESS_TIMEOUT`, the client is
    denied access. An answer that comes too late is ignored.

    :ivar tcp_id: its connection, which also names the request: there is one at most for each.
    :ivar dialect: a key of ``DIALECTS``.
    :ivar token: what it shows beside its key, from the ``Authorization`` header or the query of
        its request. A secret, and as long as a client likes within the head of a request.
    """

    tcp_id: int
    node_id: ClientKey
    dialect: str
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConnected:
    """A client has proven its key and is reachable. ``dialect`` is a key of ``DIALECTS``."""

    tcp_id: int
    node_id: ClientKey
    dialect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDisconnected:
    """A client is gone, ``error`` tells why if not in good order."""

    tcp_id: int
    node_id: ClientKey
    error: RemoteProtocolError | None


DerpServerEvent: TypeAlias = (
    AccessRequested
    | ClientConnected
    | ClientDisconnected
    | MeshServerConnected
    | MeshServerLost
    | TcpRequested
    | TcpCloseRequested
    | TcpPauseRequested
    | TcpResumeRequested
)
