"""Whatever is dropped above the kernel has its count, on real sockets and both backends."""

from __future__ import annotations

import random
import socket
import struct
from typing import Any

import anyio
import pytest

from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.tcp import TcpPort
from iroh_anyio.udp import UdpSocket
from iroh_proto import UdpAddress
from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.stun.server import StunServer
from tests.anyio.hostile_peers import FRAMED_REQUEST, SWITCHED, admitted
from tests.anyio.nodes import LIMIT

pytestmark = pytest.mark.anyio

SERVER_KEY = SecretKey.from_bytes(b"\x05" * 32)


class Reader:
    """A client that has proven its key, and then reads nothing more."""

    def __init__(self, port: TcpPort, machine: DerpServer, number: int) -> None:
        self.socket, other = socket.socketpair(socket.AF_UNIX)
        for end in (self.socket, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            end.setblocking(False)
        self._port, self._machine, self._number, self._other = port, machine, number, other

    async def join(self) -> None:
        self._machine.accept_tcp(self._number, now=self._port.driver.now())
        self._port.adopt(self._number, self._other)
        self.socket.send(FRAMED_REQUEST)
        await anyio.wait_readable(self.socket)
        assert self.socket.recv(len(SWITCHED) + 50).startswith(b"HTTP/1.1 101")
        self.socket.send(admitted(random.Random(self._number)))
        with anyio.fail_after(LIMIT):
            while len(self._machine.clients) < self._number:  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.001)


async def send_packets(sender: Reader, target: bytes, count: int) -> None:
    body = target + struct.pack("<H", 1000) + bytes(1000)
    frame = struct.pack(">BI", 4, len(body)) + body
    for _ in range(count):
        data = memoryview(frame)
        while data:
            try:
                data = data[sender.socket.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(sender.socket)


@pytest.mark.parametrize("ending", ["break", "stop reading"])
async def test_every_packet_to_a_reader_that_went_or_stopped_is_counted(ending: str) -> None:
    machine = DerpServer(secret_key=SERVER_KEY, rng=random.Random(1))
    port = TcpPort(machine, write_timeout=LIMIT)
    driver: Driver[Any] = Driver(machine, [port], lambda event: None)
    sender, reader = Reader(port, machine, 1), Reader(port, machine, 2)
    async with anyio.create_task_group() as tasks:
        await tasks.start(driver.run)
        await sender.join()
        await reader.join()
        target = machine.clients[1]
        count = 300
        await send_packets(sender, target, count)
        with anyio.fail_after(LIMIT):
            while machine.stats.router.packets_routed < count:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.005)
            if ending == "break":
                reader.socket.close()
            while len(port) > 1:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)
        stats = machine.stats
        if ending == "break":
            assert port.unwritten > 0
        else:
            assert stats.write_timeouts == 1
            assert stats.connections.packets_dropped > count // 4
            assert port.unwritten > 0  # what had been fetched already
            packets = stats.connections.packets_dropped + port.unwritten // 1039
            assert packets >= count - 2 * 8192 // 1039 - 40  # the kernel may keep some
        tasks.cancel_scope.cancel()
    sender.socket.close()
    reader.socket.close()


async def test_datagrams_of_an_ip_version_without_a_socket_are_counted() -> None:
    machine = StunServer()
    port = UdpPort(machine, [UdpSocket(UdpAddress("127.0.0.1", 0))])
    driver: Driver[None] = Driver(machine, [port], lambda event: None)
    async with anyio.create_task_group() as tasks:
        await tasks.start(driver.run)
        machine._transmits.append(Transmit(UdpAddress("::1", 9), [b"a", b"b"], 1))
        driver.flush()
        assert port.unroutable == 2
        tasks.cancel_scope.cancel()
