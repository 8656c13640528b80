"""Mishaps as values, and the shapes of the networks that suffer them."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.stun.server import StunServer
from iroh_proto.testing import mishaps as mishaps_module
from iroh_proto.testing.firewall import WEB_ONLY
from iroh_proto.testing.mishaps import (
    INTERNET,
    AddressChange,
    DnsDown,
    LinkDown,
    LinkTrouble,
    LinkUp,
    Mishap,
    Move,
    NatReboot,
    Partition,
    PortalClosed,
    PortalOpened,
    PowerCut,
    ProcessRestart,
    Sleep,
    UdpBlocked,
    UdpUnblocked,
    Wake,
    Walled,
)
from iroh_proto.testing.network import Network
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape, expects_direct
from iroh_proto.testing.strategies import mishap_sequences, network_shapes

SHAPE = NetworkShape(
    nats=(
        NatShape("home", "EI/APD"),
        NatShape("carrier", "APD/EI"),
        NatShape("flat", "EI/AD", behind="carrier"),
        NatShape("linux", "Linux"),
    ),
    nodes=(
        NodeShape("alice", behind="home"),
        NodeShape("bob", behind="flat"),
        NodeShape("carol"),
        NodeShape("dave", behind="carrier", has_ipv6=True),
        NodeShape("erin", behind="linux", has_ipv6=True),
        NodeShape("frank", behind="linux"),
    ),
    derpers=("derp1",),
)


def built() -> Network:
    return SHAPE.build(rng=random.Random(1))


class Told(StunServer):
    """A machine that counts how often it heard that its network changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def network_changed(self, *, now: float) -> None:
        self.changes += 1


def run(network: Network, name: str) -> list[Told]:
    """Run a machine on a host, and return it and all that follow it after restarts."""
    lives: list[Told] = []

    def make(rng: random.Random) -> Told:
        lives.append(Told())
        return lives[-1]

    network.hosts[name].run(make, udp=[UdpAddress("0.0.0.0", 1000)])
    return lives


@given(data=st.data(), shape=network_shapes())
def test_drawn_mishaps_can_happen_one_after_the_other_and_show_how_to_make_them(
    data: st.DataObject, shape: NetworkShape
) -> None:
    network = shape.build(rng=random.Random(1))
    for mishap in data.draw(mishap_sequences(shape)):
        mishap.apply(network)
        assert eval(repr(mishap), vars(mishaps_module)) == mishap
    assert eval(repr(shape), globals()) == shape


@pytest.mark.parametrize(
    "mishap",
    [
        LinkDown("home"),
        LinkTrouble("carol", loss=0.5, jitter=0.1),
        PowerCut("derp1"),
        Partition("alice", "derp1"),
        UdpBlocked("alice"),
        UdpBlocked("alice", "bob"),
        DnsDown(),
        Sleep("alice"),
        Walled("home", WEB_ONLY),
        PortalClosed("home"),
    ],
    ids=repr,
)
def test_what_lasts_is_undone_by_its_remedy(mishap: Mishap) -> None:
    def state(network: Network) -> list[object]:
        alice, carol, bob, derper = (
            network.hosts[name] for name in ("alice", "carol", "bob", "derp1")
        )
        return [
            network.routers["home"].link.is_up,
            (carol.link.loss, carol.link.jitter),
            derper.is_up,
            (network.blocks_udp(alice, derper), network.blocks_tcp(alice, derper)),
            (network.blocks_udp(alice, carol), network.blocks_udp(alice, bob)),
            network.dns_is_up,
            alice.is_awake,
            (network.routers["home"].firewall, network.routers["home"].portal),
        ]

    network = built()
    before = state(network)
    mishap.apply(network)
    assert state(network) != before
    remedy = mishap.remedy
    assert remedy is not None
    assert remedy.remedy is None
    remedy.apply(network)
    assert state(network) == before


@pytest.mark.parametrize("is_told", [True, False])
def test_an_address_changes_within_its_network(is_told: bool) -> None:
    network = built()
    lives = run(network, "alice")
    LinkDown("alice").apply(network)
    old = network.hosts["alice"].attachments[0]
    AddressChange("alice", is_told=is_told).apply(network)
    new = network.hosts["alice"].attachments[0]
    assert new.ip != old.ip
    assert new.segment is old.segment
    assert new.link.latency == old.link.latency
    assert not new.link.is_up, "the cable is out still"
    assert old.segment.owner_of(old.ip) is None
    assert lives[0].changes == is_told
    LinkUp("alice").apply(network)
    assert new.link.is_up


def test_who_sleeps_is_not_told_and_does_not_restart() -> None:
    network = built()
    lives = run(network, "alice")
    Sleep("alice").apply(network)
    AddressChange("alice").apply(network)
    ProcessRestart("alice").apply(network)
    assert [life.changes for life in lives] == [0]
    Wake("alice").apply(network)
    AddressChange("alice").apply(network)
    assert [life.changes for life in lives] == [1]


def test_what_runs_no_more_or_does_not_care_is_not_told_of_a_change() -> None:
    network = built()
    lives = run(network, "alice")
    host = network.hosts["alice"]
    host.run(lambda rng: StunServer(), udp=[UdpAddress("0.0.0.0", 0)])
    AddressChange("alice").apply(network)
    assert [life.changes for life in lives] == [1]
    host.programs[0].stop()
    AddressChange("alice").apply(network)
    assert [life.changes for life in lives] == [1]


def test_a_portal_can_close_again() -> None:
    network = built()
    for _ in range(2):
        PortalClosed("home").apply(network)
        portal = network.routers["home"].portal
        assert portal is not None
        assert portal is network.hosts["home portal"]
        PortalOpened("home").apply(network)
        assert network.routers["home"].portal is None


def test_a_host_moves_and_keeps_its_other_interfaces() -> None:
    network = built()
    lives = run(network, "dave")
    dave = network.hosts["dave"]
    ipv6 = dave.ips[1]
    Move("dave", "home").apply(network)
    assert dave.attachments[0].segment is network.routers["home"].inside
    Move("dave", INTERNET, "203.0.113.200").apply(network)
    assert dave.ips == ["203.0.113.200", ipv6]
    assert lives[0].changes == 2


def test_an_address_that_is_taken_is_refused() -> None:
    network = built()
    with pytest.raises(LocalProtocolError):
        AddressChange("carol", network.routers["home"].ip).apply(network)


def test_nats_reboot_with_and_without_another_address() -> None:
    network = built()
    home = network.routers["home"]
    assert home.nat is not None
    old = home.ip
    home.nat.outbound(UdpAddress("192.168.1.2", 5), UdpAddress("192.0.2.1", 6), 0.0)
    NatReboot("home").apply(network)
    assert (home.ip, len(home.nat)) == (old, 0)
    NatReboot("home", "203.0.113.200").apply(network)
    assert home.ip == home.nat.ip == "203.0.113.200"


def test_programs_start_anew_after_a_restart_and_a_power_cut() -> None:
    network = built()
    lives = run(network, "derp1")
    ProcessRestart("derp1").apply(network)
    assert len(lives) == 2
    cut = PowerCut("derp1")
    for mishap in (cut, cut, ProcessRestart("derp1")):
        mishap.apply(network)
    assert len(lives) == 2
    assert cut.remedy is not None
    for _ in range(2):
        cut.remedy.apply(network)
    assert len(lives) == 3


def test_a_block_of_two_hosts_leaves_others_alone() -> None:
    network = built()
    alice, bob, carol = (network.hosts[name] for name in ("alice", "bob", "carol"))
    UdpBlocked("alice", "bob").apply(network)
    assert network.blocks_udp(alice, bob)
    assert not network.blocks_udp(alice, carol)
    UdpUnblocked("alice", "bob").apply(network)
    assert not network.blocks_udp(alice, bob)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("alice", "carol", True),
        ("alice", "bob", False),  # a filter by port against a mapping by destination
        ("carol", "bob", True),
        ("bob", "dave", None),  # by the carrier's outer address, if it hairpins
        ("dave", "erin", True),  # by IPv6
        ("alice", "frank", None),  # whose neighbour may have its port
        ("erin", "frank", True),  # in one LAN
    ],
)
def test_theory_looks_at_all_nats_of_both_ways(
    first: str, second: str, expected: bool | None
) -> None:
    network = built()
    hosts = network.hosts[first], network.hosts[second]
    assert expects_direct(network, *hosts) is expected
    assert expects_direct(network, *reversed(hosts)) is expected


def test_a_pair_behind_a_linux_router_alone_is_foretold() -> None:
    nodes = tuple(node for node in SHAPE.nodes if node.name in ("alice", "frank"))
    network = dataclasses.replace(SHAPE, nodes=nodes).build(rng=random.Random(1))
    assert expects_direct(network, network.hosts["alice"], network.hosts["frank"]) is True


def test_a_port_that_a_host_left_behind_with_its_address_is_not_its_own_for_a_while() -> None:
    nodes = tuple(node for node in SHAPE.nodes if node.name in ("alice", "frank"))
    network = dataclasses.replace(SHAPE, nodes=nodes).build(rng=random.Random(1))
    nat = network.routers["linux"].nat
    assert nat is not None
    for ip in ("192.168.0.2", "192.168.0.3"):
        nat.outbound(UdpAddress(ip, 4433), UdpAddress("198.51.100.77", 3478), network.now)
    hosts = network.hosts["alice"], network.hosts["frank"]
    assert expects_direct(network, *hosts) is None
    network.run_for(nat.kind.mapping_timeout)
    assert expects_direct(network, *hosts) is True


def test_the_shape_puts_everybody_where_it_says() -> None:
    network = built()
    assert network.routers["flat"].outside.segment is network.routers["carrier"].inside
    assert network.hosts["bob"].attachments[0].segment is network.routers["flat"].inside
    assert network.hosts["dave"].ips == [network.hosts["dave"].ip, "2001:db8::4"]
    heard: list[list[str]] = []
    network.resolve(
        "derp1.example", lambda ips: heard.append(list(ips)), asker=network.hosts["bob"]
    )
    network.run_for(1.0)
    assert heard == [[network.hosts["derp1"].ip]]
