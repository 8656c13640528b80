"""A tiny machine for trying the simulated network itself: it does what it is told."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from iroh_proto.address import Address, UdpAddress
from iroh_proto.machine import TcpCloseRequested, TcpRequested, Transmit
from iroh_proto.testing.network import Host, Network, Program

ANY = UdpAddress("0.0.0.0", 0)
SERVER_IP = "198.51.100.1"
SERVER = UdpAddress(SERVER_IP, 3478)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    data: bytes
    addr: Address


class Talker:
    """Sends what it is told to; hears what comes; asks its host for anything."""

    def __init__(self) -> None:
        self.events: deque[object] = deque()
        self.outbox: list[Transmit] = []
        self.tcp: dict[int, bytes] = {}
        self.deadline: float | None = None

    def say(self, addr: UdpAddress, *datagrams: bytes) -> None:
        self.outbox.append(Transmit(addr, datagrams))

    def dial(self, tcp_id: int, host: str, port: int = 80, *, tls: bool = False) -> None:
        self.events.append(TcpRequested(tcp_id=tcp_id, host=host, port=port, tls=tls))

    def hang_up(self, tcp_id: int) -> None:
        self.events.append(TcpCloseRequested(tcp_id=tcp_id))

    def write(self, tcp_id: int, data: bytes) -> None:
        self.tcp[tcp_id] = self.tcp.get(tcp_id, b"") + data

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        self.events += [Heard(data=data, addr=addr) for data in batch]

    def datagrams_to_send(self) -> list[Transmit]:
        outbox, self.outbox = self.outbox, []
        return outbox

    def accept_tcp(self, tcp_id: int, *, now: float) -> None:
        self.events.append(("accepted", tcp_id))

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        self.events.append(("complete", tcp_id, error))

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        self.events.append(("data", tcp_id, data))

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        self.events.append(("eof", tcp_id))

    def complete_dns(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        self.events.append(("dns", request_id, list(ips)))

    def complete_interfaces(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        self.events.append(("interfaces", request_id, list(ips)))

    def resumed(self, *, now: float) -> None:
        self.events.append(("resumed", now))

    def network_changed(self, *, now: float) -> None:
        self.events.append(("changed", now))

    def tcp_to_send(self) -> list[int]:
        return [tcp_id for tcp_id, data in self.tcp.items() if data]

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        return self.tcp.pop(tcp_id, b"")

    def next_event(self) -> object | None:
        return self.events.popleft() if self.events else None

    def get_timer(self) -> float | None:
        return self.deadline

    def handle_timer(self, *, now: float) -> None:
        if self.deadline is not None and self.deadline <= now:
            self.deadline = None
            self.events.append(("timer", now))


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsRequested:
    request_id: int
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacesRequested:
    request_id: int


def make_network(seed: int = 1) -> Network:
    return Network(rng=random.Random(seed))


def talk(
    host: Host, *udp: UdpAddress, tcp: Sequence[int] = (), tls: Sequence[int] = ()
) -> Program[Talker]:
    return host.run(lambda rng: Talker(), udp=udp or [ANY], tcp_ports=tcp, tls_ports=tls)


def heard(program: Program[Talker]) -> list[tuple[float, bytes]]:
    return [
        (record.time, record.value.data)
        for record in program.events
        if isinstance(record.value, Heard)
    ]


def told(program: Program[Talker], what: str) -> list[tuple[float, tuple[object, ...]]]:
    return [
        (round(record.time, 6), record.value[1:])
        for record in program.events
        if isinstance(record.value, tuple) and record.value[0] == what
    ]


def say(program: Program[Talker], addr: UdpAddress, *datagrams: bytes) -> None:
    program.give(lambda talker, now: talker.say(addr, *datagrams))
