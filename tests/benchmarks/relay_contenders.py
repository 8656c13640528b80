"""The servers of the benchmark of relays, each a process of its own.

``pump`` is what no relay in Python can do better than: wait for sockets, read, write what was read
to the other socket of the pair, looking at nothing. Pairs are made in the order of connecting.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import sys
import tempfile
from pathlib import Path

import anyio
from cryptography.hazmat.primitives import serialization

from iroh_anyio.derper import Derper
from tests.benchmarks.certificate import self_signed_certificate

READ_SIZE = 65_536
SERVER_CORE = 0


def pump() -> None:
    """Serve pairs of connections until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    others: dict[int, socket.socket] = {}
    sockets: dict[int, socket.socket] = {}
    unpaired: socket.socket | None = None
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == listener.fileno():
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[accepted.fileno()] = accepted
                epoll.register(accepted, select.EPOLLIN)
                if unpaired is None:
                    unpaired = accepted
                else:
                    others[accepted.fileno()] = unpaired
                    others[unpaired.fileno()] = accepted
                    unpaired = None
            elif data := sockets[descriptor].recv(READ_SIZE):
                others[descriptor].sendall(data)
            else:
                return


async def derper(*, is_tls: bool) -> None:
    """Serve DERP until killed."""
    context = tls_context() if is_tls else None
    async with await Derper.bind(port=0, stun_port=None, ssl_context=context) as server:
        print(server.port, flush=True)
        await anyio.sleep_forever()


def tls_context() -> ssl.SSLContext:
    """Return a server's context with a certificate that nobody trusts."""
    certificate, key = self_signed_certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "both.pem")
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context.load_cert_chain(path)
    return context


def main(kind: str) -> None:
    """Be one of ``pump``, ``asyncio``, ``trio``, or one of the latter with ``-tls``."""
    with contextlib.suppress(OSError):  # a machine with one core
        os.sched_setaffinity(0, {SERVER_CORE})
    if kind == "pump":
        pump()
    else:
        backend, _, suffix = kind.partition("-")
        anyio.run(lambda: derper(is_tls=suffix == "tls"), backend=backend)


if __name__ == "__main__":
    main(sys.argv[1])
