"""The TCP port of one of several processes of a server, with its connections to the others."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from iroh_anyio.derper.peers import Peers
from iroh_anyio.driver import Driver
from iroh_anyio.listen import TcpAcceptor
from iroh_anyio.tcp_connection import TcpConnection
from iroh_proto.derp.relay import DerpServer
from iroh_proto.machine import TcpCloseRequested, TcpRequested


class PeerPort(TcpAcceptor):
    """Accepts clients, and carries connections to other processes of the server beside them.

    These do not count: neither in its length nor against ``max_connections``.
    """

    def __init__(
        self,
        machine: DerpServer,
        listeners: Sequence[socket.socket],
        peers: Peers,
        *,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        max_connections: int,
        write_timeout: float,
    ) -> None:
        super().__init__(
            machine,
            listeners,
            ssl_context=ssl_context,
            max_connections=max_connections,
            write_timeout=write_timeout,
        )
        self._derp_server = machine
        self._call = peers.dial
        self._peer_ids: set[int] = set()
        self._dials: set[int] = set()

    def __len__(self) -> int:
        return super().__len__() - len(self._peer_ids)

    def start(self, driver: Driver[Any]) -> None:
        """Start accepting."""
        super().start(driver)
        driver.handle(TcpRequested, self._requested)

    def is_peer(self, tcp_id: int) -> bool:
        """Say whether a connection is one to another process of the server."""
        return tcp_id in self._peer_ids

    def complete_dial(self, tcp_id: int, peer: socket.socket) -> None:
        """Take a connection that the machine asked for."""
        if tcp_id not in self._dials:
            peer.close()  # it does not want it any more
            return
        self._dials.remove(tcp_id)
        self._adopt_peer(tcp_id, peer)
        self._derp_server.complete_tcp(tcp_id, now=self.driver.now())
        self.driver.flush()

    def accept_peer(self, peer: socket.socket) -> None:
        """Take a connection that another process asked for."""
        self._last_id += 1
        self._derp_server.accept_tcp(self._last_id, heeds_limits=False, now=self.driver.now())
        self._adopt_peer(self._last_id, peer)
        self.driver.flush()

    def forget(self, connection: TcpConnection, *, broken: bool) -> None:
        """Let go of a connection that closes."""
        self._peer_ids.discard(connection.tcp_id)
        super().forget(connection, broken=broken)

    def _adopt_peer(self, tcp_id: int, peer: socket.socket) -> None:
        peer.setblocking(False)
        self._peer_ids.add(tcp_id)
        self.adopt(tcp_id, peer)

    def _requested(self, event: TcpRequested) -> None:
        self._dials.add(event.tcp_id)
        self._call(event.tcp_id, event.host)

    def _close_requested(self, event: TcpCloseRequested) -> None:
        self._dials.discard(event.tcp_id)
        super()._close_requested(event)
