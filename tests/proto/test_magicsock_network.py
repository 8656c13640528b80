"""Magicsocks on a simulated network: from DERP to direct, and back."""

from __future__ import annotations

import pytest

from iroh_proto.address import DerpAddress, UdpAddress
from iroh_proto.derp.pong_wait import PONG_TIMEOUT
from iroh_proto.derp.pool_events import DerpServerLost
from iroh_proto.magicsock import CallMeMaybeReceived, DirectAddressesChanged, PongReceived
from iroh_proto.paths.select import TRUST_TIME
from iroh_proto.testing.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC, NatKind
from tests.proto.magic_world import URL, App, MagicWorld, via


def behind_nats(world: MagicWorld, left: NatKind, right: NatKind) -> tuple[App, App]:
    first = world.network.add_nat("left", kind=left, ip="203.0.113.1", latency=0.01)
    second = world.network.add_nat("right", kind=right, ip="203.0.113.2", latency=0.01)
    alice, bob = world.app("alice", first.inside), world.app("bob", second.inside)
    world.settle(alice, bob)
    return alice, bob


def test_a_node_finds_its_home_and_what_the_world_sees_of_it() -> None:
    world = MagicWorld()
    nat = world.network.add_nat("nat", kind=PORT_RESTRICTED, ip="203.0.113.1")
    alice = world.app("alice", nat.inside)
    world.settle(alice)
    assert alice.sock.home_derp == URL
    inside, outside = sorted(addr.ip for addr in alice.sock.local_addresses)
    assert (inside.startswith("192.168."), outside) == (True, "203.0.113.1")
    addr = alice.sock.node_addr
    assert (addr.node_id, addr.derp_url) == (alice.id, URL)
    assert addr.direct_addresses == alice.sock.local_addresses
    changes = alice.program.seen(DirectAddressesChanged)
    assert changes[-1].addresses == alice.sock.local_addresses


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (PORT_RESTRICTED, PORT_RESTRICTED),
        (FULL_CONE, FULL_CONE),
        (FULL_CONE, SYMMETRIC),
        (SYMMETRIC, FULL_CONE),
    ],
)
def test_nodes_that_know_only_ids_and_derp_become_direct(left: NatKind, right: NatKind) -> None:
    world = MagicWorld()
    alice, bob = behind_nats(world, left, right)
    alice.learn(bob, derp=True)
    alice.send(bob)
    world.network.run_until(lambda: bool(bob.heard), limit=2.0)
    assert bob.heard[0][2] == via(alice)
    assert alice.kinds(bob)[0] == "derp"
    world.chat(alice, bob, 8.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
    before = world.network.now
    world.chat(alice, bob, 20.0)
    assert all(isinstance(source, UdpAddress) for source in bob.sources(alice, since=before))
    assert bob.program.seen(CallMeMaybeReceived)
    assert alice.program.seen(PongReceived)


def test_two_symmetric_nats_stay_on_derp_and_lose_nothing() -> None:
    world = MagicWorld()
    alice, bob = behind_nats(world, SYMMETRIC, SYMMETRIC)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 20.0)
    assert alice.kind(bob) in ("derp", "mixed")
    assert len(bob.heard) >= 78


def test_hosts_in_one_network_find_each_other_directly() -> None:
    world = MagicWorld()
    nat = world.network.add_nat("nat", kind=PORT_RESTRICTED, ip="203.0.113.1")
    alice, bob = world.app("alice", nat.inside), world.app("bob", nat.inside)
    world.settle(alice, bob)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 8.0)
    path = alice.sock.path_info(bob.id)
    assert path.kind == "direct"
    assert isinstance(path.addr, UdpAddress)
    assert path.addr.ip.startswith("192.168.")


def test_a_blocked_direct_path_is_replaced_within_the_trust_time_and_comes_back() -> None:
    world = MagicWorld()
    alice, bob = behind_nats(world, PORT_RESTRICTED, PORT_RESTRICTED)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 5.0)
    assert alice.kind(bob) == "direct"
    world.network.block_udp(alice.host, bob.host)
    world.chat(alice, bob, TRUST_TIME + 0.5)
    gap = max(
        later[0] - earlier[0] for earlier, later in zip(bob.heard, bob.heard[1:], strict=False)
    )
    assert gap <= TRUST_TIME + 1.0
    before = world.network.now
    world.chat(alice, bob, 20.0)
    assert len(bob.sources(alice, since=before)) >= 78
    world.network.unblock_udp(alice.host, bob.host)
    world.chat(alice, bob, 12.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"


def test_a_derp_server_that_dies_leaves_direct_paths_alone() -> None:
    world = MagicWorld()
    alice, bob = behind_nats(world, PORT_RESTRICTED, PORT_RESTRICTED)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 5.0)
    assert alice.kind(bob) == "direct"
    world.derp.stop()
    before = world.network.now
    world.chat(alice, bob, 30.0)
    assert alice.kind(bob) == "direct"
    assert len(bob.sources(alice, since=before)) >= 118
    world.derp.start()
    world.network.run_for(20.0)
    world.network.block_udp(alice.host, bob.host)
    before = world.network.now
    world.chat(alice, bob, 15.0)
    assert via(alice) in bob.sources(alice, since=before)


def test_a_direct_dial_without_any_derp_server_works() -> None:
    world = MagicWorld()
    alice, bob = world.app("alice", ip="203.0.113.1"), world.app("bob", ip="203.0.113.2")
    world.settle(alice, bob)
    world.derp.stop()
    alice.learn(bob, *bob.sock.local_addresses)
    alice.send(bob)
    world.network.run_for(0.1)
    assert len(bob.heard) == 1
    world.chat(alice, bob, 1.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"


def test_a_changed_network_is_survived_by_derp_and_repaired() -> None:
    world = MagicWorld()
    alice, bob = behind_nats(world, PORT_RESTRICTED, PORT_RESTRICTED)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 5.0)
    alice.program.give(lambda sock, now: sock.network_changed(now=now))
    assert alice.kind(bob) == "mixed"
    world.chat(alice, bob, 3.0)
    assert alice.kind(bob) == "direct"
    bob.program.give(lambda sock, now: sock.resumed(now=now))
    world.chat(alice, bob, 3.0)
    assert bob.kind(alice) == "direct"


def test_a_changed_network_has_the_connection_to_the_derp_server_checked() -> None:
    world = MagicWorld()
    alice, _ = behind_nats(world, PORT_RESTRICTED, PORT_RESTRICTED)
    for router in world.network.routers.values():
        router.reboot()
    alice.program.give(lambda sock, now: sock.network_changed(now=now))
    # Its silence would be noticed only after some 20 s.
    world.network.run_for(PONG_TIMEOUT + 1.0)
    assert len(alice.program.seen(DerpServerLost)) == 1
    assert alice.id in world.derp.machine.clients


def test_peers_without_disco_use_the_path_on_which_a_challenge_is_answered() -> None:
    world = MagicWorld()
    alice = world.app("alice", ip="203.0.113.1", scheme="quic")
    bob = world.app("bob", ip="203.0.113.2", scheme="quic")
    world.settle(alice, bob)
    # Neither answers pings: what begins with disco's magic is lost on the way.
    alice.learn(bob, *bob.sock.local_addresses, UdpAddress("203.0.113.9", 1), derp=True)
    for sock in (alice.sock, bob.sock):
        sock._finder._pinger.receive_datagrams = (  # type: ignore[method-assign]
            lambda batch, addr, *, now: None
        )
    alice.send(bob)
    world.network.run_for(0.2)
    assert {type(source) for source in bob.sources(alice)} == {UdpAddress, DerpAddress}
    assert bob.kind(alice) == "direct"
    bob.send(alice)
    world.network.run_for(0.1)
    assert alice.kind(bob) == "direct"
    world.network.run_for(2 * TRUST_TIME)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
    world.network.block_udp(alice.host, bob.host)
    world.chat(alice, bob, TRUST_TIME + 1.0)
    before = world.network.now
    world.chat(alice, bob, 2.0)
    assert set(bob.sources(alice, since=before)) == {via(alice)}


def test_the_same_run_repeats_to_the_last_datagram() -> None:
    def play() -> list[str]:
        world = MagicWorld(seed=5)
        alice, bob = behind_nats(world, PORT_RESTRICTED, SYMMETRIC)
        alice.learn(bob, derp=True)
        world.chat(alice, bob, 10.0)
        return [f"{event.time} {event.value}" for event in alice.program.events] + [
            str(entry) for entry in bob.heard
        ]

    assert play() == play()


def test_closing_goes_quiet() -> None:
    world = MagicWorld()
    alice, bob = behind_nats(world, PORT_RESTRICTED, PORT_RESTRICTED)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 2.0)
    alice.program.give(lambda sock, now: sock.close(now=now))
    assert alice.sock.get_timer() is None
    sent = alice.sock.stats.udp_sent
    alice.send(bob)
    bob.send(alice)
    world.network.run_for(20.0)
    assert alice.sock.stats.udp_sent == sent
    assert alice.sock.get_timer() is None


@pytest.mark.parametrize("tenths", range(0, 50, 3))
def test_an_idle_direct_path_stays_proven_wherever_in_the_heartbeat_it_began(tenths: int) -> None:
    world = MagicWorld()
    alice, bob = world.app("alice", ip="203.0.113.1"), world.app("bob", ip="203.0.113.2")
    world.settle(alice, bob)
    world.network.run_for(tenths / 10)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 0.3, every=0.1)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
    before = len(alice.kinds(bob)), len(bob.kinds(alice))
    world.network.run_for(30.0)
    assert (len(alice.kinds(bob)), len(bob.kinds(alice))) == before
