"""Takes the ports of a DERP server."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.listen import listen
from iroh_anyio.udp import UdpSocket
from iroh_proto.address import UdpAddress

logger = logging.getLogger("iroh_anyio.derper")


@dataclass(frozen=True, slots=True, kw_only=True)
class DerperSockets:
    """What a server listens on; all but ``main`` may be empty.

    :ivar main: where clients come to.
    :ivar plain: HTTP beside HTTPS.
    """

    main: Sequence[socket.socket]
    plain: Sequence[socket.socket]
    metrics: Sequence[socket.socket]
    stun: Sequence[UdpSocket]


def open_sockets(config: DerperConfig, https: UdpAddress | None) -> DerperSockets:
    """Take all ports, or none.

    :param https: where clients come to, instead of plain HTTP.
    :raises OSError: if one cannot be had.
    """
    http = config.http_bind_addr
    with ExitStack() as opened:
        main = _listen(opened, https or http)
        plain = _listen(opened, None if https is None else http)
        metrics = _listen(opened, config.metrics_bind_addr)
        stun = _bind_stun(opened, config)
        opened.pop_all()
    return DerperSockets(main=main, plain=plain, metrics=metrics, stun=stun)


def _listen(opened: ExitStack, address: UdpAddress | None) -> list[socket.socket]:
    if address is None:
        return []
    listeners = listen(_ips(address), address.port)
    for listener in listeners:
        opened.callback(listener.close)
    return listeners


def _bind_stun(opened: ExitStack, config: DerperConfig) -> list[UdpSocket]:
    if config.stun_bind_addr is None:
        return []
    sockets: list[UdpSocket] = []
    port = config.stun_bind_addr.port
    for ip in _ips(config.stun_bind_addr):
        try:
            sockets.append(UdpSocket(UdpAddress(ip, port), offload=False))
        except OSError as error:
            why = error.strerror or error
            if sockets:
                logger.info("no STUN on %s: %s", ip, why)
            elif config.may_lack_stun:
                logger.warning("UDP port %d is taken, running without STUN: %s", port, why)
                return []
            else:
                raise OSError(error.errno, f"cannot bind {ip} UDP port {port}: {why}") from error
        else:
            opened.callback(sockets[-1].close)
            port = sockets[0].local_address.port
    return sockets


def _ips(address: UdpAddress) -> list[str]:
    """Return the addresses to bind: ``::`` means every one of both IP versions."""
    return ["0.0.0.0", "::"] if address.ip == "::" else [address.ip]
