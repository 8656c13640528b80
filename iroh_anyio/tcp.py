"""TCP and TLS streams for machines, on raw non-blocking sockets.

A machine that keeps its queues bounded is asked for bytes only while the kernel takes them. Each
connection has one reader task; bytes are written where they arise, and only a full kernel buffer
starts a task that waits for room.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from iroh_anyio.dial import dial
from iroh_anyio.driver import Driver
from iroh_anyio.proxy import HttpProxy
from iroh_proto.machine import TcpCloseRequested, TcpRequested, TcpUser

logger = logging.getLogger("iroh_anyio.tcp")

READ_SIZE = 65_536
"""Bytes per read call."""

READ_LIMIT = 4 * READ_SIZE
"""Bytes after which a wake-up stops reading, so that one busy peer does not hold up the rest."""

WRITE_TIMEOUT = 20.0
"""Seconds without the peer taking a byte after which a connection counts as broken. Relays drop
clients that do not read for less (2 s a frame); a train in a tunnel is out of reach for longer."""

CLOSE_TIMEOUT = 1.0
"""Seconds a connection gets to send its last bytes."""

Socket: TypeAlias = socket.socket
"""A plain socket or, as its subclass, an :class:`ssl.SSLSocket`; connected and non-blocking."""


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
        self.write_timeout = write_timeout
        self.unwritten = 0
        """Bytes that the machine gave for connections that were gone, or broke before."""
        self.machine = machine
        self.driver: Driver[Any]
        self._connections: dict[int, _TcpConnection] = {}
        self._broken: list[int] = []
        self._emptied = anyio.Event()

    def __len__(self) -> int:
        return len(self._connections)

    def start(self, driver: Driver[Any]) -> None:
        """Take the machine's TCP events."""
        self.driver = driver
        driver.handle(TcpCloseRequested, self._close_requested)

    def adopt(self, tcp_id: int, tcp_socket: Socket) -> None:
        """Carry a connected socket from now on; the caller has told the machine, and flushes."""
        connection = _TcpConnection(self, tcp_id, tcp_socket)
        self._connections[tcp_id] = connection
        self.driver.start_soon(connection.read)

    def flush(self) -> bool:
        """Write what the machine has for connections that can take it."""
        for tcp_id in self.machine.tcp_to_send():
            connection = self._connections.get(tcp_id)
            if connection is None:
                # Nobody is there to read them: they must not stay queued and be asked for again.
                self.unwritten += len(self.machine.tcp_data_to_send(tcp_id))
            elif not connection.blocked:
                connection.write()
        if not self._broken:
            return False
        broken, self._broken = self._broken, []
        now = self.driver.now()
        for tcp_id in broken:
            self.machine.receive_tcp_eof(tcp_id, now=now)
        return True

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        while self._connections:
            await self._emptied.wait()

    def close(self) -> None:
        """Close every connection at once."""
        for connection in list(self._connections.values()):
            connection.close()

    def forget(self, tcp_id: int, *, broken: bool) -> None:
        """Let go of a connection that closed; if it broke, the next flush tells the machine."""
        if self._connections.pop(tcp_id, None) is None:
            return
        if broken:
            self._broken.append(tcp_id)
        if not self._connections:
            self._emptied.set()
            self._emptied = anyio.Event()

    def _close_requested(self, event: TcpCloseRequested) -> None:
        connection = self._connections.get(event.tcp_id)
        if connection is not None:
            connection.finish()


class TcpDialer(TcpPort):
    """Carries the connections that a machine asks for.

    :param ssl_context: makes the context for TLS connections; by default it has the system's
        certificate authorities.
    :param proxy: what all connections go through.
    """

    def __init__(
        self,
        machine: TcpUser,
        *,
        ssl_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        proxy: HttpProxy | None = None,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        super().__init__(machine, write_timeout=write_timeout)
        self._user = machine
        self._make_ssl_context = ssl_context
        self._proxy = proxy
        self._ssl_context: ssl.SSLContext | None = None
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
        if self._ssl_context is None:
            self._ssl_context = self._make_ssl_context()
        return self._ssl_context


class _TcpConnection:
    """One connected socket.

    States: open; finishing (writes its last bytes, discards what arrives); closed.
    """

    __slots__ = (
        "_finishing",
        "_gone",
        "_out",
        "_peer_ended",
        "_port",
        "_progress",
        "_socket",
        "_tcp_id",
        "_write_ended",
        "_write_needs_read",
        "_writer_runs",
        "blocked",
    )

    def __init__(self, port: TcpPort, tcp_id: int, tcp_socket: Socket) -> None:
        self._port = port
        self._tcp_id = tcp_id
        self._socket = tcp_socket
        self._out = memoryview(b"")
        self._finishing = False
        self._peer_ended = False
        self._write_ended = False
        self._gone = anyio.Event()
        # TLS may have to write before it can read on, and the other way round.
        self._progress: anyio.Event | None = None
        self._write_needs_read = False
        self._writer_runs = False
        self.blocked = False
        with contextlib.suppress(OSError):
            tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read(self) -> None:
        """Give the machine what arrives until the connection ends."""
        port, tcp_id = self._port, self._tcp_id
        more = True  # TLS may hold bytes that came with the end of the handshake
        ended = False
        while not ended:
            if self._gone.is_set():
                return
            try:
                await (checkpoint() if more else anyio.wait_readable(self._socket))
            except anyio.ClosedResourceError:
                return
            if self._gone.is_set():
                return
            chunks, more, ended = self._read_available()
            self._peer_ended = ended
            if self._write_needs_read:
                self._write_needs_read = self.blocked = False
                self.write()
            if not self._finishing and (chunks or ended):
                now = port.driver.now()
                for chunk in chunks:
                    port.machine.receive_tcp_data(tcp_id, chunk, now=now)
                if ended:
                    port.machine.receive_tcp_eof(tcp_id, now=now)
                port.driver.flush()
            if self._progress is not None:
                await self._progress.wait()
        if self._write_ended:
            self.close()
        else:
            self.finish()

    def write(self) -> None:
        """Write until the machine has no more bytes or the kernel no room."""
        port, tcp_socket = self._port, self._socket
        while not self._gone.is_set():
            if not self._out:
                self._out = memoryview(port.machine.tcp_data_to_send(self._tcp_id))
                if not self._out:
                    if self._finishing:
                        self._end_writing()
                    return
            try:
                sent = tcp_socket.send(self._out)
            except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
                self._block()
                return
            except ssl.SSLWantReadError:
                self.blocked = self._write_needs_read = True
                return
            except OSError as error:
                logger.debug("connection %d broke: %s", self._tcp_id, error)
                self.close(broken=True)
                return
            self._out = self._out[sent:]

    def finish(self) -> None:
        """Write the last bytes, then close; bounded by ``CLOSE_TIMEOUT``."""
        if self._gone.is_set() or self._finishing:
            return
        self._finishing = True
        self._port.driver.start_soon(self._close_in_time)
        if not self.blocked:
            self.write()

    def close(self, *, broken: bool = False) -> None:
        """Close at once. Idempotent."""
        if self._gone.is_set():
            return
        self._gone.set()
        self._port.unwritten += len(self._out)
        anyio.notify_closing(self._socket)
        self._socket.close()
        self._port.forget(
            self._tcp_id, broken=broken and not self._finishing and not self._peer_ended
        )

    def _read_available(self) -> tuple[list[bytes], bool, bool]:
        """Return what has arrived, whether to look again at once, and whether it has ended."""
        chunks: list[bytes] = []
        size = 0
        is_tls = isinstance(self._socket, ssl.SSLSocket)
        while size < READ_LIMIT:
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                return chunks, False, False
            except ssl.SSLWantWriteError:
                self._progress = anyio.Event()
                self._block()
                return chunks, True, False
            except OSError as error:
                logger.debug("connection %d broke: %s", self._tcp_id, error)
                data = b""
            if not data:
                return chunks, False, True
            chunks.append(data)
            size += len(data)
            if len(data) < READ_SIZE and not is_tls:
                return chunks, False, False
        return chunks, True, False

    def _end_writing(self) -> None:
        if self._write_ended:
            return
        self._write_ended = True
        if self._peer_ended:
            self.close()
            return
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._socket, ssl.SSLSocket):
                # Sends close_notify, and raises because the peer's has yet to come.
                self._socket.unwrap()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _block(self) -> None:
        self.blocked = True
        if not self._writer_runs:
            self._writer_runs = True
            self._port.driver.start_soon(self._write_later)

    async def _write_later(self) -> None:
        if self._gone.is_set():
            return
        timeout = CLOSE_TIMEOUT if self._finishing else self._port.write_timeout
        with anyio.move_on_after(timeout) as scope:
            try:
                await anyio.wait_writable(self._socket)
            except anyio.ClosedResourceError:
                return
            finally:
                if self._progress is not None:
                    self._progress.set()
                    self._progress = None
        if scope.cancelled_caught:
            logger.info("connection %d took no bytes for %g s", self._tcp_id, timeout)
            self.close(broken=True)
        else:
            self._writer_runs = self.blocked = False
            self.write()
        self._port.driver.flush()

    async def _close_in_time(self) -> None:
        # Closing over unread bytes would reset the connection and take our last bytes with it, so
        # the reader goes on until it sees the peer's end.
        with anyio.move_on_after(CLOSE_TIMEOUT):
            await self._gone.wait()
        self.close()
