"""The endpoint as one machine: connections to nodes, over whichever paths there are.

::

    in    UDP, TCP ──> Magicsock ──QUIC datagrams──> Switchboard ──> connections ──> events
                         '──those of QAD servers──> QadClient ──> own addresses
    out   commands ──> connections ──QUIC datagrams──> Magicsock: which way now? ──> UDP, TCP

Commands and arriving datagrams only touch a connection; what it has to send is put together once,
when outputs are first asked for after that. A host drains events first, then datagrams, then TCP,
and reads the timer last.

A connection is named by a number that is never used again. Once its
:class:`~iroh_anyio.quic.events.ConnectionClosed` is queued, commands by which nothing can be lost
(``consume``, ``reset_stream``, ``stop_sending``, ``close_connection``) do nothing, and the others
raise.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, assert_never

from iroh_anyio.quic.connection import NodeConnection, check_code, check_text
from iroh_anyio.quic.events import ConnectionInfo, EndpointEvent, EndpointStats
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.qad_client import (
    AddressObserved,
    ObservationChanged,
    ObservationFailed,
    QadClient,
    QadClientStats,
)
from iroh_anyio.quic.switchboard import Switchboard
from iroh_proto.address import Address, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.magicsock import ChallengeRequested, Magicsock, ObservationRequested, PathChanged
from iroh_proto.timers import LatestTime, earliest

MAX_ALPN_SIZE = 255
"""Bytes of a protocol name; its length is one byte on the wire (RFC 7301)."""


class EndpointMachine:
    """An endpoint: a datagram machine for UDP, a TCP user for DERP, and a user of interfaces.

    States: created, started by :meth:`start`, closed by :meth:`close`.

    :param secret_key: who this endpoint is.
    :param alpns: the protocols it serves, preferred in this order; none, and it accepts nothing.
    :param derp_map: the DERP servers it may make its home.
    :param rng: for keys of all kinds and for choices; :class:`random.SystemRandom` in production.
    :param unix_time: seconds since 1970 at the time of :meth:`start`, to judge certificates by.
    :param make_magicsock: makes the machine of paths, or what stands in for it.
    """

    def __init__(
        self,
        *,
        secret_key: SecretKey,
        alpns: Sequence[bytes] = (),
        derp_map: DerpMap | None = None,
        rng: random.Random,
        unix_time: float,
        options: EndpointOptions | None = None,
        make_magicsock: Callable[..., Magicsock] = Magicsock,
    ) -> None:
        self._time = LatestTime()
        self._unix_time = unix_time
        self._state: Literal["created", "started", "closed"] = "created"
        self._options = options or EndpointOptions()
        self._events: deque[EndpointEvent] = deque()
        self._magicsock = make_magicsock(
            secret_key=secret_key, derp_map=derp_map or DerpMap(), rng=rng
        )
        self._board = Switchboard(
            magicsock=self._magicsock,
            secret_key=secret_key,
            rng=rng,
            options=self._options,
            events=self._events,
        )
        self._qad = QadClient(
            ca_certificates=self._options.ca_certificates, ca_bundle=self._options.ca_bundle
        )
        self.set_alpns(alpns)

    # Facts

    @property
    def node_id(self) -> NodeId:
        """This endpoint's id."""
        return self._magicsock.node_id

    @property
    def node_addr(self) -> NodeAddr:
        """All that is known so far of how to dial this endpoint."""
        return self._magicsock.node_addr

    @property
    def magicsock(self) -> Magicsock:
        """The machine of paths, to be read only."""
        return self._magicsock

    @property
    def options(self) -> EndpointOptions:
        """The settings it was made with."""
        return self._options

    @property
    def stats(self) -> EndpointStats:
        """A copy of the counts."""
        return replace(self._board.stats)

    @property
    def qad_stats(self) -> QadClientStats:
        """A copy of the counts of QUIC address discovery."""
        return self._qad.stats

    def connection_info(self, connection: int) -> ConnectionInfo:
        """Return a snapshot of a connection, which may be over but not long.

        :raises LocalProtocolError: if there is no such connection any more.
        """
        conn = self._known(connection)
        if conn is None or conn.node_id is None:
            raise LocalProtocolError(f"connection {connection} is gone")
        return ConnectionInfo(
            node_id=conn.node_id,
            alpn=conn.alpn,
            incoming=conn.incoming,
            established=conn.is_established,
            rtt=conn.rtt,
            stats=conn.stats,
            path=self._magicsock.path_info(conn.node_id),
        )

    def send_room(self, connection: int, stream_id: int) -> int:
        """Return how many bytes :meth:`send_stream` takes now.

        Below half of the send buffer a :class:`StreamSendable` will follow once it is half empty.

        :raises LocalProtocolError: if the connection is not open, or the stream not one to send
            on.
        """
        return self._open(connection).streams.room(stream_id)

    def max_datagram_payload(self, connection: int) -> int | None:
        """Return the most bytes a QUIC datagram can carry, ``None`` if the peer takes none.

        :raises LocalProtocolError: if the connection is not open.
        """
        conn = self._open(connection)
        conn.check_open()
        return conn.max_datagram_payload

    # Commands

    def start(self, bound: Sequence[UdpAddress], *, now: float) -> None:
        """Begin; until then nothing is sent and what arrives is dropped.

        :param bound: where the UDP sockets are bound, with their real ports.
        :raises LocalProtocolError: if there are none or too many, or this was begun before.
        """
        now = self._time.advance(now)
        if self._state != "created":
            raise LocalProtocolError(f"start() is for a new endpoint, not one {self._state}")
        self._magicsock.start(bound, now=now)
        self._state = "started"
        self._board.unix_offset = self._unix_time - now
        self._gather()

    def set_alpns(self, alpns: Sequence[bytes]) -> None:
        """Serve these protocols on connections accepted from now on.

        :raises LocalProtocolError: if one is empty or longer than 255 bytes.
        """
        for alpn in alpns:
            _check_alpn(alpn)
        self._board.set_alpns(tuple(alpns))

    def connect(self, addr: NodeAddr, *, alpn: bytes, now: float) -> int:
        """Dial a node and return the connection's number.

        It ends in a :class:`ConnectionEstablished` or a :class:`ConnectionClosed`, at the latter
        when the handshake time-out is over. Addresses known from before are used as well.

        :raises LocalProtocolError: if that is this endpoint itself, the protocol name is empty or
            too long, there are too many connections, or the endpoint is not started or closed.
        """
        now = self._time.advance(now)
        _check_alpn(alpn)
        if self._state != "started":
            raise LocalProtocolError(f"an endpoint {self._state} dials nobody")
        if addr.node_id == self.node_id:
            raise LocalProtocolError(f"{addr.node_id} is this endpoint itself")
        if len(self._board) >= self._options.max_connections:
            raise LocalProtocolError(f"there are {len(self._board)} connections already")
        self._magicsock.add_node_addr(addr, now=now)
        number = self._board.dial(addr, alpn=alpn, now=now)
        self._gather()
        return number

    def open_stream(self, connection: int, *, bidirectional: bool) -> int:
        """Open a stream and return its id. The peer learns of it with the first bytes.

        :raises LocalProtocolError: if the connection is not open, or too many streams wait for
            the peer to allow them.
        """
        return self._open(connection).streams.open(bidirectional=bidirectional)

    def send_stream(
        self, connection: int, stream_id: int, data: bytes, *, end: bool = False, now: float
    ) -> None:
        """Send bytes on a stream, and with ``end`` its end. Dropped if the peer wants no more.

        :raises LocalProtocolError: if the connection is not open, the stream is not one to send
            on or has ended, or there are more bytes than :meth:`send_room` allows.
        """
        self._time.advance(now)
        conn = self._open(connection)
        # To look through all streams for each that waits for the peer costs much if many do. That
        # they wait is then told with whatever goes out next.
        if conn.streams.send(stream_id, data, end=end):
            self._board.touch(conn)

    def reset_stream(self, connection: int, stream_id: int, code: int, *, now: float) -> None:
        """Give up sending on a stream; the peer is told ``code``.

        :raises LocalProtocolError: if there never was such a connection or stream, it is not one
            to send on, or the code is not 0 to 2^62 - 1.
        """
        self._time.advance(now)
        check_code(code)
        conn = self._live(connection)
        if conn is not None:
            conn.streams.reset(stream_id, code)
            self._board.touch(conn)

    def stop_sending(self, connection: int, stream_id: int, code: int, *, now: float) -> None:
        """Give up receiving on a stream; the peer is told ``code``, and no data follows.

        :raises LocalProtocolError: if there never was such a connection or stream, it is not one
            to receive on, or the code is not 0 to 2^62 - 1.
        """
        self._time.advance(now)
        check_code(code)
        conn = self._live(connection)
        if conn is not None:
            conn.streams.stop(stream_id, code)
            self._board.touch(conn)

    def consume(self, connection: int, stream_id: int, count: int | None, *, now: float) -> None:
        """Note that the application read ``count`` bytes: the peer may send as many more.

        With 0 for an end that came without bytes, and ``None`` for all that was delivered.

        :raises LocalProtocolError: if there never was such a connection or stream, it is not one
            to receive on, or delivered fewer bytes.
        """
        self._time.advance(now)
        conn = self._live(connection)
        if conn is not None and conn.streams.consume(stream_id, count):
            self._board.touch(conn)

    def send_datagram(self, connection: int, data: bytes, *, now: float) -> None:
        """Send a QUIC datagram, which may get lost. If too many wait the oldest is dropped.

        :raises LocalProtocolError: if the connection is not open, the peer takes no datagrams, or
            it is longer than :meth:`max_datagram_payload`.
        """
        self._time.advance(now)
        conn = self._open(connection)
        conn.send_datagram(data)
        self._board.touch(conn)

    def close_connection(self, connection: int, code: int, reason: str, *, now: float) -> None:
        """Close a connection at once; the peer is told ``code`` and ``reason``.

        A dial under way is given up. A :class:`ConnectionClosed` follows unless it came before.

        :raises LocalProtocolError: if there never was such a connection, the code is not 0 to
            2^62 - 1, or the reason has no UTF-8.
        """
        self._time.advance(now)
        check_code(code)
        check_text(reason)
        conn = self._known(connection)
        if conn is not None and conn.reason is None:
            conn.close(code, reason)
            self._board.touch(conn)

    def close(self, *, now: float) -> None:
        """Close all connections with code 0, then those to DERP servers, and go quiet.

        The last events, datagrams and TCP bytes can still be drained.
        """
        now = self._time.advance(now)
        if self._state == "closed":
            return
        self._state = "closed"
        for conn in self._board.open_connections():
            conn.close(0, "")
            self._board.touch(conn)
        self._settle()
        self._qad.close(now=now)
        self._magicsock.close(now=now)
        self._gather()

    # Input

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take UDP datagrams that arrived from one address."""
        self._magicsock.receive_datagrams(batch, addr, now=self._time.advance(now))
        self._gather()

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that a connection to a DERP server stands, or with ``error`` why it does not."""
        self._magicsock.complete_tcp(tcp_id, error=error, now=self._time.advance(now))
        self._gather()

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection to a DERP server."""
        self._magicsock.receive_tcp_data(tcp_id, data, now=self._time.advance(now))
        self._gather()

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection to a DERP server."""
        self._magicsock.receive_tcp_eof(tcp_id, now=self._time.advance(now))
        self._gather()

    def complete_interfaces(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        """Answer ``InterfacesRequested`` with the IP addresses of interfaces that are up.

        :raises LocalProtocolError: if there was no such request.
        """
        self._magicsock.complete_interfaces(request_id, ips, now=self._time.advance(now))
        self._gather()

    def complete_dns(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        """Answer ``DnsRequested`` with the addresses of the host, none if it has none.

        :raises LocalProtocolError: if there was no such request.
        """
        self._magicsock.complete_dns(request_id, ips, now=self._time.advance(now))
        self._gather()

    def network_changed(self, *, now: float) -> None:
        """Take the news that interfaces, addresses or routes changed."""
        now = self._time.advance(now)
        self._qad.network_changed(now=now)
        self._magicsock.network_changed(now=now)
        self._gather()

    def resumed(self, *, now: float) -> None:
        """Take the news that the host slept."""
        now = self._time.advance(now)
        self._qad.network_changed(now=now)
        self._magicsock.resumed(now=now)
        self._gather()

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        self._settle()
        self._magicsock.handle_timer(now=now)
        self._qad.handle_timer(now=now)
        self._gather()
        self._board.handle_timer(now=now)
        self._settle()

    # Output

    def next_event(self) -> EndpointEvent | None:
        """Return the oldest event and forget it, or ``None``."""
        if not self._events:
            self._settle()
        return self._events.popleft() if self._events else None

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the UDP datagrams to send, and forget them."""
        self._settle()
        return [*self._magicsock.datagrams_to_send(), *self._qad.datagrams_to_send()]

    def tcp_to_send(self) -> list[int]:
        """Return the connections to DERP servers that have bytes to write. Changes nothing."""
        return self._magicsock.tcp_to_send()

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
        return self._magicsock.tcp_data_to_send(tcp_id)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return earliest(self._board.get_timer(), self._magicsock.get_timer(), self._qad.get_timer())

    # Helpers

    def _settle(self) -> None:
        """Put together what inputs left to be sent. Inputs put it off, outputs see it done."""
        while self._board.settle(now=self._time.value):
            self._gather()

    def _gather(self) -> None:
        """Pass on what Magicsock has for the connections and for the host."""
        now, magicsock = self._time.value, self._magicsock
        for payload in magicsock.received_payloads():
            if self._qad.is_server(payload.source):
                self._qad.receive_datagrams(payload.datagrams, payload.source, now=now)
            else:
                self._board.receive(payload, now=now)
        self._gather_observations(now)
        while (event := magicsock.next_event()) is not None:
            match event:
                case ChallengeRequested():
                    self._board.challenge(event, now=now)
                    continue
                case ObservationRequested():
                    self._qad.ask(
                        event.request_id, event.address, server_name=event.server_name, now=now
                    )
                    self._gather_observations(now)
                    continue
                case PathChanged():
                    self._board.note_path_change(event.node_id, event.path, now=now)
                case _:
                    pass
            self._events.append(event)

    def _gather_observations(self, now: float) -> None:
        """Tell Magicsock where servers see this node."""
        while (event := self._qad.next_event()) is not None:
            match event:
                case AddressObserved():
                    self._magicsock.complete_observation(event.request_id, event.address, now=now)
                case ObservationFailed():
                    self._magicsock.complete_observation(event.request_id, None, now=now)
                case ObservationChanged():
                    self._magicsock.refresh_own_addresses(now=now)
                case _:
                    assert_never(event)

    def _known(self, connection: int) -> NodeConnection | None:
        """Return a connection, ``None`` if it is gone.

        :raises LocalProtocolError: if there never was one.
        """
        conn = self._board.find(connection)
        if conn is None and not self._board.was_assigned(connection):
            raise LocalProtocolError(f"there is no connection {connection}")
        return conn

    def _live(self, connection: int) -> NodeConnection | None:
        """Return a connection, ``None`` if it is over."""
        conn = self._known(connection)
        return conn if conn is None or conn.reason is None else None

    def _open(self, connection: int) -> NodeConnection:
        conn = self._known(connection)
        if conn is None:
            raise LocalProtocolError(f"connection {connection} is closed")
        return conn


def _check_alpn(alpn: bytes) -> None:
    if not isinstance(alpn, bytes):
        raise TypeError(f"a protocol name is bytes, such as b'example/0', not {alpn!r}")
    if not 0 < len(alpn) <= MAX_ALPN_SIZE:
        raise LocalProtocolError(f"a protocol name is 1 to 255 bytes, not {len(alpn)}")
