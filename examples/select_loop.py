"""A machine driven by a plain ``select`` loop: no async, no threads.

Asks a STUN server which address it sees. Give it one as ``ip:port``; without, it starts a server of
its own, which is another machine in the same loop.
"""

from __future__ import annotations

import random
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from iroh_proto import UdpAddress
from iroh_proto.machine import DatagramMachine
from iroh_proto.stun.probe import StunAddressFound, StunProbe, StunProbeEvent
from iroh_proto.stun.server import StunServer

EventT = TypeVar("EventT")


def open_socket() -> socket.socket:
    """Return a non-blocking UDP socket on loopback."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("0.0.0.0" if len(sys.argv) > 1 else "127.0.0.1", 0))
    return sock


def drain(
    machine: DatagramMachine[EventT], sock: socket.socket, on_event: Callable[[EventT], None]
) -> None:
    """Take a machine's outputs after an input: first its events, then its bytes."""
    while (event := machine.next_event()) is not None:
        on_event(event)
    for transmit in machine.datagrams_to_send():
        for data in transmit.datagrams:
            sock.sendto(data, transmit.addr)


def run(
    hosted: dict[socket.socket, DatagramMachine[EventT]],
    on_event: Callable[[EventT], None],
    is_done: Callable[[], bool],
) -> None:
    """Drive machines, one to a socket, until there is nothing left to wait for."""
    while True:
        for sock, machine in hosted.items():
            drain(machine, sock, on_event)
        if is_done():
            return
        deadlines = [timer for m in hosted.values() if (timer := m.get_timer()) is not None]
        wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        readable, _, _ = select.select(list(hosted), [], [], wait)
        now = time.monotonic()  # one reading per wake-up
        for sock in readable:
            data, (ip, port) = sock.recvfrom(65535)
            hosted[sock].receive_datagrams([data], UdpAddress(ip, port), now=now)
        for machine in hosted.values():
            timer = machine.get_timer()
            if timer is not None and timer <= now:
                machine.handle_timer(now=now)


def main() -> int:
    """Run the probe and say what it found."""
    probe, server = StunProbe(rng=random.SystemRandom()), StunServer()
    hosted: dict[socket.socket, DatagramMachine[StunProbeEvent]] = {open_socket(): probe}
    found: list[StunProbeEvent] = []
    if len(sys.argv) > 1:
        address = UdpAddress.from_str(sys.argv[1])
    else:
        server_socket = open_socket()
        hosted[server_socket] = server
        address = UdpAddress(*server_socket.getsockname())

    probe.start(address, now=time.monotonic())
    run(hosted, found.append, is_done=lambda: bool(found))

    for sock in hosted:
        sock.close()
    match found[0]:
        case StunAddressFound(address=seen, latency=latency):
            print(f"{address} sees {seen} and answers in {latency * 1000:.2f} ms")
            return 0
        case _:
            print(f"{address} did not answer", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
