"""A whole DERP server without its sockets: what a real server and the simulator both host.

The host accepts TCP connections, gives each a number with :meth:`DerpServer.accept_tcp`, completes
TLS on it if there is any, and carries bytes both ways. Every generation of clients is served on the
same port, and packets pass between all of them: up to v3 unchanged, from and to later ones in the
form of the receiver (:mod:`iroh_proto.derp.segments`). Servers with one mesh key serve their
clients together (:mod:`iroh_proto.derp.mesh`).

Of two clients with one key the newer gets what is sent to their node. The older is closed up to v3;
of later generations it stays, is told, and takes its place again when the newer leaves. Of clients
of Tailscale's dialect it stays as well, and takes its place again when it sends something.

A client that reads slowly loses packets, the newest or the oldest of those that wait as its dialect
has it, and only packets. One that stops reading is closed: what waits for it is not fetched any
more, as the host fetches bytes for a connection only while it is writable. One that sends more than
its rate limit allows is left unread for a while.

Source: iroh v0.12.0 ``iroh-net/src/derp/server.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server.rs``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import assert_never

from iroh_proto.derp.access import check_reason
from iroh_proto.derp.curve_frames import PRESENT_MESH_PEER, PRESENT_REGULAR
from iroh_proto.derp.dialects import DIALECTS, FRAMED_DIALECTS, ClientKey
from iroh_proto.derp.mesh import RETRY_INTERVAL, MeshServer
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.rate import AcceptLimit, RateLimit, TokenBucket
from iroh_proto.derp.relay_events import (
    AccessRequested,
    ClientConnected,
    ClientDisconnected,
    DerpServerEvent,
    DerpServerStats,
)
from iroh_proto.derp.relay_mesh import RelayMesh
from iroh_proto.derp.relay_output import WRITE_TIMEOUT, RelayOutput
from iroh_proto.derp.router import DerpRouter
from iroh_proto.derp.server import DerpServerConnection
from iroh_proto.derp.server_events import ClientAdmitted, ConnectionLost, KeyProven
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpPauseRequested, TcpResumeRequested
from iroh_proto.timers import LatestTime, TimerTable, earliest

CONNECTIONS_LIMIT = 65_536
"""Connections served at once, unless told otherwise. An idle one costs some 5 KiB, a slow reader
up to 512 KiB more."""

STRANGERS_LIMIT = 1_024
"""Connections whose client has not proven a key yet, unless told otherwise. Each may hold a
request's head for 10 s, so past the limit it is not the newcomer that goes but who has been here
longest: or whoever opens so many and says nothing would shut all others out."""

DRAIN_TIMEOUT = 5.0
"""Seconds that clients have to leave a server that drains, unless told otherwise."""

RECONNECT_IN = 1.0
TRY_FOR = 30.0
"""Seconds after which, and for which, clients of a server that drains are told to come back."""

_DAY = 86_400.0


class DerpServer:
    """A DERP server on many TCP connections.

    Tell it of a connection when TCP stands: its time for a request includes TLS. Fetch bytes with
    :meth:`tcp_data_to_send` only for a connection that is writable, and again until there are none
    or it is not; a :class:`TcpCloseRequested` says that what is left then is the last. Do not read
    from a connection between a :class:`TcpPauseRequested` and its :class:`TcpResumeRequested`.

    :param secret_key: the server's own identity, shown to clients of v2 and of Tailscale's dialect,
        and to other servers of the mesh.
    :param connections_limit: connections beyond these are closed at once.
    :param strangers_limit: of how many clients that have not proven a key the one that has been
        here longest makes room for the next.
    :param accept_limit: how fast connections may come; those beyond are closed at once.
    :param rate_limit: how fast each client may send.
    :param asks_access: whether each client that has proven its key is let in only by
        :meth:`complete_access`, the answer to :class:`AccessRequested`.
    :param mesh_key: what makes a client a server of the same mesh. Without it there is none.
    :param mesh_servers: the other servers of the mesh. It is for the host to :meth:`start` then,
        and to make the TCP connections that are asked for; their numbers are negative.
    :param mesh_secret_key: by which the other servers know this one, by default ``secret_key``.
        Servers that show clients one identity need one each, and must not dial themselves.
    :param mesh_retry_interval: seconds between attempts to reach another server.
    :param listen_dialect: which clients to expect on ``/derp``, ``"v2"`` or ``"v3"``, where a
        request does not tell. ``None`` waits a moment for the client to show it.
    :raises LocalProtocolError: if there is no such framed dialect, or the mesh cannot be.
    """

    def __init__(
        self,
        *,
        secret_key: SecretKey,
        rng: random.Random,
        connections_limit: int = CONNECTIONS_LIMIT,
        strangers_limit: int = STRANGERS_LIMIT,
        accept_limit: AcceptLimit | None = None,
        rate_limit: RateLimit | None = None,
        asks_access: bool = False,
        mesh_key: MeshKey | None = None,
        mesh_servers: Sequence[MeshServer] = (),
        mesh_secret_key: SecretKey | None = None,
        mesh_retry_interval: float = RETRY_INTERVAL,
        listen_dialect: str | None = None,
    ) -> None:
        if listen_dialect is not None and listen_dialect not in FRAMED_DIALECTS:
            raise LocalProtocolError(f"no framed DERP dialect {listen_dialect!r}")
        self._secret_key = secret_key
        self._rng = rng
        self._connections_limit = connections_limit
        self._strangers_limit = strangers_limit
        self._accept_limit = accept_limit
        self._accept_bucket: TokenBucket | None = None
        self._rate_limit = rate_limit
        self._asks_access = asks_access
        self._listen_dialect = listen_dialect
        self._time = LatestTime()
        self._accepts = True
        self._drain_deadline: float | None = None
        self._router = DerpRouter()
        self._connections: dict[int, DerpServerConnection] = {}
        self._mesh_key = mesh_key
        self._mesh = RelayMesh(
            router=self._router,
            connections=self._connections,
            servers=mesh_servers,
            mesh_key=mesh_key,
            secret_key=mesh_secret_key or secret_key,
            rng=rng,
            retry_interval=mesh_retry_interval,
        )
        self._strangers: dict[int, None] = {}
        # Connections that the host was asked not to read from.
        self._paused: set[int] = set()
        self._output = RelayOutput()
        self._timers: TimerTable[int] = TimerTable()
        self._events: deque[DerpServerEvent] = deque()
        self._stats = DerpServerStats()

    @property
    def node_id(self) -> NodeId:
        """The identity that v2 clients see."""
        return self._secret_key.public

    @property
    def stats(self) -> DerpServerStats:
        """A copy of the counts."""
        return replace(
            self._stats,
            connections=replace(self._stats.connections),
            router=self._router.stats,
            mesh=self._mesh.stats,
        )

    @property
    def clients(self) -> list[ClientKey]:
        """The nodes that are connected, and the keys of clients of Tailscale's dialect."""
        return self._router.node_ids

    @property
    def admitted(self) -> set[ClientKey]:
        """Those of :attr:`clients`, and those that gave way to newer ones, here or elsewhere."""
        return {
            connection.node_id
            for connection in self._connections.values()
            if connection.node_id is not None and not connection.is_mesh_member
        }

    def start(self, *, now: float) -> None:
        """Dial the other servers of the mesh. Without a mesh there is nothing to start.

        :raises LocalProtocolError: if it was started before.
        """
        now = self._time.advance(now)
        self._mesh.start(now=now)
        self._settle_mesh(now)

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that a connection to another server stands, or with ``error`` why it does not.

        :raises LocalProtocolError: if it was not asked for, or is complete already.
        """
        now = self._time.advance(now)
        self._mesh.complete_tcp(tcp_id, error=error, now=now)
        self._settle_mesh(now)

    def accept_tcp(self, tcp_id: int, *, heeds_limits: bool = True, now: float) -> None:
        """Take a new connection under a number from 0 on that was never used before.

        :param heeds_limits: whether it is refused if there are too many, or they come too fast.
        :raises LocalProtocolError: if the number is in use, or negative.
        """
        now = self._time.advance(now)
        if tcp_id < 0:
            raise LocalProtocolError("negative numbers are for connections that were asked for")
        if tcp_id in self._connections or self._output.is_closing(tcp_id):
            raise LocalProtocolError(f"TCP connection {tcp_id} is there already")
        if not self._accepts or (heeds_limits and not self._may_accept(now)):
            self._stats.connections_refused += 1
            self._events.append(TcpCloseRequested(tcp_id=tcp_id))
            return
        if len(self._strangers) >= self._strangers_limit:
            self._displace(next(iter(self._strangers)), now)
        self._stats.connections_accepted += 1
        connection = DerpServerConnection(
            secret_key=self._secret_key,
            rng=self._rng,
            listen_dialect=self._listen_dialect,
            asks_access=self._asks_access,
            rate_limit=self._rate_limit,
            mesh_key=self._mesh_key,
            stats=self._stats.connections,
        )
        connection.start(now=now)
        self._connections[tcp_id] = connection
        self._strangers[tcp_id] = None
        self._settle(tcp_id, connection, now)

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection. Those of a closed one are ignored."""
        if now != self._time.value:  # many connections are read at one time
            now = self._time.advance(now)
        connection = self._connections.get(tcp_id)
        if connection is None:
            if tcp_id < 0:
                self._mesh.receive_tcp_data(tcp_id, data, now=now)
                self._settle_mesh(now)
            return
        run = connection.take_data(data, now)
        if run is not None:
            target = self._router.route_run(tcp_id, run)
            if target is None:
                connection.take_run(run)
            else:
                unsent = self._output.unsent
                if self._connections[target].relay_run(run) and target not in unsent:
                    unsent[target] = now + WRITE_TIMEOUT
                if not connection.has_news:
                    return
        if connection.node_id is not None and not connection.has_news:
            # Deadlines can only have moved away, which is looked at when the earlier one is due.
            if connection.received:
                self._route(tcp_id, connection, now)
            if not connection.has_news:
                return
        self._settle(tcp_id, connection, now)

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection, orderly or not. That of a closed one is ignored."""
        now = self._time.advance(now)
        if tcp_id < 0:
            self._mesh.receive_tcp_eof(tcp_id, now=now)
            self._settle_mesh(now)
            return
        connection = self._connections.get(tcp_id)
        if connection is not None:
            connection.receive_eof(now=now)
            self._settle(tcp_id, connection, now)

    def complete_access(
        self, tcp_id: int, *, allowed: bool, reason: str | None = None, now: float
    ) -> None:
        """Answer an :class:`AccessRequested`. An answer that comes too late is ignored.

        :param reason: what to tell a client that is not let in, if its dialect has words for it;
            ``None`` is what upstream's servers say.
        :raises LocalProtocolError: if the reason is empty or has more than ``REASON_LIMIT`` bytes.
        """
        check_reason(reason)
        now = self._time.advance(now)
        connection = self._connections.get(tcp_id)
        if connection is not None:
            connection.complete_access(allowed=allowed, reason=reason, now=now)
            self._settle(tcp_id, connection, now)

    def set_aside(self, key: ClientKey, *, now: float) -> None:
        """Have the client of a key give way to a newer one that is at another server of the mesh.

        It is closed or stays, told so, as if the newer one were here. Without such a client nothing
        happens. The host decides who is the newer one: servers that cannot see each other's clients
        as one do not call it.
        """
        now = self._time.advance(now)
        older = self._router.set_aside(key)
        if older is not None:
            self._part(older, now)
            self._mesh.tell_watchers(now=now)
            self._settle_mesh(now)

    def reinstate(self, key: ClientKey, *, now: float) -> None:
        """Have the latest client of a key that gave way get its place again, unless it is taken."""
        now = self._time.advance(now)
        heir = self._router.reinstate(key)
        if heir is not None:
            self._tell_standing(heir, now, is_active=True)
            self._mesh.tell_watchers(now=now)
            self._settle_mesh(now)

    def set_rate_limit(self, limit: RateLimit | None, *, now: float) -> None:
        """Change how fast each client may send, also those that are connected."""
        now = self._time.advance(now)
        self._rate_limit = limit
        for tcp_id, connection in list(self._connections.items()):
            connection.set_rate_limit(limit, now=now)
            self._settle(tcp_id, connection, now)

    def dismiss(self, keys: Collection[ClientKey], *, now: float) -> None:
        """Close the clients with these keys, those that gave way included. The mesh's stay."""
        now = self._time.advance(now)
        for tcp_id, connection in list(self._connections.items()):
            if connection.node_id in keys and not connection.is_mesh_member:
                connection.close(now=now)
                self._settle(tcp_id, connection, now)

    def set_accept_limit(self, limit: AcceptLimit | None, *, now: float) -> None:
        """Change how fast connections may come."""
        self._time.advance(now)
        self._accept_limit = limit
        self._accept_bucket = None

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        return [*self._output.unsent, *self._mesh.tcp_to_send()]

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none.

        There may be more: about
        :data:`~iroh_proto.derp.relay_output.PULL_SIZE` are handed out at a time.
        """
        if tcp_id in self._output.unsent:
            return self._output.pull(tcp_id, self._connections.get(tcp_id))
        return self._mesh.tcp_data_to_send(tcp_id) if tcp_id < 0 else b""

    def drain(
        self,
        *,
        timeout: float = DRAIN_TIMEOUT,
        reconnect_in: float = RECONNECT_IN,
        try_for: float = TRY_FOR,
        now: float,
    ) -> None:
        """Take no more connections, tell clients to leave, and close those that stay.

        Clients are served meanwhile; who has not proven a key yet is turned away. A server that
        drains already, or is closed, does not begin again.

        :param timeout: seconds until :meth:`close`.
        :param reconnect_in: seconds after which clients are told to come back.
        :param try_for: seconds for which they are told to try to.
        :raises LocalProtocolError: if a time is negative or longer than a day.
        """
        if not all(0 <= seconds <= _DAY for seconds in (timeout, reconnect_in, try_for)):
            raise LocalProtocolError("times to drain are from nothing to a day")
        now = self._time.advance(now)
        if not self._accepts:
            return
        self._accepts = False
        self._drain_deadline = now + timeout
        for tcp_id, connection in list(self._connections.items()):
            if tcp_id in self._strangers:
                connection.close(now=now)
            else:
                connection.announce_restart(reconnect_in=reconnect_in, try_for=try_for, now=now)
            self._settle(tcp_id, connection, now)

    def close(self, *, now: float) -> None:
        """Close every connection, and refuse new ones."""
        now = self._time.advance(now)
        self._accepts = False
        self._drain_deadline = None
        for tcp_id, connection in list(self._connections.items()):
            # Nobody is told that others are gone: everybody is.
            self._router.disconnect(tcp_id)
            connection.close(now=now)
            self._settle(tcp_id, connection, now)
        self._mesh.close(now=now)
        self._settle_mesh(now)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        for tcp_id in self._timers.pop_expired(now):
            connection = self._connections.get(tcp_id)
            if connection is not None:
                connection.handle_timer(now=now)
                self._settle(tcp_id, connection, now)
        self._mesh.handle_timer(now=now)
        self._settle_mesh(now)
        for tcp_id in self._output.pop_stalled(now):
            self._abandon_stalled(tcp_id, now)
        if self._drain_deadline is not None and self._drain_deadline <= now:
            self.close(now=now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return earliest(
            self._timers.earliest(),
            self._drain_deadline,
            self._mesh.get_timer(),
            self._output.deadline(),
        )

    def next_event(self) -> DerpServerEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def _settle(self, tcp_id: int, connection: DerpServerConnection, now: float) -> None:
        """Pass on what an input brought out of a connection."""
        connection.has_news = False
        while (event := connection.next_event()) is not None:
            match event:
                case KeyProven():
                    self._ask_for_access(tcp_id, event)
                case ClientAdmitted():
                    self._connect(tcp_id, event, now)
                case ConnectionLost():
                    # What the client sent before it was lost was sent.
                    if connection.received:
                        self._route(tcp_id, connection, now)
                    self._mesh.serve(tcp_id, connection.mesh_requests(), now=now)
                    self._disconnect(tcp_id, connection, event.error, now)
                    return
                case _:
                    assert_never(event)
        if connection.received:
            self._route(tcp_id, connection, now)
        self._mesh.serve(tcp_id, connection.mesh_requests(), now=now)
        self._settle_mesh(now)
        if tcp_id not in self._connections:
            return  # it was another server, and asked for its own end
        self._output.note(tcp_id, connection, now)
        if connection.is_paused is not (tcp_id in self._paused):
            self._pass_on_pause(tcp_id, connection)
        deadline = connection.get_timer()
        if deadline is None:
            self._timers.cancel(tcp_id)
        elif deadline != self._timers.deadline(tcp_id):
            self._timers.set(tcp_id, deadline)

    def _ask_for_access(self, tcp_id: int, proven: KeyProven) -> None:
        self._events.append(
            AccessRequested(
                tcp_id=tcp_id, node_id=proven.node_id, dialect=proven.dialect, token=proven.token
            )
        )
        self._paused.add(tcp_id)
        self._events.append(TcpPauseRequested(tcp_id=tcp_id))

    def _pass_on_pause(self, tcp_id: int, connection: DerpServerConnection) -> None:
        if connection.is_paused:
            self._paused.add(tcp_id)
            self._events.append(TcpPauseRequested(tcp_id=tcp_id))
        else:
            self._paused.remove(tcp_id)
            self._events.append(TcpResumeRequested(tcp_id=tcp_id))

    def _may_accept(self, now: float) -> bool:
        if len(self._connections) >= self._connections_limit:
            return False
        if (limit := self._accept_limit) is None:
            return True
        if self._accept_bucket is None:
            self._accept_bucket = TokenBucket(
                per_second=limit.per_second, limit=limit.burst, now=now
            )
        if self._accept_bucket.take(1, now=now):
            return True
        self._stats.connections_over_rate += 1
        return False

    def _displace(self, tcp_id: int, now: float) -> None:
        """Have a stranger make room for another one, who may be quicker to show who it is."""
        self._stats.strangers_displaced += 1
        stranger = self._connections[tcp_id]
        stranger.abandon("no proof of a key while many others wait", now=now)
        self._settle(tcp_id, stranger, now)

    def _connect(self, tcp_id: int, admitted: ClientAdmitted, now: float) -> None:
        del self._strangers[tcp_id]
        is_mesh_member = self._connections[tcp_id].is_mesh_member
        replaced = self._router.connect(
            tcp_id,
            admitted.node_id,
            waits=DIALECTS[admitted.dialect].older_waits,
            flags=PRESENT_MESH_PEER if is_mesh_member else PRESENT_REGULAR,
        )
        self._events.append(
            ClientConnected(tcp_id=tcp_id, node_id=admitted.node_id, dialect=admitted.dialect)
        )
        if replaced is not None:
            self._part(replaced, now)
        self._mesh.tell_watchers(now=now)
        self._settle_mesh(now)

    def _part(self, tcp_id: int, now: float) -> None:
        """Close a client that gave way, or tell it so if it stays."""
        if self._router.is_waiting(tcp_id):
            self._tell_standing(tcp_id, now, is_active=False)
        else:
            older = self._connections[tcp_id]
            older.close(now=now)
            self._settle(tcp_id, older, now)

    def _tell_standing(self, tcp_id: int, now: float, *, is_active: bool) -> None:
        connection = self._connections[tcp_id]
        connection.tell_standing(is_active=is_active, now=now)
        self._output.note(tcp_id, connection, now)

    def _route(self, tcp_id: int, connection: DerpServerConnection, now: float) -> None:
        packets, connection.received = connection.received, {}
        connections, unsent, router = self._connections, self._output.unsent, self._router
        for target, parts in router.route(tcp_id, packets):
            if connections[target].relay(parts) and target not in unsent:
                unsent[target] = now + WRITE_TIMEOUT
        if not router.has_more:
            return
        for missing in router.take_missing():
            connection.send_not_here(missing, now=now)
        self._mesh.forward(now=now)
        self._mesh.tell_watchers(now=now)
        connection.has_news = True

    def _settle_mesh(self, now: float) -> None:
        """Pass on what the mesh brought out of connections, and what it says itself."""
        while self._mesh.has_news:
            while (event := self._mesh.next_event()) is not None:
                self._events.append(event)
            for tcp_id in self._mesh.take_touched():
                connection = self._connections.get(tcp_id)
                if connection is not None:
                    self._settle(tcp_id, connection, now)

    def _disconnect(
        self,
        tcp_id: int,
        connection: DerpServerConnection,
        error: RemoteProtocolError | None,
        now: float,
    ) -> None:
        del self._connections[tcp_id]
        self._strangers.pop(tcp_id, None)
        self._paused.discard(tcp_id)
        if connection.node_id is not None:
            departure = self._router.disconnect(tcp_id)
            for target, key in departure.told:
                receiver = self._connections[target]
                receiver.send_peer_gone(key, now=now)
                self._output.note(target, receiver, now)
            if departure.heir is not None:
                self._tell_standing(departure.heir, now, is_active=True)
            self._events.append(
                ClientDisconnected(tcp_id=tcp_id, node_id=connection.node_id, error=error)
            )
        self._events.append(TcpCloseRequested(tcp_id=tcp_id))
        self._timers.cancel(tcp_id)
        self._mesh.forget(tcp_id)
        self._mesh.tell_watchers(now=now)
        self._settle_mesh(now)
        self._output.note_end(tcp_id, connection, now)

    def _abandon_stalled(self, tcp_id: int, now: float) -> None:
        connection = self._connections.get(tcp_id)
        if connection is not None:
            self._stats.write_timeouts += 1
            connection.abandon(f"nothing could be written for {WRITE_TIMEOUT} s", now=now)
            self._settle(tcp_id, connection, now)
