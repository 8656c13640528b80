"""Connects TCP and TLS without blocking, on raw sockets.

anyio's own streams keep their socket inside the event loop's transports on asyncio, which cost
memory and speed; here the socket stays ours.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import ssl

import anyio

from iroh_anyio.host import resolve
from iroh_anyio.proxy import HttpProxy, connect_through

ATTEMPT_DELAY = 0.25
"""Seconds an address gets before the next one is tried beside it (RFC 8305, section 5)."""


async def dial(
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
    *,
    proxy: HttpProxy | None = None,
) -> socket.socket:
    """Return a connected non-blocking socket, after its TLS handshake if a context is given.

    :param proxy: what to go through.
    :raises OSError: if no address of ``host`` takes the connection, the proxy refuses, or TLS
        fails.
    """
    if proxy is None:
        tcp_socket = await _connect(host, port)
    else:
        tcp_socket = await _connect(proxy.host, proxy.port)
        try:
            await connect_through(proxy, tcp_socket, host, port)
        except BaseException:
            tcp_socket.close()
            raise
    if ssl_context is None:
        return tcp_socket
    return await secure(tcp_socket, ssl_context, server_name=host)


async def secure(
    tcp_socket: socket.socket, context: ssl.SSLContext, *, server_name: str | None = None
) -> ssl.SSLSocket:
    """Complete a TLS handshake on a connected socket; as client if a server name is given.

    The socket is closed if that fails.

    :raises OSError: if the peer is not who it should be, or breaks the connection.
    """
    try:
        if server_name is not None:
            _check_name(server_name)
        tls_socket = context.wrap_socket(
            tcp_socket,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
        )
    except BaseException:
        tcp_socket.close()
        raise
    try:
        while True:
            try:
                tls_socket.do_handshake()
            except ssl.SSLWantReadError:
                await anyio.wait_readable(tls_socket)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(tls_socket)
            else:
                return tls_socket
    except BaseException:
        tls_socket.close()
        raise


def _check_name(server_name: str) -> None:
    # wrap_socket() would find out when it has the descriptor, and leave it open.
    try:
        server_name.encode("idna")
    except UnicodeError as error:
        raise OSError(f"{server_name} is no name for TLS: {error}") from None


async def _connect(host: str, port: int) -> socket.socket:
    ips = _interleave(await resolve(host))
    if not ips:
        raise OSError(f"the name {host} has no address")
    return await _connect_first(ips, port)


async def _connect_first(ips: list[str], port: int) -> socket.socket:
    """Race the addresses, each given a head start over the next."""
    winner: list[socket.socket] = []
    errors: list[OSError] = []

    async def attempt(ip: str, failed: anyio.Event) -> None:
        try:
            connected = await _connect_ip(ip, port)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if winner:
            connected.close()
        else:
            winner.append(connected)
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for ip in ips:
                failed = anyio.Event()
                tasks.start_soon(attempt, ip, failed)
                with anyio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
    except BaseException:
        for connected in winner:  # cancelled as it succeeded
            connected.close()
        raise
    if winner:
        return winner[0]
    raise errors[0]


async def _connect_ip(ip: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    tcp_socket = socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp_socket.setblocking(False)
        code = tcp_socket.connect_ex((ip, port))
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            await anyio.wait_writable(tcp_socket)
            code = tcp_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, f"{ip} port {port}: {os.strerror(code)}")
    except BaseException:
        tcp_socket.close()
        raise
    return tcp_socket


def _interleave(ips: list[str]) -> list[str]:
    """Alternate the IP versions, beginning with the resolver's first (RFC 8305, section 4)."""
    first = [ip for ip in ips if (":" in ip) == (":" in ips[0])]
    second = [ip for ip in ips if (":" in ip) != (":" in ips[0])]
    pairs = itertools.zip_longest(first, second)
    return [ip for pair in pairs for ip in pair if ip is not None]
