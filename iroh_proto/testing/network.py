"""A simulated network in virtual time: hosts, links, routers, DNS, TCP, and mishaps.

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

Links have latency, loss, an MTU and a bandwidth (:mod:`iroh_proto.testing.links`); routers are
NATs, firewalls and captive portals (:mod:`iroh_proto.testing.routers`), one behind another if
wanted; hosts have any number of interfaces, IPv4 and IPv6, and may move, sleep and lose power
(:class:`~iroh_proto.testing.hosts.Host`).

Any machine runs here: what a host owes to it is found by its methods and the names of its events.
The same seed and program give the same run, to the last datagram. Only what has something to do
costs time: thousands of idle nodes are cheap.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import TcpRequested
from iroh_proto.testing.firewall import OUTBOUND_ONLY, FirewallRules
from iroh_proto.testing.hosts import Host
from iroh_proto.testing.nat import NatKind
from iroh_proto.testing.portal import CaptivePortal
from iroh_proto.testing.programs import AnyProgram, Program
from iroh_proto.testing.routers import Route, Router, find_route, routers_above
from iroh_proto.testing.tcp import TcpEnd
from iroh_proto.testing.topology import Fabric, Segment

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

PORTAL_PAGE = "http://portal.example/"
"""Where captive portals send everybody."""

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
        self._partitions: set[frozenset[Host]] = set()

    # Building

    def add_host(
        self,
        name: str,
        segment: Segment | None = None,
        *,
        ip: str | None = None,
        ipv6: str | None = None,
        latency: float = 0.0,
    ) -> Host:
        """Add a host with one interface in the internet or a LAN.

        More are plugged in by :meth:`Host.plug_in`.

        :param ip: its address. In a LAN it gets a free one of each subnet unless this or ``ipv6``
            is given.
        :param ipv6: another address.
        :param latency: seconds that its cable takes, one way.
        :raises LocalProtocolError: if the name or the address is taken.
        """
        if name in self.hosts:
            raise LocalProtocolError(f"there is a host {name}")
        host = Host(self, name)
        ips = [one for one in (ip, ipv6) if one is not None]
        host.plug_in(segment or self.internet, ips, latency=latency)
        self.hosts[name] = host
        return host

    def add_nat(
        self,
        name: str,
        *,
        kind: NatKind,
        ip: str | None = None,
        subnet: str | None = None,
        ipv6_subnet: str | None = None,
        firewall: FirewallRules | None = None,
        upstream: Segment | None = None,
        latency: float = 0.0,
    ) -> Router:
        """Add a NAT and the LAN behind it (``inside``), on the internet or behind another NAT.

        :param subnet: the IPv4 addresses of the LAN; a /24 of its own unless given. Different LANs
            may have the same.
        :param ipv6_subnet: the IPv6 addresses of the LAN, which are not translated.
        :param firewall: what passes besides; without it all IPv6 does.
        :raises LocalProtocolError: if the name or the address is taken.
        :raises TypeError: if the kind is none.
        """
        if not isinstance(kind, NatKind):
            raise TypeError(f"a kind of NAT is a NatKind, such as PORT_RESTRICTED, not {kind!r}")
        if subnet is None:
            base = FIRST_LAN.network_address + 256 * (len(self.routers) + 1)
            subnet = f"{base}/24"
        self._expect_new_router(name)
        router = self.routers[name] = Router(
            self,
            name,
            kind=kind,
            ip=ip,
            subnets=[subnet] if ipv6_subnet is None else [subnet, ipv6_subnet],
            rules=firewall,
            upstream=upstream or self.internet,
            latency=latency,
        )
        return router

    def add_firewall(
        self,
        name: str,
        *subnets: str,
        rules: FirewallRules = OUTBOUND_ONLY,
        upstream: Segment | None = None,
        latency: float = 0.0,
    ) -> Router:
        """Add a firewall that translates nothing, and the LAN behind it (``inside``).

        :param subnets: the addresses of the LAN, to which packets are routed.
        :raises LocalProtocolError: if the name is taken, or there are no addresses.
        """
        if not subnets:
            raise LocalProtocolError(f"say which addresses there are behind {name}")
        self._expect_new_router(name)
        router = self.routers[name] = Router(
            self,
            name,
            subnets=subnets,
            rules=rules,
            upstream=upstream or self.internet,
            latency=latency,
        )
        return router

    def add_portal(self, router: Router, *, page_url: str = PORTAL_PAGE) -> Program[CaptivePortal]:
        """Have hosts behind a router meet a captive portal until :meth:`Router.leave_portal`.

        It is the answer to each name asked of DNS and to each HTTP request; UDP is dropped. Asked
        for again, it is the one that was there before, with the page that it had.
        """
        name = f"{router.name} portal"
        if name in self.hosts:
            router.portal = self.hosts[name]
            return cast(Program[CaptivePortal], router.portal.programs[0])
        host = router.portal = self.add_host(name, router.inside)
        return host.run(lambda rng: CaptivePortal(page_url=page_url), name="portal", tcp_ports=[80])

    def _expect_new_router(self, name: str) -> None:
        if name in self.routers:
            raise LocalProtocolError(f"there is a router {name}")

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

    def partition(self, *groups: Sequence[Host]) -> None:
        """Stop everything between hosts of different groups, until :meth:`heal`."""
        for number, group in enumerate(groups):
            for others in groups[number + 1 :]:
                self._partitions.update(frozenset((one, two)) for one in group for two in others)

    def heal(self) -> None:
        """Undo all of :meth:`partition`."""
        self._partitions.clear()

    def blocks_udp(self, first: Host, second: Host) -> bool:
        """Say whether UDP is stopped between two hosts."""
        return self._is_blocked(self._udp_blocks, first, second)

    def blocks_tcp(self, first: Host, second: Host) -> bool:
        """Say whether TCP is stopped between two hosts."""
        return self._is_blocked(self._tcp_blocks, first, second)

    def _is_blocked(self, blocks: set[frozenset[Host]], first: Host, second: Host) -> bool:
        if not (blocks or self._partitions) or first is second:
            return False
        pair = frozenset((first, second))
        return pair in self._partitions or any(
            blocked in blocks for blocked in (pair, frozenset((first,)), frozenset((second,)))
        )

    # Services to hosts

    def resolve(self, name: str, complete: Callable[[Sequence[str]], None], *, asker: Host) -> None:
        """Look a host name up for a host, and call ``complete`` with its addresses, or none."""
        if _is_ip(name):
            self.clock.call_later(DNS_TIME, lambda: complete([name]))
            return
        portal = _portal_before(asker)
        if portal is not None:
            self.clock.call_later(DNS_TIME, lambda: complete(portal.ips))
        elif self.dns_is_up and _is_online(asker):
            self.clock.call_later(DNS_TIME, lambda: complete(self._names.get(name, [])))
        else:
            self.clock.call_later(DNS_FAILURE_TIME, lambda: complete([]))

    def connect_tcp(self, program: AnyProgram, request: TcpRequested) -> None:
        """Make a connection for a program, and complete its request."""
        attempt = _Attempt(self, program, request)
        if _is_ip(request.host):
            attempt.resolved([request.host])
        else:
            self.resolve(request.host, attempt.resolved, asker=program.host)


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
            route = None if interface is None else find_route(interface, ip, self._request.port)
            if route is None or not route.is_up:
                continue
            server = route.server.owner
            assert isinstance(server, Host)
            if server.is_awake and not self._network.blocks_tcp(host, server):
                return route
        return None

    def _arrive(self, route: Route, back: float) -> None:
        """Meet the server's host, and have its answer travel back."""
        server = route.server.owner
        assert isinstance(server, Host)
        clock = self._network.clock
        if not self._is_wanted():
            return
        if not (server.is_awake and route.is_up):
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
        near = TcpEnd(
            self._program, self._request.tcp_id, route, is_client=True, not_before=clock.now
        )

        def make_far_end(program: AnyProgram, tcp_id: int) -> TcpEnd:
            far = TcpEnd(program, tcp_id, route, is_client=False, not_before=completion)
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


def _portal_before(host: Host) -> Host | None:
    """Return the captive portal that a host is behind, if any."""
    for attachment in host.attachments:
        for router in routers_above(attachment.segment):
            if router.portal is not None:
                return router.portal
    return None


def _is_online(host: Host) -> bool:
    """Say whether there is a way from a host to the internet, where the resolvers are."""
    return any(
        attachment.link.is_up
        and all(router.link.is_up for router in routers_above(attachment.segment))
        for attachment in host.attachments
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
