"""Takes the ports of a DERP server."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.listen import listen
from iroh_anyio.udp import UdpSocket
from iroh_proto.address import UdpAddress

logger = logging.getLogger("iroh_anyio.derper")

_ADDRESS_ERRORS = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES})


class PortError(OSError):
    """A port that cannot be had, where another one may. The message names it.

    :ivar key: the setting that says which.
    """

    def __init__(self, error: OSError, key: str) -> None:
        super().__init__(error.errno, error.strerror)
        self.key = key


@contextmanager
def port_of(key: str) -> Iterator[None]:
    """Have an error of taking a port name the setting that says which.

    :raises PortError: instead of an error that another address would not have.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _ADDRESS_ERRORS:
            raise PortError(error, key) from error
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class DerperSockets:
    """What a server listens on; all but ``main`` may be empty.

    :ivar main: where clients come to. Those that were taken to be shared do not listen.
    :ivar plain: HTTP beside HTTPS.
    """

    main: Sequence[socket.socket]
    plain: Sequence[socket.socket]
    metrics: Sequence[socket.socket]
    stun: Sequence[UdpSocket]


def open_sockets(
    config: DerperConfig, https: UdpAddress | None, *, shares_main: bool = False
) -> DerperSockets:
    """Take all ports, or none.

    :param https: where clients come to, instead of plain HTTP.
    :param shares_main: whether several processes will listen where clients come to.
    :raises PortError: if one is taken, or not for this server to have.
    :raises OSError: if one cannot be had for another reason.
    """
    http = config.http_bind_addr
    with ExitStack() as opened:
        with port_of("http_bind_addr" if https is None else "tls.https_bind_addr"):
            main = _listen(opened, https or http, shares_port=shares_main)
        with port_of("http_bind_addr"):
            plain = _listen(opened, None if https is None else http)
        with port_of("metrics_bind_addr"):
            metrics = _listen(opened, config.metrics_bind_addr)
        with port_of("stun_bind_addr"):
            stun = _bind_stun(opened, config)
        opened.pop_all()
    return DerperSockets(main=main, plain=plain, metrics=metrics, stun=stun)


def _listen(
    opened: ExitStack, address: UdpAddress | None, *, shares_port: bool = False
) -> list[socket.socket]:
    if address is None:
        return []
    listeners = listen(_ips(address), address.port)
    for listener in listeners:
        opened.callback(listener.close)
    if not shares_port:
        return listeners
    holders = []
    for listener in listeners:
        holders.append(_hold(listener))
        opened.callback(holders[-1].close)
    return holders


def _hold(listener: socket.socket) -> socket.socket:
    """Take the place of a socket by one that does not listen, and has the port to be shared.

    The kernel gives it no connections. It keeps other users' programs from the port while none of
    the processes that share it listens. That ``listener`` got the port shows that nobody listens.
    """
    address = listener.getsockname()
    listener.close()
    holder = socket.socket(listener.family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if holder.family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(address)
    except BaseException:
        holder.close()
        raise
    return holder


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
