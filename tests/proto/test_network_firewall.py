"""Firewalls, IPv6 and captive portals of the simulated network."""

from __future__ import annotations

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing import firewall as firewall_module
from iroh_proto.testing.firewall import (
    OPEN,
    OUTBOUND_ONLY,
    UDP_BLOCKED,
    UDP_FLOW_TIME,
    WEB_ONLY,
    Firewall,
    FirewallRules,
)
from iroh_proto.testing.nat import PORT_RESTRICTED, SYMMETRIC
from iroh_proto.testing.network import Program, Router
from iroh_proto.testing.portal import REQUEST_LIMIT
from tests.proto.magic_world import DERP_IP, URL, MagicWorld
from tests.proto.talker import (
    SERVER_IP,
    DnsRequested,
    Talker,
    heard,
    make_network,
    say,
    talk,
    told,
)

LAN = "203.0.113.64/29"
LAN6 = "2001:db8:1::/64"


class Walled:
    """A host behind a firewall, a neighbour there, and a server with all ports outside."""

    def __init__(self, rules: FirewallRules = OUTBOUND_ONLY, subnet: str = LAN) -> None:
        self.network = make_network()
        self.router = self.network.add_firewall("wall", subnet, rules=rules, latency=0.01)
        self.inner, self.neighbour = (
            talk(self.network.add_host(name, self.router.inside), *self.udp(), tcp=[22])
            for name in ("inner", "neighbour")
        )
        self.server, self.stranger = (
            talk(self.network.add_host(name, ip=ip, ipv6=ip6), *self.udp(), tcp=[80, 443, 8080])
            for name, ip, ip6 in (
                ("server", SERVER_IP, "2001:db8:ff::1"),
                ("stranger", "198.51.100.9", "2001:db8:ff::9"),
            )
        )

    @staticmethod
    def udp() -> list[UdpAddress]:
        return [UdpAddress("0.0.0.0", 5), UdpAddress("::", 6)]

    def gets(self, sender: Program[Talker], receiver: Program[Talker]) -> bool:
        """Say whether a datagram arrives, in the family that the inner host has."""
        receiver.events.clear()
        is_ipv6 = ":" in self.inner.host.ip
        ip = next(ip for ip in receiver.host.ips if (":" in ip) == is_ipv6)
        say(sender, UdpAddress(ip, 6 if is_ipv6 else 5), b"knock")
        self.network.run_for(0.1)
        return bool(heard(receiver))

    def connects(self, client: Program[Talker], host: str, port: int) -> str | None:
        """Return ``None``, or why there is no connection."""
        client.events.clear()
        client.give(lambda talker, now: talker.dial(port, host, port))
        self.network.run_for(200)
        result = told(client, "complete")[0][1][1]
        assert result is None or isinstance(result, str)
        return result


@pytest.mark.parametrize("subnet", [LAN, LAN6])
def test_answers_come_in_and_strangers_do_not(subnet: str) -> None:
    walled = Walled(subnet=subnet)
    assert not walled.gets(walled.server, walled.inner)
    assert walled.gets(walled.inner, walled.server)
    assert walled.gets(walled.server, walled.inner)
    assert not walled.gets(walled.stranger, walled.inner)
    assert walled.network.stats.filtered == 2
    assert walled.gets(walled.neighbour, walled.inner), "inside there is no wall"


def test_nothing_is_translated() -> None:
    walled = Walled()
    walled.gets(walled.inner, walled.server)
    assert walled.server.host.ip == SERVER_IP
    source = walled.server.seen(object)[-1].addr  # type: ignore[attr-defined]
    assert source == UdpAddress(walled.inner.host.ip, 5)
    assert walled.router.nat is None


def test_a_silent_flow_is_over_and_one_that_goes_on_is_not() -> None:
    walled = Walled()
    walled.gets(walled.inner, walled.server)
    for _ in range(3):
        walled.network.run_for(0.8 * UDP_FLOW_TIME)
        assert walled.gets(walled.server, walled.inner)
    walled.network.run_for(UDP_FLOW_TIME)
    assert not walled.gets(walled.server, walled.inner)


def test_a_firewall_that_reboots_forgets_flows_and_connections() -> None:
    walled = Walled()
    walled.gets(walled.inner, walled.server)
    assert walled.connects(walled.inner, SERVER_IP, 80) is None
    walled.router.reboot()
    assert not walled.gets(walled.server, walled.inner)
    walled.inner.give(lambda talker, now: talker.write(80, b"anybody?"))
    walled.network.run_for(5)
    assert told(walled.server, "data") == []
    with pytest.raises(LocalProtocolError, match="wall has no address of its own"):
        walled.router.reboot(ip="203.0.113.9")


@pytest.mark.parametrize(
    ("rules", "udp", "ports"),
    [
        (OUTBOUND_ONLY, True, {80, 443, 8080}),
        (UDP_BLOCKED, False, {80, 443, 8080}),
        (WEB_ONLY, False, {80, 443}),
        (OPEN, True, {80, 443, 8080}),
    ],
)
def test_what_hosts_inside_may_begin(rules: FirewallRules, udp: bool, ports: set[int]) -> None:
    walled = Walled(rules)
    assert walled.gets(walled.inner, walled.server) is udp
    assert walled.gets(walled.server, walled.inner) is udp
    for port in (80, 443, 8080):
        error = None if port in ports else "connection timed out"
        assert walled.connects(walled.inner, SERVER_IP, port) == error


@pytest.mark.parametrize(("rules", "error"), [(OPEN, None), (WEB_ONLY, "connection timed out")])
def test_tcp_comes_in_where_strangers_may(rules: FirewallRules, error: str | None) -> None:
    walled = Walled(rules)
    assert walled.connects(walled.server, walled.inner.host.ip, 22) == error
    if error is None:
        walled.inner.give(lambda talker, now: talker.write(0, b"welcome"))
        walled.network.run_for(1)
        assert told(walled.server, "data")[0][1] == (22, b"welcome")


def test_rules_that_become_stricter_stall_connections() -> None:
    walled = Walled()
    assert walled.connects(walled.inner, SERVER_IP, 8080) is None
    walled.router.firewall = Firewall(WEB_ONLY)
    walled.inner.give(lambda talker, now: talker.write(8080, b"hello?"))
    walled.network.run_for(5)
    assert told(walled.server, "data") == []
    walled.router.firewall = None
    walled.network.run_for(5)
    assert len(told(walled.server, "data")) == 1


def test_an_address_that_nobody_has_behind_a_firewall_is_nowhere() -> None:
    walled = Walled(OPEN)
    say(walled.server, UdpAddress("203.0.113.70", 5), b"?")
    say(walled.inner, UdpAddress("203.0.113.70", 5), b"?")
    walled.network.run_for(1)
    assert walled.network.stats.unroutable == 2


def test_a_firewall_has_addresses_behind_it() -> None:
    with pytest.raises(LocalProtocolError, match="behind wall"):
        make_network().add_firewall("wall")


def test_the_oldest_of_too_many_flows_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_module, "FLOWS_LIMIT", 3)
    wall, remote = Firewall(OUTBOUND_ONLY), UdpAddress("192.0.2.1", 1)
    inner = [UdpAddress("203.0.113.65", port) for port in range(1, 5)]
    for addr in inner[:3]:
        assert wall.outbound(addr, remote, 0.0)
    wall.outbound(inner[0], remote, 1.0)
    wall.outbound(inner[3], remote, 2.0)
    assert len(wall) == 3
    assert [wall.inbound(addr, remote, 3.0) for addr in inner] == [True, False, True, True]


# IPv6


def test_a_home_has_translated_ipv4_and_routed_ipv6_on_one_cable() -> None:
    network = make_network()
    home = network.add_nat(
        "home", ip="203.0.113.1", kind=PORT_RESTRICTED, ipv6_subnet=LAN6, firewall=OUTBOUND_ONLY
    )
    inner_host = network.add_host("inner", home.inside, latency=0.1)
    inner = talk(inner_host, *Walled.udp())
    server = talk(network.add_host("server", ip=SERVER_IP, ipv6="2001:db8:ff::1"), *Walled.udp())
    assert inner_host.ips == ["192.168.1.2", "2001:db8:1::2"]
    assert home.ip == "203.0.113.1"
    say(server, UdpAddress("2001:db8:1::2", 6), b"stranger")
    for target in (UdpAddress(SERVER_IP, 5), UdpAddress("2001:db8:ff::1", 6)):
        say(inner, target, b"hello")
    network.run_for(1)
    sources = [event.addr for event in server.seen(object)]  # type: ignore[attr-defined]
    assert sources == [UdpAddress("203.0.113.1", 5), UdpAddress("2001:db8:1::2", 6)]
    assert heard(inner) == []
    inner_host.link.is_up = False
    say(inner, UdpAddress(SERVER_IP, 5), b"cut")
    say(inner, UdpAddress("2001:db8:ff::1", 6), b"cut")
    network.run_for(1)
    assert network.stats.lost == 2, "both addresses are at the end of one cable"


def test_a_routed_network_is_reached_through_another() -> None:
    network = make_network()
    provider = network.add_firewall("provider", "2001:db8:a::/48", rules=OPEN, latency=0.01)
    home = network.add_firewall(
        "home", "2001:db8:a:1::/64", rules=OPEN, upstream=provider.inside, latency=0.02
    )
    inner = talk(network.add_host("inner", home.inside), *Walled.udp(), tcp=[22])
    outer = talk(network.add_host("outer", ip="2001:db8:ff::1"), *Walled.udp())
    assert inner.host.ip == "2001:db8:a:1::2"
    say(outer, UdpAddress(inner.host.ip, 6), b"ping")
    outer.give(lambda talker, now: talker.dial(1, inner.host.ip, 22))
    network.run_for(1)
    assert heard(inner) == [(0.03, b"ping")]
    assert told(outer, "complete") == [(0.06, (1, None))]


def test_a_network_is_routed_through_a_nat_that_does_not_translate_it() -> None:
    network = make_network()
    carrier = network.add_nat(
        "carrier", ip="203.0.113.1", kind=SYMMETRIC, ipv6_subnet="2001:db8:a::/48"
    )
    home = network.add_nat(
        "home", kind=PORT_RESTRICTED, ipv6_subnet="2001:db8:b::/64", upstream=carrier.inside
    )
    inner = talk(network.add_host("inner", home.inside), *Walled.udp())
    outer = talk(network.add_host("outer", ip="2001:db8:ff::1"), *Walled.udp())
    say(outer, UdpAddress("2001:db8:b::2", 6), b"six")
    network.run_for(1)
    assert [data for _, data in heard(inner)] == [b"six"]


def test_nodes_with_both_families_meet_over_ipv6_though_their_nats_never_would() -> None:
    world = MagicWorld()
    world.network.set_name(URL.host, [DERP_IP, "2001:db8:ff::1"])
    world.derp_host.attach(world.network.internet, "2001:db8:ff::1")
    apps = []
    for number, name in enumerate(("alice", "bob"), start=1):
        router = world.network.add_nat(
            f"{name} nat",
            ip=f"203.0.113.{number}",
            kind=SYMMETRIC,
            ipv6_subnet=f"2001:db8:{number}::/64",
            firewall=OUTBOUND_ONLY,
            latency=0.01,
        )
        bound = (UdpAddress("0.0.0.0", 7), UdpAddress("::", 7))
        apps.append(world.app(name, router.inside, bound=bound))
    world.settle(*apps)
    alice, bob = apps
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 8.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
    addr = alice.sock.path_info(bob.id).addr
    assert isinstance(addr, UdpAddress)
    assert addr.is_ipv6


def test_nodes_with_ipv6_alone_find_their_home_and_each_other() -> None:
    world = MagicWorld()
    world.network.set_name(URL.host, [DERP_IP, "2001:db8:ff::1"])
    world.derp_host.attach(world.network.internet, "2001:db8:ff::1")
    apps = [
        world.app(
            name,
            world.network.add_firewall(
                f"{name} wall", f"2001:db8:{name}::/64", latency=0.01
            ).inside,
            bound=(UdpAddress("0.0.0.0", 7), UdpAddress("::", 7)),
        )
        for name in ("a", "b")
    ]
    world.settle(*apps)
    alice, bob = apps
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 8.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"


# Nodes behind firewalls


def pair_behind(world: MagicWorld, rules: FirewallRules) -> Router:
    return world.network.add_nat(
        "office", ip="203.0.113.1", kind=PORT_RESTRICTED, firewall=rules, latency=0.01
    )


@pytest.mark.parametrize(
    ("rules", "kind"),
    [(OUTBOUND_ONLY, "direct"), (UDP_BLOCKED, "derp"), (WEB_ONLY, "derp")],
)
def test_a_node_behind_a_firewall_talks_as_well_as_it_lets(rules: FirewallRules, kind: str) -> None:
    world = MagicWorld()
    router = pair_behind(world, rules)
    alice, bob = world.app("alice", router.inside), world.app("bob", ip="203.0.113.9")
    world.network.run_until(
        lambda: None not in (alice.sock.home_derp, bob.sock.home_derp), limit=10
    )
    bob.learn(alice, derp=True)
    world.chat(bob, alice, 30.0)
    assert ("direct" in bob.kinds(alice)) is (kind == "direct")
    late = world.network.now
    world.chat(bob, alice, 10.0)
    assert len(alice.sources(bob, since=late)) >= 38
    assert len(bob.sources(alice, since=late)) >= 38


# Captive portals


def test_a_portal_answers_for_everybody_until_left() -> None:
    network = make_network()
    cafe = network.add_nat("cafe", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01)
    portal = network.add_portal(cafe, page_url="http://wifi.example/")
    network.set_name("far.example", [SERVER_IP])
    server = talk(network.add_host("server", ip=SERVER_IP), *Walled.udp(), tcp=[80], tls=[443])
    guest = talk(network.add_host("guest", cafe.inside), *Walled.udp())

    def ask(number: int, host: str) -> None:
        question = DnsRequested(request_id=number, host="far.example")
        guest.give(lambda talker, now: talker.events.append(question))
        guest.give(lambda talker, now: talker.dial(10 * number, host))
        guest.give(lambda talker, now: talker.dial(10 * number + 1, host, 443, tls=True))
        say(guest, UdpAddress(SERVER_IP, 5), b"udp")
        network.run_for(1)
        guest.give(
            lambda talker, now: talker.write(10 * number, b"GET / HTTP/1.1\r\nHost: far\r\n\r\n")
        )
        network.run_for(1)

    for number, host in enumerate((SERVER_IP, "far.example"), start=1):
        ask(number, host)
        assert told(guest, "dns")[-1][1] == (number, portal.host.ips)
        answers = [result for _, result in told(guest, "complete")]
        assert (10 * number, None) in answers
        assert (10 * number + 1, "connection refused") in answers
        page = told(guest, "data")[-1][1][1]
        assert isinstance(page, bytes)
        assert page.startswith(b"HTTP/1.1 302 Found\r\nLocation: http://wifi.example/\r\n")
        assert len(told(guest, "eof")) == number
    assert portal.machine.answered == 2
    assert server.events == []
    cafe.leave_portal()
    ask(3, "far.example")
    assert told(guest, "dns")[-1][1] == (3, [SERVER_IP])
    assert len(told(server, "accepted")) == 2
    assert len(heard(server)) == 1


def test_a_portal_stalls_connections_made_before() -> None:
    network = make_network()
    cafe = network.add_nat("cafe", ip="203.0.113.1", kind=PORT_RESTRICTED)
    server = talk(network.add_host("server", ip=SERVER_IP), tcp=[80])
    guest = talk(network.add_host("guest", cafe.inside))
    guest.give(lambda talker, now: talker.dial(1, SERVER_IP))
    network.run_for(1)
    network.add_portal(cafe)
    guest.give(lambda talker, now: talker.write(1, b"still there?"))
    network.run_for(5)
    assert told(server, "data") == []


def test_a_portal_answers_whatever_comes_once() -> None:
    network = make_network()
    cafe = network.add_nat("cafe", ip="203.0.113.1", kind=PORT_RESTRICTED)
    portal = network.add_portal(cafe)
    guest = talk(network.add_host("guest", cafe.inside))
    for tcp_id in (1, 2, 3):
        guest.give(lambda talker, now, tcp_id=tcp_id: talker.dial(tcp_id, SERVER_IP))  # type: ignore[misc]
    network.run_for(1)
    guest.give(lambda talker, now: talker.write(1, b"x" * REQUEST_LIMIT))
    guest.give(lambda talker, now: talker.write(2, b"GET / HTTP/1.1\r\n"))
    guest.give(lambda talker, now: talker.hang_up(3))
    network.run_for(1)
    assert portal.machine.answered == 1
    guest.give(lambda talker, now: talker.write(2, b"\r\n"))
    portal.machine.receive_tcp_data(99, b"\r\n\r\n", now=network.now)
    portal.machine.handle_timer(now=network.now)
    network.run_for(1)
    assert portal.machine.answered == 2


def test_a_node_behind_a_portal_finds_its_home_once_it_has_left() -> None:
    world = MagicWorld()
    cafe = world.network.add_nat("cafe", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01)
    portal = world.network.add_portal(cafe)
    alice, bob = world.app("alice", cafe.inside), world.app("bob", ip="203.0.113.9")
    world.network.run_for(60)
    assert alice.sock.home_derp is None
    assert 1 < portal.machine.answered < 60, "asked now and then"
    cafe.leave_portal()
    world.network.run_until(lambda: alice.sock.home_derp is not None, limit=30)
    alice.learn(bob, derp=True)
    world.network.run_for(30)
    world.chat(alice, bob, 8.0)
    assert alice.kind(bob) == "direct"
