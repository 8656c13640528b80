"""What went wrong in releases of iroh, one test for each lesson of its history.

The numbers are those of the list of lessons in the description of path selection; where a lesson
is about something else than paths, its test is with that.
"""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest

from iroh_proto.address import DerpAddress, UdpAddress
from iroh_proto.disco.pinger import (
    PING_TIMEOUT,
    CallMeMaybeReceived,
    PingReceived,
    PongReceived,
)
from iroh_proto.key import SecretKey
from iroh_proto.paths.candidate import (
    ALIVE_TIME,
    INACTIVE_PATHS_LIMIT,
    PathState,
    Reachability,
)
from iroh_proto.paths.finder import (
    ADDRESSES_FRESH_TIME,
    HEARTBEAT_INTERVAL,
    OwnAddressesWanted,
    PathChanged,
    PathFinder,
)
from iroh_proto.paths.select import TRUST_TIME
from iroh_proto.paths.state import NodeState
from iroh_proto.paths.udp_paths import UdpPaths
from tests.proto.path_world import DERP_LATENCY, UDP_LATENCY, URL, Packet, Peer, World

TESTS = Path(__file__).parents[1]

LESSONS = 24

# Slow work in the main loop: machines cannot do any, as the test of the import rules sees to.
LESSONS_WITHOUT_TEST = {14}

PEER = SecretKey(b"\x07" * 32).public
FIRST, SECOND, THIRD = (UdpAddress("192.0.2.1", port) for port in (1, 2, 3))
FIRST_V6 = UdpAddress("2001:db8::1", 1)


def is_udp(packet: Packet) -> bool:
    return isinstance(packet.target, UdpAddress)


def disco_of(peer: Peer, kind: str) -> list[Packet]:
    """Return the sealed datagrams a node sent by UDP or through DERP."""
    return [p for _, p in peer.sent if p.data is not None and is_udp(p) == (kind == "udp")]


def calls_heard(peer: Peer) -> list[float]:
    return [when for when, event in peer.events if isinstance(event, CallMeMaybeReceived)]


def make_node(now: float = 0.0, *, reach: Reachability | None = None) -> NodeState:
    reach = reach or Reachability(ipv4_socket=True, ipv6_socket=True, ipv6_works=True)
    return NodeState(PEER, reach=reach, rng=random.Random(1), now=now)


def make_disco_node(*addrs: UdpAddress, derp: bool = True) -> NodeState:
    node = make_node()
    node.note_disco(0.0)
    node.add_addresses(addrs, derp_url=URL if derp else None, now=0.0)
    node.settle(0.0)
    return node


def test_each_lesson_has_a_test() -> None:
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")]
    tested = {
        int(number) for text in texts for number in re.findall(r"def test_lesson_(\d+)", text)
    }
    assert tested == set(range(1, LESSONS + 1)) - LESSONS_WITHOUT_TEST


def test_lesson_01_a_ping_alone_proves_nothing_and_is_answered_with_pong_and_ping() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.drop = lambda packet: packet.sender is bob and is_udp(packet)
    alice.send(bob)
    world.run(UDP_LATENCY + 1e-6)
    assert [p.target for p in disco_of(bob, "udp")] == [alice.addr] * 2  # pong and ping back
    world.chat(alice, bob, 8.0)
    assert bob.kind(alice) == alice.kind(bob) == "mixed"  # pings of Alice arrive all the time


def test_lesson_02_calls_are_limited_but_the_heartbeat_always_tries_again() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, derp=True)
    world.drop = is_udp
    for _ in range(600):
        alice.send(bob)
        world.run(0.05)
    calls = calls_heard(bob)
    assert 6 <= len(calls) <= 14  # 30 s: not one for each payload, not only one either
    gaps = [later - earlier for earlier, later in itertools.pairwise(calls)]
    assert max(gaps) <= HEARTBEAT_INTERVAL + 1e-6


def test_lesson_03_calls_that_waited_for_fresh_addresses_are_sent_though_nothing_changed() -> None:
    world = World()
    alice, bob = world.pair()
    world.run(ADDRESSES_FRESH_TIME + 1.0)
    alice.learn(bob, derp=True)
    alice.send(bob)
    assert any(isinstance(event, OwnAddressesWanted) for _, event in alice.events)
    world.run(0.2 + DERP_LATENCY - 0.01)
    assert calls_heard(bob) == []
    world.run(0.02)
    assert len(calls_heard(bob)) == 1


def test_lesson_03_each_refresh_counts_as_fresh() -> None:
    world = World()
    alice, bob = world.pair()
    for _ in range(3):
        world.run(ADDRESSES_FRESH_TIME - 1.0)
        alice.refresh()
    alice.learn(bob, derp=True)
    alice.send(bob)
    world.run(DERP_LATENCY + 1e-6)
    assert len(calls_heard(bob)) == 1
    assert not any(isinstance(event, OwnAddressesWanted) for _, event in alice.events)


def test_lesson_04_new_addresses_have_their_chance_before_they_are_pruned() -> None:
    node = make_disco_node()
    old = [UdpAddress("192.0.2.9", port) for port in range(1, INACTIVE_PATHS_LIMIT + 11)]
    node.add_addresses(old, derp_url=None, now=0.0)
    now = ALIVE_TIME + 1.0
    search = node.take_call_me_maybe([FIRST, SECOND], now)
    assert search is not None
    assert {FIRST, SECOND} <= set(search.pings)
    node.add_addresses([THIRD], derp_url=None, now=now)
    for _ in range(3):
        assert THIRD in node.search(now).pings
        assert len(node.udp.paths) == INACTIVE_PATHS_LIMIT + 3


def test_lesson_05_a_ping_from_before_the_way_was_open_does_not_end_a_good_path() -> None:
    node = make_disco_node(FIRST)
    node.note_ping_sent(FIRST, 0.0)
    node.note_ping_sent(FIRST, 1.0)
    assert node.take_pong(FIRST, FIRST, 0.02, 1.1)
    node.take_ping_timeout(FIRST, 0.0)
    node.settle(5.0)
    assert node.route(5.0) == ((FIRST,), None)
    assert node.udp.paths[FIRST].last_ping == 1.0  # the later ping is still the last


def test_lesson_06_a_path_that_is_dropped_is_not_adopted_again_from_its_old_pong() -> None:
    node = make_disco_node(FIRST, SECOND)
    node.take_pong(FIRST, FIRST, 0.02, 1.0)
    node.note_ping_sent(FIRST, 1.5)
    node.take_ping_timeout(FIRST, 1.5)
    node.settle(6.5)
    assert node.udp.best is None
    assert node.route(6.5)[1] == URL


def test_lesson_07_payload_keeps_a_path_proven() -> None:
    node = make_disco_node(FIRST)
    node.take_pong(FIRST, FIRST, 0.02, 0.0)
    node.confirm(FIRST, TRUST_TIME - 0.5)
    node.settle(TRUST_TIME)
    assert node.route(TRUST_TIME) == ((FIRST,), None)
    assert node.route(2 * TRUST_TIME)[1] == URL


def test_lesson_10_one_unproven_address_is_chosen_and_kept() -> None:
    addrs = [UdpAddress("192.0.2.1", port) for port in range(1, 9)]
    node = make_disco_node(*addrs)
    routes = set()
    for number in range(100):
        now = number / 10
        node.note_send(now)
        node.settle(now)
        routes.add(node.route(now))
    ((udp, url),) = routes
    assert len(udp) == 1
    assert url == URL
    node.add_addresses([SECOND], derp_url=None, now=10.0)
    node.settle(10.0)
    assert node.route(10.0) == (udp, url)


def test_lesson_10_a_known_address_is_used_before_it_is_proven() -> None:
    node = make_disco_node(FIRST, derp=False)
    assert node.route(0.0) == ((FIRST,), None)


def test_lesson_11_ipv6_is_not_tried_when_it_leads_nowhere() -> None:
    reach = Reachability(ipv4_socket=True, ipv6_socket=True, ipv6_works=False)
    node = make_node(reach=reach)
    node.add_addresses([FIRST_V6, FIRST], derp_url=None, now=0.0)
    node.settle(0.0)
    assert node.route(0.0) == ((FIRST,), None)
    assert node.search(0.0).pings == [FIRST]
    node.note_disco(0.0)
    node.settle(0.0)
    assert node.route(0.0) == ((FIRST,), None)
    reach.ipv6_works = True
    assert node.search(0.0).pings == [FIRST_V6, FIRST]


def test_lesson_12_own_addresses_are_no_paths_to_a_peer() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, alice.addr, bob.addr, derp=True)
    assert alice.send(bob) == ((bob.addr,), URL)
    moved = UdpAddress("198.51.100.1", 7777)
    alice.learn(bob, moved)
    assert moved in alice.send(bob)[0]
    alice.finder.set_own_addresses((moved,), now=world.now)
    assert moved not in alice.send(bob)[0]


def test_lesson_12_a_peer_without_any_other_address_keeps_its_derp_server() -> None:
    world = World()
    alice, bob = world.pair()
    moved = UdpAddress("198.51.100.1", 7777)
    alice.learn(bob, moved, derp=True)
    alice.finder.set_own_addresses((moved,), now=world.now)
    assert alice.send(bob) == ((), URL)


def test_lesson_13_each_change_of_the_path_is_told_so_that_congestion_can_start_anew() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    world.chat(alice, bob, 2.0)
    world.drop = is_udp
    world.chat(alice, bob, 8.0)
    world.drop = lambda packet: False
    world.chat(alice, bob, 8.0)
    changes = [event for _, event in alice.events if isinstance(event, PathChanged)]
    kinds = [change.path.kind for change in changes]
    assert kinds == ["mixed", "direct", "mixed", "direct"]
    assert all(
        not before.path.is_same_way(after.path) for before, after in itertools.pairwise(changes)
    )


def test_lesson_20_a_known_node_without_any_address_is_no_error() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob)
    assert alice.send(bob) == ((), None)
    assert alice.kind(bob) == "none"


def test_lesson_22_late_pongs_are_counted_and_harmless() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr)
    alice.send(bob)
    world.drop = lambda packet: packet.sender is bob
    world.run(PING_TIMEOUT + 1.0)
    pong, *_ = [p.data for p in disco_of(bob, "udp") if p.data is not None]
    alice.events.clear()
    alice.finder.receive_datagrams([pong], bob.addr, now=world.now)
    alice.flush()
    assert alice.finder.stats.disco.unmatched_pongs == 1
    assert alice.events == []


def test_lesson_23_ages_count_forwards() -> None:
    path = PathState(0.0)
    path.last_payload = 10.0
    assert path.is_active(10.0 + 45.0)
    assert not path.is_active(10.0 + 45.1)
    path.last_ping = 10.0
    assert not path.needs_ping(15.0)
    assert path.needs_ping(15.1)
    node = make_node()
    assert not node.is_active(0.0)
    node.note_send(100.0)
    assert node.is_active(145.0)
    assert not node.is_active(145.1)


def test_lesson_24_pings_leave_before_the_call_that_announces_them() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, FIRST, bob.addr, derp=True)
    alice.send(bob)
    sent = [p for _, p in alice.sent if p.data is not None]
    assert [p.target for p in sent] == [
        DerpAddress(URL, bob.id),
        FIRST,
        bob.addr,
        DerpAddress(URL, bob.id),
    ]
    world.run(0.1)
    heard = [type(event) for _, event in bob.events if not isinstance(event, PathChanged)]
    assert heard.index(PingReceived) < heard.index(CallMeMaybeReceived)


def test_a_search_goes_on_when_one_ping_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iroh_proto.disco.pinger.OUTSTANDING_PINGS_LIMIT", 1)
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, FIRST, bob.addr, derp=True)
    alice.send(bob)
    world.run(0.1)
    assert len(calls_heard(bob)) == 1
    # What was not sent does not count as sent, so that the next search tries it.
    paths = alice.finder._nodes.get(bob.id)
    assert paths is not None
    assert paths.udp.paths[bob.addr].last_ping is None


def test_pruned_paths_take_their_index_along() -> None:
    """In iroh the address of a pruned path leads to the peer for ever."""
    paths = UdpPaths(reach=Reachability(ipv4_socket=True), rng=random.Random(1))
    for port in range(1, INACTIVE_PATHS_LIMIT + 2):
        paths.add(UdpAddress("192.0.2.1", port), 0.0)
    paths.take_pong(FIRST, 0.1, 0.0)
    for path in paths.paths.values():
        path.call_me_maybe_at = 10.0
    paths.prune(0.0 + ALIVE_TIME + 20.0)
    paths.settle(ALIVE_TIME + 20.0)
    assert FIRST not in paths.paths
    assert paths.best is None


def test_the_address_of_a_forgotten_path_leads_to_nobody() -> None:
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    finder.set_reachability(ipv4_socket=True, ipv6_socket=False, ipv6_works=False, now=0.0)
    finder.adopt(FIRST, PEER, "quic", now=0.0)
    finder.complete_challenge(1, now=0.1)
    assert finder.node_at(FIRST, now=1.0) == PEER
    finder.set_own_addresses([FIRST], now=2.0)
    assert finder.node_at(FIRST, now=2.0) is None
    assert finder._nodes.at(FIRST) is None


def test_pongs_are_announced_with_where_they_came_from() -> None:
    world = World()
    alice, bob = world.pair()
    alice.learn(bob, bob.addr, derp=True)
    alice.send(bob)
    world.run(0.1)
    pongs = [event for _, event in alice.events if isinstance(event, PongReceived)]
    assert {pong.addr for pong in pongs} == {bob.addr, DerpAddress(URL, bob.id)}


@pytest.mark.parametrize(("answered_at", "counts"), [(4.99, True), (PING_TIMEOUT, False)])
def test_an_answer_to_a_challenge_is_late_from_its_deadline_on(
    answered_at: float, counts: bool
) -> None:
    finder = PathFinder(secret_key=SecretKey(bytes(32)), rng=random.Random(1))
    finder.set_reachability(ipv4_socket=True, ipv6_socket=False, ipv6_works=False, now=0.0)
    finder.adopt(FIRST, PEER, "quic", now=0.0)
    finder.complete_challenge(1, now=answered_at)
    assert (finder.node_at(FIRST, now=answered_at) == PEER) is counts
    assert finder.stats.challenges_answered == counts
