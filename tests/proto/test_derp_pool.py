"""All DERP servers of one node: home, dialling, routes, what waits and what is let go."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from iroh_proto.address import DerpAddress, DerpUrl
from iroh_proto.derp.datagram_frames import SendDatagram
from iroh_proto.derp.dialects import v2
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    RecvPacket,
    SendPacket,
)
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.derp.pool import (
    APPROACHES_LIMIT,
    CLOSING_LIMIT,
    HEAD_START,
    HOME_PATIENCE,
    IDLE_TIME,
    SERVERS_LIMIT,
    DerpDatagrams,
    DerpPeerGone,
    DerpPool,
    DerpServerConnected,
    DerpServerLost,
    DerpServerTroubled,
    DerpServerUnreachable,
    HomeDerpChanged,
)
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.server_link import (
    ADDRESSES_LIMIT,
    DIAL_TIMEOUT,
    FIRST_BACKOFF,
    LAST_BACKOFF,
    RECEIVED_LIMIT,
    WAITING_BATCHES_LIMIT,
    WAITING_LIMIT,
    WAITING_TIME,
)
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from tests.proto.derp_peer import RELAY_WAYS
from tests.proto.derp_world import (
    CLIENT_KEY,
    OTHER_PEER,
    PEER,
    RELAY_V1_SERVER,
    RELAY_V2_SERVER,
    SERVER_KEY,
    V2_SERVER,
    V3_SERVER_0_14,
    WEBSOCKET_SERVER,
    Answers,
    Host,
    PoolWorld,
)

A, B, C = (DerpUrl.from_str(f"http://{name}") for name in "abc")
ELSEWHERE = DerpUrl.from_str("https://elsewhere.example:444")


def world(
    *names: str, answers: dict[str, Answers] | None = None, dialect: str | None = None
) -> PoolWorld:
    """Return a world with a map of these servers, all of v3 unless said otherwise."""
    answers = answers or {}
    hosts = {name: Host(answers[name]) if name in answers else Host() for name in [*names, "c"]}
    hosts["elsewhere.example"] = Host()
    return PoolWorld(hosts, DerpMap([DerpNode(f"http://{n}", dialect=dialect) for n in names]))


def started(*names: str) -> PoolWorld:
    """Return a world whose pool has found its home."""
    w = world(*names)
    w.start()
    w.take_events()
    return w


def sent_to(host: Host) -> list[Frame]:
    """Return the packets that a server received, on all its connections."""
    frames = [frame for side in host.sides.values() for frame in side.frames]
    return [frame for frame in frames if isinstance(frame, SendPacket | SendDatagram)]


def packet(payload: bytes, dst: NodeId = PEER) -> SendPacket:
    return SendPacket(dst, len(payload).to_bytes(2, "little") + payload)


# Home


def test_the_first_server_of_the_map_becomes_the_home() -> None:
    w = world("a", "b")
    w.start()
    assert w.take_events() == [
        DerpServerConnected(url=A, dialect="v3"),
        HomeDerpChanged(url=A),
    ]
    assert w.pool.home == A
    assert w.pool.is_connected(A)
    assert not w.pool.is_connected(B)
    assert w.hosts["a"].side.frames == [NotePreferred(True)]
    assert w.requests == [TcpRequested(tcp_id=0, host="a", port=80, tls=False)]
    w.run(300.0)
    assert w.hosts["b"].dialled_at == []


def test_a_server_that_refuses_gives_way_at_once() -> None:
    w = world("a", "b")
    w.hosts["a"].is_up = False
    w.start()
    assert w.pool.home == B
    first = w.take_events()[0]
    assert isinstance(first, DerpServerUnreachable)
    assert (first.url, first.error) == (A, "refused")
    w.run(300.0)
    assert w.hosts["a"].dialled_at == [0.0]


def test_a_server_that_says_nothing_gives_way_after_its_head_start() -> None:
    w = world("a", "b", "c")
    w.hosts["a"].is_silent = True
    w.start()
    w.run(HEAD_START - 0.01)
    assert w.hosts["b"].dialled_at == []
    w.run(HEAD_START)
    assert w.pool.home == B
    assert w.hosts["c"].dialled_at == []
    # The loser of the race is let go.
    assert w.requests[-1] == TcpCloseRequested(tcp_id=0)
    assert w.pool.get_timer() == pytest.approx(HEAD_START + 15.0)


def test_a_loser_of_the_race_that_was_sent_through_stays() -> None:
    w = world("a", "b", "c")
    w.hosts["a"].is_silent = w.hosts["b"].is_silent = True
    w.start()
    w.pool.send_datagrams(A, PEER, [b"x"], now=0.0)
    w.run(2 * HEAD_START)
    assert w.pool.home == C
    assert w.requests[-1] == TcpCloseRequested(tcp_id=1)  # of b; that of a goes on
    assert TcpCloseRequested(tcp_id=0) not in w.requests


def test_a_late_first_server_may_still_win() -> None:
    w = world("a", "b")
    w.hosts["a"].is_silent = w.hosts["b"].is_silent = True
    w.start()
    w.run(HEAD_START + 1.0)
    w.hosts["a"].is_silent = False
    w.run(DIAL_TIMEOUT + 1.0)
    assert w.pool.home == A
    assert w.hosts["b"].dialled_at == [HEAD_START]
    assert w.requests[-1] == TcpCloseRequested(tcp_id=1)


def test_the_search_for_a_home_does_not_end() -> None:
    w = world("a", "b")
    w.hosts["a"].is_up = w.hosts["b"].is_up = False
    w.start()
    w.run(200.0)
    assert w.pool.home is None
    w.hosts["b"].is_up = True
    w.run(200.0 + LAST_BACKOFF)
    assert w.pool.home == B


def test_without_a_map_there_is_no_home_but_servers_can_be_used() -> None:
    w = world()
    w.start()
    assert w.pool.get_timer() is None
    w.pool.send_datagrams(ELSEWHERE, PEER, [b"x"], now=0.0)
    w.settle()
    assert w.requests == [TcpRequested(tcp_id=0, host="elsewhere.example", port=444, tls=True)]
    assert sent_to(w.hosts["elsewhere.example"]) == [packet(b"x")]
    assert w.pool.home is None


def test_lesson_15_a_lost_home_is_connected_again_without_anything_to_send() -> None:
    w = started("a", "b")
    w.run(100.0)
    w.take_down(w.hosts["a"])
    lost = w.take_events()[0]
    assert isinstance(lost, DerpServerLost)
    assert isinstance(lost.error, RemoteProtocolError)
    w.run(103.0)
    w.hosts["a"].is_up = True
    w.take_events()
    w.run(107.0)
    assert w.take_events()[-1] == DerpServerConnected(url=A, dialect="v3")
    assert w.pool.home == A
    assert w.hosts["a"].side.frames == [NotePreferred(True)]
    assert w.hosts["b"].dialled_at == []


def test_a_home_that_stays_away_is_replaced() -> None:
    w = started("a", "b")
    w.run(100.0)
    w.take_down(w.hosts["a"])
    w.run(100.0 + HOME_PATIENCE - 0.01)
    assert w.pool.home == A
    w.run(100.0 + HOME_PATIENCE)
    assert w.pool.home == B
    assert w.take_events()[-1] == HomeDerpChanged(url=B)
    assert w.hosts["b"].side.frames == [NotePreferred(True)]
    # The former home is let go, and stays second choice when it is back.
    w.hosts["a"].is_up = True
    w.run(400.0)
    assert w.pool.home == B
    assert not w.pool.is_connected(A)


def test_a_home_that_throws_its_clients_out_is_replaced() -> None:
    w = started("a", "b")
    w.run(100.0)
    w.hosts["a"].closes_at_once = True
    w.take_down(w.hosts["a"])
    w.hosts["a"].is_up = True
    w.run(100.0 + HOME_PATIENCE - 0.01)
    assert w.pool.home == A
    w.run(100.0 + 2 * HOME_PATIENCE)
    assert w.pool.home == B


def test_a_home_is_not_given_up_for_nothing() -> None:
    w = started("a", "b")
    w.run(100.0)
    w.hosts["b"].is_up = False
    w.take_down(w.hosts["a"])
    w.run(150.0)
    assert w.pool.home == A
    w.hosts["a"].is_up = True
    w.run(150.0 + LAST_BACKOFF)
    assert w.pool.home == A
    assert w.pool.is_connected(A)
    w.hosts["b"].is_up = True
    w.run(400.0)
    assert not w.pool.is_connected(B)


def test_the_home_may_be_set() -> None:
    w = started("a", "b")
    w.pool.set_home(B, now=1.0)
    w.settle()
    assert w.pool.home == B
    assert w.hosts["a"].side.frames == [NotePreferred(True), NotePreferred(False)]
    assert w.hosts["b"].side.frames == [NotePreferred(True)]
    assert w.take_events()[0] == HomeDerpChanged(url=B)
    w.pool.set_home(B, now=2.0)
    w.settle()
    assert not any(isinstance(event, HomeDerpChanged) for event in w.take_events())
    w.run(1.0 + IDLE_TIME)
    assert not w.pool.is_connected(A)
    assert w.pool.is_connected(B)


# Dialling


def test_pauses_between_attempts_grow_and_differ() -> None:
    w = world("a")
    w.hosts["a"].is_up = False
    w.start()
    w.run(120.0)
    pauses = [later - earlier for earlier, later in pairwise(w.hosts["a"].dialled_at)]
    for number, pause in enumerate(pauses):
        longest = min(LAST_BACKOFF, FIRST_BACKOFF * 2**number)
        assert longest / 2 <= pause <= longest
    assert len({round(pause / 2**number, 9) for number, pause in enumerate(pauses[:8])}) == 8
    retries = [event for event in w.take_events() if isinstance(event, DerpServerUnreachable)]
    assert [event.retry_in for event in retries][: len(pauses)] == pytest.approx(pauses)
    assert w.pool.stats.dials_failed == w.pool.stats.dials == len(pauses) + 1


def test_a_connection_that_worked_is_made_again_at_once() -> None:
    w = started("a")
    w.run(50.0)
    w.hosts["a"].sides.clear()
    w.pool.receive_tcp_eof(0, now=50.0)
    w.settle()
    assert w.hosts["a"].dialled_at == [0.0, 50.0]
    assert w.pool.is_connected(A)


@pytest.mark.parametrize("answers_pings", [False, True])
def test_a_server_that_throws_its_clients_out_is_not_hammered(answers_pings: bool) -> None:
    w = world("a")
    w.hosts["a"].closes_at_once = True
    w.hosts["a"].answers_pings = answers_pings
    w.start()
    w.run(60.0)
    assert 10 < len(w.hosts["a"].dialled_at) < 25


def test_two_nodes_with_one_key_do_not_fight_without_a_pause() -> None:
    # Each time one connects, the server closes the connection of the other.
    w = world("a")
    w.start()
    for _ in range(200):
        w.now += 0.001
        if w.hosts["a"].sides:
            w.hosts["a"].is_up = True
            w.take_down(w.hosts["a"])
            w.hosts["a"].is_up = True
        w.run(w.now)
    assert len(w.hosts["a"].dialled_at) < 10


def test_a_dial_takes_ten_seconds_at_most() -> None:
    w = world("a")
    w.hosts["a"].is_silent = True
    w.start()
    assert w.pool.get_timer() == DIAL_TIMEOUT
    w.run(DIAL_TIMEOUT)
    assert w.requests == [
        TcpRequested(tcp_id=0, host="a", port=80, tls=False),
        TcpCloseRequested(tcp_id=0),
    ]
    (event,) = w.take_events()
    assert isinstance(event, DerpServerUnreachable)
    assert "no connection within 10 s" in event.error
    # The host may have been at it: too late.
    w.pool.complete_tcp(0, now=w.now)
    w.pool.complete_tcp(0, error="timed out", now=w.now)
    w.pool.receive_tcp_data(0, b"x", now=w.now)
    w.pool.receive_tcp_eof(0, now=w.now)
    assert w.pool.next_event() is None


@pytest.mark.parametrize(
    ("answers", "dials", "dialect"),
    [
        (V2_SERVER, 2, "v2"),
        (V3_SERVER_0_14, 2, "v3"),
        (WEBSOCKET_SERVER, 2, "v3"),
        (RELAY_V1_SERVER, 2, "relay-v1"),
        (RELAY_V2_SERVER, 2, "relay-v2"),
    ],
)
def test_what_a_server_speaks_is_found_out_and_remembered(
    answers: Answers, dials: int, dialect: str
) -> None:
    w = world(answers={"c": answers})
    w.start()
    for used_at in (0.0, 100.0, 200.0):
        w.run(used_at)
        w.pool.send_datagrams(C, PEER, [b"x"], now=w.now)
        w.settle()
        w.run(used_at + 2.0)
        datagram = SendDatagram(PEER, 0, b"x") if dialect in RELAY_WAYS else packet(b"x")
        assert sent_to(w.hosts["c"]) == [datagram]
        connected = [e for e in w.take_events() if isinstance(e, DerpServerConnected)]
        assert connected == [DerpServerConnected(url=C, dialect=dialect)]
        # Once known, one dial is enough, even after the connection was idle and let go.
        assert len(w.hosts["c"].dialled_at) == dials
        dials += 1


def test_a_configured_dialect_is_not_guessed() -> None:
    w = world("a", answers={"a": V2_SERVER}, dialect="v2")
    w.start()
    assert w.take_events()[0] == DerpServerConnected(url=A, dialect="v2")
    assert w.hosts["a"].dialled_at == [0.0]
    with pytest.raises(LocalProtocolError, match="no DERP dialect"):
        world("a", dialect="v7")


def test_a_server_that_changed_is_found_out_again() -> None:
    w = world("a", answers={"a": V2_SERVER})
    w.start()
    w.run(10.0)
    assert w.pool.is_connected(A)
    w.take_down(w.hosts["a"])
    w.hosts["a"].answers = {("/relay", "framed"): "v3"}
    w.hosts["a"].is_up = True
    w.take_events()
    w.run(15.0)
    assert w.take_events()[-1] == DerpServerConnected(url=A, dialect="v3")


def test_what_speaks_nothing_we_know_is_asked_with_pauses() -> None:
    w = world("a", answers={"a": {("/relay", "framed"): "400", ("/relay", "websocket"): "400"}})
    w.start()
    w.run(100.0)
    assert 10 < len(w.hosts["a"].dialled_at) < 50
    assert w.pool.home is None


# Sending


def test_lesson_16_a_server_is_dialled_once_and_datagrams_wait_for_it() -> None:
    w = started("a")
    w.hosts["c"].is_silent = True
    w.pool.send_datagrams(C, PEER, [b"one", b"two"], now=1.0)
    w.settle()
    w.pool.send_datagrams(C, OTHER_PEER, [b"three"], now=1.5)
    w.settle()
    assert len(w.hosts["c"].dialled_at) == 1
    connect(w, "c", at=2.0)
    assert sent_to(w.hosts["c"]) == [
        SendPacket(PEER, b"\x03\x00one\x03\x00two"),
        packet(b"three", OTHER_PEER),
    ]
    w.run(10.0)
    assert w.pool.stats.datagrams_expired == 0


def connect(w: PoolWorld, name: str, *, at: float) -> None:
    """Have the last dial succeed that a silent host got."""
    w.run(at)
    request = [request for request in w.requests if isinstance(request, TcpRequested)][-1]
    w.hosts[name].is_silent = False
    w.dial(w.hosts[name], request.tcp_id)
    w.settle()


def test_lesson_17_what_waits_for_a_dial_is_kept_for_its_time_and_then_counted() -> None:
    w = started("a")
    w.hosts["c"].is_silent = True
    for sent_at in (1.0, 2.0):
        w.pool.send_datagrams(C, PEER, [b"x", b"y"], now=sent_at)
        w.settle()
    w.run(1.0 + WAITING_TIME - 0.01)
    assert w.pool.stats.datagrams_expired == 0
    w.run(1.0 + WAITING_TIME)
    assert w.pool.stats.datagrams_expired == 2
    connect(w, "c", at=4.5)
    assert sent_to(w.hosts["c"]) == [SendPacket(PEER, b"\x01\x00x\x01\x00y")]


def test_what_waits_is_bounded() -> None:
    w = started("a")
    w.hosts["c"].is_silent = True
    for _ in range(WAITING_BATCHES_LIMIT + 5):
        w.pool.send_datagrams(C, PEER, [b""], now=1.0)
    assert w.pool.stats.datagrams_pushed_out == 5
    big = bytes(60_000)
    for _ in range(10):
        w.pool.send_datagrams(C, PEER, [big], now=1.0)
    w.settle()
    connect(w, "c", at=1.0)
    sizes = [len(frame.payload) for frame in sent_to(w.hosts["c"]) if isinstance(frame, SendPacket)]
    assert sum(sizes) <= WAITING_LIMIT + 2 * len(sizes)
    assert sizes[-4:] == [60_002] * 4


def test_a_node_is_reached_where_it_was_heard_while_its_server_is_away() -> None:
    w = started("a")
    w.push(w.hosts["a"], RecvPacket(PEER, b"\x02\x00hi"))
    w.hosts["c"].is_up = False
    w.pool.send_datagrams(C, PEER, [b"routed"], now=1.0)
    w.settle()
    assert sent_to(w.hosts["a"]) == [packet(b"routed")]
    assert len(w.hosts["c"].dialled_at) == 1
    # Not when it left, nor for others.
    w.push(w.hosts["a"], PeerGone(PEER))
    w.pool.send_datagrams(C, PEER, [b"gone"], now=2.0)
    w.pool.send_datagrams(C, OTHER_PEER, [b"other"], now=2.0)
    w.settle()
    assert len(sent_to(w.hosts["a"])) == 1


def test_a_connection_to_the_named_server_comes_before_a_route() -> None:
    w = started("a")
    w.pool.send_datagrams(C, OTHER_PEER, [b"first"], now=0.0)
    w.settle()
    w.push(w.hosts["a"], RecvPacket(PEER, b"\x02\x00hi"))
    w.pool.send_datagrams(C, PEER, [b"direct"], now=1.0)
    w.settle()
    assert packet(b"direct") in sent_to(w.hosts["c"])
    assert sent_to(w.hosts["a"]) == []


def test_routes_end_with_their_connection() -> None:
    w = started("a")
    w.push(w.hosts["a"], RecvPacket(PEER, b"\x02\x00hi"))
    w.run(10.0)
    w.take_down(w.hosts["a"])
    w.hosts["a"].is_up = True
    w.run(30.0)
    assert w.pool.is_connected(A)
    w.pool.send_datagrams(C, PEER, [b"x"], now=30.0)
    w.settle()
    assert sent_to(w.hosts["a"]) == []
    assert sent_to(w.hosts["c"]) == [packet(b"x")]


def test_nothing_is_no_reason_to_dial() -> None:
    w = started("a")
    w.pool.send_datagrams(C, PEER, [], now=1.0)
    w.settle()
    assert w.hosts["c"].dialled_at == []


def test_connections_that_nothing_is_sent_through_are_closed() -> None:
    w = started("a")
    for sent_at in (0.0, 50.0):
        w.run(sent_at)
        w.pool.send_datagrams(C, PEER, [b"x"], now=sent_at)
        w.settle()
    w.run(50.0 + IDLE_TIME - 1.0)
    # Receiving does not count.
    w.push(w.hosts["c"], RecvPacket(PEER, b"\x02\x00hi"))
    assert w.pool.is_connected(C)
    w.take_events()
    w.run(50.0 + IDLE_TIME)
    assert w.take_events() == [DerpServerLost(url=C, error=None)]
    assert w.hosts["c"].sides == {}
    w.run(1000.0)
    assert w.pool.is_connected(A)
    assert len(w.hosts["c"].dialled_at) == 1


def test_a_server_that_is_away_and_unused_is_not_dialled_for_ever() -> None:
    w = started("a")
    w.hosts["c"].is_up = False
    w.pool.send_datagrams(C, PEER, [b"x"], now=0.0)
    w.settle()
    w.run(1000.0)
    assert max(w.hosts["c"].dialled_at) <= IDLE_TIME


# Receiving


def test_what_is_received_names_its_server() -> None:
    w = started("a")
    w.pool.send_datagrams(C, PEER, [b"x"], now=0.0)
    w.settle()
    packets = [RecvPacket(PEER, b"\x01\x00a\x01\x00b"), RecvPacket(OTHER_PEER, b"\x01\x00c")]
    w.push(w.hosts["a"], *packets)
    w.push(w.hosts["c"], RecvPacket(PEER, b"\x01\x00d"))
    assert w.pool.received_payloads() == [
        DerpDatagrams(DerpAddress(A, PEER), [b"a", b"b"]),
        DerpDatagrams(DerpAddress(A, OTHER_PEER), [b"c"]),
        DerpDatagrams(DerpAddress(C, PEER), [b"d"]),
    ]
    assert w.pool.received_payloads() == []


def test_received_datagrams_compare_by_content_and_show_no_content() -> None:
    address = DerpAddress(A, PEER)
    received = DerpDatagrams(address, [b"secret"])
    assert received != DerpDatagrams(address, [])
    assert received != b"secret"
    assert repr(received) == f"DerpDatagrams({PEER.fmt_short()} via http://a/, sizes=[6])"


def test_what_nobody_takes_is_bounded() -> None:
    w = started("a")
    for _ in range(3):
        w.push(w.hosts["a"], *[RecvPacket(PEER, b"\0\0")] * (RECEIVED_LIMIT // 2))
    assert len(w.pool.received_payloads()) == RECEIVED_LIMIT
    assert w.pool.stats.payloads_dropped == RECEIVED_LIMIT // 2


def test_addresses_of_many_nodes_are_right_and_not_all_kept() -> None:
    w = started("a")
    rng = random.Random(5)
    ids = [SecretKey.generate(rng).public for _ in range(ADDRESSES_LIMIT + 3)]
    w.push(w.hosts["a"], *[RecvPacket(node_id, b"\0\0") for node_id in [*ids, ids[0]]])
    received = [payload.address.node_id for payload in w.pool.received_payloads()]
    assert received == [*ids, ids[0]]


def test_news_of_servers_are_passed_on() -> None:
    w = started("a")
    w.push(w.hosts["a"], Health("sick"), PeerGone(PEER))
    assert w.take_events() == [
        DerpServerTroubled(url=A, problem="sick"),
        DerpPeerGone(url=A, node_id=PEER),
    ]


def test_garbage_from_a_server_costs_only_its_connection() -> None:
    w = started("a")
    w.run(10.0)
    w.pool.receive_tcp_data(0, b"\xff" * 50, now=10.0)
    w.settle()
    events = w.take_events()
    assert isinstance(events[0], DerpServerLost)
    assert "unknown frame number 255" in str(events[0].error)
    assert events[1] == DerpServerConnected(url=A, dialect="v3")


# The network changes


def test_lesson_16_a_connection_that_survives_a_change_of_network_is_kept() -> None:
    w = started("a")
    w.run(10.0)
    pings = w.hosts["a"].side.pings
    w.pool.network_changed(now=10.0)
    w.settle()
    assert w.hosts["a"].side.pings == pings + 1
    w.run(30.0)
    assert w.take_events() == []


@pytest.mark.parametrize("answers", [{}, {"a": V2_SERVER}])
def test_a_connection_that_does_not_is_made_again_in_seconds(answers: dict[str, Answers]) -> None:
    w = world("a", answers=answers)
    w.start()
    w.run(10.0)
    w.take_events()
    w.hosts["a"].side.answers_pings = False
    w.pool.network_changed(now=10.0)
    w.settle()
    w.run(15.0)
    lost, again = w.take_events()
    assert isinstance(lost, DerpServerLost)
    assert isinstance(again, DerpServerConnected)


def test_a_change_of_network_ends_pauses_and_hopeless_dials() -> None:
    w = world("a", "b")
    w.hosts["a"].is_silent = True
    w.hosts["b"].is_up = False
    w.start()
    w.run(8.0)
    dials = len(w.hosts["b"].dialled_at)
    w.pool.network_changed(now=8.0)
    w.settle()
    assert w.hosts["a"].dialled_at == [0.0, 8.0]
    assert w.hosts["b"].dialled_at[dials:] == [8.0]
    w.run(8.0)
    w.hosts["b"].is_up = True
    w.pool.network_changed(now=8.5)
    w.settle()
    assert w.pool.home == B


# The end, misuse, bounds


def test_closing_writes_what_waits_and_ends_everything() -> None:
    w = started("a")
    w.hosts["b"] = Host(WEBSOCKET_SERVER)
    w.pool.send_datagrams(DerpUrl.from_str("ws://b"), PEER, [b"x"], now=0.0)
    w.settle()
    a, b = w.hosts["a"].side, w.hosts["b"].side
    w.hosts["c"].is_silent = True
    w.pool.send_datagrams(C, PEER, [b"never"], now=0.0)
    w.settle()
    w.pool.send_datagrams(A, PEER, [b"last words"], now=1.0)
    w.pool.close(now=1.0)
    assert set(w.pool.tcp_to_send()) == {0, 1}
    w.settle()
    assert a.frames[-1] == packet(b"last words")
    assert b.codec is not None
    assert b.codec.is_closed
    assert w.pool.get_timer() is None
    assert w.pool.tcp_to_send() == []
    assert w.take_events()[-2:] == [
        DerpServerLost(url=A, error=None),
        DerpServerLost(url=DerpUrl.from_str("ws://b"), error=None),
    ]
    w.pool.send_datagrams(A, PEER, [b"too late"], now=2.0)
    w.pool.set_home(C, now=2.0)
    w.pool.network_changed(now=2.0)
    w.pool.close(now=2.0)
    w.pool.handle_timer(now=2.0)
    w.pool.receive_tcp_data(0, b"x", now=2.0)
    assert w.pool.next_event() is None
    assert w.pool.stats.datagrams_refused == 2
    assert w.pool.stats.clients.datagrams_sent == 2
    with pytest.raises(LocalProtocolError):
        w.pool.start(now=2.0)


def test_a_server_that_was_never_connected_is_not_lost_by_closing() -> None:
    w = world("a", answers={"a": V2_SERVER}, dialect="v2")
    w.hosts["a"].is_slow = True
    w.start()
    w.pool.close(now=0.5)
    w.settle()
    assert w.take_events() == []
    assert w.requests[-1] == TcpCloseRequested(tcp_id=0)


def test_a_pool_that_was_never_started_can_be_closed() -> None:
    pool = world("a").pool
    pool.network_changed(now=0.0)
    pool.close(now=0.0)
    assert pool.next_event() is None
    assert pool.get_timer() is None


def test_misuse_is_refused() -> None:
    w = world("a")
    with pytest.raises(LocalProtocolError, match="not started"):
        w.pool.send_datagrams(A, PEER, [b"x"], now=0.0)
    with pytest.raises(LocalProtocolError, match="not started"):
        w.pool.set_home(A, now=0.0)
    w.hosts["a"].is_silent = True
    w.start()
    for wrong in (1, -1):
        with pytest.raises(LocalProtocolError, match="not asked for"):
            w.pool.complete_tcp(wrong, now=0.0)
    with pytest.raises(LocalProtocolError, match="not complete"):
        w.pool.receive_tcp_data(0, b"x", now=0.0)
    with pytest.raises(LocalProtocolError, match="not complete"):
        w.pool.receive_tcp_eof(0, now=0.0)
    connect(w, "a", at=1.0)
    with pytest.raises(LocalProtocolError, match="complete already"):
        w.pool.complete_tcp(0, now=1.0)
    with pytest.raises(LocalProtocolError, match="started once"):
        w.pool.start(now=1.0)
    with pytest.raises(LocalProtocolError, match="at most 65502"):
        w.pool.send_datagrams(A, PEER, [bytes(DATAGRAM_LIMIT + 1)], now=1.0)
    assert w.pool.tcp_data_to_send(99) == b""


def test_servers_are_bounded_and_the_home_is_not_the_one_to_go() -> None:
    w = started("a")
    w.run(1.0)
    for number in range(SERVERS_LIMIT + APPROACHES_LIMIT + 5):
        url = DerpUrl.from_str(f"http://host{number}")
        w.hosts[url.host] = Host()
        w.now += 0.01
        w.pool.send_datagrams(url, PEER, [b"x"], now=w.now)
        w.settle()
    asked = {r.tcp_id for r in w.requests if isinstance(r, TcpRequested)}
    closed = {r.tcp_id for r in w.requests if isinstance(r, TcpCloseRequested)}
    assert len(asked - closed) == SERVERS_LIMIT
    assert w.pool.is_connected(A)
    assert not w.pool.is_connected(DerpUrl.from_str("http://host0"))


def test_last_bytes_that_nobody_fetches_are_bounded() -> None:
    w = started("a")
    urls = [DerpUrl.from_str(f"http://host{number}") for number in range(CLOSING_LIMIT + 9)]
    for url in urls:
        w.hosts[url.host] = Host()
        w.pool.send_datagrams(url, PEER, [b"x"], now=0.0)
        w.settle()
    for url in urls:
        w.pool.send_datagrams(url, PEER, [b"y"], now=0.0)
    w.pool.close(now=0.0)
    assert len(w.pool.tcp_to_send()) == CLOSING_LIMIT


def test_counts_outlive_their_connections() -> None:
    w = started("a")
    w.push(w.hosts["a"], RecvPacket(PEER, b"\x01\x00a"))
    w.run(10.0)
    w.take_down(w.hosts["a"])
    w.hosts["a"].is_up = True
    w.run(20.0)
    w.push(w.hosts["a"], RecvPacket(PEER, b"\x01\x00a"))
    assert w.pool.stats.clients.datagrams_received == 2


# With the real server


@pytest.mark.parametrize("dialects", [("v2", "v3"), ("v3", "v2"), ("v3", None)])
def test_two_pools_reach_each_other_through_one_server(
    dialects: tuple[str | None, str | None],
) -> None:
    server = DerpServer(secret_key=SERVER_KEY, rng=random.Random(1))
    keys = [CLIENT_KEY, SecretKey.from_bytes(b"\x07" * 32)]
    pools = [
        DerpPool(
            secret_key=key,
            derp_map=DerpMap([DerpNode(A, dialect=dialect)]),
            rng=random.Random(2),
        )
        for key, dialect in zip(keys, dialects, strict=True)
    ]

    def settle(now: float) -> None:
        """Carry bytes; connection 0 of pool n is connection n of the server."""
        for _ in range(20):
            for number, pool in enumerate(pools):
                for event in iter(pool.next_event, None):
                    if isinstance(event, TcpRequested):
                        assert event.tcp_id == 0
                        server.accept_tcp(number, now=now)
                        pool.complete_tcp(0, now=now)
                if pool.tcp_to_send():
                    server.receive_tcp_data(number, pool.tcp_data_to_send(0), now=now)
            for number in server.tcp_to_send():
                pools[number].receive_tcp_data(0, server.tcp_data_to_send(number), now=now)

    for pool in pools:
        pool.start(now=0.0)
    settle(0.0)
    for now in (0.3, 0.5, 1.0):
        server.handle_timer(now=now)
        settle(now)
    assert all(pool.is_connected(A) for pool in pools)
    for sender, receiver in ((0, 1), (1, 0)):
        datagrams = [b"from", str(sender).encode()]
        pools[sender].send_datagrams(A, keys[receiver].public, datagrams, now=2.0)
        settle(2.0)
        address = DerpAddress(A, keys[sender].public)
        assert pools[receiver].received_payloads() == [DerpDatagrams(address, datagrams)]


def test_a_wrong_guess_about_a_slow_server_is_made_good() -> None:
    w = world("a", answers={"a": V2_SERVER})
    w.hosts["a"].is_slow = True
    w.start()
    w.hosts["a"].is_slow = False
    w.run(1.0)
    guessed, _, lost, connected = w.take_events()
    assert guessed == DerpServerConnected(url=A, dialect="v3")
    assert isinstance(lost, DerpServerLost)
    assert connected == DerpServerConnected(url=A, dialect="v2")
    assert w.hosts["a"].dialled_at == [0.0, 0.0, 1.0]


def test_a_frame_before_the_handshake_is_done_is_a_failed_dial() -> None:
    w = world("a", answers={"a": V2_SERVER}, dialect="v2")
    w.hosts["a"].is_silent = True
    w.start()
    w.pool.complete_tcp(0, now=0.0)
    head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: iroh derp http\r\n\r\n"
    codec = v2.DIALECT.server_codec("framed")
    w.pool.receive_tcp_data(0, head + codec.encode(KeepAlive()), now=0.0)
    w.settle()
    (event,) = w.take_events()
    assert isinstance(event, DerpServerUnreachable)
    assert "wanted ServerKey" in event.error


def test_each_server_is_shown_its_own_token_and_no_other() -> None:
    derp_map = DerpMap([DerpNode(A, token="for-a"), DerpNode(B, token="for-b")])
    pool = DerpPool(secret_key=CLIENT_KEY, derp_map=derp_map, rng=random.Random(1))
    pool.start(now=0.0)
    for url in (B, C):
        pool.send_datagrams(url, PEER, [b"x"], now=0.0)
    shown = {}
    while (event := pool.next_event()) is not None:
        if isinstance(event, TcpRequested):
            pool.complete_tcp(event.tcp_id, now=0.0)
            head = pool.tcp_data_to_send(event.tcp_id).decode()
            shown[event.host] = [line for line in head.splitlines() if "uthorization" in line]
    assert shown == {
        "a": ["Authorization: Bearer for-a"],
        "b": ["Authorization: Bearer for-b"],
        "c": [],
    }


def test_a_node_that_was_heard_elsewhere_once_is_reached_where_it_is_now() -> None:
    w = started("a")
    w.push(w.hosts["a"], RecvPacket(PEER, b"\x02\x00hi"))
    w.run(3_600.0)
    for number in range(3):
        w.pool.send_datagrams(C, PEER, [bytes([number])], now=3_600.0 + number)
        w.settle()
    assert sent_to(w.hosts["c"])[-2:] == [packet(b"\1"), packet(b"\2")]


def test_a_home_is_found_after_however_many_other_servers_were_used() -> None:
    w = world("a")
    w.hosts["a"].is_up = False
    w.start()
    w.run(1.0)
    for number in range(SERVERS_LIMIT):
        w.hosts[f"x{number}"] = Host()
        url = DerpUrl.from_str(f"http://x{number}")
        w.pool.send_datagrams(url, PEER, [b"x"], now=1.0 + number / 100)
    w.settle()
    w.hosts["a"].is_up = True
    w.run(120.0)
    assert w.pool.home == A


def test_more_servers_than_can_be_spoken_to_are_tried_all_the_same() -> None:
    names = [f"x{number}" for number in range(SERVERS_LIMIT + 2)]
    w = world(*names)
    for name in names[:-1]:
        w.hosts[name].is_up = False
    w.start()
    w.run(10.0)
    assert str(w.pool.home) == f"http://{names[-1]}/"
