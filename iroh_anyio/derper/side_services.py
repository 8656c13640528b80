"""What is beside the relay of a DERP server: STUN, address discovery, plain HTTP, metrics."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import anyio
from anyio.abc import TaskGroup, TaskStatus
from cryptography import x509

from iroh_anyio.derper.certificates import Certificate, CertificateError
from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.derper.metrics import DerperCounts, DerperMetrics
from iroh_anyio.derper.page_port import PagePort
from iroh_anyio.derper.ports import DerperSockets, open_sockets, port_of
from iroh_anyio.derper.qad import QadListener, load_certificates
from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.quic.qad_server import PrivateKey, QadServerStats
from iroh_anyio.service import Service
from iroh_proto.address import UdpAddress
from iroh_proto.derp.pages import Page, PlainPages
from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.stun.server import StunServer, StunServerStats

logger = logging.getLogger("iroh_anyio.derper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Everything that a server needs from its host before it can run."""

    sockets: DerperSockets
    certificate: Certificate | None = None
    qad: QadListener | None = None

    @classmethod
    async def by(cls, config: DerperConfig, *, shares_main: bool = False) -> Self:
        """Take all ports and read the certificate, or nothing.

        :param shares_main: whether several processes will listen where clients come to.
        :raises OSError: if a port cannot be had.
        :raises CertificateError: if the certificate cannot be used.
        """
        if (tls := config.tls) is None:
            return cls(sockets=open_sockets(config, None, shares_main=shares_main))
        certificate = Certificate(tls.certificate_path, tls.key_path)
        qad = await _bind_qad(certificate, tls.quic_bind_addr)
        try:
            sockets = open_sockets(config, tls.https_bind_addr, shares_main=shares_main)
        except BaseException:
            if qad is not None:
                await qad.close()
            raise
        return cls(sockets=sockets, certificate=certificate, qad=qad)

    def main_context(self, config: DerperConfig) -> Callable[[], ssl.SSLContext] | None:
        """Return what gives the context to serve HTTPS with, ``None`` for plain HTTP."""
        if self.certificate is None or config.tls is None or config.tls.https_bind_addr is None:
            return None
        return self.certificate.current


class SideServices:
    """Runs them on sockets.

    Ports are those really taken, ``None`` where there is none: ``stun_port``, ``quic_port``
    (address discovery), ``plain_port`` (HTTP beside HTTPS) and ``metrics_port``.

    :param main_port: where clients come to.
    :param count: returns what the metrics show.
    """

    def __init__(
        self,
        config: DerperConfig,
        opened: Opened,
        *,
        main_port: int,
        count: Callable[[], DerperCounts],
    ) -> None:
        self._certificate = opened.certificate
        self._qad = opened.qad
        if opened.certificate is not None and opened.qad is not None:
            opened.certificate.on_new = self._pass_on_certificate
        sockets = opened.sockets
        self._stun = StunServer()
        self._stun_port = UdpPort(self._stun, sockets.stun)
        self._stun_driver: Driver[None] = Driver(self._stun, [self._stun_port], _ignore)
        self._pages: list[PagePort] = []
        self.quic_port = None if opened.qad is None else opened.qad.port
        self.stun_port = sockets.stun[0].local_address.port if sockets.stun else None
        names = () if config.tls is None else config.tls.hostnames
        plain = PlainPages(https_port=main_port, hostname=names[0] if names else None)
        self.plain_port = self.serve_pages(sockets.plain, plain.page_for)
        self.metrics_port = None
        if sockets.metrics:
            self.metrics_port = self.serve_pages(sockets.metrics, DerperMetrics(count).page_for)

    @property
    def stun_stats(self) -> StunServerStats:
        """Counts of STUN requests."""
        return self._stun.stats

    @property
    def qad_stats(self) -> QadServerStats | None:
        """Counts of address discovery."""
        return None if self._qad is None else self._qad.stats

    @property
    def certificate_expires(self) -> float | None:
        """When the certificate ends, in Unix time."""
        return None if self._certificate is None else self._certificate.expires.timestamp()

    def serve_pages(
        self,
        listeners: Sequence[socket.socket],
        answer: Callable[[HttpRequest], Page],
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
    ) -> int | None:
        """Serve pages on some more sockets, before it is started; return their port."""
        if not listeners:
            return None
        pages = PagePort(listeners, answer, ssl_context=ssl_context)
        self._pages.append(pages)
        return pages.port

    def reload_certificate(self) -> None:
        """Read the certificate again if its files changed."""
        if self._certificate is not None:
            self._certificate.reload()

    async def start(self, tasks: TaskGroup) -> None:
        """Serve until the tasks are cancelled."""
        if self._qad is not None:
            await tasks.start(_run_service, self._qad)
        if self._certificate is not None:
            tasks.start_soon(self._certificate.watch)
        await tasks.start(self._stun_driver.run)
        for pages in self._pages:
            await tasks.start(pages.run)

    def stop(self) -> None:
        """Take no more requests for pages."""
        for pages in self._pages:
            pages.stop()

    def release(self) -> None:
        """Close the sockets, if it was not started."""
        self._stun_port.close()
        for pages in self._pages:
            pages.close()

    async def close(self) -> None:
        """Let go of what else it holds. Idempotent."""
        if self._qad is not None:
            await self._qad.close()

    def _pass_on_certificate(self) -> None:
        assert self._qad is not None
        assert self._certificate is not None
        try:
            self._qad.set_certificates(*_read_for_quic(self._certificate))
        except CertificateError as error:
            logger.error("keeping the old certificate for QUIC: %s", error)


async def _run_service(service: Service, *, task_status: TaskStatus[None]) -> None:
    async with service:
        task_status.started()
        await anyio.sleep_forever()


async def _bind_qad(certificate: Certificate, address: UdpAddress | None) -> QadListener | None:
    if address is None:
        return None
    certificates, private_key = _read_for_quic(certificate)
    with port_of("tls.quic_bind_addr"):
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
