"""A DERP server on sockets: relay, pages, STUN and metrics."""

from __future__ import annotations

import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Self

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from cryptography import x509

from iroh_anyio.derper.access import AccessControl, HttpCallout
from iroh_anyio.derper.certificates import Certificate, CertificateError
from iroh_anyio.derper.config import DEV_PORT, MAX_CONNECTIONS, DerperConfig
from iroh_anyio.derper.extra import import_extra
from iroh_anyio.derper.metrics import DerperCounts, DerperMetrics
from iroh_anyio.derper.page_port import PagePort
from iroh_anyio.derper.ports import DerperSockets, open_sockets
from iroh_anyio.derper.qad import QadListener, load_certificates
from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.listen import TcpAcceptor
from iroh_anyio.quic.qad_server import PrivateKey
from iroh_anyio.service import Service
from iroh_proto.address import UdpAddress
from iroh_proto.derp.map import STUN_PORT
from iroh_proto.derp.pages import Page, page_for, plain_page_for
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.relay_events import AccessRequested, ClientDisconnected, DerpServerEvent
from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.key import SecretKey
from iroh_proto.stun.server import StunServer, StunServerStats

logger = logging.getLogger("iroh_anyio.derper")

WRITE_TIMEOUT = 10.0
"""Seconds without a client taking a byte after which it is cut off. The machine has its own,
shorter limit for clients; this one is for whatever else connects."""

LEAVE_TIMEOUT = 2.0
"""Seconds that the last bytes of connections get after a drain."""

RELOADABLE = frozenset({"access", "rate_limit", "accept_limit", "drain_time", "notices"})
"""Settings that :meth:`Derper.reload` changes in a running server, beside the certificate."""


class Derper(Service):
    """A DERP server on sockets. Made by :meth:`bind` or :meth:`open`, run by ``async with``.

    Ports are those really taken: ``port`` the one that clients use, ``stun_port``, ``quic_port``
    (QUIC address discovery), ``plain_port`` (HTTP beside HTTPS) and ``metrics_port`` are ``None``
    where there is none.
    """

    def __init__(
        self,
        config: DerperConfig,
        sockets: DerperSockets,
        *,
        certificate: Certificate | None,
        qad: QadListener | None = None,
        ssl_context: Callable[[], ssl.SSLContext] | None,
        asks_access: bool,
        write_timeout: float,
    ) -> None:
        super().__init__()
        self._config = config
        self._certificate = certificate
        self._qad = qad
        if certificate is not None and qad is not None:
            certificate.on_new = self._pass_on_certificate
        self._access = AccessControl(config.access)
        self._disconnects = 0
        self._machine = DerpServer(
            secret_key=config.secret_key or SecretKey.generate(),
            rng=random.SystemRandom(),
            rate_limit=config.rate_limit,
            accept_limit=config.accept_limit,
            asks_access=asks_access,
            listen_dialect=config.listen_dialect,
        )
        self._stun = StunServer()
        self._host, self.port = sockets.main[0].getsockname()[:2]
        self.quic_port = None if qad is None else qad.port
        self.stun_port = sockets.stun[0].local_address.port if sockets.stun else None
        self._scheme = "http" if ssl_context is None else "https"
        self._stun_port = UdpPort(self._stun, sockets.stun)
        self._stun_driver: Driver[None] = Driver(self._stun, [self._stun_port], _ignore)
        self._pages: list[PagePort] = []
        self.plain_port = self._serve_pages(sockets.plain, self._plain_page)
        self.metrics_port = None
        if sockets.metrics:
            metrics = DerperMetrics(self._count)
            self.metrics_port = self._serve_pages(sockets.metrics, metrics.page_for)
        main = sockets.main
        if not config.enable_relay:
            self._serve_pages(main, page_for, ssl_context)
            main = ()
        self._acceptor = TcpAcceptor(
            self._machine,
            main,
            ssl_context=ssl_context,
            max_connections=config.max_connections,
            write_timeout=write_timeout,
        )
        self._driver: Driver[DerpServerEvent] = Driver(
            self._machine, [self._acceptor], self._on_event
        )
        self._driver.handle(AccessRequested, self._on_access_requested)
        self._driver.handle(ClientDisconnected, self._on_disconnected)

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
            open_sockets(config, None),
            certificate=None,
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
        tls = config.tls
        certificate = None
        https = None if tls is None else tls.https_bind_addr
        qad = None
        if tls is not None:
            certificate = Certificate(tls.certificate_path, tls.key_path)
            qad = await _bind_qad(certificate, tls.quic_bind_addr)
        try:
            sockets = open_sockets(config, https)
        except BaseException:
            if qad is not None:
                await qad.close()
            raise
        return cls(
            config,
            sockets,
            certificate=certificate,
            qad=qad,
            ssl_context=None if certificate is None or https is None else certificate.current,
            asks_access=True,
            write_timeout=WRITE_TIMEOUT,
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

    def reload(self, config: DerperConfig) -> list[str]:
        """Take up the settings that can change while it runs, and read the certificate again.

        Access and the limit on connections hold for who comes from now on. Clients that are
        connected stay, under the new rate limit.

        :returns: the names of settings that differ and hold only after a restart.
        :raises ModuleNotFoundError: if a setting needs a library that is not installed; nothing
            has changed then.
        """
        check_libraries(config)
        before, now = self._config, self._driver.now()
        names = [field.name for field in fields(config)]
        changed = [name for name in names if getattr(config, name) != getattr(before, name)]
        self._config = replace(before, **{name: getattr(config, name) for name in RELOADABLE})
        self._access.rule = config.access
        if "rate_limit" in changed:
            self._machine.set_rate_limit(config.rate_limit, now=now)
        if "accept_limit" in changed:
            self._machine.set_accept_limit(config.accept_limit, now=now)
        if self._certificate is not None:
            self._certificate.reload()
        self._driver.flush()
        return [name for name in changed if name not in RELOADABLE]

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
        if self._qad is not None:  # which had tasks only if this was entered
            await self._qad.close()

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                if self._qad is not None:
                    await tasks.start(_run_service, self._qad)
                if self._certificate is not None:
                    tasks.start_soon(self._certificate.watch)
                await tasks.start(self._stun_driver.run)
                for pages in self._pages:
                    await tasks.start(pages.run)
                await tasks.start(self._driver.run)
                logger.info("serving %s, STUN on port %s", self.url, self.stun_port)
                task_status.started()
        finally:
            with anyio.CancelScope(shield=True):
                await self._access.close()

    async def _stop(self) -> None:
        self._acceptor.stop_listening()
        for pages in self._pages:
            pages.stop()
        self._machine.close(now=self._driver.now())
        self._driver.flush()
        await self._acceptor.wait_empty()

    def _release(self) -> None:
        self._acceptor.close()
        self._stun_port.close()
        for pages in self._pages:
            pages.close()

    def _pass_on_certificate(self) -> None:
        assert self._qad is not None
        assert self._certificate is not None
        try:
            self._qad.set_certificates(*_read_for_quic(self._certificate))
        except CertificateError as error:
            logger.error("keeping the old certificate for QUIC: %s", error)

    # Pages

    def _serve_pages(
        self,
        listeners: Sequence[socket.socket],
        answer: Callable[[HttpRequest], Page],
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
    ) -> int | None:
        if not listeners:
            return None
        pages = PagePort(listeners, answer, ssl_context=ssl_context)
        self._pages.append(pages)
        return pages.port

    def _plain_page(self, request: HttpRequest) -> Page:
        tls = self._config.tls
        hostname = tls.hostnames[0] if tls is not None and tls.hostnames else None
        return plain_page_for(request, https_port=self.port, hostname=hostname)

    def _count(self) -> DerperCounts:
        expires = None if self._certificate is None else self._certificate.expires.timestamp()
        return DerperCounts(
            server=self._machine.stats,
            stun=self._stun.stats,
            qad=None if self._qad is None else self._qad.stats,
            clients=len(self._machine.clients),
            connections=len(self._acceptor),
            accepted=self._acceptor.served,
            disconnects=self._disconnects,
            refused=self._acceptor.refused,
            certificate_expires=expires,
        )

    # Events

    def _on_event(self, event: DerpServerEvent) -> None:
        logger.debug("%s", event)

    def _on_disconnected(self, event: ClientDisconnected) -> None:
        self._disconnects += 1
        logger.debug("%s", event)

    def _on_access_requested(self, event: AccessRequested) -> None:
        allowed = self._access.decide(event.node_id, event.token)
        if allowed is None:
            self._driver.start_soon(self._ask, event)
        else:
            self._complete_access(event, allowed)

    async def _ask(self, event: AccessRequested) -> None:
        self._complete_access(event, await self._access.ask(event.node_id))
        self._driver.flush()

    def _complete_access(self, event: AccessRequested, allowed: bool) -> None:
        if not allowed:
            logger.info("not letting in %s", event.node_id)
        self._machine.complete_access(event.tcp_id, allowed=allowed, now=self._driver.now())


def check_libraries(config: DerperConfig) -> None:
    """Check that what the settings need is installed.

    :raises ModuleNotFoundError: if it is not, naming the setting and what to install.
    """
    if config.metrics_bind_addr is not None:
        import_extra("prometheus_client", "enable_metrics")
    if isinstance(config.access, HttpCallout):
        import_extra("httpx", "access.http")


async def _run_service(service: Service, *, task_status: TaskStatus[None]) -> None:
    async with service:
        task_status.started()
        await anyio.sleep_forever()


async def _bind_qad(certificate: Certificate, address: UdpAddress | None) -> QadListener | None:
    if address is None:
        return None
    certificates, private_key = _read_for_quic(certificate)
    return await QadListener.bind(
        certificates=certificates, private_key=private_key, host=address.ip, port=address.port
    )


def _read_for_quic(certificate: Certificate) -> tuple[list[x509.Certificate], PrivateKey]:
    try:
        return load_certificates(certificate.certificate_path, certificate.key_path)
    except (OSError, ValueError) as error:
        raise CertificateError(str(error)) from None


def _ignore(event: None) -> None:
    raise AssertionError("a STUN server has no events")
