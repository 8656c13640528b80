"""TCP and TLS streams for machines, on raw non-blocking sockets.

A machine that keeps its queues bounded is asked for bytes only while the kernel takes them. One
task serves all connections of a port: it waits for an epoll of their sockets, which is itself
something that both backends can wait for, and then reads and writes wherever it is time to. So a
connection costs no task, and what waking up costs is shared by all that are ready.
"""

from __future__ import annotations

import logging
import select
import ssl
from collections.abc import Callable
from typing import Any, Protocol

import anyio

from iroh_anyio.backends import call_when_readable
from iroh_anyio.dial import dial
from iroh_anyio.driver import Driver
from iroh_anyio.patience import Patience
from iroh_anyio.proxy import HttpProxy
from iroh_anyio.tcp_connection import READ_SIZE, Socket, TcpConnection
from iroh_proto.machine import (
    TcpCloseRequested,
    TcpPauseRequested,
    TcpRequested,
    TcpResumeRequested,
    TcpUser,
)

logger = logging.getLogger("iroh_anyio.tcp")

READY_LIMIT = 64
"""Connections to serve before the rest of the program has its turn as well. To give way costs as
much as to relay a packet, so it is not done for each."""

WRITE_TIMEOUT = 20.0
"""Seconds without the peer taking a byte after which a connection counts as broken. Relays drop
clients that do not read for less (2 s a frame); a train in a tunnel is out of reach for longer."""

CLOSE_TIMEOUT = 1.0
"""Seconds a connection gets to send its last bytes."""


_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})
"""Results of a verification that end at somebody who is not trusted, ``X509_V_ERR_...`` in
<openssl/x509_vfy.h>: self-signed, alone or above others, and the certificate above not found."""


class TcpStreams(Protocol):
    """What a machine needs to have for its connections to be carried: a part of TcpUser."""

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection."""

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection, orderly or not."""

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""


class TcpPort:
    """Carries the connections of a machine. Give it to the machine's driver.

    :param write_timeout: seconds without progress after which a connection counts as broken.
    """

    def __init__(self, machine: TcpStreams, *, write_timeout: float = WRITE_TIMEOUT) -> None:
        self.unwritten = 0
        """Bytes that the machine gave for connections that were gone, or broke before."""
        self.machine = machine
        self.driver: Driver[Any]
        self.epoll: select.epoll
        self.stalled: Patience[TcpConnection] = Patience(write_timeout, self._give_up)
        self.closing: Patience[TcpConnection] = Patience(CLOSE_TIMEOUT, TcpConnection.close)
        self._connections: dict[int, TcpConnection] = {}
        self._by_descriptor: dict[int, TcpConnection] = {}
        self._broken: list[int] = []
        self._emptied = anyio.Event()
        self._is_started = False

    def __len__(self) -> int:
        return len(self._connections)

    def start(self, driver: Driver[Any]) -> None:
        """Take the machine's TCP events, and begin to carry."""
        self.driver = driver
        self.epoll = select.epoll()
        self._is_started = True
        driver.handle(TcpCloseRequested, self._close_requested)
        driver.handle(TcpPauseRequested, self._pause_requested)
        driver.handle(TcpResumeRequested, self._resume_requested)
        driver.start_soon(call_when_readable, self.epoll.fileno(), self._serve)
        driver.start_soon(self.stalled.run)
        driver.start_soon(self.closing.run)

    def adopt(self, tcp_id: int, tcp_socket: Socket, *, handshakes: bool = False) -> None:
        """Carry a connected socket from now on; the caller has told the machine, and flushes.

        :param handshakes: whether it is an :class:`ssl.SSLSocket` whose handshake is to come.
        """
        connection = TcpConnection(self, tcp_id, tcp_socket, handshakes=handshakes)
        self._connections[tcp_id] = connection
        self._by_descriptor[connection.descriptor] = connection

    def has_peer(self, tcp_id: int) -> bool:
        """Say whether the other end of a connection is there, as far as the kernel knows.

        It tells of one that is paused as well, whose end is not read yet.
        """
        connection = self._connections.get(tcp_id)
        if connection is None:
            return False
        poll = select.poll()
        poll.register(connection.descriptor, select.POLLRDHUP)
        return not poll.poll(0)

    def flush(self) -> bool:
        """Write what the machine has for connections that can take it."""
        self._write(once=True)
        self._write(once=False)  # those that had more than it gives at a time, mostly none
        if not self._broken:
            return False
        broken, self._broken = self._broken, []
        now = self.driver.now()
        for tcp_id in broken:
            self.machine.receive_tcp_eof(tcp_id, now=now)
        return True

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        while len(self):
            await self._emptied.wait()

    def close(self) -> None:
        """Close every connection at once."""
        for connection in list(self._connections.values()):
            connection.close()
        if self._is_started:
            self._is_started = False
            self.epoll.close()

    def forget(self, connection: TcpConnection, *, broken: bool) -> None:
        """Let go of a connection that closes; if it broke, the next flush tells the machine."""
        del self._connections[connection.tcp_id]
        del self._by_descriptor[connection.descriptor]
        self.epoll.unregister(connection.descriptor)
        self.stalled.end(connection)
        self.closing.end(connection)
        if broken:
            self._broken.append(connection.tcp_id)
        if not len(self):
            self._emptied.set()
            self._emptied = anyio.Event()

    def _serve(self) -> None:
        served = 0
        while served < READY_LIMIT and (ready := self.epoll.poll(0, READY_LIMIT)):
            self._serve_ready(ready)
            served += len(ready)

    def _write(self, *, once: bool) -> None:
        machine, connections = self.machine, self._connections
        for tcp_id in machine.tcp_to_send():
            connection = connections.get(tcp_id)
            if connection is None:
                # Nobody is there to read them: they must not stay queued and be asked for again.
                self.unwritten += len(machine.tcp_data_to_send(tcp_id))
            elif not connection.blocked:
                may_have_more = connection.write_once()
                if may_have_more and (not once or connection.is_finishing):
                    connection.write()

    def _serve_ready(self, ready: list[tuple[int, int]]) -> None:
        now = self.driver.now()
        size = 0
        by_descriptor, readable = self._by_descriptor, select.EPOLLIN
        for descriptor, events in ready:
            connection = by_descriptor.get(descriptor)
            if connection is not None:
                if events == readable and connection.is_plain:
                    size += connection.read(now)
                else:
                    size += connection.take_turn(events, now)
                if size >= READ_SIZE:
                    # What is read must not pile up before any of it is written.
                    self.driver.flush()
                    size = 0
        self.driver.flush()

    def _give_up(self, connection: TcpConnection) -> None:
        seconds = self.stalled.seconds
        logger.info("connection %d took no bytes for %g s", connection.tcp_id, seconds)
        connection.close(broken=True)
        self.driver.flush()

    def _close_requested(self, event: TcpCloseRequested) -> None:
        connection = self._connections.get(event.tcp_id)
        if connection is not None:
            connection.finish()

    def _pause_requested(self, event: TcpPauseRequested) -> None:
        connection = self._connections.get(event.tcp_id)
        if connection is not None:
            connection.pause()

    def _resume_requested(self, event: TcpResumeRequested) -> None:
        connection = self._connections.get(event.tcp_id)
        if connection is not None:
            connection.resume()


class TcpDialer(TcpPort):
    """Carries the connections that a machine asks for.

    :param ssl_context: makes the context for TLS connections; by default it has the system's
        certificate authorities.
    :param proxy: what all connections go through.
    :param authority_advice: what to do about a certificate whose authority is not trusted, behind
        the error that says so.
    """

    def __init__(
        self,
        machine: TcpUser,
        *,
        ssl_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        proxy: HttpProxy | None = None,
        write_timeout: float = WRITE_TIMEOUT,
        authority_advice: str = "",
    ) -> None:
        super().__init__(machine, write_timeout=write_timeout)
        self._authority_advice = authority_advice
        self._user = machine
        self._make_ssl_context = ssl_context
        self._proxy = proxy
        self._client_context: ssl.SSLContext | None = None
        self._dials: dict[int, anyio.CancelScope] = {}

    def start(self, driver: Driver[Any]) -> None:
        """Take the machine's TCP events."""
        super().start(driver)
        driver.handle(TcpRequested, self._requested)

    def _requested(self, event: TcpRequested) -> None:
        scope = self._dials[event.tcp_id] = anyio.CancelScope()
        self.driver.start_soon(self._dial, event, scope)

    def _close_requested(self, event: TcpCloseRequested) -> None:
        scope = self._dials.pop(event.tcp_id, None)
        if scope is not None:
            scope.cancel()
        super()._close_requested(event)

    async def _dial(self, event: TcpRequested, scope: anyio.CancelScope) -> None:
        tcp_id = event.tcp_id
        error: str | None = None
        with scope:
            try:
                context = self._context() if event.tls else None
                tcp_socket = await dial(event.host, event.port, context, proxy=self._proxy)
            except OSError as problem:
                error = str(problem) or type(problem).__name__
                if isinstance(problem, ssl.SSLCertVerificationError):
                    # OpenSSL leaves out authorities that it cannot read, for want of descriptors.
                    self._client_context = None
                    if problem.verify_code in _UNKNOWN_AUTHORITY and self._authority_advice:
                        error += f"; {self._authority_advice}"
                logger.debug("connecting to %s port %d: %s", event.host, event.port, error)
            else:
                if self._dials.get(tcp_id) is scope:
                    self.adopt(tcp_id, tcp_socket)
                else:
                    tcp_socket.close()
        if self._dials.get(tcp_id) is scope:
            del self._dials[tcp_id]
            self._user.complete_tcp(tcp_id, error=error, now=self.driver.now())
            self.driver.flush()

    def _context(self) -> ssl.SSLContext:
        if self._client_context is None:
            self._client_context = self._make_ssl_context()
        return self._client_context
