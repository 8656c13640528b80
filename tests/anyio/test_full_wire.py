"""A kernel whose buffers are really full: what cannot be sent waits, or is dropped and counted."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from iroh_anyio.udp import BACKLOG_LIMIT, UdpSocket
from iroh_proto import UdpAddress
from tests.anyio.nodes import ALPN, addr_of, two_nodes

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.platform != "linux"
        or os.geteuid() != 0
        or None in (shutil.which("ip"), shutil.which("tc")),
        reason="needs a slow network interface: Linux, root and iproute2",
    ),
]

CLONE_NEWNET = 0x40000000
LOCALHOST = UdpAddress("127.0.0.1", 0)
SIZE = 1200
LIMIT = 20.0

LIBC = ctypes.CDLL(None, use_errno=True)


class SlowHost:
    """A network namespace whose loopback interface carries 40 Mbit/s and queues the rest.

    What waits in its queue is charged to the sender, as with a slow network card.
    """

    def __init__(self) -> None:
        self.name = f"irohtest-{os.getpid()}-slow"
        _run("ip", "netns", "add", self.name)
        _run("ip", "-n", self.name, "link", "set", "lo", "up")
        shape = "qdisc add dev lo root tbf rate 40mbit burst 20kb limit 100mb"
        _run("tc", "-n", self.name, *shape.split())

    def remove(self) -> None:
        _run("ip", "netns", "delete", self.name)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be there for as long as it takes to make sockets, which stay."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(home)
            os.close(there)
            os.close(home)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)


def _enter(descriptor: int) -> None:
    if LIBC.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def slow_host() -> Iterator[SlowHost]:
    host = SlowHost()
    try:
        yield host
    finally:
        host.remove()


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def sockets(
    slow_host: SlowHost, request: pytest.FixtureRequest
) -> Iterator[tuple[UdpSocket, UdpSocket]]:
    with slow_host.inside():
        pair = tuple(UdpSocket(LOCALHOST, offload=request.param) for _ in range(2))
    left, right = pair
    yield left, right
    left.close()
    right.close()


def shrink(udp_socket: UdpSocket, size: int) -> None:
    """Have the kernel keep less of what is sent than the backlog does."""
    udp_socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


async def carry(left: UdpSocket, right: UdpSocket, bursts: list[int]) -> list[int]:
    """Send numbered datagrams in bursts, and return the numbers that arrive."""
    arrived: list[int] = []

    async def read() -> None:
        while True:
            await right.wait_readable()
            for _, datagrams in right.receive():
                arrived.extend(int.from_bytes(data[:4], "big") for data in datagrams)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.run_writer)
        tasks.start_soon(read)
        number = 0
        for burst in bursts:
            datagrams = [
                n.to_bytes(4, "big").ljust(SIZE, b"\0") for n in range(number, number + burst)
            ]
            left.send(right.local_address, datagrams, segment_size=SIZE)
            number += burst
            await anyio.sleep(0.001)
        with anyio.fail_after(LIMIT):
            while left.backlog or len(arrived) < left.stats.sent:  # noqa: ASYNC110 - as it comes
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    return arrived


async def test_a_burst_larger_than_the_kernels_buffer_waits_and_arrives_whole(
    sockets: tuple[UdpSocket, UdpSocket],
) -> None:
    left, right = sockets
    shrink(left, 64 * 1024)
    count = BACKLOG_LIMIT // 2
    arrived = await carry(left, right, [count // 4] * 4)
    assert arrived == list(range(count))
    assert (left.stats.sent, left.stats.dropped, left.stats.failed) == (count, 0, 0)


async def test_what_does_not_fit_the_backlog_either_is_counted_to_the_last_datagram(
    sockets: tuple[UdpSocket, UdpSocket],
) -> None:
    left, right = sockets
    shrink(left, 64 * 1024)
    count = 3 * BACKLOG_LIMIT
    arrived = await carry(left, right, [count // 6] * 6)
    stats = left.stats
    assert stats.dropped > 0
    assert stats.sent + stats.dropped + stats.failed == count
    assert len(arrived) == stats.sent
    assert arrived == sorted(set(arrived))
    assert arrived[-1] == count - 1  # the oldest gave way


async def test_what_waits_when_a_socket_is_closed_is_counted(
    sockets: tuple[UdpSocket, UdpSocket],
) -> None:
    left, right = sockets
    shrink(left, 64 * 1024)
    count = BACKLOG_LIMIT // 2
    left.send(right.local_address, [bytes(SIZE)] * count, segment_size=SIZE)
    waiting = left.backlog
    assert waiting > 0
    left.close()
    assert left.stats.sent + waiting == count
    assert left.stats.dropped == waiting


async def test_a_stream_over_a_full_wire_arrives_whole(slow_host: SlowHost) -> None:
    data = os.urandom(3_000_000)
    with slow_host.inside():
        nodes = two_nodes()
        server, client = await nodes.__aenter__()
    try:
        for endpoint in (server, client):
            shrink(endpoint._udp.sockets[0], 32 * 1024)
        connection = await client.connect(addr_of(server), alpn=ALPN)
        accepted = await server.accept()
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                stream = await connection.open_uni()
                await stream.send(data)
                await stream.send_eof()

            tasks.start_soon(send)
            received = b"".join([chunk async for chunk in await accepted.accept_uni()])
        assert received == data
        [stats] = client.udp_stats
        assert stats.failed == 0
    finally:
        await nodes.__aexit__(None, None, None)
