"""Who is let in by a DERP server, how fast clients and connections may come, and how it drains."""

from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st

from iroh_proto.derp.access import (
    ACCESS_TIMEOUT,
    APPLICANT_BYTES_LIMIT,
    REASON_LIMIT,
    token_of,
)
from iroh_proto.derp.dialects.relay_v1 import ServerConfirmsAuth, ServerDeniesAuth
from iroh_proto.derp.frames import (
    STATUS_RATE_LIMITED,
    Frame,
    Health,
    Ping,
    Pong,
    Restarting,
    Status,
)
from iroh_proto.derp.pong_wait import PONG_TIMEOUT
from iroh_proto.derp.rate import REFILL_TIME, AcceptLimit, RateLimit
from iroh_proto.derp.relay import DRAIN_TIMEOUT, DerpServer
from iroh_proto.derp.relay_events import AccessRequested, ClientConnected
from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpPauseRequested, TcpResumeRequested
from iroh_proto.testing.contract import Call, Flood, Subject, contract_tests
from tests.proto.derp_crowd import (
    Crowd,
    flood_of_packets,
    flood_of_pieces,
    join,
    operations,
    operations_of_a_host,
)
from tests.proto.derp_peer import EAGER_WAYS, SERVER_KEY, WAYS, Peer, World, key

ALICE, BOB = key(2), key(3)
PACKED = b"\x05\x00hello"
RATE = RateLimit(bytes_per_second=10_000, burst_bytes=5_000)


def new_server(**options: object) -> DerpServer:
    return DerpServer(secret_key=SERVER_KEY, rng=random.Random(1), **options)  # type: ignore[arg-type]


class Gate(World):
    """A server that asks who may use it, and what clients read of its answers."""

    def __init__(self) -> None:
        super().__init__(new_server(asks_access=True))

    def apply(self, way: str, secret_key: SecretKey, request: bytes | None = None) -> Peer:
        """Bring a client to where its access is decided on, as connection 1."""
        peer = Peer(way, secret_key)
        if request is not None:
            peer.request = request
        self.server.accept_tcp(1, now=self.now)
        self.server.receive_tcp_data(1, peer.request, now=self.now)
        if way == "v2":
            self.wait_silently(0.5)
        answer = peer.receive(self.server.tcp_data_to_send(1))
        if answer:
            self.server.receive_tcp_data(1, answer, now=self.now)
        self.drain_events()
        return peer

    def decide(self, allowed: bool, reason: str | None = None) -> None:
        self.server.complete_access(1, allowed=allowed, reason=reason, now=self.now)
        self.drain_events()

    def heard(self, peer: Peer) -> list[Frame]:
        return peer.codec.receive(self.server.tcp_data_to_send(1))

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


def request(headers: list[tuple[str, str]], query: str = "") -> HttpRequest:
    return HttpRequest(
        method="GET", path="/relay", query=query, headers=tuple(headers), upgrade="websocket"
    )


class TestAccess:
    @pytest.mark.parametrize("way", WAYS)
    def test_nobody_is_let_in_before_it_is_decided(self, way: str) -> None:
        gate = Gate()
        peer = gate.apply(way, ALICE)
        assert gate.events == [
            AccessRequested(tcp_id=1, node_id=ALICE.public, dialect=peer.dialect.name, token=None),
            TcpPauseRequested(tcp_id=1),
        ]
        assert gate.server.clients == []
        assert gate.server.tcp_data_to_send(1) == b""
        gate.decide(True)
        assert gate.events[2:] == [
            ClientConnected(tcp_id=1, node_id=ALICE.public, dialect=peer.dialect.name),
            TcpResumeRequested(tcp_id=1),
        ]
        gate.peers[1] = peer
        gate.flush()
        gate.send(1, ALICE.public, PACKED)
        assert peer.packets() == [(ALICE.public, PACKED)]

    @pytest.mark.parametrize("way", WAYS)
    def test_without_a_policy_nobody_is_asked(self, way: str) -> None:
        world = World()
        world.connect(way, ALICE)
        assert [type(event) for event in world.events] == [ClientConnected]

    @pytest.mark.parametrize(
        ("way", "reason", "words"),
        [
            ("relay-v1", "not today", [ServerDeniesAuth("not today")]),
            ("relay-v2", None, [ServerDeniesAuth("not authorized")]),
            ("v3", "not today", [Health("not today")]),
            ("v3 websocket", None, [Health("not authenticated")]),
            ("v2", "not today", []),
        ],
    )
    def test_who_is_denied_is_told_so_in_the_words_of_its_dialect(
        self, way: str, reason: str | None, words: list[Frame]
    ) -> None:
        gate = Gate()
        peer = gate.apply(way, ALICE)
        gate.decide(False, reason)
        assert gate.events[2:] == [TcpCloseRequested(tcp_id=1)]
        assert gate.heard(peer) == words
        assert gate.server.clients == []
        assert gate.server.get_timer() is None
        assert gate.server.stats.connections.clients_denied == 1
        assert gate.server.stats.connections.clients_admitted == 0
        assert gate.server.stats.connections.faults == 0

    def test_who_is_let_in_hears_that_only_then(self) -> None:
        gate = Gate()
        peer = gate.apply("relay-v2", ALICE)
        gate.decide(True)
        assert gate.heard(peer) == [ServerConfirmsAuth()]

    @pytest.mark.parametrize("way", EAGER_WAYS)
    def test_packets_sent_meanwhile_arrive_once_it_is_let_in(self, way: str) -> None:
        gate = Gate()
        gate.server.accept_tcp(9, now=0.0)
        bob = gate.peers[9] = Peer("v3", BOB)
        gate.give(9, bob.request + bob.begin())
        gate.server.complete_access(9, allowed=True, now=0.0)
        alice = gate.apply(way, ALICE)
        packet = alice.packet_to(BOB.public, PACKED)
        for piece in (packet[:10], packet[10:]):
            gate.server.receive_tcp_data(1, piece, now=gate.now)
        assert 9 not in gate.server.tcp_to_send() or bob.packets() == []
        gate.decide(True)
        gate.flush()
        assert bob.packets() == [(ALICE.public, PACKED)]

    def test_what_is_kept_of_an_applicant_is_bounded(self) -> None:
        gate = Gate()
        gate.apply("v3", ALICE)
        gate.server.receive_tcp_data(1, bytes(APPLICANT_BYTES_LIMIT), now=gate.now)
        gate.drain_events()
        assert TcpCloseRequested not in gate.kinds()
        gate.server.receive_tcp_data(1, b"x", now=gate.now)
        gate.drain_events()
        assert gate.kinds()[-1] is TcpCloseRequested
        gate.decide(True)
        assert gate.server.clients == []

    def test_no_decision_in_time_is_a_denial(self) -> None:
        gate = Gate()
        gate.apply("v3", ALICE)
        assert gate.server.get_timer() == gate.now + ACCESS_TIMEOUT
        gate.wait(ACCESS_TIMEOUT)
        assert gate.kinds()[2:] == [TcpCloseRequested]
        assert gate.server.stats.connections.access_timeouts == 1
        assert gate.server.stats.connections.clients_denied == 1
        gate.decide(True)  # too late
        assert gate.server.clients == []

    def test_an_applicant_may_leave(self) -> None:
        gate = Gate()
        gate.apply("relay-v1", ALICE)
        gate.server.receive_tcp_eof(1, now=gate.now)
        gate.decide(True)
        assert gate.kinds()[2:] == [TcpCloseRequested]
        assert gate.server.clients == []

    def test_a_reason_that_cannot_be_told_is_refused(self) -> None:
        gate = Gate()
        gate.apply("relay-v1", ALICE)
        for reason in ("", "ä" * REASON_LIMIT):
            with pytest.raises(LocalProtocolError, match="reason"):
                gate.decide(False, reason)
        gate.decide(True)
        assert gate.server.clients == [ALICE.public]

    @pytest.mark.parametrize("way", WAYS)
    def test_a_token_reaches_whoever_decides_but_no_log(self, way: str) -> None:
        gate = Gate()
        plain = Peer(way, ALICE).request
        line_end = plain.index(b"\r\n")
        with_token = plain[:line_end] + b"\r\nAuthorization: Bearer s3cret" + plain[line_end:]
        gate.apply(way, ALICE, with_token)
        event = gate.events[0]
        assert isinstance(event, AccessRequested)
        assert event.token == "s3cret"
        assert "s3cret" not in repr(event)

    @pytest.mark.parametrize(
        ("headers", "query", "token"),
        [
            ([], "", None),
            ([], "token=", ""),
            ([], "a=b&token=x%20y%2Bz&token=other", "x y+z"),
            ([], "token", ""),
            ([], "%FF=%zz&tokens=x", None),
            ([("authorization", "Bearer abc")], "token=query", "abc"),
            ([("authorization", "bEARER  abc")], "", " abc"),
            ([("authorization", "Bearer")], "token=query", "query"),
            ([("authorization", "Basic eDp5")], "token=query", "query"),
            ([("authorization", "Basic eDp5"), ("authorization", "Bearer abc")], "", "abc"),
            ([("authorization", "Bearer b\xfctten")], "token=query", None),
            ([("x-authorization", "Bearer abc")], "", None),
        ],
    )
    def test_where_a_token_is_looked_for(
        self, headers: list[tuple[str, str]], query: str, token: str | None
    ) -> None:
        assert token_of(request(headers, query)) == token

    def test_clients_that_may_not_stay_are_closed_also_those_that_gave_way(self) -> None:
        world = World()
        waiting, _ = world.connect("relay-v2", ALICE)
        newest, _ = world.connect("relay-v2", ALICE)
        other, _ = world.connect("v3", BOB)
        world.server.dismiss([ALICE.public], now=world.now)
        world.flush()
        assert world.server.clients == [BOB.public]
        assert TcpCloseRequested(tcp_id=waiting) in world.events
        assert TcpCloseRequested(tcp_id=newest) in world.events
        assert TcpCloseRequested(tcp_id=other) not in world.events


class TestRateLimit:
    def test_a_client_over_its_limit_is_left_unread_for_as_long_as_it_sent_too_much(self) -> None:
        world = World(new_server(rate_limit=RATE))
        tcp_id, alice = world.connect("relay-v2", ALICE)
        world.events.clear()
        packet = alice.packet_to(ALICE.public, b"\xe8\x03" + bytes(1000))
        world.give(tcp_id, packet * 4)
        world.wait(0.0)
        assert world.events == []
        world.give(tcp_id, packet * 6)
        world.wait(0.0)
        assert world.events == [TcpPauseRequested(tcp_id=tcp_id)]
        debt = 10 * len(packet) - 5_000
        pause = debt / 10_000 + REFILL_TIME
        world.wait(pause - 0.001)
        assert len(world.events) == 1
        world.wait(0.002)
        assert world.events[1:] == [TcpResumeRequested(tcp_id=tcp_id)]
        assert len(alice.packets()) == 10  # nothing was lost
        assert world.server.stats.connections.packets_dropped == 0

    @pytest.mark.parametrize(
        ("way", "notices"),
        [
            ("relay-v2", [Status(STATUS_RATE_LIMITED)]),
            ("relay-v1", []),
            ("v3", []),
            ("v2", []),
            ("tailscale", []),
        ],
    )
    def test_the_latest_dialect_tells_a_client_once(self, way: str, notices: list[Frame]) -> None:
        world = World(new_server(rate_limit=RATE))
        tcp_id, alice = world.connect(way, ALICE)
        pings = alice.codec.encode(Ping(bytes(8))) * 1000
        for _ in range(3):
            world.give(tcp_id, pings)
            world.wait(10.0)
        burst = RATE.burst_bytes
        assert burst is not None
        assert world.server.stats.connections.bytes_over_rate == 3 * (len(pings) - burst)
        assert world.server.stats.connections.pings_answered == 3000
        assert [frame for frame in alice.frames if not isinstance(frame, Ping | Pong)] == notices
        assert world.server.stats.connections.clients_throttled == 1
        assert world.server.stats.connections.pauses == 3

    def test_the_long_run_rate_is_kept_and_a_burst_is_free_after_silence(self) -> None:
        world = World(new_server(rate_limit=RATE))
        tcp_id, alice = world.connect("v3", ALICE)
        sent, start = 0, world.now
        packet = alice.packet_to(BOB.public, bytes(1000))
        paused = False
        while world.now < start + 20.0:
            seen = len(world.events)
            if not paused:
                world.give(tcp_id, packet)
                sent += len(packet)
            world.wait(0.01)
            for event in world.events[seen:]:
                paused = isinstance(event, TcpPauseRequested)
        assert 20 * 10_000 <= sent <= 20 * 10_000 + 5_000 + 2 * len(packet)

    def test_a_client_that_is_left_unread_is_not_taken_for_dead(self) -> None:
        world = World(new_server(rate_limit=RateLimit(1_000)))
        tcp_id, alice = world.connect("v3", ALICE)
        world.wait(20.0)
        (ping,) = alice.frames
        assert isinstance(ping, Ping)
        world.give(tcp_id, alice.packet_to(BOB.public, bytes(30_000)))
        world.wait(29.0)
        assert TcpCloseRequested(tcp_id=tcp_id) not in world.events
        assert alice.frames == [ping]  # no further ping either
        world.wait(1.5)
        assert world.events[-1] == TcpResumeRequested(tcp_id=tcp_id)
        world.wait(PONG_TIMEOUT)
        assert TcpCloseRequested(tcp_id=tcp_id) in world.events

    def test_a_pong_that_was_read_before_the_pause_counts(self) -> None:
        world = World(new_server(rate_limit=RateLimit(1_000)))
        tcp_id, alice = world.connect("v3", ALICE)
        world.wait(20.0)
        (ping,) = alice.frames
        assert isinstance(ping, Ping)
        world.give(tcp_id, alice.packet_to(BOB.public, bytes(30_000)))
        world.wait(0.0)
        world.give(tcp_id, alice.codec.encode(Pong(ping.data)))
        world.wait(40.0)
        assert TcpCloseRequested(tcp_id=tcp_id) not in world.events

    def test_the_limit_can_be_changed_and_lifted_while_clients_are_connected(self) -> None:
        world = World()
        tcp_id, alice = world.connect("v3", ALICE)
        flood = alice.packet_to(BOB.public, bytes(60_000))
        world.give(tcp_id, flood)
        world.wait(0.0)
        assert TcpPauseRequested(tcp_id=tcp_id) not in world.events
        world.server.set_rate_limit(RATE, now=world.now)
        world.give(tcp_id, flood)
        world.wait(0.0)
        world.server.set_rate_limit(None, now=world.now)
        world.flush()
        world.give(tcp_id, flood)
        world.wait(0.0)
        assert world.events[1:] == [
            TcpPauseRequested(tcp_id=tcp_id),
            TcpResumeRequested(tcp_id=tcp_id),
        ]

    def test_a_host_that_wakes_the_server_late_pauses_nobody_for_nothing(self) -> None:
        world = World(new_server(rate_limit=RATE))
        tcp_id, alice = world.connect("v3", ALICE)
        world.give(tcp_id, alice.packet_to(BOB.public, bytes(6_000)))
        world.wait_silently(60.0)
        world.drain_events()
        assert TcpPauseRequested(tcp_id=tcp_id) not in world.events

    @pytest.mark.parametrize("numbers", [(0, 5), (-1, 5), (5, 0), (5, -1)])
    def test_a_limit_is_positive(self, numbers: tuple[int, int]) -> None:
        with pytest.raises(LocalProtocolError, match="rate limit"):
            RateLimit(*numbers)


class TestAcceptLimit:
    def test_connections_beyond_it_are_closed_at_once(self) -> None:
        world = World(new_server(accept_limit=AcceptLimit(per_second=2.0, burst=3)))
        for tcp_id in range(5):
            world.server.accept_tcp(tcp_id, now=0.0)
        world.flush()
        assert world.events == [TcpCloseRequested(tcp_id=3), TcpCloseRequested(tcp_id=4)]
        assert world.server.stats.connections_over_rate == 2
        assert world.server.stats.connections_refused == 2
        assert world.server.stats.connections_accepted == 3
        world.server.accept_tcp(5, now=0.5)
        world.server.accept_tcp(6, now=0.9)
        world.server.accept_tcp(7, now=1.0)
        world.flush()
        assert world.events[2:] == [TcpCloseRequested(tcp_id=6)]

    def test_who_is_refused_takes_nobody_s_place(self) -> None:
        world = World(new_server(connections_limit=1))
        world.server.accept_tcp(1, now=0.0)
        world.server.accept_tcp(2, now=0.0)
        world.flush()
        assert world.events == [TcpCloseRequested(tcp_id=2)]
        assert world.server.stats.strangers_displaced == 0
        assert world.server.stats.connections_over_rate == 0

    def test_it_can_be_changed(self) -> None:
        world = World()
        world.server.set_accept_limit(AcceptLimit(per_second=1.0, burst=1), now=0.0)
        world.server.accept_tcp(1, now=0.0)
        world.server.accept_tcp(2, now=0.0)
        world.server.set_accept_limit(None, now=0.0)
        world.server.accept_tcp(3, now=0.0)
        world.flush()
        assert world.events == [TcpCloseRequested(tcp_id=2)]

    @pytest.mark.parametrize("numbers", [(0.0, 1), (1.0, 0), (float("inf"), 1)])
    def test_a_limit_lets_some_in(self, numbers: tuple[float, int]) -> None:
        with pytest.raises(LocalProtocolError, match="accept limit"):
            AcceptLimit(*numbers)


class TestDraining:
    @pytest.mark.parametrize("way", WAYS)
    def test_clients_are_told_served_and_closed_in_the_end(self, way: str) -> None:
        world = World()
        tcp_id, alice = world.connect(way, ALICE)
        world.server.drain(reconnect_in=1.5, try_for=60.0, now=world.now)
        world.flush()
        assert alice.frames == [Restarting(1_500, 60_000)]
        world.send(tcp_id, ALICE.public, PACKED)
        assert alice.packets() == [(ALICE.public, PACKED)]
        world.wait(DRAIN_TIMEOUT - 0.01)
        assert TcpCloseRequested(tcp_id=tcp_id) not in world.events
        world.wait(0.01)
        assert TcpCloseRequested(tcp_id=tcp_id) in world.events
        assert world.server.get_timer() is None

    def test_newcomers_and_strangers_are_turned_away(self) -> None:
        world = World()
        world.server.accept_tcp(5, now=0.0)
        world.server.drain(now=0.0)
        world.server.accept_tcp(6, now=0.0)
        world.flush()
        assert world.events == [TcpCloseRequested(tcp_id=5), TcpCloseRequested(tcp_id=6)]
        assert world.server.stats.connections_refused == 1

    def test_it_begins_once(self) -> None:
        world = World()
        _, alice = world.connect("v3", ALICE)
        world.server.drain(now=world.now)
        world.wait(1.0)
        world.server.drain(now=world.now)
        world.flush()
        assert len(alice.frames) == 1
        world.wait(DRAIN_TIMEOUT - 1.0)
        assert world.server.clients == []
        world.server.drain(now=world.now)
        assert world.server.get_timer() is None

    @pytest.mark.parametrize("option", ["timeout", "reconnect_in", "try_for"])
    def test_impossible_times_are_refused(self, option: str) -> None:
        server = new_server()
        for seconds in (-1.0, 1e9, float("nan")):
            with pytest.raises(LocalProtocolError, match="day"):
                server.drain(**{option: seconds}, now=0.0)
        server.accept_tcp(1, now=0.0)
        assert server.next_event() is None


TestGuardedServerContract = contract_tests(
    Subject(
        factory=lambda rng: DerpServer(
            secret_key=SERVER_KEY,
            rng=rng,
            asks_access=True,
            strangers_limit=2,
            rate_limit=RATE,
            accept_limit=AcceptLimit(per_second=5.0, burst=5),
        ),
        context=Crowd,
        begin=[join("v3", 2), Call("complete_access", 1, allowed=True)],
        operations=operations() | operations_of_a_host(),
        misuses=st.sampled_from(
            [
                Call("complete_access", 1, allowed=False, reason="x" * (REASON_LIMIT + 1)),
                Call("drain", timeout=-1.0),
            ]
        ),
        floods=[
            Flood("packets", flood_of_packets),
            Flood("an unfinished frame", flood_of_pieces, count=400),
        ],
        memory_limit=96 << 20,
    )
)
