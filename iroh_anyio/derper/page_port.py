"""A TCP port that serves HTTP pages and nothing else."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence

import anyio
from anyio.abc import TaskStatus

from iroh_anyio.driver import Driver
from iroh_anyio.listen import TcpAcceptor
from iroh_proto.derp.page_server import CONNECTIONS_LIMIT, PageServer
from iroh_proto.derp.pages import Page
from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.machine import TcpCloseRequested

WRITE_TIMEOUT = 10.0
"""Seconds without a reader taking a byte after which it is cut off."""


class PagePort:
    """Serves pages on listening sockets.

    :param answer: returns the page for a request. It must not raise.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        answer: Callable[[HttpRequest], Page],
        *,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self.port: int = listeners[0].getsockname()[1]
        self._machine = PageServer(answer)
        self.acceptor = TcpAcceptor(
            self._machine,
            listeners,
            ssl_context=ssl_context,
            max_connections=2 * CONNECTIONS_LIMIT,  # the machine makes room by closing the oldest
            write_timeout=WRITE_TIMEOUT,
        )
        self._driver: Driver[TcpCloseRequested] = Driver(self._machine, [self.acceptor], _ignore)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        await self._driver.run(task_status=task_status)

    def stop(self) -> None:
        """Take no more requests. Answers that were given are still sent."""
        self.acceptor.stop_listening()
        self._machine.close(now=self._driver.now())
        self._driver.flush()

    def close(self) -> None:
        """Close everything at once, if it does not run."""
        self.acceptor.close()


def _ignore(event: TcpCloseRequested) -> None:
    """Do nothing: the acceptor takes all events there are."""
