"""QUIC address discovery beside a DERP server, on UDP sockets of its own."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificates

from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.quic.qad_server import PrivateKey, QadServer, QadServerStats
from iroh_anyio.service import Service
from iroh_anyio.udp import UdpSocket
from iroh_proto.address import UdpAddress
from iroh_proto.derp.map import QUIC_PORT

logger = logging.getLogger("iroh_anyio.derper")


class QadListener(Service):
    """A QAD server on sockets. Made by :meth:`bind`, run by ``async with``.

    ``port`` is the UDP port really taken.
    """

    def __init__(self, machine: QadServer, sockets: Sequence[UdpSocket]) -> None:
        super().__init__()
        self._machine = machine
        self._udp_port = UdpPort(machine, sockets)
        self._driver: Driver[None] = Driver(machine, [self._udp_port], _ignore)
        self.port = sockets[0].local_address.port

    @classmethod
    async def bind(
        cls,
        *,
        certificates: Sequence[Certificate],
        private_key: PrivateKey,
        host: str = "127.0.0.1",
        port: int = QUIC_PORT,
    ) -> Self:
        """Take the port; clients are answered once it is entered.

        :param certificates: the server's, followed by those that vouch for it.
        :param private_key: of the first certificate.
        :param host: the IP address to bind; ``::`` is every address of both IP versions.
        :param port: the UDP port; 0 takes any free one.
        :raises OSError: if the port cannot be had.
        :raises DecodeError: if ``host`` is no IP address or ``port`` no port.
        """
        await checkpoint()
        ip = UdpAddress.of(host, port).ip
        machine = QadServer(
            certificates=certificates, private_key=private_key, rng=random.SystemRandom()
        )
        first = "0.0.0.0" if ip == "::" else ip
        try:
            sockets = [UdpSocket(UdpAddress(first, port), offload=False)]
        except OSError as error:
            why = error.strerror or error
            raise OSError(error.errno, f"cannot bind {first} UDP port {port}: {why}") from error
        if ip == "::":
            port = sockets[0].local_address.port
            try:
                sockets.append(UdpSocket(UdpAddress(ip, port), offload=False))
            except OSError as error:
                logger.info("no QUIC address discovery on %s: %s", ip, error)
        return cls(machine, sockets)

    @property
    def stats(self) -> QadServerStats:
        """Counts of connections and observations."""
        return self._machine.stats

    def set_certificates(
        self, certificates: Sequence[Certificate], private_key: PrivateKey
    ) -> None:
        """Show other certificates to clients that connect from now on."""
        self._machine.set_certificates(certificates, private_key)

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._driver.run)
            logger.info("QUIC address discovery on port %d", self.port)
            task_status.started()

    async def _stop(self) -> None:
        await checkpoint()
        self._machine.close(now=self._driver.now())
        self._driver.flush()

    def _release(self) -> None:
        self._udp_port.close()


def load_certificates(
    certificate_path: Path, key_path: Path
) -> tuple[list[Certificate], PrivateKey]:
    """Read a chain of certificates and the key of the first, both PEM.

    :raises OSError: if a file cannot be read.
    :raises ValueError: if a file holds no certificate, or no key of a kind that QUIC can use.
    """
    certificates = load_pem_x509_certificates(certificate_path.read_bytes())
    key = load_pem_private_key(key_path.read_bytes(), password=None)
    if not isinstance(
        key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    ):
        raise ValueError(f"{key_path} holds no EC, Ed25519 or RSA key")
    return certificates, key


def _ignore(event: None) -> None:
    raise AssertionError("a QAD server has no events")
