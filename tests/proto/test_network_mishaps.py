"""Magicsocks on the simulated network: every pair of NATs, and everything that goes wrong."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from iroh_proto.address import DerpAddress, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.pool_events import DerpServerLost
from iroh_proto.derp.server_link import LAST_BACKOFF
from iroh_proto.key import SecretKey
from iroh_proto.magicsock import Magicsock
from iroh_proto.testing.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC, NatKind
from iroh_proto.testing.network import Router
from tests.proto.magic_world import DERP_MAP, App, MagicWorld, via

# A port-restricted NAT lets nobody in who comes from another port than was sent to, and behind a
# symmetric one every port is another: nothing short of guessing ports joins these.
NEVER_DIRECT = {(PORT_RESTRICTED, SYMMETRIC), (SYMMETRIC, PORT_RESTRICTED), (SYMMETRIC, SYMMETRIC)}
KINDS = {"full cone": FULL_CONE, "port-restricted": PORT_RESTRICTED, "symmetric": SYMMETRIC}


class Pair:
    """Two nodes behind NATs of their own that know each other's id and the DERP server."""

    def __init__(
        self, left: NatKind = PORT_RESTRICTED, right: NatKind = PORT_RESTRICTED, seed: int = 1
    ) -> None:
        self.world = MagicWorld(seed)
        self.network = self.world.network
        self.routers = [self._router("left", left, 1), self._router("right", right, 2)]
        self.alice, self.bob = (
            self.world.app(name, router.inside)
            for name, router in zip(("alice", "bob"), self.routers, strict=True)
        )
        self.world.settle(self.alice, self.bob)
        self.alice.learn(self.bob, derp=True)

    def chat(self, seconds: float) -> None:
        self.world.chat(self.alice, self.bob, seconds)

    def share_heard(self, seconds: float) -> float:
        """Chat, and return the share of payloads that either heard, over whichever path."""
        since = self.network.now
        self.chat(seconds)
        self.network.run_for(0.2)
        heard = len(set(self._times(self.alice, self.bob, since))) + len(
            set(self._times(self.bob, self.alice, since))
        )
        return heard / (2 * seconds / 0.25)

    def is_direct(self) -> bool:
        return self.alice.kind(self.bob) == self.bob.kind(self.alice) == "direct"

    def wait_until_direct(self, limit: float = 15.0) -> float:
        """Chat until both are direct, and return how many seconds it took."""
        start = self.network.now
        while not self.is_direct():
            assert self.network.now < start + limit, "never direct"
            self.chat(0.25)
        return self.network.now - start

    def _router(self, name: str, kind: NatKind, number: int) -> Router:
        return self.network.add_nat(name, kind=kind, ip=f"203.0.113.{number}", latency=0.01)

    def _times(self, app: App, other: App, since: float) -> list[float]:
        """Return when payload was heard; copies over two paths come within 0.25 s."""
        times = [when for when, node, _, _ in app.heard if node == other.id and when >= since]
        return [round((when - since) // 0.25) for when in times]


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
def test_a_pair_of_nats_becomes_direct_if_it_can_and_is_on_derp_at_once(
    left: str, right: str
) -> None:
    kinds = KINDS[left], KINDS[right]
    pair = Pair(*kinds)
    pair.alice.send(pair.bob)
    pair.network.run_until(lambda: bool(pair.bob.heard), limit=0.5)
    assert pair.bob.heard[0][2] == via(pair.alice)
    if kinds in NEVER_DIRECT:
        assert pair.share_heard(20.0) > 0.95
        assert not pair.is_direct()
        assert pair.alice.sock.path_info(pair.bob.id).kind in ("derp", "mixed")
    else:
        assert pair.wait_until_direct() <= 6.0


@pytest.mark.parametrize("seed", range(3))
def test_pairs_become_direct_over_bad_links(seed: int) -> None:
    pair = Pair(seed=seed)
    for router in pair.routers:
        router.link.loss = router.link.reordering = 0.1
        router.link.jitter, router.link.duplication = 0.02, 0.05
    assert pair.wait_until_direct(30.0) < 30.0
    assert pair.share_heard(20.0) > 0.7


def test_a_chain_of_nats_is_passed() -> None:
    world = MagicWorld()
    carrier = world.network.add_nat(
        "carrier", ip="203.0.113.1", kind=FULL_CONE, subnet="100.64.0.0/10", latency=0.01
    )
    home = world.network.add_nat("home", kind=PORT_RESTRICTED, upstream=carrier.inside)
    alice, bob = world.app("alice", home.inside), world.app("bob", ip="203.0.113.9")
    world.settle(alice, bob)
    bob.learn(alice, derp=True)
    world.chat(bob, alice, 8.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"


@pytest.mark.parametrize("kind", [PORT_RESTRICTED, SYMMETRIC])
def test_a_derp_server_that_restarts_is_found_again(kind: NatKind) -> None:
    pair = Pair(kind, SYMMETRIC)
    assert pair.share_heard(5.0) > 0.9
    pair.world.derp.stop()
    assert pair.share_heard(5.0) == 0
    pair.world.derp.start()
    assert len(pair.world.derp.machine.clients) == 0
    # The back-off has not grown far in these few seconds.
    pair.network.run_until(lambda: len(pair.world.derp.machine.clients) == 2, limit=6.0)
    assert pair.share_heard(5.0) > 0.9


def test_a_derp_server_without_power_is_noticed_by_silence_and_found_again() -> None:
    pair = Pair(SYMMETRIC, SYMMETRIC)
    assert pair.share_heard(5.0) > 0.9
    pair.world.derp_host.cut_power()
    pair.network.run_for(60.0)
    assert pair.share_heard(2.0) == 0
    assert len(pair.alice.program.seen(DerpServerLost)) == 1
    pair.world.derp_host.boot()
    pair.network.run_for(LAST_BACKOFF + 2.0)
    assert pair.share_heard(5.0) > 0.9


def test_a_nat_that_comes_back_with_another_address_is_survived() -> None:
    pair = Pair()
    pair.wait_until_direct()
    pair.routers[0].reboot(ip="203.0.113.77")
    # Nobody tells the node: its DERP server's silence does, 20 s after the last word.
    pair.chat(25.0)
    assert pair.is_direct()
    addr = pair.bob.sock.path_info(pair.alice.id).addr
    assert isinstance(addr, UdpAddress)
    assert addr.ip == "203.0.113.77"
    assert pair.share_heard(10.0) > 0.95


def test_short_lived_mappings_are_kept_open_while_nodes_talk() -> None:
    kind = replace(PORT_RESTRICTED, mapping_timeout=10.0)
    pair = Pair(kind, kind)
    pair.wait_until_direct()
    for _ in range(6):
        pair.world.chat(pair.alice, pair.bob, 9.0, every=9.0)
    assert pair.is_direct()


def test_links_that_fail_for_a_while_are_used_again() -> None:
    pair = Pair()
    pair.wait_until_direct()
    pair.routers[1].link.is_up = False
    assert pair.share_heard(30.0) == 0
    pair.routers[1].link.is_up = True
    pair.network.run_for(25.0)
    assert pair.wait_until_direct(30.0) < 30.0
    assert pair.share_heard(5.0) > 0.95


def test_a_node_whose_udp_is_blocked_altogether_works_on_derp_and_recovers() -> None:
    pair = Pair()
    pair.network.block_udp(pair.alice.host)
    assert pair.share_heard(20.0) > 0.9
    assert not pair.is_direct()
    pair.network.unblock_udp(pair.alice.host)
    pair.network.run_for(30.0)
    assert pair.wait_until_direct(30.0) < 30.0


def test_a_resolver_that_fails_delays_a_node_but_does_not_stop_it() -> None:
    world = MagicWorld()
    world.network.dns_is_up = False
    alice = world.app("alice", ip="203.0.113.1")
    world.network.run_for(30.0)
    assert alice.sock.home_derp is None
    world.network.dns_is_up = True
    world.network.run_until(lambda: alice.sock.home_derp is not None, limit=20.0)


def test_a_host_that_moves_to_another_network_is_found_there() -> None:
    pair = Pair()
    pair.wait_until_direct()
    cafe = pair.network.add_nat("cafe", kind=FULL_CONE, ip="203.0.113.50", latency=0.01)
    host = pair.alice.host
    host.detach(host.attachments[0])
    host.attach(cafe.inside, latency=0.005)
    pair.alice.program.give(lambda sock, now: sock.network_changed(now=now))
    pair.network.run_for(12.0)
    assert pair.wait_until_direct(30.0) < 30.0
    addr = pair.bob.sock.path_info(pair.alice.id).addr
    assert isinstance(addr, UdpAddress)
    assert addr.ip == "203.0.113.50"


def test_a_thousand_idle_nodes_live_through_minutes_in_few_steps() -> None:
    world = MagicWorld()
    network, count = world.network, 1000
    secrets = [SecretKey.generate(random.Random(number)) for number in range(count)]
    for number, secret in enumerate(secrets):
        host = network.add_host(f"idle{number}", ip=f"10.1.{number >> 8}.{number & 255}")
        host.run(
            lambda rng, secret=secret: Magicsock(  # type: ignore[misc]
                secret_key=secret, derp_map=DERP_MAP, rng=rng
            ),
            udp=[UdpAddress("0.0.0.0", 7777)],
            begin=lambda machine, sockets, now: machine.start(sockets, now=now),
        )
    network.run_for(5.0)
    assert len(world.derp.machine.clients) == count
    steps, end = 0, network.now + 60.0
    while (when := network.clock.next_time) is not None and when <= end:
        network.clock.step()
        steps += 1
    # A few STUN probes and DERP pings a minute, each with its answer: nothing else has to happen.
    assert steps / count < 60
    assert len(world.derp.machine.clients) == count


def test_nodes_without_a_derp_map_find_each_other_by_address_alone() -> None:
    world = MagicWorld()
    apps = [world.app(name, ip=f"203.0.113.{number}") for number, name in enumerate("ab", 1)]
    for app in apps:
        assert len(DerpMap()) == 0
        app.program.stop()
    socks = [
        app.host.run(
            lambda rng, app=app: Magicsock(  # type: ignore[misc]
                secret_key=app.secret, derp_map=DerpMap(), rng=rng
            ),
            name="bare",
            udp=[UdpAddress("0.0.0.0", 9000)],
            begin=lambda machine, sockets, now: machine.start(sockets, now=now),
        )
        for app in apps
    ]
    world.network.run_for(1.0)
    first, second = socks
    target = second.machine.node_addr
    first.give(lambda sock, now: sock.add_node_addr(target, now=now))
    for _ in range(8):
        first.give(lambda sock, now: sock.send_payloads(apps[1].id, [b"\x41hello"], now=now))
        world.network.run_for(0.25)
    assert first.machine.path_info(apps[1].id).kind == "direct"
    assert len(second.payloads) >= 8
    assert not any(
        isinstance(address, DerpAddress)
        for payload in itertools.islice(second.payloads, 8)
        for address in [getattr(payload.value, "source", None)]
    )
