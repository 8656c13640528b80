"""A DERP server with STUN, for development: plain HTTP, or HTTPS given a TLS context."""

from __future__ import annotations

import logging
import random
import socket
import ssl
from collections.abc import Sequence
from typing import Self

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.listen import TcpAcceptor, listen
from iroh_anyio.service import Service
from iroh_anyio.udp import UdpSocket
from iroh_proto.address import UdpAddress
from iroh_proto.derp.map import STUN_PORT
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.relay_events import DerpServerEvent
from iroh_proto.key import SecretKey
from iroh_proto.stun.server import StunServer, StunServerStats

logger = logging.getLogger("iroh_anyio.derper")

DEV_PORT = 3340
"""TCP port of a development server, as in iroh's releases."""

MAX_CONNECTIONS = 4_096
"""TCP connections served at once. The usual limit of file descriptors is 1,024 to 65,536."""

WRITE_TIMEOUT = 10.0
"""Seconds without a client taking a byte after which it is cut off. The machine has its own,
shorter limit for clients; this one is for whatever else connects."""


class Derper(Service):
    """A DERP server on sockets. Made by :meth:`bind`, run by ``async with``.

    ``port`` and ``stun_port`` are those really taken, ``stun_port`` is ``None`` without STUN.
    """

    def __init__(
        self,
        machine: DerpServer,
        listeners: Sequence[socket.socket],
        stun_sockets: Sequence[UdpSocket],
        *,
        ssl_context: ssl.SSLContext | None,
        max_connections: int,
        write_timeout: float,
    ) -> None:
        super().__init__()
        self._machine = machine
        self._stun = StunServer()
        self._host, self.port = listeners[0].getsockname()[:2]
        self.stun_port = stun_sockets[0].local_address.port if stun_sockets else None
        self._scheme = "http" if ssl_context is None else "https"
        self._acceptor = TcpAcceptor(
            machine,
            listeners,
            ssl_context=ssl_context,
            max_connections=max_connections,
            write_timeout=write_timeout,
        )
        self._driver: Driver[DerpServerEvent] = Driver(machine, [self._acceptor], self._on_event)
        self._stun_port = UdpPort(self._stun, stun_sockets)
        self._stun_driver: Driver[None] = Driver(self._stun, [self._stun_port], _ignore)

    @classmethod
    async def bind(
        cls,
        *,
        host: str = "127.0.0.1",
        port: int = DEV_PORT,
        stun_port: int | None = STUN_PORT,
        secret_key: SecretKey | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> Self:
        """Take the ports; clients are served once it is entered.

        :param host: the IP address to listen on; ``::`` is every address of both IP versions.
        :param port: the TCP port; 0 takes any free one.
        :param stun_port: the UDP port for STUN; 0 takes any free one, ``None`` does without. That
            it is taken is a warning only: the server then runs without STUN.
        :param secret_key: the server's own identity, by default a new one.
        :param ssl_context: serve HTTPS with this instead of HTTP.
        :param max_connections: clients beyond these are turned away.
        :param write_timeout: seconds without a client taking a byte before it is cut off.
        :raises OSError: if the TCP port cannot be had.
        :raises DecodeError: if ``host`` is no IP address or a port no port.
        """
        await checkpoint()
        ip = UdpAddress.of(host, port).ip
        ips = ["0.0.0.0", "::"] if ip == "::" else [ip]
        rng = random.SystemRandom()
        machine = DerpServer(secret_key=secret_key or SecretKey.generate(), rng=rng)
        listeners = listen(ips, port)
        return cls(
            machine,
            listeners,
            [] if stun_port is None else _bind_stun(ips, stun_port),
            ssl_context=ssl_context,
            max_connections=max_connections,
            write_timeout=write_timeout,
        )

    @property
    def url(self) -> str:
        """The URL for clients on this host; others need a name or address of it instead."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def machine(self) -> DerpServer:
        """The machine behind it, for its ``stats``."""
        return self._machine

    @property
    def stun_stats(self) -> StunServerStats:
        """Counts of STUN requests."""
        return self._stun.stats

    @property
    def unwritten(self) -> int:
        """Bytes dropped because the connections they were for broke before."""
        return self._acceptor.unwritten

    @property
    def connections(self) -> int:
        """TCP connections being served."""
        return len(self._acceptor)

    @property
    def refused(self) -> int:
        """Connections turned away because there were too many."""
        return self._acceptor.refused

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._stun_driver.run)
            await tasks.start(self._driver.run)
            logger.info("serving %s, STUN on port %s", self.url, self.stun_port)
            task_status.started()

    async def _stop(self) -> None:
        self._acceptor.stop_listening()
        self._machine.close(now=self._driver.now())
        self._driver.flush()
        await self._acceptor.wait_empty()

    def _release(self) -> None:
        self._acceptor.close()
        self._stun_port.close()

    def _on_event(self, event: DerpServerEvent) -> None:
        logger.debug("%s", event)


def _bind_stun(ips: Sequence[str], port: int) -> list[UdpSocket]:
    sockets: list[UdpSocket] = []
    for ip in ips:
        try:
            sockets.append(UdpSocket(UdpAddress(ip, port), offload=False))
        except OSError as error:
            if not sockets:
                why = error.strerror or error
                logger.warning("UDP port %d is taken, running without STUN: %s", port, why)
                break
            logger.info("no STUN on %s: %s", ip, error)
        else:
            port = sockets[0].local_address.port
    return sockets


def _ignore(event: None) -> None:
    raise AssertionError("a STUN server has no events")
