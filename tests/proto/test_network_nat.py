"""The NATs of the simulated network, by the words of RFC 4787."""

from __future__ import annotations

import random

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.stun.probe import StunAddressFound, StunProbe, StunProbeTimedOut
from iroh_proto.stun.server import StunServer
from iroh_proto.testing import nat as nat_module
from iroh_proto.testing.nat import (
    ADDRESS_RESTRICTED,
    FULL_CONE,
    PORT_OVERLOADING,
    PORT_RESTRICTED,
    SYMMETRIC,
    Dependence,
    Nat,
    NatKind,
)
from iroh_proto.testing.network import Program
from tests.proto.talker import (
    ANY,
    SERVER,
    SERVER_IP,
    Heard,
    Talker,
    make_network,
    say,
    talk,
)


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


def test_an_address_dependent_filter_lets_in_every_port_of_an_address() -> None:
    kind = NatKind(mapping=Dependence.ADDRESS_DEPENDENT, filtering=Dependence.ADDRESS_DEPENDENT)
    nated = Nated(kind)
    addr = nated.outer(nated.server, 2)
    assert nated.outer(nated.server, 1) == addr
    assert nated.outer(nated.other, 1) != addr
    assert nated.comes_in(nated.server, addr)
    assert not nated.comes_in(nated.other, addr)


def test_a_full_nat_drops_its_oldest_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_module, "MAPPINGS_LIMIT", 3)
    nat = Nat(FULL_CONE, ip="203.0.113.1", rng=random.Random(1))
    remote = UdpAddress("192.0.2.1", 1)
    inner = [UdpAddress("192.168.1.2", port) for port in range(1, 5)]
    outer = [nat.outbound(addr, remote, 0.0) for addr in inner]
    assert len(nat) == 3
    assert nat.inbound(outer[1].port, remote, 0.0) == inner[1]
    assert outer[3] == outer[0], "the port of the oldest is the only free one"
    assert nat.inbound(outer[0].port, remote, 0.0) == inner[3]


def test_an_expired_mapping_frees_its_port() -> None:
    nat = Nat(PORT_RESTRICTED, ip="203.0.113.1", rng=random.Random(1))
    remote = UdpAddress("192.0.2.1", 1)
    first, second = UdpAddress("192.168.1.2", 5000), UdpAddress("192.168.1.3", 5000)
    assert nat.outbound(first, remote, 0.0).port == 5000
    assert nat.outbound(second, remote, 1.0).port != 5000
    assert nat.outbound(UdpAddress("192.168.1.4", 5000), remote, 500.0).port == 5000
    assert nat.inbound(5000, remote, 500.0) == UdpAddress("192.168.1.4", 5000)


def test_an_address_restricted_nat_maps_once_and_lets_in_every_port_of_who_was_sent_to() -> None:
    nated = Nated(ADDRESS_RESTRICTED)
    addr = nated.outer(nated.server, 2)
    assert nated.outer(nated.server, 1) == addr
    assert nated.comes_in(nated.server, addr)
    assert not nated.comes_in(nated.other, addr)
    assert nated.outer(nated.other, 2) == addr
    assert nated.comes_in(nated.other, addr)


def test_an_overloaded_port_is_kept_towards_all_who_are_told_apart() -> None:
    nated = Nated(PORT_OVERLOADING)
    addr = UdpAddress("203.0.113.1", 5000)
    assert nated.outer(nated.server) == nated.outer(nated.server, 2) == addr
    assert nated.comes_in(nated.server, addr)
    assert not nated.comes_in(nated.other, addr)
    say(nated.sibling, UdpAddress(nated.other.host.ip, 1), b"me too")
    nated.network.run_for(0.1)
    assert nated.other.seen(Heard)[-1].addr == addr, "the sibling has it towards another server"
    assert not nated.comes_in(nated.other, addr), "that is the sibling's"
    assert nated.outer(nated.other) != addr, "the same port and the same peer"
