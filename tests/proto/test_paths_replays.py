"""Old pings and pongs that somebody sends again: they open as well as fresh ones do."""

from __future__ import annotations

import random

from iroh_proto.address import DerpAddress, DerpUrl, UdpAddress
from iroh_proto.key import SecretKey
from iroh_proto.paths.candidate import PATHS_LIMIT, PING_INTERVAL, Reachability
from iroh_proto.paths.select import TRUST_TIME
from iroh_proto.paths.state import NodeState
from iroh_proto.paths.udp_paths import DIAL_ADDRESSES_LIMIT
from tests.proto.path_world import DERP_LATENCY, URL, World

PEER = SecretKey(b"\x07" * 32).public
HOME, OTHER = UdpAddress("192.0.2.1", 1), UdpAddress("192.0.2.1", 2)
REPLAYER = UdpAddress("198.51.100.66", 6666)
HOSTILE_URL = DerpUrl.from_str("https://hostile.example/")
HOSTILE = DerpAddress(HOSTILE_URL, PEER)
OLD = bytes(12)  # the transaction id of a ping from long ago


def make_node(*addrs: UdpAddress, derp_url: DerpUrl | None = URL) -> NodeState:
    reach = Reachability(ipv4_socket=True, ipv6_socket=True, ipv6_works=True)
    node = NodeState(PEER, reach=reach, rng=random.Random(1), now=0.0)
    node.add_addresses(addrs, derp_url=derp_url, now=0.0)
    node.settle(0.0)
    return node


def replay(node: NodeState, *sources: UdpAddress, now: float) -> None:
    for source in sources:
        node.take_ping(source, OLD, now)
        node.settle(now)


def test_a_ping_does_not_decide_how_a_peer_finds_paths() -> None:
    node = make_node()
    replay(node, REPLAYER, now=1.0)
    assert node.remote_info(1.0).scheme == "unknown"
    node.adopt(HOME, "quic", 2.0)
    node.take_answer(HOME, 0.1, 2.0)
    node.settle(2.0)
    replay(node, REPLAYER, now=3.0)
    assert node.remote_info(3.0).scheme == "quic"
    assert node.route(3.0) == ((HOME,), None)
    node.confirm(HOME, 8.0)
    assert node.route(8.0) == ((HOME,), None)


def test_a_ping_from_before_a_dial_does_not_lead_it_astray() -> None:
    node = make_node(derp_url=None)
    replay(node, REPLAYER, now=1.0)
    node.add_addresses([HOME], derp_url=None, now=2.0)
    node.settle(2.0)
    assert HOME in node.route(2.0)[0]


def test_a_ping_that_comes_twice_is_answered_once() -> None:
    for source in (HOME, DerpAddress(URL, PEER)):
        node = make_node(HOME)
        answers = []
        for tx_id in (OLD, OLD, b"another ping", b"another ping"):
            answers.append(node.take_ping(source, tx_id, 1.0)[0])
            node.settle(1.0)
        assert answers == [True, False, True, False]


def test_a_ping_that_comes_twice_is_asked_back_once() -> None:
    node = make_node(HOME)
    asks = []
    for _ in range(2):
        asks.append(node.take_ping(HOME, OLD, 1.0)[1])
        node.settle(1.0)
    assert asks == [True, False]


def test_one_ping_from_many_addresses_pushes_out_none_that_was_named() -> None:
    node = make_node(HOME)
    replay(node, *(UdpAddress("198.51.100.66", port) for port in range(1, 1000)), now=1.0)
    assert len(node.udp.paths) == PATHS_LIMIT
    udp, url = node.route(1.0)
    assert (len(udp), udp[0], url) == (DIAL_ADDRESSES_LIMIT, HOME, URL)


def test_the_one_unproven_address_is_not_one_of_which_only_pings_tell() -> None:
    node = make_node()
    node.note_disco(0.0)
    replay(node, REPLAYER, now=1.0)
    assert node.route(1.0)[0] == (REPLAYER,)  # for want of anything better
    node.add_addresses([HOME], derp_url=None, now=2.0)
    node.settle(2.0)
    replay(node, *(UdpAddress("198.51.100.66", port) for port in range(1, 50)), now=2.0)
    assert node.route(2.0)[0] == (HOME,)


def test_a_pong_sent_on_from_elsewhere_proves_nothing_of_that_place() -> None:
    node = make_node(HOME, derp_url=None)
    node.note_disco(0.0)
    replay(node, REPLAYER, now=0.0)
    assert node.take_pong(HOME, REPLAYER, 0.001, 1.0)
    node.settle(1.0)
    assert node.route(1.0) == ((HOME,), None)
    node.take_ping_timeout(HOME, 2.0)
    node.settle(2.0)
    assert not node.udp.is_proven(2.0)
    assert node.route(2.0) == ((HOME,), None)


def test_a_ping_through_another_derp_server_is_answered_there_and_asks_back() -> None:
    node = make_node()
    assert node.take_ping(HOSTILE, OLD, 1.0) == (True, True)
    node.note_ping_sent(HOSTILE, 1.0)
    assert node.take_ping(HOSTILE, OLD, 2.0) == (False, False)
    assert node.derp_url == URL
    assert node.take_ping(HOSTILE, b"1" * 12, 1.5 + PING_INTERVAL) == (True, True)
    node.take_ping_timeout(HOSTILE, 1.0)
    assert node.derp_url == URL


def test_the_peer_moves_to_another_derp_server_by_answering_there() -> None:
    node = make_node()
    node.take_ping(HOSTILE, OLD, 1.0)
    assert not node.take_pong(DerpAddress(URL, PEER), HOSTILE, 0.1, 1.0)
    assert not node.take_pong(HOSTILE, DerpAddress(URL, PEER), 0.1, 1.0)
    assert node.derp_url == URL
    assert node.take_pong(HOSTILE, HOSTILE, 0.1, 1.0)
    assert node.info(1.0).derp_url == HOSTILE_URL
    assert node.info(1.0).latency == 0.1
    assert node.take_ping(DerpAddress(URL, PEER), OLD, 2.0) == (True, True)


def test_a_peer_whose_server_is_not_known_is_answered_where_its_ping_came_from() -> None:
    node = make_node(derp_url=None)
    assert node.take_ping(HOSTILE, OLD, 1.0) == (True, False)
    assert node.derp_url == HOSTILE_URL


def test_pings_again_and_again_through_a_hostile_server_move_nobody() -> None:
    world = World()
    alice, bob = world.pair(firewall=True)
    alice.learn(bob, derp=True)
    bob.learn(alice, derp=True)
    # The hostile server carries nothing, it only says what it heard.
    world.drop = lambda packet: (
        isinstance(packet.target, UdpAddress) or packet.target.url == HOSTILE_URL
    )
    world.chat(alice, bob, 1.0)
    (ping, *_) = (p.data for p in world.log if p.sender is alice and p.data is not None)
    for _ in range(20):
        bob.finder.receive_datagrams([ping], DerpAddress(HOSTILE_URL, alice.id), now=world.now)
        bob.flush()
        world.chat(alice, bob, TRUST_TIME / 10)
        assert bob.send(alice)[1] == URL
    assert world.now - alice.payloads[-1][0] < 2 * DERP_LATENCY + 0.5
