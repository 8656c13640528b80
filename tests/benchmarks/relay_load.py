"""The clients of the benchmark of relays: one process with all of them, on a core of its own.

Clients come in pairs that send to each other. They prove their keys with the project's own codecs,
and from then on send the same bytes again and again, so that they cost less than the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import socket
import ssl
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from iroh_proto.address import DerpUrl
from iroh_proto.derp.approach import first_approach
from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.dialects import DIALECTS
from iroh_proto.derp.frames import pack_datagrams
from iroh_proto.derp.upgrade import ClientUpgrade
from iroh_proto.key import NodeId, SecretKey

LOAD_CORE = 1
DATAGRAM = bytes(1198)  # packed behind its length it has 1,200 bytes
READ_SIZE = 65_536
TIMEOUT = 10.0  # seconds
SHORTEST_LATENCY_RUN = 400  # frames

FORMS: dict[str, tuple[str, Form]] = {
    "framed": ("v3", "framed"),
    "websocket": ("relay-v2", "websocket"),
    "tailscale": ("tailscale", "framed"),
}


class Way(NamedTuple):
    """How clients connect: by nothing but TCP if ``form`` is ``None``."""

    port: int
    form: str | None
    is_tls: bool


class Client:
    """One connection, its handshake done."""

    def __init__(self, way: Way, number: int) -> None:
        self.secret_key = SecretKey(number.to_bytes(32, "big"))
        self.socket = socket.create_connection(("127.0.0.1", way.port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way.is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self.codec: FrameCodec | None = None
        if way.form is not None:
            self._prove_key(*FORMS[way.form])
        self.socket.setblocking(False)
        self.missing = 0
        self.burst = b""

    def frames_to(self, other: NodeId, count: int) -> bytes:
        """Return the bytes of some packets, each in a frame of its own."""
        if self.codec is None:
            return bytes(5 + 32 + len(DATAGRAM) + 2) * count
        (payload,) = pack_datagrams([DATAGRAM])
        return self.codec.encode_packets(other, [payload]) * count

    def _prove_key(self, dialect_name: str, form: Form) -> None:
        dialect, rng = DIALECTS[dialect_name], random.Random(1)
        url = DerpUrl.from_str("http://localhost")
        approach = first_approach(url, dialect_name)
        upgrade = ClientUpgrade(
            url=url,
            path=approach.path,
            form=form,
            rng=rng,
            upgrade=approach.upgrade,
            subprotocols=approach.subprotocols,
        )
        handshake = dialect.client_handshake(secret_key=self.secret_key, rng=rng)
        self.codec = dialect.client_codec(form, rng=rng)
        self.socket.sendall(upgrade.request)
        data = b""
        while not upgrade.is_switched:
            data = upgrade.receive(self._read())
        answers = list(handshake.begin())
        while True:
            self.socket.sendall(b"".join(map(self.codec.encode, answers)))
            if handshake.is_done:
                return
            answers = []
            for frame in self.codec.receive(data or self._read()):
                answers += handshake.receive(frame)
            data = b""

    def _read(self) -> bytes:
        data = self.socket.recv(READ_SIZE)
        assert data, "the server closed"
        return data


class Load:
    """All clients, and what they measure.

    :param servers: the processes of the server.
    """

    def __init__(self, way: Way, count: int, servers: Sequence[int]) -> None:
        self._clients = [Client(way, number + 1) for number in range(count)]
        # clock_getcpuclockid(3): the processor's time of another process.
        self._server_clocks = [(~server << 3) | 2 for server in servers]
        self._epoll = select.epoll()
        self._by_descriptor = {client.socket.fileno(): client for client in self._clients}
        for descriptor in self._by_descriptor:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._is_masked = way.form == "websocket"

    def server_time(self, burst: int, seconds: float) -> tuple[float, float]:
        """Return the server's processor time for one packet, and the packets of a second.

        A burst of each client is under way: whoever has received one sends one. So there are as
        many packets in a second as server and clients can move together.
        """
        size = self._prepare(burst)
        for client in self._clients:
            client.socket.send(client.burst)
        self._exchange(size, seconds / 4)
        started = self._time_used()
        packets = self._exchange(size, seconds) * burst
        used = self._time_used() - started
        self._finish()
        return used / packets, packets / seconds

    def latency(self, frames: int) -> list[float]:
        """Return the seconds that each lone frame takes from one client to another."""
        size = self._prepare(1)
        sender, receiver = self._clients[:2]
        poller = select.epoll()
        poller.register(receiver.socket, select.EPOLLIN)
        taken: list[float] = []
        for _ in range(frames):
            left = size
            started = time.perf_counter()
            sender.socket.send(sender.burst)
            while left:
                assert poller.poll(TIMEOUT), "a frame is lost"
                left -= len(receiver.socket.recv(left))
            taken.append(time.perf_counter() - started)
            time.sleep(0.0005)
        return taken

    def _time_used(self) -> float:
        return sum(map(time.clock_gettime, self._server_clocks))

    def _prepare(self, burst: int) -> int:
        """Have the clients know what to send; return the bytes that then arrive."""
        size = 0
        for number, client in enumerate(self._clients):
            other = self._clients[number ^ 1]
            client.burst = client.frames_to(other.secret_key.public, burst)
            size = len(client.burst) - (4 * burst if self._is_masked else 0)
            client.missing = size
        return size

    def _exchange(self, size: int, seconds: float) -> int:
        """Have the bursts go on for some time; return how many arrived."""
        end = time.perf_counter() + seconds
        poll, by_descriptor = self._epoll.poll, self._by_descriptor
        bursts = 0
        while time.perf_counter() < end:
            ready = poll(TIMEOUT)
            assert ready, "packets are lost"
            for descriptor, _ in ready:
                client = by_descriptor[descriptor]
                client.missing -= len(client.socket.recv(READ_SIZE))
                if client.missing <= 0:
                    client.missing += size
                    bursts += 1
                    client.socket.send(client.burst)
        return bursts

    def _finish(self) -> None:
        """Receive what is still under way."""
        while ready := self._epoll.poll(0.2):
            for descriptor, _ in ready:
                self._by_descriptor[descriptor].socket.recv(READ_SIZE)


def measure(way: Way, clients: int, servers: Sequence[int], seconds: float) -> dict[str, float]:
    """Return all figures, times in microseconds, packets by the second."""
    load = Load(way, clients, servers)
    taken = sorted(load.latency(SHORTEST_LATENCY_RUN))
    bursts, packets = load.server_time(8, seconds)
    single, lone_packets = load.server_time(1, seconds)
    return {
        "bursts": bursts * 1e6,
        "single": single * 1e6,
        "packets": packets,
        "lone_packets": lone_packets,
        "p50": statistics.median(taken) * 1e6,
        "p99": taken[len(taken) * 99 // 100] * 1e6,
    }


def memory_per_client(way: Way, clients: int, server: int) -> dict[str, float]:
    """Return what an idle client adds to the server's memory, in KiB, some being there already."""
    few = [Client(way, number + 1) for number in range(clients // 10)]
    time.sleep(0.5)
    before = _resident(server)
    many = [Client(way, clients + number + 1) for number in range(clients)]
    time.sleep(0.5)
    assert len(few) + len(many) == clients + clients // 10
    return {"memory": (_resident(server) - before) / clients / 1024}


def _resident(process: int) -> int:
    with open(f"/proc/{process}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("servers", type=int, nargs="+", help="its processes")
    parser.add_argument("--form", choices=sorted(FORMS))
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--memory", action="store_true")
    chosen = parser.parse_args()
    with contextlib.suppress(OSError):  # a machine with one core
        os.sched_setaffinity(0, {LOAD_CORE})
    way = Way(chosen.port, chosen.form, chosen.tls)
    if chosen.memory:
        figures = memory_per_client(way, chosen.clients, *chosen.servers)
    else:
        figures = measure(way, chosen.clients, chosen.servers, chosen.seconds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
