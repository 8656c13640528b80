"""Accepts TCP and TLS connections for a machine that serves them."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio

from iroh_anyio.driver import Driver
from iroh_anyio.tcp import WRITE_TIMEOUT, TcpPort, TcpStreams
from iroh_proto.machine import TcpCloseRequested

logger = logging.getLogger("iroh_anyio.listen")

ACCEPT_BATCH = 64
"""Connections taken per wake-up, so that a rush of them does not hold up those that stand."""

ACCEPT_PAUSE = 0.1
"""Seconds to wait when the process is out of file descriptors or memory; they stay queued."""

LISTEN_BACKLOG = 512
"""Connections the kernel may keep for us."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TcpServerMachine(TcpStreams, Protocol):
    """What a machine needs to have to be given connections."""

    def accept_tcp(self, tcp_id: int, *, now: float) -> None:
        """Take a new connection under a number never used before, before any TLS.

        The machine bounds the time for TLS and all else that comes before a client is known.
        """


class TcpAcceptor(TcpPort):
    """Accepts connections and carries them.

    :param ssl_context: if given, every connection begins with a TLS handshake by the context that
        it returns then.
    :param max_connections: more than these are closed at once and counted in ``refused``.
    """

    def __init__(
        self,
        machine: TcpServerMachine,
        listeners: Sequence[socket.socket],
        *,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        max_connections: int,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        super().__init__(machine, write_timeout=write_timeout)
        self.refused = 0
        self._server = machine
        self._listeners = list(listeners)
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._last_id = 0

    @property
    def served(self) -> int:
        """Connections that were accepted, also those that are gone."""
        return self._last_id

    @property
    def serving(self) -> int:
        """Those of them that are there. Connections that were dialled have negative numbers."""
        return sum(1 for tcp_id in self._connections if tcp_id > 0)

    def start(self, driver: Driver[Any]) -> None:
        """Start accepting."""
        super().start(driver)
        for listener in self._listeners:
            driver.start_soon(self._accept, listener)

    def stop_listening(self) -> None:
        """Accept no more; connections that stand stay. Idempotent."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            anyio.notify_closing(listener)
            listener.close()

    def close(self) -> None:
        """Close the listeners and every connection at once."""
        self.stop_listening()
        super().close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                await anyio.wait_readable(listener)
            except anyio.ClosedResourceError:
                return
            for _ in range(ACCEPT_BATCH):
                try:
                    accepted, _ = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    # Others than these concern one client that has gone again: accept(2).
                    if error.errno in _EXHAUSTED:
                        logger.warning("cannot accept for now: %s", error)
                        await anyio.sleep(ACCEPT_PAUSE)
                        break
                    continue
                self._admit(accepted)
            self.driver.flush()

    def _close_requested(self, event: TcpCloseRequested) -> None:
        connection = self._connections.get(event.tcp_id)
        if connection is not None and connection.is_untouched:
            connection.close()  # one of a rush, perhaps, of which none may cost much
        else:
            super()._close_requested(event)

    def _admit(self, accepted: socket.socket) -> None:
        if len(self) >= self._max_connections:
            self.refused += 1
            accepted.close()
            return
        accepted.setblocking(False)
        if self._ssl_context is not None:
            try:
                accepted = self._ssl_context().wrap_socket(
                    accepted, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # it is gone again already
                accepted.close()
                return
        self._last_id += 1
        self._server.accept_tcp(self._last_id, now=self.driver.now())
        self.adopt(self._last_id, accepted, handshakes=self._ssl_context is not None)


def listen(ips: Sequence[str], port: int, *, shares_port: bool = False) -> list[socket.socket]:
    """Listen on one port of some addresses. If the first takes any free port, so do the others.

    That an IPv6 address beside others cannot be had is tolerated.

    :param shares_port: whether others of the same user may listen on it as well, and the kernel
        gives each of them a part of the connections (``SO_REUSEPORT``).
    :raises OSError: if another address cannot be had.
    """
    listeners: list[socket.socket] = []
    for ip in ips:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        try:
            listener = socket.create_server(
                (ip, port), family=family, backlog=LISTEN_BACKLOG, reuse_port=shares_port
            )
        except OSError as error:
            if listeners and family == socket.AF_INET6:
                logger.info("going on without TCP %s: %s", ip, error)
                continue
            for other in listeners:
                other.close()
            why = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"cannot bind {ip} TCP port {port}: {why}") from error
        listener.setblocking(False)
        port = listener.getsockname()[1]
        listeners.append(listener)
    return listeners
