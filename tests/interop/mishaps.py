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

RETURN_NOTHING = struct.pack("HBBI", 6, 0, 0, 0)
"""A classic BPF program of one step: keep 0 bytes of each datagram, which drops it."""


@contextmanager
def deaf(ports: Collection[int]) -> Iterator[None]:
    """Drop what arrives at this process's UDP sockets on some ports, as a firewall would."""
    program = ctypes.create_string_buffer(RETURN_NOTHING)
    drop_all = struct.pack("HP", 1, ctypes.addressof(program))
    with ExitStack() as stack:
        sockets = _udp_sockets(ports, stack)
        assert sockets, f"no UDP socket on any of the ports {ports}"
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, drop_all)
        try:
            yield
        finally:
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _udp_sockets(ports: Collection[int], stack: ExitStack) -> list[socket.socket]:
    """Return each socket once, however many descriptors it has; ``stack`` closes the copies."""
    found: dict[object, socket.socket] = {}
    for name in os.listdir("/proc/self/fd"):
        if not Path(f"/proc/self/fd/{name}").is_socket():
            continue
        sock = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
        is_internet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if is_internet and sock.type == socket.SOCK_DGRAM and sock.getsockname()[1] in ports:
            found.setdefault(sock.getsockname(), sock)
    return list(found.values())
