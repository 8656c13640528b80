"""The simulated network itself: links, NATs, DNS, TCP and mishaps, with tiny machines on it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import TcpCloseRequested, TcpRequested, Transmit
from iroh_proto.stun.probe import StunAddressFound, StunProbe, StunProbeTimedOut
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.clock import LimitReached, VirtualClock
from iroh_proto.testing.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC, Nat, NatKind
from iroh_proto.testing.network import Host, Network, Program
from iroh_proto.testing.run import ContractBroken

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


def test_a_datagram_takes_the_latency_of_both_links() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1", latency=0.01))
    far = talk(network.add_host("far", ip=SERVER_IP, latency=0.02), SERVER)
    say(near, SERVER, b"a", b"b")
    network.run_for(1)
    assert heard(far) == [(0.03, b"a"), (0.03, b"b")]
    assert far.seen(Heard)[0].addr == UdpAddress("192.0.2.1", near.sockets[0].port)


def test_datagrams_to_nobody_are_counted() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1"))
    network.add_host("far", ip=SERVER_IP)
    say(near, UdpAddress("192.0.2.99", 1), b"no such address")
    say(near, SERVER, b"no such port")
    say(near, UdpAddress("2001:db8::1", 1), b"no such family")
    network.run_for(1)
    assert (network.stats.sent, network.stats.unroutable, network.stats.unheard) == (3, 2, 1)


def test_loss_jitter_reordering_and_duplication_are_drawn_from_the_seed() -> None:
    def play(seed: int) -> list[tuple[float, bytes]]:
        network = make_network(seed)
        near = talk(network.add_host("near", ip="192.0.2.1", latency=0.01))
        far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
        link = near.host.link
        link.loss, link.jitter, link.reordering, link.duplication = 0.2, 0.001, 0.1, 0.1
        for number in range(500):
            say(near, SERVER, b"%d" % number)
            network.run_for(0.01)
        network.run_for(1)
        return heard(far)

    arrived = play(1)
    numbers = [int(data) for _, data in arrived]
    assert 350 < len(set(numbers)) < 450
    assert len(numbers) - len(set(numbers)) in range(20, 80)
    assert numbers != sorted(numbers)
    assert play(1) == arrived
    assert play(2) != arrived


def test_a_link_that_is_down_loses_what_is_sent() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1"))
    far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
    far.host.link.is_up = False
    say(near, SERVER, b"lost")
    network.run_for(1)
    far.host.link.is_up = True
    say(near, SERVER, b"found")
    network.run_for(1)
    assert [data for _, data in heard(far)] == [b"found"]
    assert network.stats.lost == 1


def test_udp_can_be_blocked_between_two_hosts_or_around_one() -> None:
    network = make_network()
    one, two, three = (
        talk(network.add_host(name, ip=f"192.0.2.{number}"), UdpAddress("0.0.0.0", 9))
        for number, name in enumerate(["one", "two", "three"], start=1)
    )

    def reached() -> list[bool]:
        for program in (one, two, three):
            program.events.clear()
        say(one, UdpAddress("192.0.2.2", 9), b"12")
        say(three, UdpAddress("192.0.2.2", 9), b"32")
        say(two, UdpAddress("192.0.2.1", 9), b"21")
        network.run_for(1)
        return [
            any(data == wanted for program in (one, two) for _, data in heard(program))
            for wanted in (b"12", b"32", b"21")
        ]

    assert reached() == [True, True, True]
    network.block_udp(one.host, two.host)
    assert reached() == [False, True, False]
    network.block_udp(three.host)
    assert reached() == [False, False, False]
    network.unblock_udp(one.host, two.host)
    network.unblock_udp(three.host)
    assert reached() == [True, True, True]
    assert network.stats.blocked == 5


def test_a_host_uses_the_interface_of_the_destination() -> None:
    network = make_network()
    home = network.add_nat("home", ip="203.0.113.1", kind=FULL_CONE)
    both = network.add_host("both", home.inside)
    both.attach(network.internet, "2001:db8::5")
    near = talk(both, UdpAddress("0.0.0.0", 5), UdpAddress("::", 6))
    neighbour = talk(network.add_host("neighbour", home.inside), UdpAddress("0.0.0.0", 7))
    far = talk(network.add_host("far", ip="2001:db8::1"), UdpAddress("::", 7))
    say(near, UdpAddress(neighbour.host.ip, 7), b"lan")
    say(near, UdpAddress("2001:db8::1", 7), b"six")
    say(near, UdpAddress("127.0.0.1", 5), b"self")
    network.run_for(1)
    assert neighbour.seen(Heard) == [Heard(data=b"lan", addr=UdpAddress(both.ip, 5))]
    assert far.seen(Heard) == [Heard(data=b"six", addr=UdpAddress("2001:db8::5", 6))]
    assert near.seen(Heard) == [Heard(data=b"self", addr=UdpAddress("127.0.0.1", 5))]


def test_an_unplugged_interface_gets_nothing_and_its_address_is_free_again() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1", latency=0.1))
    far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
    say(near, SERVER, b"too late")
    far.host.detach(far.host.attachments[0])
    network.run_for(1)
    assert heard(far) == []
    network.add_host("other", ip=SERVER_IP)
    with pytest.raises(LocalProtocolError, match="taken"):
        network.add_host("third", ip=SERVER_IP)


# NATs


class Nated:
    """Two programs behind one NAT and two servers outside."""

    def __init__(self, kind: NatKind) -> None:
        self.network = make_network()
        self.router = self.network.add_nat("home", ip="203.0.113.1", kind=kind)
        self.inner, self.sibling = (
            talk(self.network.add_host(name, self.router.inside), UdpAddress("0.0.0.0", 5000))
            for name in ("inner", "sibling")
        )
        self.server, self.other = (
            talk(
                self.network.add_host(ip, ip=ip), UdpAddress("0.0.0.0", 1), UdpAddress("0.0.0.0", 2)
            )
            for ip in ("198.51.100.1", "198.51.100.2")
        )

    def outer(self, server: Program[Talker], port: int = 1) -> UdpAddress:
        """Have the inner program speak to a server; return the address that it sees."""
        say(self.inner, UdpAddress(server.host.ip, port), b"hello")
        self.network.run_for(0.1)
        addr = server.seen(Heard)[-1].addr
        assert isinstance(addr, UdpAddress)
        return addr

    def comes_in(self, server: Program[Talker], addr: UdpAddress) -> bool:
        """Say whether a datagram from port 1 of a server gets in."""
        self.inner.events.clear()
        say(server, addr, b"in")
        self.network.run_for(0.1)
        return bool(self.inner.seen(Heard))


def test_a_full_cone_maps_once_and_lets_anybody_in() -> None:
    nated = Nated(FULL_CONE)
    addr = nated.outer(nated.server)
    assert addr.ip == "203.0.113.1"
    assert nated.outer(nated.server, 2) == nated.outer(nated.other) == addr
    assert Nated(FULL_CONE).outer(nated.server) is not None
    fresh = Nated(FULL_CONE)
    assert fresh.comes_in(fresh.other, fresh.outer(fresh.server))


def test_a_port_restricted_nat_keeps_the_port_and_lets_in_who_was_sent_to() -> None:
    nated = Nated(PORT_RESTRICTED)
    addr = nated.outer(nated.server)
    assert addr == UdpAddress("203.0.113.1", 5000)
    assert nated.comes_in(nated.server, addr)
    assert not nated.comes_in(nated.other, addr)
    assert nated.network.stats.filtered == 1
    assert nated.outer(nated.other, 2) == addr
    assert not nated.comes_in(nated.other, addr), "another port of that address was sent to"
    assert nated.outer(nated.other, 1) == addr
    assert nated.comes_in(nated.other, addr)


def test_a_taken_port_is_not_preserved() -> None:
    nated = Nated(PORT_RESTRICTED)
    nated.outer(nated.server)
    say(nated.sibling, UdpAddress(nated.server.host.ip, 1), b"me too")
    nated.network.run_for(0.1)
    addr = nated.server.seen(Heard)[-1].addr
    assert isinstance(addr, UdpAddress)
    assert addr.port != 5000


def test_a_symmetric_nat_maps_anew_for_each_remote_address() -> None:
    nated = Nated(SYMMETRIC)
    seen = [nated.outer(nated.server), nated.outer(nated.server, 2), nated.outer(nated.other)]
    assert len(set(seen)) == 3
    assert nated.outer(nated.server) == seen[0]
    assert nated.comes_in(nated.server, seen[0])
    assert not nated.comes_in(nated.other, seen[0])


@pytest.mark.parametrize("inbound", [False, True])
def test_a_mapping_ends_without_traffic(inbound: bool) -> None:
    kind = NatKind(
        mapping=PORT_RESTRICTED.mapping,
        filtering=PORT_RESTRICTED.filtering,
        mapping_timeout=30.0,
        is_refreshed_by_inbound=inbound,
    )
    nat = Nat(kind, ip="203.0.113.1", rng=random.Random(1))
    inner, remote = UdpAddress("192.168.1.2", 5), UdpAddress("192.0.2.1", 1)
    outer = nat.outbound(inner, remote, 0.0)
    assert nat.inbound(outer.port, remote, 29.9) == inner
    assert nat.inbound(outer.port, remote, 30.0) == (inner if inbound else None)
    assert nat.inbound(outer.port, remote, 60.0) is None
    assert nat.outbound(inner, remote, 61.0) != outer


def test_a_nat_that_reboots_forgets_its_mappings_and_may_change_its_address() -> None:
    nated = Nated(PORT_RESTRICTED)
    addr = nated.outer(nated.server)
    nated.router.reboot()
    assert not nated.comes_in(nated.server, addr)
    nated.router.reboot(ip="203.0.113.9")
    assert nated.outer(nated.server) == UdpAddress("203.0.113.9", 5000)


def test_hosts_behind_one_nat_meet_at_its_outer_address_if_it_hairpins() -> None:
    for hairpins in (False, True):
        kind = NatKind(mapping=FULL_CONE.mapping, filtering=FULL_CONE.filtering, hairpins=hairpins)
        nated = Nated(kind)
        say(nated.sibling, nated.outer(nated.server), b"round the corner")
        nated.network.run_for(0.1)
        assert bool(nated.inner.seen(Heard)) is hairpins


def test_nats_can_stand_behind_nats() -> None:
    network = make_network()
    carrier = network.add_nat("carrier", ip="203.0.113.1", kind=SYMMETRIC, subnet="100.64.0.0/10")
    home = network.add_nat("home", kind=PORT_RESTRICTED, upstream=carrier.inside)
    probe = network.add_host("host", home.inside).run(
        lambda rng: StunProbe(rng=rng),
        udp=[UdpAddress("0.0.0.0", 5000)],
        begin=lambda machine, bound, now: (machine.start(SERVER, now=now), None)[1],
    )
    network.add_host("server", ip=SERVER_IP).run(lambda rng: StunServer(), udp=[SERVER])
    network.run_for(1)
    assert probe.seen(StunAddressFound)[0].address.ip == "203.0.113.1"


def test_a_probe_without_answer_times_out_in_virtual_time() -> None:
    network = make_network()
    probe = network.add_host("host", ip="192.0.2.1").run(
        lambda rng: StunProbe(rng=rng),
        udp=[ANY],
        begin=lambda machine, bound, now: (machine.start(SERVER, now=now), None)[1],
    )
    end = network.run_until(lambda: bool(probe.seen(StunProbeTimedOut)), limit=10)
    assert end == 3.0


# Services


def test_names_and_interfaces_are_answered() -> None:
    network = make_network()
    network.set_name("derp.example", ["192.0.2.7"])
    program = talk(network.add_host("host", ip="192.0.2.1"))
    program.give(
        lambda talker, now: talker.events.append(DnsRequested(request_id=1, host="derp.example"))
    )
    program.give(
        lambda talker, now: talker.events.append(DnsRequested(request_id=2, host="no.example"))
    )
    program.give(lambda talker, now: talker.events.append(InterfacesRequested(request_id=3)))
    network.run_for(1)
    assert told(program, "dns") == [(0.02, (1, ["192.0.2.7"])), (0.02, (2, []))]
    assert told(program, "interfaces") == [(0.0, (3, ["192.0.2.1"]))]
    network.dns_is_up = False
    program.give(
        lambda talker, now: talker.events.append(DnsRequested(request_id=4, host="derp.example"))
    )
    network.run_for(10)
    assert told(program, "dns")[2:] == [(6.0, (4, []))]


class Tcp:
    """A client behind a NAT and a server, 30 ms apart, with one connection between them."""

    def __init__(self, *, tls: bool = False, connect: bool = True) -> None:
        self.network = make_network()
        self.router = self.network.add_nat(
            "home", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01
        )
        self.client = talk(self.network.add_host("client", self.router.inside))
        server = self.network.add_host("server", ip=SERVER_IP, latency=0.02)
        self.server = talk(server, tcp=[80], tls=[443])
        self.network.set_name("server.example", [SERVER_IP])
        if connect:
            self.dial(SERVER_IP, 443 if tls else 80, tls=tls)
            self.network.run_for(1)
            assert told(self.client, "complete")[0][1] == (1, None)

    def dial(self, host: str, port: int, *, tls: bool = False) -> None:
        self.client.give(lambda talker, now: talker.dial(1, host, port, tls=tls))

    def write(self, program: Program[Talker], tcp_id: int, data: bytes) -> None:
        program.give(lambda talker, now: talker.write(tcp_id, data))

    def got(self, program: Program[Talker]) -> bytes:
        return b"".join(data for _, data in self.chunks(program))

    def chunks(self, program: Program[Talker]) -> list[tuple[float, bytes]]:
        return [
            (record.time, record.value[2])
            for record in program.events
            if isinstance(record.value, tuple) and record.value[0] == "data"
        ]


@pytest.mark.parametrize(("tls", "trips"), [(False, 1), (True, 2)])
def test_a_connection_takes_its_round_trips(tls: bool, trips: int) -> None:
    tcp = Tcp(tls=tls)
    assert told(tcp.server, "accepted") == [(round(0.06 * trips - 0.03, 6), (0,))]
    assert told(tcp.client, "complete") == [(round(0.06 * trips, 6), (1, None))]


def test_bytes_go_both_ways_and_the_end_follows_them() -> None:
    tcp = Tcp()
    tcp.write(tcp.client, 1, b"request")
    tcp.write(tcp.server, 0, b"answer")
    tcp.client.give(lambda talker, now: talker.write(1, b" and more"))
    tcp.client.give(lambda talker, now: talker.hang_up(1))
    tcp.network.run_for(1)
    assert tcp.got(tcp.server) == b"request and more"
    assert told(tcp.server, "eof") == [(1.03, (0,))]
    assert told(tcp.client, "eof") == [], "a machine that closed is told no more"


@pytest.mark.parametrize(
    ("host", "port", "tls", "error", "when"),
    [
        (SERVER_IP, 81, False, "connection refused", 0.06),
        (SERVER_IP, 80, True, "no TLS, or nothing but TLS, there", 0.12),
        ("no.example", 80, False, "no.example has no address", 0.02),
        ("2001:db8::1", 80, False, "no route to host", 0.0),
        ("192.0.2.99", 80, False, "connection timed out", 127.0),
    ],
)
def test_a_connection_that_cannot_be_says_why(
    host: str, port: int, tls: bool, error: str, when: float
) -> None:
    tcp = Tcp(connect=False)
    tcp.dial(host, port, tls=tls)
    tcp.network.run_for(200)
    assert told(tcp.client, "complete") == [(when, (1, error))]


def test_a_withdrawn_request_is_not_completed() -> None:
    tcp = Tcp(connect=False)
    tcp.dial("server.example", 80)
    tcp.network.run_for(0.06)
    assert told(tcp.server, "accepted")
    tcp.client.give(lambda talker, now: talker.hang_up(1))
    tcp.network.run_for(1)
    assert told(tcp.client, "complete") == []
    assert told(tcp.server, "eof")


def test_bytes_that_are_lost_come_later_but_in_order() -> None:
    tcp = Tcp()
    tcp.router.link.loss = tcp.router.link.jitter = 0.3
    sent = b""
    for number in range(50):
        data = b"%03d" % number
        sent += data
        tcp.write(tcp.client, 1, data)
        tcp.network.run_for(0.01)
    tcp.network.run_for(20)
    assert tcp.got(tcp.server) == sent
    assert tcp.chunks(tcp.server)[-1][0] - 1 > 0.5 + 0.03


def test_a_connection_stalls_while_its_link_is_down_and_goes_on() -> None:
    tcp = Tcp()
    tcp.router.link.is_up = False
    tcp.write(tcp.client, 1, b"patience")
    tcp.network.run_for(20)
    assert tcp.got(tcp.server) == b""
    tcp.router.link.is_up = True
    tcp.network.run_for(4)
    assert tcp.got(tcp.server) == b"patience"


def test_a_connection_that_moves_nothing_for_long_is_lost() -> None:
    tcp = Tcp()
    tcp.network.block_tcp(tcp.client.host, tcp.server.host)
    tcp.write(tcp.client, 1, b"hello?")
    tcp.network.run_for(70)
    assert 60 < told(tcp.client, "eof")[0][0] < 65
    assert told(tcp.server, "eof") == [], "the other side has nothing to send, and knows nothing"


def test_a_program_that_cannot_write_keeps_its_bytes() -> None:
    tcp = Tcp()
    tcp.router.link.is_up = False
    for _ in range(20):
        tcp.write(tcp.client, 1, bytes(100_000))
    assert 0 < len(tcp.client.machine.tcp[1]) < 2_000_000 - 256 * 1024 + 100_000
    tcp.router.link.is_up = True
    tcp.network.run_for(10)
    assert len(tcp.got(tcp.server)) == 2_000_000


def test_a_stopped_program_closes_its_connections_and_starts_with_a_new_machine() -> None:
    tcp = Tcp()
    machine = tcp.server.machine
    tcp.server.stop()
    tcp.network.run_for(1)
    assert told(tcp.client, "eof") == [(1.03, (1,))]
    tcp.dial(SERVER_IP, 80)
    tcp.network.run_for(1)
    assert told(tcp.client, "complete")[-1][1] == (1, "connection refused")
    tcp.server.start()
    assert tcp.server.machine is not machine
    tcp.dial(SERVER_IP, 80)
    tcp.network.run_for(1)
    assert told(tcp.client, "complete")[-1][1] == (1, None)


def test_a_power_cut_is_noticed_when_the_host_is_back() -> None:
    tcp = Tcp()
    tcp.server.host.cut_power()
    tcp.network.run_for(10)
    tcp.write(tcp.client, 1, b"anybody?")
    tcp.network.run_for(10)
    assert told(tcp.client, "eof") == []
    tcp.server.host.boot()
    tcp.network.run_for(10)
    assert len(told(tcp.client, "eof")) == 1


def test_a_nat_that_reboots_drops_connections_silently() -> None:
    tcp = Tcp()
    tcp.router.reboot()
    tcp.write(tcp.server, 0, b"are you there?")
    tcp.network.run_for(30)
    assert tcp.got(tcp.client) == b""
    assert told(tcp.client, "eof") == []


# Time


def test_timers_are_kept_to_the_moment_and_moving_them_later_costs_no_wakeup() -> None:
    network = make_network()
    program = talk(network.add_host("host", ip="192.0.2.1"))

    def set_deadline(deadline: float | None) -> None:
        def command(talker: Talker, now: float) -> None:
            talker.deadline = deadline

        program.give(command)

    set_deadline(5.0)
    set_deadline(7.5)
    network.run_for(6)
    set_deadline(6.25)
    network.run_for(1)
    set_deadline(8.0)
    set_deadline(None)
    network.run_for(10)
    assert told(program, "timer") == [(6.25, (6.25,))]


def test_a_machine_whose_timer_does_not_move_is_reported_instead_of_spinning() -> None:
    class Stuck(Talker):
        def handle_timer(self, *, now: float) -> None:
            pass

    network = make_network()

    def begin(machine: Stuck, bound: Sequence[UdpAddress], now: float) -> None:
        machine.deadline = 1.0

    network.add_host("host", ip="192.0.2.1").run(lambda rng: Stuck(), begin=begin)
    with pytest.raises(ContractBroken, match=r"the timer is 1\.0"):
        network.run_for(2)


def test_waiting_for_what_never_happens_ends_at_the_limit() -> None:
    clock = VirtualClock(5.0)
    clock.call_at(6.0, lambda: None)
    with pytest.raises(LimitReached, match=r"within 3 s of 5\.0"):
        clock.run_until(lambda: False, limit=3)
    assert clock.now == 8.0
    assert clock.run_until(lambda: True, limit=3) == 8.0


def test_a_thousand_idle_hosts_cost_nothing() -> None:
    network = make_network()
    for number in range(1000):
        talk(network.add_host(f"host{number}", ip=f"10.0.{number // 250}.{number % 250 + 1}"))
    steps = 0
    while network.clock.step():
        steps += 1
    assert steps == 0


def test_observers_see_each_event_with_time_and_place() -> None:
    network = make_network()
    seen: list[tuple[float, str, object]] = []
    network.observers.append(lambda time, name, event: seen.append((time, name, event)))
    far = network.add_host("far", ip=SERVER_IP, latency=0.5).run(
        lambda rng: Talker(), name="ear", udp=[SERVER]
    )
    say(talk(network.add_host("near", ip="192.0.2.1")), SERVER, b"psst")
    network.run_for(1)
    assert seen == [(0.5, "far/ear", far.seen(Heard)[0])]
