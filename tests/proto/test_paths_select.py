"""Which path is the better one, and what an address must be to be one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpAddress, DerpUrl, UdpAddress
from iroh_proto.key import SecretKey
from iroh_proto.paths.candidate import (
    ALIVE_TIME,
    INACTIVE_PATHS_LIMIT,
    PATHS_LIMIT,
    PING_INTERVAL,
    PathState,
    Reachability,
    is_candidate,
)
from iroh_proto.paths.select import (
    PAYLOAD_TRUST_LIMIT,
    SWITCH_GAIN,
    TRUST_TIME,
    BestAddress,
    PathInfo,
    is_better,
)
from iroh_proto.paths.state import (
    CALLS_BURST,
    CALLS_INTERVAL,
    CHALLENGE_INTERVAL,
    STAY_ALIVE_MIN_AGE,
    NodeState,
)
from iroh_proto.paths.udp_paths import DIAL_ADDRESSES_LIMIT, MOVED_TIME, UdpPaths

URL, OTHER_URL = (DerpUrl.from_str(f"https://{name}.example/") for name in ("one", "two"))
PEER = SecretKey(b"\x07" * 32).public
VIA, VIA_OTHER = DerpAddress(URL, PEER), DerpAddress(OTHER_URL, PEER)
FIRST, SECOND, THIRD = (UdpAddress("192.0.2.1", port) for port in (1, 2, 3))
FIRST_V6 = UdpAddress("2001:db8::1", 1)


def make_reach(*, ipv6: bool = True) -> Reachability:
    return Reachability(ipv4_socket=True, ipv6_socket=ipv6, ipv6_works=ipv6)


def make_paths(*addrs: UdpAddress) -> UdpPaths:
    paths = UdpPaths(reach=make_reach(), rng=random.Random(1))
    for addr in addrs:
        paths.add(addr, 0.0)
    return paths


def make_node(*addrs: UdpAddress, derp_url: DerpUrl | None = URL) -> NodeState:
    node = NodeState(PEER, reach=make_reach(), rng=random.Random(1), now=0.0)
    node.add_addresses(addrs, derp_url=derp_url, now=0.0)
    node.settle(0.0)
    return node


# Addresses


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:5", "[::]:5", "224.0.0.1:5", "[ff02::1]:5", "255.255.255.255:5", "10.0.0.1:0",
     "[fe80::1]:5"],
)  # fmt: skip
def test_nobody_is_at_such_addresses(text: str) -> None:
    addr = UdpAddress.from_str(text)
    assert not is_candidate(addr)
    assert make_paths(addr).paths == {}


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:5", "[::1]:5", "169.254.1.1:5", "10.0.0.1:5", "[fc00::1]:5", "8.8.8.8:65535"],
)
def test_a_peer_may_be_at_such_addresses(text: str) -> None:
    assert is_candidate(UdpAddress.from_str(text))


def test_a_family_without_a_socket_cannot_be_sent_to() -> None:
    loopback = UdpAddress("::1", 1)
    only_ipv4 = Reachability(ipv4_socket=True)
    assert [only_ipv4.can_send(a) for a in (FIRST, FIRST_V6, loopback)] == [True, False, False]
    useless_ipv6 = Reachability(ipv6_socket=True)
    assert [useless_ipv6.can_send(a) for a in (FIRST, FIRST_V6, loopback)] == [False, False, True]
    assert make_reach().can_send(FIRST_V6)


# Proofs


def test_a_proof_holds_up_to_its_end_and_not_at_it() -> None:
    best = BestAddress(FIRST, 0.1, 10.0)
    assert best.is_valid(10.0 + TRUST_TIME - 1e-9)
    assert not best.is_valid(10.0 + TRUST_TIME)
    best.distrust()
    assert not best.is_valid(10.0)
    best.confirm(12.0)
    assert best.is_valid(12.0)
    assert best.latency == 0.1


def test_the_latency_follows_the_pongs() -> None:
    best = BestAddress(FIRST, 0.100, 0.0)
    for number in range(1, 40):
        best.confirm(number, 0.020)
    assert best.latency == pytest.approx(0.020, abs=0.001)
    unknown = BestAddress(FIRST, None, 0.0)
    unknown.confirm(1.0, 0.5)
    assert unknown.latency == 0.5


def test_payload_keeps_a_proof_alive_but_not_without_end() -> None:
    best = BestAddress(FIRST, 0.1, 10.0)
    best.extend(14.0)
    assert best.trust_until == 14.0 + TRUST_TIME
    best.extend(10.0 + PAYLOAD_TRUST_LIMIT - 1.0)
    assert best.trust_until == 10.0 + PAYLOAD_TRUST_LIMIT
    best.extend(10.0 + PAYLOAD_TRUST_LIMIT)
    assert not best.is_valid(10.0 + PAYLOAD_TRUST_LIMIT)
    best.confirm(30.0, 0.1)
    best.extend(40.0)
    assert best.is_valid(46.0)


def test_payload_alone_keeps_a_proof_alive_that_was_no_pong() -> None:
    best = BestAddress(FIRST, None, 10.0)
    best.extend(100.0)
    assert best.is_valid(106.0)


def test_an_older_proof_takes_nothing_away() -> None:
    best = BestAddress(FIRST, 0.1, 10.0)
    best.confirm(5.0, 0.9)
    assert (best.confirmed_at, best.latency) == (10.0, 0.1)


@pytest.mark.parametrize(
    ("addr", "latency", "current", "current_latency", "expected"),
    [
        (FIRST, 0.010, SECOND, 0.016, True),
        (FIRST, 0.010, SECOND, 0.014, False),
        (FIRST, 0.010, FIRST, 0.500, False),
        (FIRST_V6, 0.012, FIRST, 0.015, True),
        (FIRST, 0.010, FIRST_V6, 0.017, False),
        (FIRST, 0.010, FIRST_V6, 0.0181, True),
        (FIRST, 9.0, SECOND, None, True),
        (FIRST, 9.0, FIRST, None, False),
    ],
)
def test_another_path_has_to_be_clearly_faster(
    addr: UdpAddress,
    latency: float,
    current: UdpAddress,
    current_latency: float | None,
    expected: bool,
) -> None:
    assert is_better(addr, latency, current, current_latency) is expected


@given(st.lists(st.floats(0.010, 0.010 + SWITCH_GAIN * 0.9), min_size=2, max_size=50))
def test_paths_with_jitter_below_the_gain_do_not_alternate(latencies: list[float]) -> None:
    paths = make_paths(FIRST, SECOND)
    paths.take_pong(FIRST, latencies[0], 0.0)
    for number, latency in enumerate(latencies[1:]):
        addr = (SECOND, FIRST)[number % 2]
        paths.take_pong(addr, latency, number * 0.1)
        assert paths.best is not None
        assert paths.best.addr == FIRST


def test_a_pong_for_a_dropped_path_proves_nothing() -> None:
    paths = make_paths(FIRST)
    assert not paths.take_pong(SECOND, 0.1, 1.0)
    assert paths.best is None


@pytest.mark.parametrize("source", [SECOND, THIRD], ids=["known", "unknown"])
def test_a_pong_from_another_address_proves_the_one_that_was_pinged_and_no_other(
    source: UdpAddress,
) -> None:
    node = make_node(FIRST, SECOND)
    node.note_disco(0.0)
    assert node.take_pong(FIRST, source, 0.1, 1.0)
    assert node.route(1.0) == ((FIRST,), None)
    latencies = {addr: path.latency for addr, path in node.udp.paths.items()}
    assert latencies == {FIRST: 0.1, SECOND: None}


def test_an_outdated_best_address_makes_way_for_any_proof() -> None:
    paths = make_paths(FIRST, SECOND)
    paths.take_pong(FIRST, 0.01, 0.0)
    paths.take_pong(SECOND, 0.9, TRUST_TIME)
    assert paths.best is not None
    assert paths.best.addr == SECOND


def test_a_lost_best_address_is_followed_by_the_fastest_that_is_still_proven() -> None:
    paths = make_paths(FIRST, SECOND, THIRD, FIRST_V6)
    paths.take_pong(THIRD, 0.300, 0.0)
    paths.take_pong(SECOND, 0.200, 1.0)
    paths.take_pong(FIRST, 0.010, 1.0)
    paths.take_pong(FIRST_V6, 0.200, 1.0)
    del paths.paths[FIRST]
    paths.settle(2.0)
    assert paths.best is not None
    assert (paths.best.addr, paths.best.trust_until) == (FIRST_V6, 1.0 + TRUST_TIME)
    del paths.paths[FIRST_V6]
    paths.settle(1.0 + TRUST_TIME)
    assert paths.best is None


def test_a_best_address_that_can_no_longer_be_sent_to_is_dropped() -> None:
    reach = make_reach()
    paths = UdpPaths(reach=reach, rng=random.Random(1))
    paths.add(FIRST_V6, 0.0)
    paths.take_pong(FIRST_V6, 0.1, 0.0)
    paths.settle(0.0)
    assert paths.is_proven(0.0)
    reach.ipv6_socket = False
    paths.settle(0.0)
    assert paths.best is None
    assert paths.chosen is None


def test_a_best_address_of_a_family_that_seems_not_to_work_stays_while_it_is_proven() -> None:
    reach = make_reach()
    paths = UdpPaths(reach=reach, rng=random.Random(1))
    paths.add(FIRST_V6, 0.0)
    paths.take_pong(FIRST_V6, 0.1, 0.0)
    reach.ipv6_works = False
    paths.settle(TRUST_TIME - 0.1)
    assert paths.is_proven(TRUST_TIME - 0.1)
    paths.settle(TRUST_TIME)
    assert paths.best is None
    assert paths.chosen is None


def test_a_call_me_maybe_takes_back_what_was_proven_of_addresses_it_does_not_name() -> None:
    paths = make_paths(FIRST, SECOND)
    paths.take_pong(FIRST, 0.1, 0.0)
    paths.take_pong(SECOND, 0.1, 0.0)
    assert paths.take_call_me_maybe([FIRST], 1.0)
    assert paths.paths[FIRST].pong is not None
    assert paths.paths[SECOND].pong is None
    assert not paths.take_call_me_maybe([SECOND], 2.0)
    assert not paths.is_proven(2.0)


# Limits


def test_paths_of_a_peer_are_bounded_and_the_useful_ones_stay() -> None:
    paths = make_paths(FIRST, SECOND)
    paths.take_pong(FIRST, 0.1, 0.0)
    paths.paths[SECOND].last_got_ping = 0.0
    for port in range(1, 1000):
        paths.add(UdpAddress("198.51.100.1", port), float(port))
    assert len(paths.paths) == PATHS_LIMIT
    assert {FIRST, SECOND} <= set(paths.paths)
    assert UdpAddress("198.51.100.1", 999) in paths.paths


def test_the_address_that_payload_goes_to_makes_no_room_for_others() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    named = [UdpAddress("192.0.2.9", port) for port in range(1, PATHS_LIMIT + 1)]
    node.udp.take_call_me_maybe(named, 1.0)
    node.settle(1.0)
    assert len(node.udp.paths) == PATHS_LIMIT
    assert node.route(1.0) == ((FIRST,), URL)


def test_addresses_that_only_pings_speak_for_push_out_no_other() -> None:
    paths = make_paths(FIRST)
    paths.take_call_me_maybe([FIRST], 0.0)
    for port in range(1, 1000):
        path = paths.add(UdpAddress("198.51.100.1", port), float(port))
        assert path is not None
        path.note_ping(port.to_bytes(12, "big"), float(port))
    assert FIRST in paths.paths


def test_long_dead_paths_are_pruned_the_never_alive_first_then_the_oldest() -> None:
    surplus = 3
    addrs = [UdpAddress("192.0.2.1", port) for port in range(1, INACTIVE_PATHS_LIMIT + surplus + 1)]
    paths = make_paths(*addrs)
    for age, addr in enumerate(addrs[1:]):
        paths.paths[addr].last_got_ping = float(age)
    paths.prune(ALIVE_TIME)
    assert len(paths.paths) == len(addrs)
    paths.prune(ALIVE_TIME + 100.0)
    assert list(paths.paths) == addrs[surplus:]


def test_a_path_with_payload_of_late_is_not_pruned() -> None:
    paths = make_paths(*(UdpAddress("192.0.2.1", port) for port in range(1, 40)))
    paths.paths[FIRST].last_payload = 500.0 - 45.0
    paths.prune(500.0)
    assert FIRST in paths.paths
    assert len(paths.paths) == INACTIVE_PATHS_LIMIT + 1


def test_copies_go_to_a_bounded_number_of_addresses_the_newest() -> None:
    node = make_node()
    for port in range(1, 100):
        node.add_addresses([UdpAddress("192.0.2.1", port)], derp_url=None, now=float(port))
    udp, url = node.route(100.0)
    assert len(udp) == DIAL_ADDRESSES_LIMIT
    assert (udp[0], url) == (UdpAddress("192.0.2.1", 99), URL)


def test_call_me_maybes_are_heeded_at_a_bounded_rate() -> None:
    node = make_node()
    heeded = [node.take_call_me_maybe([FIRST], 10.0) is not None for _ in range(10)]
    assert heeded == [True] * CALLS_BURST + [False] * (10 - CALLS_BURST)
    assert node.take_call_me_maybe([FIRST], 10.0 + CALLS_INTERVAL) is not None
    assert node.take_call_me_maybe([FIRST], 10.0 + CALLS_INTERVAL) is None


# The two schemes


def test_nothing_known_of_a_peer_means_copies_to_all_addresses_and_derp() -> None:
    node = make_node(FIRST, SECOND, FIRST_V6)
    assert node.route(0.0) == ((FIRST, SECOND, FIRST_V6), URL)
    assert node.info(0.0) == PathInfo(kind="mixed", addr=FIRST, derp_url=URL, latency=None)


def test_under_quic_an_answer_proves_an_address_and_payload_keeps_it_proven() -> None:
    node = make_node(FIRST, SECOND)
    node.adopt(SECOND, "quic", 1.0)
    node.settle(1.0)
    assert node.route(1.0) == ((FIRST, SECOND), URL)
    assert node.take_answer(SECOND, 0.1, 1.2)
    node.settle(1.2)
    assert node.route(1.2) == ((SECOND,), None)
    assert node.info(1.2).latency == 0.1
    assert node.route(1.2 + TRUST_TIME) == ((SECOND,), URL)
    node.confirm(SECOND, 5.0)
    node.settle(5.0)
    assert node.route(1.2 + TRUST_TIME) == ((SECOND,), None)
    assert node.route(5.0 + TRUST_TIME) == ((SECOND,), URL)


def test_under_quic_payload_alone_proves_nothing() -> None:
    """A copy of a genuine packet, sent on by somebody faster, must not lead traffic away."""
    node = make_node(FIRST)
    node.adopt(FIRST, "quic", 0.0)
    node.take_answer(FIRST, 0.1, 0.1)
    for tick in range(1, 100):
        node.confirm(SECOND, tick / 5)
        node.settle(tick / 5)
        assert node.route(tick / 5)[0] == (FIRST,)


def test_under_quic_payload_through_derp_ends_the_copies() -> None:
    node = make_node(FIRST, SECOND)
    node.adopt(VIA, "quic", 1.0)
    node.settle(1.0)
    assert node.route(1.0) == ((), URL)
    node.confirm(FIRST, 2.0)
    node.take_answer(FIRST, 0.1, 2.1)
    node.settle(2.1)
    assert node.route(2.1) == ((FIRST,), None)


def test_under_quic_a_peer_that_moved_is_followed_once_it_answers_there() -> None:
    node = make_node(FIRST)
    node.adopt(FIRST, "quic", 0.0)
    node.take_answer(FIRST, 0.01, 0.1)
    node.confirm(FIRST, 1.0)
    node.confirm(SECOND, 1.1)
    node.take_answer(SECOND, 0.3, 1.4)
    node.settle(1.4)
    assert node.route(1.4) == ((FIRST,), None)  # heard at both of late, and no slower
    node.confirm(SECOND, 1.0 + MOVED_TIME)
    node.settle(1.0 + MOVED_TIME)
    assert node.route(1.0 + MOVED_TIME) == ((SECOND,), None)
    node.confirm(THIRD, 3.0)
    node.settle(3.0)
    assert node.route(3.0) == ((SECOND,), None)
    assert node.next_change(3.0) == 1.4 + TRUST_TIME
    assert not node.take_answer(FIRST_V6, 0.1, 3.0)  # nobody is known to be there


def test_under_quic_where_payload_comes_from_is_challenged_now_and_then() -> None:
    node = make_node(FIRST)
    assert not node.wants_challenge(FIRST, 0.0)
    node.adopt(FIRST, "quic", 0.0)
    assert node.wants_challenge(FIRST, 0.0)
    assert not node.wants_challenge(VIA, 0.0)
    assert not node.wants_challenge(SECOND, 0.0)
    node.note_ping_sent(FIRST, 0.0)
    assert not node.wants_challenge(FIRST, CHALLENGE_INTERVAL - 0.1)
    assert node.wants_challenge(FIRST, CHALLENGE_INTERVAL)
    node.take_answer(FIRST, 0.1, 1.0)
    assert not node.wants_challenge(FIRST, 1.5)
    node.confirm(FIRST, 1.5)
    node.confirm(SECOND, 1.5)
    assert node.wants_challenge(SECOND, 1.5)
    node.take_answer(SECOND, 0.2, 1.6)
    node.settle(1.6)
    assert not node.wants_challenge(SECOND, 1.6 + PING_INTERVAL - 0.1)
    assert node.wants_challenge(SECOND, 1.6 + PING_INTERVAL)


def test_under_quic_a_new_dial_tries_all_addresses_again() -> None:
    node = make_node(FIRST)
    node.adopt(FIRST, "quic", 0.0)
    node.take_answer(FIRST, 0.1, 0.1)
    node.add_addresses([SECOND], derp_url=None, now=1.0)
    node.settle(1.0)
    assert node.route(1.0) == ((FIRST,), None)  # proven
    node.add_addresses([THIRD], derp_url=None, now=100.0)
    node.settle(100.0)
    assert node.route(100.0) == ((FIRST, SECOND, THIRD), URL)


def test_a_peer_that_was_silent_for_long_may_be_another_release() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    node.add_addresses([SECOND], derp_url=None, now=45.0)
    node.settle(45.0)
    assert len(node.route(45.0)[0]) == 1
    node.add_addresses([SECOND], derp_url=None, now=46.0)
    node.settle(46.0)
    assert node.route(46.0) == ((FIRST, SECOND), URL)
    assert node.remote_info(46.0).scheme == "unknown"


def test_under_quic_a_search_asks_udp_addresses_alone() -> None:
    node = make_node(FIRST, SECOND)
    node.adopt(FIRST, "quic", 0.0)
    search = node.note_send(100.0)
    assert search is not None
    assert (search.pings, search.call_me_maybe) == ([FIRST, SECOND], None)
    node.take_answer(FIRST, 0.001, 100.1)
    beat = node.beat(103.0)
    assert beat is not None
    assert (beat.pings, beat.call_me_maybe) == ([FIRST], None)


def test_under_quic_payload_through_another_derp_server_moves_the_peer_there() -> None:
    node = make_node()
    node.adopt(VIA, "quic", 0.0)
    node.confirm(VIA_OTHER, 1.0)
    assert node.route(1.0) == ((), OTHER_URL)


def test_a_peer_that_shows_disco_is_held_to_it_whatever_a_handshake_suggests() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    node.adopt(FIRST, "quic", 1.0)
    node.settle(1.0)
    assert node.remote_info(1.0).scheme == "disco"
    assert node.route(1.0) == ((FIRST,), URL)
    node.adopt(FIRST, "quic", 100.0)  # the same id after an upgrade: no disco for long
    node.settle(100.0)
    assert node.remote_info(100.0).scheme == "quic"
    assert node.route(100.0) == ((FIRST,), URL)


def test_under_disco_payload_from_an_unproven_address_moves_nothing() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    node.take_pong(FIRST, FIRST, 0.02, 0.0)
    node.confirm(SECOND, 1.0)
    node.settle(1.0)
    assert node.route(1.0) == ((FIRST,), None)
    node.confirm(SECOND, 7.0)
    node.settle(7.0)
    assert node.route(7.0) == ((FIRST,), URL)


def test_a_handshake_makes_its_address_the_one_to_try() -> None:
    node = make_node(*(UdpAddress("192.0.2.1", port) for port in range(1, 30)))
    node.note_disco(0.0)
    node.adopt(UdpAddress("192.0.2.1", 17), "disco", 1.0)
    node.settle(1.0)
    assert node.route(1.0) == ((UdpAddress("192.0.2.1", 17),), URL)


def test_a_ping_from_where_nothing_can_be_sent_is_not_pinged_back() -> None:
    node = NodeState(PEER, reach=make_reach(ipv6=False), rng=random.Random(1), now=0.0)
    assert node.take_ping(FIRST_V6, bytes(12), 0.0) == (True, False)
    assert node.take_ping(FIRST, bytes(12), 0.0) == (True, True)


def test_pongs_across_kinds_of_path_prove_nothing() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    assert not node.take_pong(FIRST, VIA, 0.1, 0.0)
    assert not node.take_pong(VIA, FIRST, 0.1, 0.0)
    assert not node.take_pong(VIA, VIA_OTHER, 0.1, 0.0)
    assert node.take_pong(VIA, VIA, 0.1, 0.0)
    assert node.info(0.0).latency == 0.1


def test_a_lost_ping_through_derp_is_repeated_at_once() -> None:
    node = make_node()
    node.note_ping_sent(VIA, 1.0)
    assert VIA not in node.search(2.0).pings
    node.take_ping_timeout(VIA, 1.0)
    assert VIA in node.search(2.0).pings
    node.take_ping_timeout(VIA_OTHER, 1.0)
    node.take_ping_timeout(SECOND, 1.0)


def test_a_call_without_the_best_address_takes_its_proof_back() -> None:
    node = make_node(FIRST, SECOND)
    node.note_disco(0.0)
    node.take_pong(FIRST, FIRST, 0.1, 0.0)
    node.search(0.5)
    node.note_ping_sent(SECOND, 0.5)
    search = node.take_call_me_maybe([SECOND], 1.0)
    node.settle(1.0)
    assert search is not None
    assert set(search.pings) == {VIA, FIRST, SECOND}
    assert search.call_me_maybe is None
    assert node.route(1.0) == ((FIRST,), URL)
    assert node.note_send(1.0) is not None


@pytest.mark.parametrize(
    "news",
    [
        lambda node: node.add_addresses([SECOND], derp_url=None, now=1.0),
        lambda node: node.add_addresses([], derp_url=OTHER_URL, now=1.0),
        lambda node: node.take_pong(VIA_OTHER, VIA_OTHER, 0.1, 1.0),
        lambda node: node.adopt(FIRST, "quic", 1.0),
    ],
    ids=["an address", "a server", "an answer through another server", "a handshake"],
)
def test_what_is_new_of_a_peer_has_payload_search_at_once(
    news: Callable[[NodeState], None],
) -> None:
    node = make_node(FIRST)
    node.take_ping(VIA_OTHER, bytes(12), 0.0)
    assert node.note_send(0.0) is not None
    assert node.note_send(1.0) is None
    news(node)
    node.settle(1.0)
    assert node.note_send(1.0) is not None


def test_who_turns_out_to_have_no_disco_is_asked_otherwise_where_it_was_just_pinged() -> None:
    node = make_node(FIRST)
    assert node.note_send(0.0) is not None
    node.note_ping_sent(FIRST, 0.0)
    node.adopt(VIA, "quic", 1.0)
    search = node.note_send(1.0)
    assert search is not None
    assert search.pings == [FIRST]


def test_a_call_without_the_best_address_has_payload_search_at_once() -> None:
    node = make_node(FIRST)
    node.take_pong(FIRST, FIRST, 0.001, 0.0)
    assert node.note_send(0.0) is not None
    node.take_call_me_maybe([FIRST], 1.0)
    assert node.note_send(1.0) is None
    node.take_call_me_maybe([SECOND], 1.0)
    assert node.note_send(1.0) is not None


def test_a_heartbeat_without_any_best_address_is_a_search() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    node.note_send(0.0)
    beat = node.beat(5.0)
    assert beat is not None
    assert (beat.pings, beat.call_me_maybe) == ([VIA, FIRST], URL)


def test_payload_from_where_no_peer_can_be_changes_nothing() -> None:
    node = make_node()
    node.confirm(UdpAddress("0.0.0.0", 5), 1.0)
    node.adopt(UdpAddress("0.0.0.0", 5), "quic", 1.0)
    assert node.route(1.0) == ((), URL)


def test_the_best_address_is_pinged_to_stay_alive() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    node.take_pong(FIRST, FIRST, 0.001, 0.0)
    node.settle(0.0)
    assert node.beat(1.0) is None  # not in use
    node.search(0.5)
    node.note_send(1.0)
    node.note_ping_sent(FIRST, 1.0)
    assert node.beat(1.0 + STAY_ALIVE_MIN_AGE - 0.1) is None
    beat = node.beat(1.0 + STAY_ALIVE_MIN_AGE)
    assert beat is not None
    assert (beat.pings, beat.call_me_maybe) == ([FIRST], None)


def test_what_is_known_of_a_peer_can_be_looked_at() -> None:
    node = make_node(FIRST)
    node.note_disco(0.0)
    node.take_pong(FIRST, FIRST, 0.02, 1.0)
    node.take_pong(VIA, VIA, 0.05, 1.0)
    node.note_send(2.0)
    info = node.remote_info(2.0)
    assert (info.node_id, info.scheme, info.derp_url) == (PEER, "disco", URL)
    assert (info.derp_latency, info.last_used) == (0.05, 2.0)
    assert [(path.addr, path.latency, path.last_alive) for path in info.paths] == [
        (FIRST, 0.02, 1.0)
    ]
    assert info.path == PathInfo(kind="direct", addr=FIRST, derp_url=None, latency=0.02)
    late = node.info(1.0 + TRUST_TIME)
    assert late == PathInfo(kind="mixed", addr=FIRST, derp_url=URL, latency=0.02)
    nowhere = make_node(derp_url=None).info(0.0)
    assert nowhere == PathInfo(kind="none", addr=None, derp_url=None, latency=None)


def test_a_new_path_is_due_for_a_ping() -> None:
    assert PathState(0.0).needs_ping(0.0)


def test_payload_through_another_server_is_no_reason_to_leave_the_own() -> None:
    node = make_node()
    node.note_derp_payload(OTHER_URL, 1.0)
    assert node.derp_url == URL
    assert node.last_used == 1.0


def test_what_becomes_of_an_address_where_nobody_can_be() -> None:
    node = make_node(FIRST)
    nowhere = UdpAddress("0.0.0.0", 5)
    node.note_ping_sent(nowhere, 1.0)
    assert node.take_ping(nowhere, bytes(12), 1.0) == (True, False)  # answered, and not pinged
    node.udp.distrust(nowhere)
    assert list(node.udp.paths) == [FIRST]
    assert node.udp.take_call_me_maybe([nowhere], 2.0)
    assert list(node.udp.paths) == [FIRST]


def test_a_handshake_may_have_come_from_several_addresses() -> None:
    node = make_node()
    node.adopt(FIRST, "quic", 1.0, callers=[SECOND, THIRD])
    assert set(node.udp.paths) == {FIRST, SECOND, THIRD}
    node.adopt(FIRST, "quic", 2.0)
    assert node.remote_info(2.0).scheme == "quic"


def test_another_than_the_best_address_is_distrusted_without_harm_to_that() -> None:
    paths = make_paths(FIRST, SECOND)
    assert paths.take_pong(FIRST, 0.01, 1.0)
    paths.distrust(SECOND)
    assert paths.is_proven(1.0)
    paths.distrust(FIRST)
    assert not paths.is_proven(1.0)
