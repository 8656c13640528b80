"""Whole endpoints and derpers in the simulated network, as programs use them."""

from __future__ import annotations

import random

import pytest

from iroh_anyio.quic.events import StreamReset
from iroh_anyio.testing import SimulatedDerper, SimulatedEndpoint
from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.pool_events import DerpServerConnected, DerpServerLost
from iroh_proto.key import SecretKey
from iroh_proto.testing.firewall import OUTBOUND_ONLY, WEB_ONLY
from iroh_proto.testing.nat import PORT_RESTRICTED, SYMMETRIC
from iroh_proto.testing.network import Network, Segment

ALPN = b"shout/0"


class Street:
    """A derper and as many endpoints as wanted, which shout back what they are told."""

    def __init__(self, *, url: str | None = None) -> None:
        self.network = Network(rng=random.Random(3))
        host = self.network.add_host("derp", ip="198.51.100.1", ipv6="2001:db8:ff::1", latency=0.02)
        self.derper = SimulatedDerper(host, url=url)

    def endpoint(
        self,
        name: str,
        segment: Segment | None = None,
        *,
        ip: str | None = None,
        keeps: bool = True,
    ) -> SimulatedEndpoint:
        return SimulatedEndpoint(
            self.network.add_host(name, segment, ip=ip, latency=0.005),
            alpns=[ALPN],
            derp_map=self.derper.derp_map,
            serve=bytes.upper,
            keeps=keeps,
        )

    def two(self, *, keeps: bool = True) -> tuple[SimulatedEndpoint, SimulatedEndpoint]:
        homes = [
            self.network.add_nat(f"home{number}", ip=ip, kind=PORT_RESTRICTED, latency=0.01)
            for number, ip in enumerate(("203.0.113.1", "203.0.113.2"))
        ]
        alice = self.endpoint("alice", homes[0].inside, keeps=keeps)
        bob = self.endpoint("bob", homes[1].inside, keeps=keeps)
        self.settle(alice, bob)
        return alice, bob

    def settle(self, *endpoints: SimulatedEndpoint) -> None:
        self.network.run_until(
            lambda: all(one.machine.magicsock.home_derp for one in endpoints), limit=10
        )

    def dial(self, dialler: SimulatedEndpoint, dialled: SimulatedEndpoint) -> int:
        addr = NodeAddr(dialled.node_id, derp_url=self.derper.url)
        number = dialler.connect(addr, alpn=ALPN)
        self.network.run_until(lambda: dialler.is_established(number), limit=10)
        return number

    def ask(self, asker: SimulatedEndpoint, number: int, text: bytes) -> bytes:
        stream_id = asker.send(number, text)
        self.network.run_until(lambda: (number, stream_id) in asker.ended, limit=30)
        return bytes(asker.received[number, stream_id])


@pytest.mark.parametrize("url", [None, "https://derp.example/", "http://198.51.100.1:3340/"])
def test_endpoints_that_know_an_id_and_a_derper_talk_and_become_direct(url: str | None) -> None:
    street = Street(url=url)
    alice, bob = street.two()
    number = street.dial(alice, bob)
    assert street.ask(alice, number, b"hello") == b"HELLO"
    assert alice.node_addr.derp_url == street.derper.url
    street.network.run_until(lambda: alice.path_to(bob).kind == "direct", limit=10)
    assert alice.path_to(bob.node_id) == alice.path_to(bob)
    assert street.ask(alice, number, b"again") == b"AGAIN"
    assert [event.node_id for event in bob.established()] == [alice.node_id]
    assert set(street.derper.clients) == {alice.node_id, bob.node_id}


def test_more_than_the_send_buffer_holds_goes_both_ways() -> None:
    street = Street()
    alice, bob = street.two()
    text = b"abcdefgh" * 400_000
    assert street.ask(alice, street.dial(alice, bob), text) == text.upper()


def test_datagrams_and_a_close_arrive() -> None:
    street = Street()
    alice, bob = street.two()
    number = street.dial(alice, bob)
    street.network.run_for(1)
    alice.send_datagram(number, b"one")
    street.network.run_for(1)
    assert bob.datagrams == {0: [b"one"]}
    alice.close_connection(number, 7, "enough")
    street.network.run_for(1)
    ours, theirs = alice.close_reason(number), bob.close_reason(0)
    assert ours is not None
    assert theirs is not None
    assert (ours.kind, theirs.kind, theirs.code) == ("local", "application", 7)


def test_a_stream_in_one_direction_and_one_given_up_are_not_answered() -> None:
    street = Street()
    alice, bob = street.two()
    number = street.dial(alice, bob)

    def send_one_way(stream_id: int, *, gives_up: bool) -> None:
        alice.give(
            lambda machine, now: machine.send_stream(
                number, stream_id, b"psst", end=not gives_up, now=now
            )
        )

    streams = [
        alice.give(
            lambda machine, now, both=both: machine.open_stream(  # type: ignore[misc]
                number, bidirectional=both
            )
        )
        for both in (False, True)
    ]
    send_one_way(streams[0], gives_up=False)
    send_one_way(streams[1], gives_up=True)
    street.network.run_for(1)
    alice.give(lambda machine, now: machine.reset_stream(number, streams[1], 5, now=now))
    street.network.run_for(1)
    assert bob.ended == {(0, streams[0])}
    assert [event.code for event in bob.seen(StreamReset)] == [5]
    assert alice.received == {}


def test_an_application_that_restarts_remembers_nothing_but_its_key() -> None:
    street = Street()
    alice, bob = street.two()
    street.ask(alice, street.dial(alice, bob), b"hello")
    bob.program.restart(after=2.0)
    street.network.run_for(10)
    assert bob.received == {}
    assert bob.established() == []
    street.settle(bob)
    assert street.ask(alice, street.dial(alice, bob), b"hello?") == b"HELLO?"
    assert len(bob.established()) == 1


def test_what_is_not_kept_is_forgotten_with_its_connection() -> None:
    street = Street()
    alice, bob = street.two(keeps=False)
    number = street.dial(alice, bob)
    assert street.ask(alice, number, b"hello") == b"HELLO"
    alice.send_datagram(number, b"one")
    street.network.run_for(1)
    assert bob.received
    alice.close_connection(number)
    street.network.run_for(1)
    for node in (alice, bob):
        assert node.program.events == []
        assert (node.received, node.ended, node.datagrams) == ({}, set(), {})
        assert node.established() == []
        assert node.close_reason(0) is None


def test_a_derper_that_restarts_has_its_clients_back() -> None:
    street = Street()
    alice, bob = street.two()
    before = street.derper.derp.machine
    street.derper.restart(after=3.0)
    street.network.run_for(1)
    assert alice.seen(DerpServerLost)
    assert not street.derper.derp.is_running
    street.network.run_until(
        lambda: street.derper.derp.is_running and len(street.derper.clients) == 2, limit=30
    )
    assert street.derper.derp.machine is not before
    assert len(bob.seen(DerpServerConnected)) == 2


def test_a_derper_may_have_no_stun_and_a_key_of_its_own() -> None:
    network = Network(rng=random.Random(3))
    secret = SecretKey.generate(random.Random(9))
    host = network.add_host("derp", ip="198.51.100.1")
    derper = SimulatedDerper(host, secret_key=secret, stun_port=None)
    assert derper.derp.machine.node_id == secret.public
    assert derper.url == DerpUrl.from_str("http://derp.example/")
    assert [node.stun_port for node in derper.derp_map] == [None]
    assert derper.stun is None
    derper.restart()
    network.run_for(1)
    assert derper.derp.is_running


def test_an_endpoint_behind_the_strictest_firewall_is_reached_through_the_derper() -> None:
    street = Street()
    office = street.network.add_nat(
        "office", ip="203.0.113.1", kind=SYMMETRIC, firewall=WEB_ONLY, latency=0.01
    )
    alice = street.endpoint("alice", office.inside)
    bob = street.endpoint("bob", ip="203.0.113.2")
    street.settle(alice, bob)
    number = street.dial(bob, alice)
    for _ in range(10):
        assert street.ask(bob, number, b"are you there?") == b"ARE YOU THERE?"
        street.network.run_for(2)
    assert bob.path_to(alice).kind in ("derp", "mixed")


def test_endpoints_with_ipv6_alone_talk() -> None:
    street = Street()
    ends = [
        street.endpoint(
            name,
            street.network.add_firewall(
                f"{name} wall", f"2001:db8:{name}::/64", rules=OUTBOUND_ONLY, latency=0.01
            ).inside,
        )
        for name in ("a", "b")
    ]
    street.settle(*ends)
    number = street.dial(ends[0], ends[1])
    assert street.ask(ends[0], number, b"six") == b"SIX"
    street.network.run_until(lambda: ends[0].path_to(ends[1]).kind == "direct", limit=10)
    addr = ends[0].path_to(ends[1]).addr
    assert isinstance(addr, UdpAddress)
    assert addr.is_ipv6


def test_a_connection_outlives_a_sleep_shorter_than_its_idle_time() -> None:
    street = Street()
    alice, bob = street.two()
    number = street.dial(alice, bob)
    street.network.run_until(lambda: alice.path_to(bob).kind == "direct", limit=10)
    alice.host.sleep()
    street.network.run_for(20)
    alice.host.wake()
    assert street.ask(alice, number, b"good morning") == b"GOOD MORNING"
    alice.host.sleep()
    street.network.run_for(60)
    alice.host.wake()
    street.network.run_for(5)
    reason = alice.close_reason(number)
    assert reason is not None
    assert reason.kind == "idle"
    assert street.ask(alice, street.dial(alice, bob), b"hello again") == b"HELLO AGAIN"


def test_the_same_seed_gives_the_same_conversation() -> None:
    def play() -> list[object]:
        street = Street()
        alice, bob = street.two()
        street.ask(alice, street.dial(alice, bob), b"x" * 5_000)
        street.network.run_for(20)
        return [street.network.stats, street.network.now, alice.machine.stats]

    assert play() == play()
