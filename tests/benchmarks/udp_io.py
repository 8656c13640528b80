"""Moving UDP datagrams of 1,200 bytes on loopback, against raw calls on the same kind of socket.

Receiving drains a queue filled beforehand; sending goes to a socket that nobody reads.
"""

from __future__ import annotations

import socket
import time

import anyio

from iroh_anyio.udp import UdpSocket, _set_options
from iroh_proto.address import UdpAddress
from tests.benchmarks.timing import interleaved

SIZE = 1200
COUNT = 4_000
BURST = 50  # datagrams per send, what one flush of a busy connection makes
QUEUE = 1_000  # datagrams waiting when receiving begins; fewer if the kernel grants less
KERNEL_COST = 4_096  # bytes at the most that the kernel counts for one of them
LOOPBACK = UdpAddress("127.0.0.1", 0)


def run() -> dict[str, float]:
    """Return the rates on each backend over those of the raw calls."""
    kinds = {
        "receive_raw": raw_receive,
        "send_raw": raw_send,
    }
    for backend in ("asyncio", "trio"):
        kinds[f"receive_{backend}"] = lambda b=backend: on(b, receive, False)  # type: ignore[misc]
        kinds[f"receive_gro_{backend}"] = lambda b=backend: on(b, receive, True)  # type: ignore[misc]
        kinds[f"send_{backend}"] = lambda b=backend: on(b, send, None)  # type: ignore[misc]
        kinds[f"send_gso_{backend}"] = lambda b=backend: on(b, send, SIZE)  # type: ignore[misc]
    times = interleaved(kinds)
    return {
        name: times[f"{name.split('_')[0]}_raw"] / seconds
        for name, seconds in times.items()
        if not name.endswith("_raw")
    }


def on(backend: str, measure: object, argument: object) -> float:
    """Run one measurement on a backend and return seconds per datagram."""
    return float(anyio.run(measure, argument, backend=backend))  # type: ignore[arg-type]


def raw_socket() -> socket.socket:
    """Return a non-blocking socket with the same large buffers."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _set_options(sock, socket.AF_INET)
    sock.setblocking(False)
    sock.bind(LOOPBACK)
    return sock


def fill(target: UdpAddress, count: int, *, segmented: bool) -> None:
    """Send datagrams to a socket, as single ones or as runs that the kernel keeps together."""
    sender = UdpSocket(LOOPBACK)
    for _ in range(count // BURST):
        sender.send(target, [bytes(SIZE)] * BURST, SIZE if segmented else None)
    sender.close()


def queue_size() -> int:
    """Return how many datagrams can wait in a socket's buffer without any being dropped."""
    with raw_socket() as sock:
        granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return min(QUEUE, granted // KERNEL_COST // BURST * BURST)


def raw_receive() -> float:
    """Return the seconds per datagram of ``recvfrom``."""
    elapsed = 0.0
    with raw_socket() as sock:
        target = UdpAddress(*sock.getsockname())
        queue = queue_size()
        for _ in range(COUNT // queue):
            fill(target, queue, segmented=False)
            started = time.perf_counter()
            for _ in range(queue):
                sock.recvfrom(2048)
            elapsed += time.perf_counter() - started
    return elapsed / (COUNT // queue * queue)


def raw_send() -> float:
    """Return the seconds per datagram of ``sendto``."""
    data = bytes(SIZE)
    with raw_socket() as sock, raw_socket() as sink:
        target = sink.getsockname()
        started = time.perf_counter()
        for _ in range(COUNT):
            sock.sendto(data, target)
        return (time.perf_counter() - started) / COUNT


async def receive(coalesced: bool) -> float:
    """Return the seconds per datagram of our socket, waiting included."""
    elapsed = 0.0
    sock = UdpSocket(LOOPBACK, offload=coalesced)
    queue = queue_size()
    for _ in range(COUNT // queue):
        fill(sock.local_address, queue, segmented=coalesced)
        count = 0
        started = time.perf_counter()
        while count < queue:
            await sock.wait_readable()
            count += sum(len(datagrams) for _, datagrams in sock.receive())
        elapsed += time.perf_counter() - started
    sock.close()
    return elapsed / (COUNT // queue * queue)


async def send(segment_size: int | None) -> float:
    """Return the seconds per datagram of our socket."""
    sock = UdpSocket(LOOPBACK)
    batch = [bytes(SIZE)] * BURST
    with raw_socket() as sink:
        target = UdpAddress(*sink.getsockname())
        started = time.perf_counter()
        for _ in range(COUNT // BURST):
            sock.send(target, batch, segment_size)
        elapsed = time.perf_counter() - started
    assert sock.stats.sent == COUNT
    sock.close()
    return elapsed / COUNT
