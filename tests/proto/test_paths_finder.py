"""How nodes find a way to each other: the path finder among others of its kind."""

from __future__ import annotations

import random

import pytest

from iroh_proto.address import DerpAddress, DerpUrl, UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.disco.message import Ping, seal_envelope
from iroh_proto.disco.pinger import (
    PING_TIMEOUT,
    CallMeMaybeReceived,
    DiscoPinger,
    PingReceived,
    PongReceived,
)
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.paths import challenges, node_map
from iroh_proto.paths import finder as finder_module
from iroh_proto.paths.challenges import ChallengeRequested
from iroh_proto.paths.finder import ADDRESSES_FRESH_TIME, HEARTBEAT_INTERVAL, PathFinder
from iroh_proto.paths.select import TRUST_TIME
from tests.proto.path_world import DERP_LATENCY, UDP_LATENCY, URL, Packet, World

NOWHERE = UdpAddress("192.0.2.200", 9)


def is_udp(packet: Packet) -> bool:
    return isinstance(packet.target, UdpAddress)


def no_udp(packet: Packet) -> bool:
    return is_udp(packet)


def test_a_known_address_is_proven_by_one_round_trip() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr)
    assert alice.send(bob) == ((bob.addr,), None)
    world.run(2 * UDP_LATENCY + 0.001)
    info = alice.finder.path_info(bob.id)
    assert (info.kind, info.addr) == ("direct", bob.addr)
    assert info.latency == pytest.approx(2 * UDP_LATENCY)
    assert bob.finder.node_at(alice.addr, now=world.now) is None  # its own pong is on the way
    world.run(UDP_LATENCY)
    assert bob.finder.node_at(alice.addr, now=world.now) == alice.id


def test_two_firewalled_nodes_go_from_derp_to_direct() -> None:
    world = World()
    alice, bob = world.pair(firewall=True)
    alice.learn(bob, derp=True)
    assert alice.send(bob) == ((), URL)
    assert alice.kinds(bob) == ["derp"]
    world.run(DERP_LATENCY)
    assert bob.payloads == [(world.now, DerpAddress(URL, alice.id))]
    bob.send(alice)
    world.chat(alice, bob, 1.0, every=0.05)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
    assert alice.send(bob) == ((bob.addr,), None)
    took = next(when for when, event in alice.events if isinstance(event, PongReceived))
    assert took - 100.0 < 2 * DERP_LATENCY + 4 * UDP_LATENCY + 1e-6


def test_payload_goes_both_ways_until_a_pong_came() -> None:
    world = World()
    alice, bob = world.pair()
    world.drop = no_udp
    alice.learn(bob, bob.addr, derp=True)
    for _ in range(5):
        assert alice.send(bob) == ((bob.addr,), URL)
        world.run(1.0)
    world.drop = lambda packet: False
    world.chat(alice, bob, 6.0)
    assert alice.send(bob) == ((bob.addr,), None)


def test_an_idle_connection_stays_direct_by_its_heartbeat() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    alice.send(bob)
    world.run(40.0)
    assert alice.kind(bob) == "direct"
    assert alice.kinds(bob)[-1:] == ["direct"]


def test_a_dead_direct_path_falls_back_within_the_trust_time_and_comes_back() -> None:
    world = World()
    alice, bob = world.pair(firewall=True)
    alice.learn(bob, derp=True)
    world.chat(alice, bob, 3.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
    world.drop = no_udp
    world.chat(alice, bob, TRUST_TIME + 0.1)
    assert alice.kind(bob) == "mixed"
    assert alice.send(bob)[1] == URL
    before = len(bob.payloads)
    world.chat(alice, bob, 20.0)
    assert len(bob.payloads) - before >= 40
    world.drop = lambda packet: False
    world.chat(alice, bob, HEARTBEAT_INTERVAL + 1.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"


def test_without_any_traffic_the_path_is_announced_as_it_expires() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    alice.send(bob)
    world.run(1.0)
    assert alice.kind(bob) == "direct"
    world.drop = no_udp
    world.run(TRUST_TIME)
    assert alice.kinds(bob)[-2:] == ["direct", "mixed"]


def test_a_path_that_only_leads_here_is_given_up() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.chat(alice, bob, 3.0)
    assert alice.kind(bob) == "direct"
    world.drop = lambda packet: is_udp(packet) and packet.sender is alice
    world.chat(alice, bob, 25.0)
    # Bob's payload still arrives by UDP, but what Alice sends that way does not.
    assert any(source == bob.addr for when, source in alice.payloads if when > world.now - 1)
    assert alice.send(bob)[1] == URL


def test_strangers_that_ping_are_answered_and_known() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr)
    alice.send(bob)
    world.run(1.0)
    assert any(isinstance(event, PingReceived) for _, event in bob.events)
    assert bob.finder.stats.nodes == 1
    assert bob.finder.path_info(alice.id).kind == "direct"


def test_forged_pings_create_no_state() -> None:
    world = World()
    alice, bob = world.pair()
    mallory = SecretKey(bytes(32))
    box = SharedBox(mallory, bob.id)
    forged = seal_envelope(
        Ping(bytes(12), alice.id).encode(), sender=alice.id, box=box, nonce=bytes(24)
    )
    bob.finder.receive_datagrams([forged], NOWHERE, now=world.now)
    bob.flush()
    assert bob.finder.stats.nodes == 0
    assert bob.events == []
    assert bob.finder.datagrams_to_send() == []


def test_replayed_pings_move_nothing() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.chat(alice, bob, 1.0)
    (ping,) = [p.data for p in world.log if p.sender is alice and p.data is not None and is_udp(p)][
        :1
    ]
    assert ping is not None
    for number in range(1, 20):
        bob.finder.receive_datagrams([ping], UdpAddress("192.0.2.66", number), now=world.now)
        bob.flush()
        assert bob.send(alice) == ((alice.addr,), None)
    world.chat(alice, bob, 20.0)
    assert bob.send(alice) == ((alice.addr,), None)


def test_an_answer_through_another_derp_server_moves_the_peer_there() -> None:
    world = World()
    alice, bob = world.pair()
    bob.learn(alice, derp=True)
    other = type(URL).from_str("https://other.example/")
    alice.finder.add_node_addr(bob.id, (), derp_url=other, now=world.now)
    alice.send(bob)
    world.run(2 * DERP_LATENCY)
    assert bob.finder.remote_infos()[0].derp_url == URL  # who knows how old that ping was
    world.run(DERP_LATENCY + 1e-6)
    assert bob.finder.remote_infos()[0].derp_url == other


def test_payload_through_another_derp_server_does_not_move_a_peer_with_disco() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, derp=True)
    world.drop = no_udp
    world.chat(alice, bob, 1.0)
    other = type(URL).from_str("https://other.example/")
    bob.finder.note_derp_payload(DerpAddress(other, alice.id), now=world.now)
    bob.finder.confirm(alice.id, DerpAddress(other, alice.id), now=world.now)
    assert bob.send(alice)[1] == URL


def test_call_me_maybe_makes_the_peer_ping_every_address() -> None:
    world = World()
    alice, bob = world.pair(firewall=True)
    alice.learn(bob, derp=True)
    alice.send(bob)
    world.run(DERP_LATENCY + 1e-6)
    assert any(isinstance(event, CallMeMaybeReceived) for _, event in bob.events)
    assert [p.target for _, p in bob.sent if is_udp(p)] == [alice.addr]


def test_call_me_maybes_beyond_a_rate_are_ignored() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, derp=True)
    alice.send(bob)
    world.run(0.1)
    pinger = alice.finder._pinger
    for number in range(50):
        pinger.call_me_maybe(
            DerpAddress(URL, bob.id), [UdpAddress("192.0.2.7", 1 + number)], now=world.now
        )
    alice.flush()
    world.run(0.1)
    assert len([p for _, p in bob.sent if is_udp(p) and p.data]) < 30
    assert bob.finder.stats.calls_ignored > 40


def test_call_me_maybe_from_an_unknown_node_is_ignored() -> None:
    world = World()
    alice, bob = world.pair()
    alice.finder._pinger.call_me_maybe(DerpAddress(URL, bob.id), [alice.addr], now=world.now)
    alice.flush()
    world.run(0.1)
    assert bob.finder.stats.calls_ignored == 1
    assert bob.finder.stats.nodes == 0


def test_a_slow_path_is_upgraded_once_a_minute() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr)
    world.chat(alice, bob, 1.0)
    extra = UdpAddress("203.0.113.9", 1)
    alice.learn(bob, extra)
    world.chat(alice, bob, 130.0)
    pings = [when for when, p in alice.sent if p.target == extra]
    assert 1 < len(pings) <= 3


def test_peers_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_map, "NODES_LIMIT", 3)
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    ids = [SecretKey.generate(random.Random(number)).public for number in range(5)]
    for number, node_id in enumerate(ids[:4]):
        finder.add_node_addr(node_id, [NOWHERE], derp_url=None, now=float(number))
        finder.route(node_id, now=float(number)) if number < 2 else None
    assert finder.stats.nodes == 3
    assert finder.path_info(ids[2]).kind == "none"  # never used: the first to go


def test_a_ping_for_which_there_is_no_room_is_answered_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr)
    monkeypatch.setattr(node_map, "NODES_LIMIT", 0)
    alice.send(bob)
    world.run(1.0)
    assert any(isinstance(event, PongReceived) for _, event in alice.events)
    assert (bob.finder.stats.nodes, bob.finder.stats.strangers_refused) == (0, 1)


def test_a_peer_forgotten_in_mid_air_leaves_nothing_behind() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.chat(alice, bob, 1.0)
    world.run(ADDRESSES_FRESH_TIME)
    alice.finder.network_changed(now=world.now)
    alice.send(bob)  # its CallMeMaybe waits for fresh addresses
    alice.finder.forget(bob.id, now=world.now)
    alice.finder.confirm(bob.id, bob.addr, now=world.now)
    alice.refresh()
    world.run(0.1)
    calls = [event for _, event in bob.events if isinstance(event, CallMeMaybeReceived)]
    assert len(calls) == 1  # of the first dial


@pytest.mark.parametrize(("by_derp", "kind"), [(False, "direct"), (True, "mixed")])
def test_a_pong_proves_the_pinged_address_from_wherever_it_comes_by_udp(
    by_derp: bool, kind: str
) -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.drop = lambda packet: packet.sender is bob
    alice.send(bob)
    world.run(0.1)
    pong = next(p.data for _, p in bob.sent if is_udp(p) and p.data is not None)
    source = DerpAddress(URL, bob.id) if by_derp else NOWHERE
    alice.finder.receive_datagrams([pong], source, now=world.now)
    assert alice.finder.stats.pongs_ignored == by_derp
    assert alice.kind(bob) == kind
    assert alice.finder.path_info(bob.id).addr == bob.addr


def test_when_all_peers_are_in_use_the_application_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_map, "NODES_LIMIT", 2)
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    ids = [SecretKey.generate(random.Random(number)).public for number in range(3)]
    for node_id in ids[:2]:
        finder.add_node_addr(node_id, [NOWHERE], derp_url=None, now=0.0)
        finder.route(node_id, now=0.0)
    with pytest.raises(LocalProtocolError, match="in use"):
        finder.add_node_addr(ids[2], [], derp_url=None, now=1.0)
    assert not finder.note_derp_payload(DerpAddress(URL, ids[2]), now=1.0)
    assert finder.stats.strangers_refused == 1


def test_strangers_make_room_for_strangers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_map, "STRANGERS_LIMIT", 5)
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    friend = SecretKey.generate(random.Random("friend")).public
    finder.add_node_addr(friend, [NOWHERE], derp_url=None, now=0.0)
    for number in range(100):
        stranger = SecretKey.generate(random.Random(number)).public
        assert finder.note_derp_payload(DerpAddress(URL, stranger), now=1.0)
    assert finder.stats.nodes == 6
    assert friend in [info.node_id for info in finder.remote_infos()]


def test_unused_strangers_are_pruned_by_the_heartbeat() -> None:
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    finder.start(now=0.0)
    for number in range(100):
        stranger = SecretKey.generate(random.Random(number)).public
        finder.note_derp_payload(DerpAddress(URL, stranger), now=float(number) / 100)
    assert finder.stats.nodes == 100
    finder.handle_timer(now=50.0)
    assert finder.stats.nodes == node_map.INACTIVE_NODES_LIMIT


def test_of_peers_that_are_too_many_those_unused_for_longest_are_pruned() -> None:
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    finder.start(now=0.0)
    ids = [SecretKey.generate(random.Random(number)).public for number in range(100)]
    for number, node_id in enumerate(ids):
        finder.note_derp_payload(DerpAddress(URL, node_id), now=number / 100)
    finder.note_derp_payload(DerpAddress(URL, ids[0]), now=2.0)
    finder.handle_timer(now=50.0)
    latest = ids[1 - node_map.INACTIVE_NODES_LIMIT :]
    assert [info.node_id for info in finder.remote_infos()] == [ids[0], *latest]


def test_a_peer_that_the_application_named_is_kept_before_one_that_it_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_map, "NODES_LIMIT", 2)
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    named, caller, third = (SecretKey.generate(random.Random(n)).public for n in range(3))
    finder.add_node_addr(named, [NOWHERE], derp_url=None, now=0.0)
    finder.adopt(DerpAddress(URL, caller), caller, "disco", now=1.0)
    finder.add_node_addr(third, [NOWHERE], derp_url=None, now=100.0)
    assert [info.node_id for info in finder.remote_infos()] == [named, third]


def test_a_peer_is_found_where_another_one_was_that_is_forgotten() -> None:
    world = World()
    finder, former = quic_peer(world)
    latter = SecretKey.generate(random.Random("another without disco"))
    finder.adopt(NOWHERE, latter.public, "quic", now=world.now)
    for challenge in challenges_of(finder):
        finder.complete_challenge(challenge.request_id, now=world.now)
    assert finder.node_at(NOWHERE, now=world.now) == latter.public
    finder.forget(former.public, now=world.now)
    assert finder.node_at(NOWHERE, now=world.now) == latter.public


def test_forgotten_peers_are_gone() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.chat(alice, bob, 1.0)
    alice.finder.forget(bob.id, now=world.now)
    assert alice.finder.path_info(bob.id).kind == "none"
    assert alice.finder.node_at(bob.addr, now=world.now) is None
    assert alice.send(bob) == ((), None)


def test_a_network_change_takes_all_proofs_back() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.chat(alice, bob, 1.0)
    alice.finder.network_changed(now=world.now)
    alice.flush()
    assert alice.kinds(bob)[-1] == "mixed"
    world.chat(alice, bob, 1.0)
    assert alice.kind(bob) == "direct"


def test_after_a_network_change_payload_looks_for_a_way_at_once() -> None:
    world = World()
    alice, bob = world.pair()
    world.drop = no_udp
    alice.learn(bob, bob.addr)
    alice.send(bob)
    alice.sent.clear()
    alice.send(bob)
    assert [packet.data for _, packet in alice.sent] == [None]
    alice.finder.network_changed(now=world.now)
    alice.send(bob)
    assert len([packet for _, packet in alice.sent if packet.data is not None]) == 1


def test_after_a_network_change_old_addresses_are_told_to_nobody() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, derp=True)
    alice.finder.network_changed(now=world.now)
    alice.send(bob)
    world.run(0.15)
    assert not any(isinstance(event, CallMeMaybeReceived) for _, event in bob.events)
    world.run(0.15)
    assert any(isinstance(event, CallMeMaybeReceived) for _, event in bob.events)


def test_a_new_address_of_ones_own_is_no_reason_to_look_for_peers_that_are_not_in_use() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    alice.finder.set_own_addresses([alice.addr, NOWHERE], now=world.now)
    assert alice.finder.datagrams_to_send() == []


def test_one_is_no_peer_of_oneself() -> None:
    world = World()
    alice, _ = world.pair()
    with pytest.raises(LocalProtocolError):
        alice.learn(alice, alice.addr)


def test_after_close_nothing_is_due() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    alice.send(bob)
    alice.finder.close(now=world.now)
    assert alice.finder.get_timer() is None


def test_after_close_a_proof_that_ends_is_no_news() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr)
    alice.send(bob)
    world.run(1.0)
    assert alice.kind(bob) == "direct"
    alice.finder.close(now=world.now)
    assert alice.finder.get_timer() is None


def quic_peer(world: World) -> tuple[PathFinder, SecretKey]:
    """Return a node that a peer without disco has just shaken hands with, from ``NOWHERE``."""
    alice, _ = world.pair()
    peer = SecretKey.generate(random.Random("without disco"))
    alice.finder.adopt(NOWHERE, peer.public, "quic", now=world.now)
    return alice.finder, peer


def challenges_of(finder: PathFinder) -> list[ChallengeRequested]:
    events = iter(finder.next_event, None)
    return [event for event in events if isinstance(event, ChallengeRequested)]


def test_an_answered_challenge_proves_a_path_and_one_that_expired_does_not() -> None:
    world = World()
    finder, peer = quic_peer(world)
    (challenge,) = challenges_of(finder)
    assert (challenge.node_id, challenge.addr) == (peer.public, NOWHERE)
    finder.complete_challenge(challenge.request_id, now=world.now + 0.1)
    assert finder.path_info(peer.public).kind == "direct"
    assert finder.stats.challenges_answered == 1

    finder, peer = quic_peer(World())
    (challenge,) = challenges_of(finder)
    late = world.now + PING_TIMEOUT
    finder.handle_timer(now=late)
    finder.complete_challenge(challenge.request_id, now=late)
    assert finder.path_info(peer.public).latency is None
    assert finder.stats.challenges_answered == 0


def test_the_answer_of_a_peer_that_was_forgotten_means_nothing() -> None:
    world = World()
    finder, peer = quic_peer(world)
    (challenge,) = challenges_of(finder)
    finder.forget(peer.public, now=world.now)
    finder.complete_challenge(challenge.request_id, now=world.now)
    assert finder.path_info(peer.public).kind == "none"
    assert finder.stats.challenges_answered == 0
    with pytest.raises(LocalProtocolError, match="no request"):
        finder.complete_challenge(challenge.request_id + 1, now=world.now)


def test_challenges_end_with_their_peer_and_with_the_node() -> None:
    world = World()
    finder, peer = quic_peer(world)
    assert len(challenges_of(finder)) == 1
    finder.forget(peer.public, now=world.now)
    finder.handle_timer(now=world.now + PING_TIMEOUT)
    assert finder.next_event() is None
    finder, _ = quic_peer(World())
    finder.close(now=world.now)
    assert finder.get_timer() is None


def test_challenges_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenges, "CHALLENGES_LIMIT", 1)
    world = World()
    finder, _ = quic_peer(world)
    other = SecretKey.generate(random.Random("another without disco"))
    finder.adopt(UdpAddress("192.0.2.201", 9), other.public, "quic", now=world.now)
    assert len(challenges_of(finder)) == 1
    assert finder.stats.challenges_sent == 1


def test_it_says_where_a_peer_answered_of_late() -> None:
    world = World()
    alice, bob = world.pair()
    assert not alice.finder.has_ponged(bob.id, bob.addr)
    alice.learn(bob, bob.addr)
    alice.send(bob)
    assert not alice.finder.has_ponged(bob.id, bob.addr)
    world.run(1.0)
    assert alice.finder.has_ponged(bob.id, bob.addr)
    assert not alice.finder.has_ponged(bob.id, NOWHERE)
    world.drop = no_udp
    world.run(TRUST_TIME)
    assert not alice.finder.has_ponged(bob.id, bob.addr)


def test_peers_that_were_named_before_the_start_are_looked_after_from_then_on() -> None:
    finder = PathFinder(secret_key=SecretKey.generate(random.Random(1)), rng=random.Random(1))
    peer = SecretKey.generate(random.Random(2)).public
    finder.add_node_addr(peer, [NOWHERE], derp_url=None, now=1.0)
    finder.start(now=2.0)
    assert finder.get_timer() == 2.0 + HEARTBEAT_INTERVAL


def test_nothing_becomes_of_news_of_those_that_are_not_known() -> None:
    world = World()
    alice, bob = world.pair()
    alice.finder.confirm(bob.id, bob.addr, now=world.now)
    alice.finder.distrust(bob.id, bob.addr, now=world.now)
    alice.finder.forget(bob.id, now=world.now)
    assert alice.finder.next_event() is None
    assert alice.finder.remote_infos() == []


def test_a_handshake_of_one_too_many_finds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_map, "NODES_LIMIT", 1)
    world = World()
    finder, peer = quic_peer(world)
    finder.route(peer.public, now=world.now)
    other = SecretKey.generate(random.Random("one too many"))
    finder.adopt(NOWHERE, other.public, "quic", now=world.now)
    assert [info.node_id for info in finder.remote_infos()] == [peer.public]
    assert finder.stats.strangers_refused == 1


def test_strangers_make_room_for_who_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_map, "NODES_LIMIT", 1)
    world = World()
    alice, bob = world.pair()
    alice.finder.note_derp_payload(DerpAddress(URL, bob.id), now=world.now)
    peer = SecretKey.generate(random.Random("no stranger")).public
    alice.finder.add_node_addr(peer, [NOWHERE], derp_url=None, now=world.now)
    assert [info.node_id for info in alice.finder.remote_infos()] == [peer]
    assert alice.finder.stats.nodes_forgotten == 1


def test_challenges_end_in_the_order_they_were_sent() -> None:
    world = World()
    finder, peer = quic_peer(world)
    assert len(challenges_of(finder)) == 1
    later = UdpAddress("192.0.2.201", 9)
    finder.adopt(later, peer.public, "quic", now=world.now + 1.0)
    (challenge,) = challenges_of(finder)
    finder.handle_timer(now=world.now + PING_TIMEOUT)
    finder.complete_challenge(challenge.request_id, now=world.now + PING_TIMEOUT)
    assert finder.path_info(peer.public).addr == later
    assert finder.stats.challenges_answered == 1


def test_an_answer_from_an_address_that_turned_out_to_be_ones_own_proves_nothing() -> None:
    world = World()
    finder, peer = quic_peer(world)
    (challenge,) = challenges_of(finder)
    finder.set_own_addresses([NOWHERE], now=world.now)
    finder.complete_challenge(challenge.request_id, now=world.now)
    assert finder.stats.challenges_answered == 0
    assert finder.path_info(peer.public).kind == "none"


def test_who_shook_hands_without_disco_is_not_pinged_through_a_derp_server() -> None:
    world = World()
    finder, peer = quic_peer(world)
    home = DerpUrl.from_str("https://home.example/")
    finder.add_node_addr(peer.public, [], derp_url=home, now=world.now)
    finder.adopt(NOWHERE, peer.public, "quic", now=world.now)
    finder.datagrams_to_send()
    own = world.peers["alice"].secret.public
    ping = seal_envelope(
        Ping(bytes(12), peer.public).encode(),
        sender=peer.public,
        box=SharedBox(peer, own),
        nonce=bytes(24),
    )
    finder.receive_datagrams([ping], DerpAddress(URL, peer.public), now=world.now)
    sent = finder.datagrams_to_send()
    assert [len(transmit.datagrams) for transmit in sent] == [1]  # the pong, and no ping


def test_a_ping_in_the_name_of_another_address_is_answered_and_asked_back_once() -> None:
    world = World()
    alice = world.peer("alice", "198.51.100.1:1001")
    alice.begin()
    mallory = DiscoPinger(secret_key=SecretKey.generate(random.Random(5)), rng=random.Random(5))
    mallory.ping(alice.addr, alice.id, now=world.now)
    (transmit,) = mallory.datagrams_to_send()
    victim = UdpAddress("192.0.2.66", 1)
    alice.finder.receive_datagrams(transmit.datagrams, victim, now=world.now)
    alice.flush()
    world.run(120.0)
    sent = [packet.data for _, packet in alice.sent if packet.target == victim]
    assert len(sent) == 2  # a pong and a ping
    assert sum(len(data or b"") for data in sent) <= 3 * len(transmit.datagrams[0])


def test_who_pings_through_a_derp_server_is_in_use_from_the_first_ping() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, derp=True)
    world.drop = lambda packet: packet.data is None
    alice.send(bob)
    world.run(DERP_LATENCY)
    (info,) = bob.finder.remote_infos()
    assert info.last_used == world.now


def test_strangers_leave_pings_for_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder_module, "STRANGERS_PINGS_LIMIT", 3)
    world = World()
    alice, bob = world.pair()
    secret_key = SecretKey.generate(random.Random(5))
    mallory = DiscoPinger(secret_key=secret_key, rng=random.Random(5))
    stranger = DerpAddress(URL, secret_key.public)
    mallory.ping(DerpAddress(URL, alice.id), alice.id, now=world.now)
    nowhere = [UdpAddress("192.0.2.66", port) for port in range(1, 11)]
    mallory.call_me_maybe(DerpAddress(URL, alice.id), nowhere, now=world.now)
    for transmit in mallory.datagrams_to_send():
        alice.finder.receive_datagrams(transmit.datagrams, stranger, now=world.now)
    assert alice.finder.stats.disco.unsent > 0
    alice.learn(bob, bob.addr)
    alice.send(bob)
    world.run(1.0)
    assert alice.kind(bob) == "direct"
