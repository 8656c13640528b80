"""One TCP or TLS connection of a machine, on a raw non-blocking socket."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from iroh_anyio.tcp import TcpPort

logger = logging.getLogger("iroh_anyio.tcp")

READ_SIZE = 65_536
"""Bytes per read call, and about as many for one connection before it is another one's turn."""

Socket: TypeAlias = socket.socket
"""A plain socket or, as its subclass, an :class:`ssl.SSLSocket`; connected and non-blocking."""

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT


class TcpConnection:
    """One connected socket.

    States: handshaking (TLS of an accepted one); open, or paused (not read from); finishing
    (writes its last bytes, discards what arrives); gone. What its socket waits for is kept with
    the port's epoll, so that nothing has to wait for a connection that does nothing.

    :ivar blocked: whether the kernel takes nothing for now.
    :ivar gone: whether it is closed.
    :ivar is_finishing: whether it writes its last bytes, and is closed behind them.
    :ivar is_plain: whether it has no TLS and waits for nothing but bytes to :meth:`read`, as nearly
        all do; others are to :meth:`take_turn`.
    :ivar is_untouched: whether nothing was read or written yet.
    """

    __slots__ = (
        "_handshaking",
        "_is_tls",
        "_machine",
        "_mask",
        "_out",
        "_paused",
        "_peer_ended",
        "_port",
        "_read_needs_write",
        "_socket",
        "_write_ended",
        "_write_needs_read",
        "blocked",
        "descriptor",
        "gone",
        "is_finishing",
        "is_plain",
        "is_untouched",
        "tcp_id",
    )

    def __init__(
        self, port: TcpPort, tcp_id: int, tcp_socket: Socket, *, handshakes: bool = False
    ) -> None:
        self.tcp_id = tcp_id
        self.descriptor = tcp_socket.fileno()
        self.gone = False
        self.blocked = handshakes
        self._port = port
        self._machine = port.machine
        self._socket = tcp_socket
        self._is_tls = isinstance(tcp_socket, ssl.SSLSocket)
        self._handshaking = handshakes
        self._out: bytes | memoryview = b""
        self.is_untouched = True
        self._paused = False
        self.is_finishing = False
        self._peer_ended = False
        self._write_ended = False
        # TLS may have to write before it can read on, and the other way round.
        self._read_needs_write = False
        self._write_needs_read = False
        self._mask = _IN
        self.is_plain = not self._is_tls
        with contextlib.suppress(OSError):
            tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port.epoll.register(self.descriptor, _IN)

    def take_turn(self, events: int, now: float) -> int:
        """Do what the socket is ready for; return how many bytes were read."""
        if self._handshaking and not self._shake_hands():
            return READ_SIZE  # it is as much work
        if events & _OUT:
            self._read_needs_write = False
            if self.blocked and not self._write_needs_read:
                self._unblock()
                self.write()
        if self.gone or not (events & ~_OUT or self._is_tls):
            return 0
        if self._paused or self._peer_ended:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self.close(broken=True)  # nothing else would come of it
            return 0
        return self.read(now)

    def read(self, now: float) -> int:
        """Give the machine what has arrived; return how many bytes."""
        size = 0
        while True:
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                break
            except ssl.SSLWantWriteError:
                self._read_needs_write = True
                self._watch()
                break
            except OSError as error:
                logger.debug("connection %d broke: %s", self.tcp_id, error)
                data = b""
            if not data:
                self._take_end(now)
                return size
            self.is_untouched = False
            if not self.is_finishing:
                self._machine.receive_tcp_data(self.tcp_id, data, now=now)
            if self.is_plain:
                return len(data)
            size += len(data)
            # A record of TLS is shorter, and more than one may be there.
            if not self._is_tls or (size >= READ_SIZE and not self._has_pending()):
                break
        if self._write_needs_read:
            self._write_needs_read = False
            self._unblock()
            self.write()
        return size

    def write(self) -> None:
        """Write until the machine has no more bytes or the kernel no room."""
        while not self.gone and self.write_once():
            pass

    def write_once(self) -> bool:
        """Write all that the machine gives at a time; return whether there may be more to write.

        What the kernel has no room for is kept, and written when it has.
        """
        data = self._out or self._machine.tcp_data_to_send(self.tcp_id)
        if not data:
            if self.is_finishing:
                self._end_writing()
            return False
        self.is_untouched = False
        try:
            while (sent := self._socket.send(data)) < len(data):
                data = memoryview(data)[sent:]
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            self._out = data
            self._block()
            return False
        except ssl.SSLWantReadError:
            self._out = data
            self._write_needs_read = True
            self._block()
            return False
        except OSError as error:
            logger.debug("connection %d broke: %s", self.tcp_id, error)
            self._out = data
            self.close(broken=True)
            return False
        self._out = b""
        return True

    def pause(self) -> None:
        """Leave the peer unread, so that it has to wait."""
        if not self.is_finishing:
            self._paused = True
            self._watch()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._watch()

    def finish(self) -> None:
        """Write the last bytes, then close; bounded by the port."""
        if self.gone or self.is_finishing:
            return
        self.is_finishing = True
        if self._handshaking:
            self.close()
            return
        # Closing over unread bytes would reset the connection and take our last bytes with it, so
        # reading goes on until the peer's end is seen.
        self._paused = False
        self._watch()
        self._port.closing.begin(self)
        if not self.blocked:
            self.write()

    def close(self, *, broken: bool = False) -> None:
        """Close at once. Idempotent."""
        if self.gone:
            return
        self.gone = True
        self._port.unwritten += len(self._out)
        self._port.forget(self, broken=broken and not self.is_finishing and not self._peer_ended)
        self._socket.close()

    def _shake_hands(self) -> bool:
        """Go on with the handshake; say whether it is done."""
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._set_mask(_IN)
        except ssl.SSLWantWriteError:
            self._set_mask(_OUT)
        except OSError as error:
            logger.debug("TLS handshake of connection %d: %s", self.tcp_id, error)
            self.close(broken=True)
        else:
            self._handshaking = self.blocked = False
            self._watch()
            self.write()
            return True
        return False

    def _take_end(self, now: float) -> None:
        self._peer_ended = True
        if not self.is_finishing:
            self._machine.receive_tcp_eof(self.tcp_id, now=now)
        if self._write_ended:
            self.close()
            return
        self._watch()
        self.finish()

    def _has_pending(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

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
        if not self.is_finishing:
            self._port.stalled.begin(self)
        self._watch()

    def _unblock(self) -> None:
        self.blocked = False
        self._port.stalled.end(self)
        self._watch()

    def _watch(self) -> None:
        """Have the epoll know what the connection waits for."""
        mask = 0 if self._paused or self._peer_ended else _IN
        if self._read_needs_write or (self.blocked and not self._write_needs_read):
            mask |= _OUT
        self._set_mask(mask)

    def _set_mask(self, mask: int) -> None:
        if mask != self._mask and not self.gone:
            self._mask = mask
            self.is_plain = mask == _IN and not self._is_tls
            self._port.epoll.modify(self.descriptor, mask)
