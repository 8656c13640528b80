"""A DERP server on sockets: relay, pages, STUN and metrics."""

from __future__ import annotations

import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Self, TypeVar

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from iroh_anyio.derper.access import AccessControl, HttpCallout
from iroh_anyio.derper.certificates import Certificate
from iroh_anyio.derper.config import DEV_PORT, MAX_CONNECTIONS, DerperConfig, TlsConfig
from iroh_anyio.derper.descriptors import descriptor_limit
from iroh_anyio.derper.extra import import_extra
from iroh_anyio.derper.metrics import DerperCounts
from iroh_anyio.derper.peer_port import PeerPort
from iroh_anyio.derper.peers import RETRY_INTERVAL, Peers
from iroh_anyio.derper.ports import DerperSockets, open_sockets
from iroh_anyio.derper.side_services import Opened, SideServices
from iroh_anyio.driver import Driver
from iroh_anyio.listen import TcpAcceptor
from iroh_anyio.service import Service
from iroh_anyio.tcp import TcpDialer
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.map import STUN_PORT
from iroh_proto.derp.mesh import (
    RETRY_INTERVAL as MESH_RETRY_INTERVAL,
)
from iroh_proto.derp.mesh import (
    MeshServerConnected,
    MeshServerLost,
)
from iroh_proto.derp.pages import page_for
from iroh_proto.derp.relay import STRANGERS_LIMIT, DerpServer
from iroh_proto.derp.relay_events import (
    AccessRequested,
    ClientConnected,
    ClientDisconnected,
    DerpServerEvent,
)
from iroh_proto.key import SecretKey
from iroh_proto.stun.server import StunServerStats

logger = logging.getLogger("iroh_anyio.derper")

SettingsT = TypeVar("SettingsT", DerperConfig, TlsConfig)

WRITE_TIMEOUT = 10.0
"""Seconds without a client taking a byte after which it is cut off. The machine has its own,
shorter limit for clients; this one is for whatever else connects."""

LEAVE_TIMEOUT = 2.0
"""Seconds that the last bytes of connections get after a drain."""

RELOADABLE = frozenset({"access", "rate_limit", "accept_limit", "drain_time", "notices"})
"""Settings that :meth:`Derper.reload` changes in a running server, beside the certificate."""

_KEYS = {
    "max_connections": "derper.max_connections",
    "workers": "derper.workers",
    "listen_dialect": "derper.listen_dialect",
    "mesh_key": "derper.mesh.key_file",
    "mesh_servers": "derper.mesh.with",
    "tls.hostnames": "tls.hostname",
    "tls.certificate_path": "tls.manual_cert_path",
    "tls.key_path": "tls.manual_key_path",
}
"""Settings that are called otherwise in the file."""


class Derper(Service):
    """A DERP server on sockets. Made by :meth:`bind` or :meth:`open`, run by ``async with``.

    Ports are those really taken: ``port`` the one that clients use, ``stun_port``, ``quic_port``
    (QUIC address discovery), ``plain_port`` (HTTP beside HTTPS) and ``metrics_port`` are ``None``
    where there is none.
    """

    def __init__(
        self,
        config: DerperConfig,
        opened: Opened,
        *,
        ssl_context: Callable[[], ssl.SSLContext] | None,
        asks_access: bool,
        write_timeout: float,
        peers: Peers | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._access = AccessControl(config.access)
        self._disconnects = 0
        self._peers = peers
        self._machine = _make_machine(config, peers, asks_access=asks_access)
        main = opened.sockets.main
        self._host, self.port = main[0].getsockname()[:2]
        self._scheme = "http" if ssl_context is None else "https"
        self._sides = SideServices(config, opened, main_port=self.port, count=self.count)
        self.quic_port = self._sides.quic_port
        self.stun_port = self._sides.stun_port
        self.plain_port = self._sides.plain_port
        self.metrics_port = self._sides.metrics_port
        if not config.enable_relay:
            self._sides.serve_pages(main, page_for, ssl_context)
            main = ()
        self._acceptor = _make_acceptor(
            config,
            self._machine,
            main,
            peers,
            ssl_context=ssl_context,
            write_timeout=write_timeout,
        )
        self._driver: Driver[DerpServerEvent] = Driver(
            self._machine, [self._acceptor], self._on_event
        )
        self._driver.handle(AccessRequested, self._on_access_requested)
        self._driver.handle(ClientConnected, self._on_connected)
        self._driver.handle(ClientDisconnected, self._on_disconnected)
        self._driver.handle(MeshServerConnected, self._on_mesh_server_connected)
        self._driver.handle(MeshServerLost, self._on_mesh_server_lost)

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
        """Take the ports of a server that everyone may use; it serves once it is entered.

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
        config = replace(
            DerperConfig.for_development(host, port, stun_port),
            secret_key=secret_key,
            max_connections=max_connections,
        )
        return cls(
            config,
            Opened(sockets=open_sockets(config, None)),
            ssl_context=None if ssl_context is None else lambda: ssl_context,
            asks_access=False,
            write_timeout=write_timeout,
        )

    @classmethod
    async def open(cls, config: DerperConfig) -> Self:
        """Take the ports of a server with these settings; it serves once it is entered.

        :raises OSError: if a port cannot be had.
        :raises CertificateError: if the certificate cannot be used.
        :raises ModuleNotFoundError: if a setting needs a library that is not installed.
        """
        await checkpoint()
        check_libraries(config)
        return cls._serving(config, await Opened.by(config))

    @classmethod
    def as_peer(
        cls, config: DerperConfig, listeners: Sequence[socket.socket], peers: Peers
    ) -> Self:
        """Return one of several servers that are one to clients, without services beside it.

        :param listeners: where clients come to.
        :raises CertificateError: if the certificate cannot be used.
        """
        tls = config.tls
        opened = Opened(
            sockets=DerperSockets(main=listeners, plain=(), metrics=(), stun=()),
            certificate=None if tls is None else Certificate(tls.certificate_path, tls.key_path),
        )
        return cls._serving(config, opened, peers)

    @classmethod
    def _serving(cls, config: DerperConfig, opened: Opened, peers: Peers | None = None) -> Self:
        return cls(
            config,
            opened,
            ssl_context=opened.main_context(config),
            asks_access=True,
            write_timeout=WRITE_TIMEOUT,
            peers=peers,
        )

    @property
    def url(self) -> str:
        """The URL for clients on this host; others need a name or address of it instead."""
        return server_url(self._scheme, self._host, self.port)

    @property
    def machine(self) -> DerpServer:
        """The machine behind it, for its ``stats``."""
        return self._machine

    @property
    def stun_stats(self) -> StunServerStats:
        """Counts of STUN requests."""
        return self._sides.stun_stats

    @property
    def unwritten(self) -> int:
        """Bytes dropped because the connections they were for broke before."""
        return self._acceptor.unwritten

    @property
    def connections(self) -> int:
        """TCP connections of clients and others that came."""
        return self._acceptor.serving

    @property
    def refused(self) -> int:
        """Connections turned away because there were too many."""
        return self._acceptor.refused

    def reload(self, config: DerperConfig) -> list[str]:
        """Take up the settings that can change while it runs, and read the certificate again.

        The limit on connections and what is asked of who comes hold from now on. Clients that are
        connected stay, under the new rate limit, unless a list says of them that they may not.

        :returns: the keys, as in the file, of what differs and holds only after a restart.
        :raises ModuleNotFoundError: if a setting needs a library that is not installed; nothing
            has changed then.
        """
        check_libraries(config)
        before, now = self._config, self._driver.now()
        changed = changed_settings(before, config)
        self._config = replace(before, **{name: getattr(config, name) for name in RELOADABLE})
        self._access.rule = config.access
        if "access" in changed:
            self._machine.dismiss(self._access.denied(self._machine.admitted), now=now)
        if "rate_limit" in changed:
            self._machine.set_rate_limit(config.rate_limit, now=now)
        if "accept_limit" in changed:
            self._machine.set_accept_limit(config.accept_limit, now=now)
        self._sides.reload_certificate()
        self._driver.flush()
        return waiting_keys(before, config)

    async def drain(self) -> None:
        """Tell clients that the server goes away, and serve those that are there a little longer.

        Nobody else is let in. It returns when all have left, or were made to after the configured
        ``drain_time``; close it then.
        """
        seconds = self._config.drain_time
        self._acceptor.stop_listening()
        self._machine.drain(timeout=seconds, now=self._driver.now())
        self._driver.flush()
        with anyio.move_on_after(seconds + LEAVE_TIMEOUT):
            await self._acceptor.wait_empty()

    async def close(self) -> None:
        """Stop and let go of the sockets. Bounded, not cancellable, idempotent."""
        await super().close()
        await self._sides.close()

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                await self._sides.start(tasks)
                await tasks.start(self._driver.run)
                self._machine.start(now=self._driver.now())
                self._driver.flush()
                logger.info("serving %s, STUN on port %s", self.url, self.stun_port)
                task_status.started()
        finally:
            await self._access.close()

    async def _stop(self) -> None:
        self._acceptor.stop_listening()
        self._sides.stop()
        self._machine.close(now=self._driver.now())
        self._driver.flush()
        await self._acceptor.wait_empty()

    def _release(self) -> None:
        self._acceptor.close()
        self._sides.release()

    # Peers

    def complete_dial(self, tcp_id: int, peer: socket.socket) -> None:
        """Take a connection that :attr:`Peers.dial` was asked for."""
        assert isinstance(self._acceptor, PeerPort)
        self._acceptor.complete_dial(tcp_id, peer)

    def accept_peer(self, peer: socket.socket) -> None:
        """Take a connection that one of the peers asked for."""
        assert isinstance(self._acceptor, PeerPort)
        self._acceptor.accept_peer(peer)

    def _is_peer(self, tcp_id: int) -> bool:
        return isinstance(self._acceptor, PeerPort) and self._acceptor.is_peer(tcp_id)

    def set_aside(self, key: ClientKey) -> None:
        """Have the client with a key give way to a newer one at one of the peers."""
        self._machine.set_aside(key, now=self._driver.now())
        self._driver.flush()

    def reinstate(self, key: ClientKey) -> None:
        """Have the latest client with a key get its place again: no peer has a newer one."""
        self._machine.reinstate(key, now=self._driver.now())
        self._driver.flush()

    def count(self) -> DerperCounts:
        """Return everything that it has counted so far."""
        return DerperCounts(
            server=self._machine.stats,
            stun=self._sides.stun_stats,
            qad=self._sides.qad_stats,
            clients=len(self._machine.clients),
            connections=self._acceptor.serving,
            accepted=self._acceptor.served,
            disconnects=self._disconnects,
            refused=self._acceptor.refused,
            certificate_expires=self._sides.certificate_expires,
        )

    # Events

    def _on_event(self, event: DerpServerEvent) -> None:
        logger.debug("%s", event)

    def _on_connected(self, event: ClientConnected) -> None:
        if self._peers is not None and not self._is_peer(event.tcp_id):
            self._peers.tell(event.node_id, True)
        logger.debug("%s", event)

    def _on_disconnected(self, event: ClientDisconnected) -> None:
        self._disconnects += 1
        if self._peers is not None and not self._is_peer(event.tcp_id):
            self._peers.tell(event.node_id, False)
        logger.debug("%s", event)

    def _on_mesh_server_connected(self, event: MeshServerConnected) -> None:
        logger.info("in a mesh with %s by %s", event.server.url, event.server.dialect)

    def _on_mesh_server_lost(self, event: MeshServerLost) -> None:
        server = event.server
        logger.info("without %s of the mesh by %s: %s", server.url, server.dialect, event.error)

    def _on_access_requested(self, event: AccessRequested) -> None:
        allowed = self._access.decide(event.node_id, event.token)
        if allowed is None:
            self._driver.start_soon(self._ask, event)
        else:
            self._complete_access(event, allowed)

    async def _ask(self, event: AccessRequested) -> None:
        allowed = await self._access.ask(
            event.node_id,
            event.token,
            still_waits=lambda: self._acceptor.has_peer(event.tcp_id),
        )
        self._complete_access(event, allowed)
        self._driver.flush()

    def _complete_access(self, event: AccessRequested, allowed: bool) -> None:
        if not allowed:
            logger.info("not letting in %s", event.node_id)
        self._machine.complete_access(event.tcp_id, allowed=allowed, now=self._driver.now())


class _MeshAcceptor(TcpAcceptor, TcpDialer):
    """Carries the connections of clients, and those to other servers of the mesh."""


def check_libraries(config: DerperConfig) -> None:
    """Check that what the settings need is installed.

    :raises ModuleNotFoundError: if it is not, naming the setting and what to install.
    """
    if config.metrics_bind_addr is not None:
        import_extra("prometheus_client", "enable_metrics")
    if isinstance(config.access, HttpCallout):
        import_extra("httpx", "access.http")


def changed_settings(before: SettingsT, after: SettingsT) -> list[str]:
    """Return the names of the settings that differ."""
    names = [field.name for field in fields(after)]
    return [name for name in names if getattr(after, name) != getattr(before, name)]


def waiting_keys(before: DerperConfig, after: DerperConfig) -> list[str]:
    """Return the keys, as in the file, of settings that differ and hold only after a restart."""
    names = [name for name in changed_settings(before, after) if name not in RELOADABLE]
    if "tls" in names and before.tls is not None and after.tls is not None:
        at = names.index("tls")
        names[at : at + 1] = [f"tls.{name}" for name in changed_settings(before.tls, after.tls)]
    return [_KEYS.get(name, name) for name in names]


def server_url(scheme: str, host: str, port: int) -> str:
    """Return the URL for clients on this host of a server that is bound to ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{host}:{port}"


def _make_machine(config: DerperConfig, peers: Peers | None, *, asks_access: bool) -> DerpServer:
    mesh_servers = config.mesh_servers if peers is None else peers.servers
    if not config.enable_relay:
        mesh_servers = ()
    return DerpServer(
        secret_key=config.secret_key or SecretKey.generate(),
        rng=random.SystemRandom(),
        # Without descriptors nobody is accepted for whom a stranger could make room.
        strangers_limit=min(STRANGERS_LIMIT, descriptor_limit() // 2),
        rate_limit=config.rate_limit,
        accept_limit=config.accept_limit,
        asks_access=asks_access,
        mesh_key=config.mesh_key if peers is None else peers.mesh_key,
        mesh_servers=mesh_servers,
        mesh_secret_key=None if peers is None else peers.secret_key,
        mesh_retry_interval=MESH_RETRY_INTERVAL if peers is None else RETRY_INTERVAL,
        listen_dialect=config.listen_dialect,
    )


def _make_acceptor(
    config: DerperConfig,
    machine: DerpServer,
    listeners: Sequence[socket.socket],
    peers: Peers | None,
    *,
    ssl_context: Callable[[], ssl.SSLContext] | None,
    write_timeout: float,
) -> TcpAcceptor:
    if peers is None:
        return _MeshAcceptor(
            machine,
            listeners,
            ssl_context=ssl_context,
            max_connections=config.max_connections,
            write_timeout=write_timeout,
        )
    return PeerPort(
        machine,
        listeners,
        peers,
        ssl_context=ssl_context,
        max_connections=config.max_connections,
        write_timeout=write_timeout,
    )
