"""What may go wrong on a network, brought about in this process. Linux only."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27

LIBC = ctypes.CDLL(None, use_errno=True)
PIDFD_GETFD = 438
"""Number of the system call, the same on all architectures."""

RETURN_NOTHING = struct.pack("HBBI", 6, 0, 0, 0)
"""A classic BPF program of one step: keep 0 bytes of each datagram, which drops it."""


@contextmanager
def deaf(ports: Collection[int], process: int | None = None) -> Iterator[None]:
    """Drop what arrives at a process's UDP sockets on some ports, as a firewall would.

    The process is this one, or one that this one may trace, such as its child.
    """
    program = ctypes.create_string_buffer(RETURN_NOTHING)
    drop_all = struct.pack("HP", 1, ctypes.addressof(program))
    with ExitStack() as stack:
        sockets = _udp_sockets(ports, process or os.getpid(), stack)
        assert sockets, f"no UDP socket on any of the ports {ports}"
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, drop_all)
        try:
            yield
        finally:
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _udp_sockets(ports: Collection[int], process: int, stack: ExitStack) -> list[socket.socket]:
    """Return each socket once, however many descriptors it has; ``stack`` closes the copies."""
    pidfd = os.pidfd_open(process)
    stack.callback(os.close, pidfd)
    found: dict[object, socket.socket] = {}
    for name in os.listdir(f"/proc/{process}/fd"):
        if not Path(f"/proc/{process}/fd/{name}").is_socket():
            continue
        sock = stack.enter_context(socket.socket(fileno=_copy(pidfd, int(name))))
        is_internet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if is_internet and sock.type == socket.SOCK_DGRAM and sock.getsockname()[1] in ports:
            found.setdefault(sock.getsockname(), sock)
    return list(found.values())


def _copy(pidfd: int, descriptor: int) -> int:
    """Return a copy of another process's descriptor."""
    copy = LIBC.syscall(PIDFD_GETFD, pidfd, descriptor, 0)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "cannot copy a descriptor of another process")
    return int(copy)
