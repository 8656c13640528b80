"""A simulated network in virtual time: hosts, NATs, links, DNS, TCP, and mishaps.

::

    network = Network(rng=random.Random(7))
    relay = network.add_host("relay", ip="198.51.100.1", latency=0.02)
    home = network.add_nat("home", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01)
    alice = network.add_host("alice", home.inside)
    program = alice.run(
        lambda rng: Magicsock(secret_key=key, derp_map=derp_map, rng=rng),
        udp=[UdpAddress("0.0.0.0", 0)],
        begin=lambda machine, bound, now: machine.start(bound, now=now),
    )
    network.run_until(lambda: program.machine.home_derp is not None, limit=10)

Any machine runs here: what a host owes to it is found by its methods and the names of its events.
The same seed and program give the same run, to the last datagram. Only what has something to do
costs time: thousands of idle nodes are cheap.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import TcpRequested
from iroh_proto.testing.hosts import AnyProgram, Host, Program
from iroh_proto.testing.nat import NatKind
from iroh_proto.testing.tcp import TcpEnd
from iroh_proto.testing.topology import Fabric, Route, Router, Segment, find_route

__all__ = ["Host", "MakeMachine", "Network", "Program", "Router", "Segment"]

DNS_TIME = 0.02
"""Seconds until a name is looked up."""

DNS_FAILURE_TIME = 5.0
"""Seconds until a resolver gives up on servers that do not answer: glibc's first time-out."""

SYN_RETRY_TIME = 1.0
"""Seconds after which TCP asks again for a connection (RFC 6298)."""

CONNECT_GIVE_UP_TIME = 127.0
"""Seconds after which TCP gives up asking: six retries, doubling, on Linux."""

MachineT = TypeVar("MachineT")

FIRST_LAN = ipaddress.ip_network("192.168.0.0/24")


class MakeMachine(Protocol):
    """Makes machines for programs as they start."""

    def __call__(
        self, name: str, factory: Callable[[random.Random], MachineT], rng: random.Random
    ) -> MachineT:
        """Make the machine of a program, or what stands in for it."""


class Network(Fabric):
    """Everything there is, and the time in it.

    ``observers`` are called with the time, the name of a program (``"host/program"``) and each
    event of its machine: what a time line is drawn from. ``make_machine``, if there is one, makes
    machines in place of their factories, given the name of the program, the factory and its rng.
    """

    make_machine: MakeMachine | None

    def __init__(self, *, rng: random.Random, start: float = 0.0) -> None:
        super().__init__(rng=rng, start=start)
        self.internet = Segment(self, "internet")
        self.dns_is_up = True
        self.observers: list[Callable[[float, str, object], None]] = []
        self.make_machine = None
        self.hosts: dict[str, Host] = {}
        self.routers: dict[str, Router] = {}
        self._names: dict[str, list[str]] = {}
        self._udp_blocks: set[frozenset[Host]] = set()
        self._tcp_blocks: set[frozenset[Host]] = set()

    # Building

    def add_host(
        self,
        name: str,
        segment: Segment | None = None,
        *,
        ip: str | None = None,
        latency: float = 0.0,
    ) -> Host:
        """Add a host with one interface: in the internet, or a LAN, where it gets a free address.

        :param latency: seconds that its cable takes, one way.
        :raises LocalProtocolError: if the name or the address is taken.
        """
        if name in self.hosts:
            raise LocalProtocolError(f"there is a host {name}")
        host = Host(self, name)
        host.attach(segment or self.internet, ip, latency=latency)
        self.hosts[name] = host
        return host

    def add_nat(
        self,
        name: str,
        *,
        kind: NatKind,
        ip: str | None = None,
        subnet: str | None = None,
        upstream: Segment | None = None,
        latency: float = 0.0,
    ) -> Router:
        """Add a NAT and the LAN behind it (``inside``), on the internet or behind another NAT.

        :param subnet: the addresses of the LAN; a /24 of its own unless given. Different LANs may
            have the same.
        :raises LocalProtocolError: if the name or the address is taken.
        """
        if name in self.routers:
            raise LocalProtocolError(f"there is a router {name}")
        if subnet is None:
            base = FIRST_LAN.network_address + 256 * (len(self.routers) + 1)
            subnet = f"{base}/24"
        router = self.routers[name] = Router(
            self,
            name,
            kind=kind,
            ip=ip,
            subnet=subnet,
            upstream=upstream or self.internet,
            latency=latency,
        )
        return router

    def set_name(self, name: str, ips: Sequence[str]) -> None:
        """Put a host name into DNS; without addresses it does not exist."""
        self._names[name] = list(ips)

    # Time

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        return self.clock.now

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.run_for(seconds)

    def run_until(self, condition: Callable[[], bool], *, limit: float) -> float:
        """Let time pass until a condition holds; return when that was.

        :raises iroh_proto.testing.clock.LimitReached: if it does not within ``limit`` seconds.
        """
        return self.clock.run_until(condition, limit=limit)

    # Mishaps

    def block_udp(self, first: Host, second: Host | None = None) -> None:
        """Stop all UDP between two hosts, or between one and all others."""
        self._udp_blocks.add(_pair(first, second))

    def unblock_udp(self, first: Host, second: Host | None = None) -> None:
        """Undo :meth:`block_udp`."""
        self._udp_blocks.discard(_pair(first, second))

    def block_tcp(self, first: Host, second: Host | None = None) -> None:
        """Stop all TCP between two hosts, or between one and all others; connections stall."""
        self._tcp_blocks.add(_pair(first, second))

    def unblock_tcp(self, first: Host, second: Host | None = None) -> None:
        """Undo :meth:`block_tcp`."""
        self._tcp_blocks.discard(_pair(first, second))

    def blocks_udp(self, first: Host, second: Host) -> bool:
        """Say whether UDP is stopped between two hosts."""
        return _is_blocked(self._udp_blocks, first, second)

    def blocks_tcp(self, first: Host, second: Host) -> bool:
        """Say whether TCP is stopped between two hosts."""
        return _is_blocked(self._tcp_blocks, first, second)

    # Services to hosts

    def resolve(self, name: str, complete: Callable[[Sequence[str]], None]) -> None:
        """Look a host name up and call ``complete`` with its addresses, or none."""
        if not self.dns_is_up:
            self.clock.call_later(DNS_FAILURE_TIME, lambda: complete([]))
            return
        ips = [name] if _is_ip(name) else self._names.get(name, [])
        self.clock.call_later(DNS_TIME, lambda: complete(ips))

    def connect_tcp(self, program: AnyProgram, request: TcpRequested) -> None:
        """Make a connection for a program, and complete its request."""
        attempt = _Attempt(self, program, request)
        if _is_ip(request.host):
            attempt.resolved([request.host])
        else:
            self.resolve(request.host, attempt.resolved)


class _Attempt:
    """A TCP connection, and TLS, on the way to stand."""

    def __init__(self, network: Network, program: AnyProgram, request: TcpRequested) -> None:
        self._network = network
        self._program = program
        self._machine = program.machine
        self._request = request
        self._give_up_at = network.now + CONNECT_GIVE_UP_TIME
        self._ips: list[str] = []

    def resolved(self, ips: Sequence[str]) -> None:
        """Go on with the addresses of the host."""
        self._ips = [ip for ip in ips if self._program.host.interface_for(ip) is not None]
        if not ips:
            self._fail(f"{self._request.host} has no address")
        elif not self._ips:
            self._network.clock.call_later(0.0, lambda: self._fail("no route to host"))
        else:
            self._ask()

    def _ask(self) -> None:
        """Send a SYN, again and again while nobody answers."""
        if not self._is_wanted():
            return
        clock, route = self._network.clock, self._route()
        if route is not None:
            round_trip = 2 * sum(link.cross_reliably() for link in route.links())
            trips = 2 if self._request.tls else 1
            arrival = clock.now + (trips - 0.5) * round_trip
            clock.call_at(arrival, lambda: self._arrive(route, round_trip / 2))
        elif clock.now >= self._give_up_at:
            self._fail("connection timed out")
        else:
            clock.call_later(SYN_RETRY_TIME, self._ask)

    def _route(self) -> Route | None:
        host = self._program.host
        for ip in self._ips:
            interface = host.interface_for(ip)
            route = None if interface is None else find_route(interface, ip)
            if route is None or not route.is_up:
                continue
            server = route.server.owner
            assert isinstance(server, Host)
            if server.is_up and not self._network.blocks_tcp(host, server):
                return route
        return None

    def _arrive(self, route: Route, back: float) -> None:
        """Meet the server's host, and have its answer travel back."""
        server = route.server.owner
        assert isinstance(server, Host)
        clock = self._network.clock
        if not self._is_wanted():
            return
        if not (server.is_up and route.is_up):
            clock.call_later(SYN_RETRY_TIME, self._ask)
            return
        found = server.listener_on(self._request.port)
        if found is None:
            clock.call_later(back, lambda: self._fail("connection refused"))
        elif found[1] != self._request.tls:
            clock.call_later(back, lambda: self._fail("no TLS, or nothing but TLS, there"))
        else:
            self._join(found[0], route, back)

    def _join(self, server: AnyProgram, route: Route, back: float) -> None:
        clock = self._network.clock
        completion = clock.now + back
        near = TcpEnd(self._program, self._request.tcp_id, route, not_before=clock.now)

        def make_far_end(program: AnyProgram, tcp_id: int) -> TcpEnd:
            far = TcpEnd(program, tcp_id, route, not_before=completion)
            far.peer, near.peer = near, far
            return far

        def complete() -> None:
            if self._is_wanted():
                self._program.complete_tcp(near.tcp_id, near)
            else:
                near.close()

        clock.call_at(completion, complete)
        server.accept_tcp(make_far_end)

    def _fail(self, error: str) -> None:
        if self._is_wanted():
            self._program.complete_tcp(self._request.tcp_id, None, error)

    def _is_wanted(self) -> bool:
        program = self._program
        return program.machine is self._machine and program.wants_tcp(self._request.tcp_id)


def _pair(first: Host, second: Host | None) -> frozenset[Host]:
    return frozenset({first} if second is None else {first, second})


def _is_blocked(blocks: set[frozenset[Host]], first: Host, second: Host) -> bool:
    if not blocks or first is second:
        return False
    return any(_pair(*pair) in blocks for pair in ((first, second), (first, None), (second, None)))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
