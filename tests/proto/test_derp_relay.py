from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.datagram_frames import RecvDatagram
from iroh_proto.derp.dialects import DIALECTS, v2
from iroh_proto.derp.events import ConnectionLost, DerpConnected
from iroh_proto.derp.events import PeerGone as PeerGoneEvent
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    KeepAlive,
    PeerGone,
    Ping,
    Pong,
    RecvPacket,
    pack_datagrams,
)
from iroh_proto.derp.rate import RateLimit
from iroh_proto.derp.relay import STRANGERS_LIMIT, DerpServer
from iroh_proto.derp.relay_events import ClientConnected, ClientDisconnected
from iroh_proto.derp.relay_output import PULL_SIZE, WRITE_TIMEOUT
from iroh_proto.derp.router import WAITING_LIMIT
from iroh_proto.derp.send_queue import QUEUED_PACKET_BYTES_LIMIT, QUEUED_PACKETS_LIMIT
from iroh_proto.derp.server_entry import HANDSHAKE_TIMEOUT, REQUEST_TIMEOUT
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpPauseRequested
from iroh_proto.testing.contract import Flood, Subject, contract_tests
from iroh_proto.testing.strategies import chunkings
from tests.proto.derp_crowd import (
    Crowd,
    flood_of_packets,
    flood_of_pieces,
    flood_of_pings,
    flood_of_requests,
    join,
    operations,
)
from tests.proto.derp_peer import (
    PACKED_WAYS,
    RELAY_WAYS,
    SERVER_KEY,
    URL,
    WAYS,
    Peer,
    World,
    key,
)

ALICE, BOB, CAROL = key(2), key(3), key(4)
SHORT = b"\x05\x00hello"


def closed(world: World) -> list[int]:
    return [event.tcp_id for event in world.events if isinstance(event, TcpCloseRequested)]


FRAMED_WAYS = ["v2", "v3", "tailscale"]


class TestRuns:
    """What is read from a client is mostly packets of one length for one destination."""

    BURST = 3

    @pytest.mark.parametrize("first", WAYS)
    @pytest.mark.parametrize("second", WAYS)
    def test_they_pass_between_all_generations(self, first: str, second: str) -> None:
        world = World()
        alice_id, alice = world.connect(first, ALICE)
        _, bob = world.connect(second, BOB)
        sent: list[bytes] = []
        for number in range(4):
            datagrams = [bytes((number, index)) * 50 for index in range(self.BURST)]
            payloads = [pack_datagrams([datagram])[0] for datagram in datagrams]
            world.give(alice_id, b"".join(alice.packet_to(BOB.public, one) for one in payloads))
            sent += datagrams
        assert bob.datagrams() == [(ALICE.public, datagram) for datagram in sent]
        assert world.server.stats.router.packets_routed == len(sent)

    @pytest.mark.parametrize("way", FRAMED_WAYS)
    def test_they_are_counted_as_others_are(self, way: str) -> None:
        world = World()
        alice_id, alice = world.connect(way, ALICE)
        world.connect(way, BOB)
        packet = alice.packet_to(BOB.public, SHORT)
        world.give(alice_id, packet)
        once = world.server.stats.router
        world.give(alice_id, packet * 2)
        thrice = world.server.stats.router
        assert thrice.packets_routed == 3 * once.packets_routed == 3
        assert thrice.bytes_routed == 3 * once.bytes_routed > 0

    @pytest.mark.parametrize("way", FRAMED_WAYS)
    def test_to_oneself(self, way: str) -> None:
        world = World()
        alice_id, alice = world.connect(way, ALICE)
        for _ in range(3):
            world.give(alice_id, alice.packet_to(ALICE.public, SHORT) * 2)
        assert len(alice.frames) == 6
        assert world.server.stats.connections.packets_returned == 6
        assert world.server.stats.router.packets_routed == 0

    @pytest.mark.parametrize("way", FRAMED_WAYS)
    def test_to_somebody_who_left(self, way: str) -> None:
        world = World()
        alice_id, alice = world.connect(way, ALICE)
        bob_id, bob = world.connect(way, BOB)
        world.give(alice_id, alice.packet_to(BOB.public, SHORT))
        world.server.receive_tcp_eof(bob_id, now=world.now)
        world.give(alice_id, alice.packet_to(BOB.public, SHORT) * 2)
        assert len(bob.frames) == 1
        assert world.server.stats.router.packets_without_route == 2

    @pytest.mark.parametrize("way", FRAMED_WAYS)
    def test_who_was_sent_one_is_told_that_the_sender_left(self, way: str) -> None:
        world = World()
        alice_id, alice = world.connect(way, ALICE)
        _, bob = world.connect(way, BOB)
        _, carol = world.connect(way, CAROL)
        world.give(alice_id, alice.packet_to(BOB.public, SHORT))
        world.give(alice_id, alice.packet_to(CAROL.public, SHORT))
        world.server.receive_tcp_eof(alice_id, now=world.now)
        world.flush()
        assert len(bob.frames) == len(carol.frames) == 2
        assert type(carol.frames[-1]) is type(bob.frames[-1])
        assert "Gone" in type(carol.frames[-1]).__name__

    def test_a_slow_reader_loses_those_that_there_is_no_room_for(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        world.connect("v3", BOB)
        burst = alice.packet_to(BOB.public, SHORT) * 100
        for _ in range(7):
            world.server.receive_tcp_data(alice_id, burst, now=world.now)
        dropped = 700 - QUEUED_PACKETS_LIMIT
        assert world.server.stats.connections.packets_dropped == dropped

    def test_a_sender_over_its_rate_is_paused_all_the_same(self) -> None:
        limit = RateLimit(bytes_per_second=1_000, burst_bytes=1_000)
        world = World(DerpServer(secret_key=SERVER_KEY, rng=random.Random(1), rate_limit=limit))
        alice_id, alice = world.connect("v3", ALICE)
        _, bob = world.connect("v3", BOB)
        for _ in range(2):
            world.give(alice_id, alice.packet_to(BOB.public, bytes(600)) * 2)
            world.wait(0.0)
        assert TcpPauseRequested(tcp_id=alice_id) in world.events
        assert len(bob.packets()) == 4


class TestRelaying:
    @pytest.mark.parametrize("first", PACKED_WAYS)
    @pytest.mark.parametrize("second", PACKED_WAYS)
    def test_packets_pass_unchanged_up_to_v3(self, first: str, second: str) -> None:
        world = World()
        alice_id, alice = world.connect(first, ALICE)
        bob_id, bob = world.connect(second, BOB)
        payload = b"\x05\x00hello\x06\x00world!"
        world.send(alice_id, BOB.public, payload)
        world.send(alice_id, BOB.public, b"")
        world.send(bob_id, ALICE.public, bytes(65_536))
        assert bob.packets() == [(ALICE.public, payload), (ALICE.public, b"")]
        assert alice.packets() == [(BOB.public, bytes(65_536))]
        assert world.server.node_id == SERVER_KEY.public
        assert world.server.stats.router.packets_routed == 3
        assert world.server.clients == [ALICE.public, BOB.public]

    @pytest.mark.parametrize("first", WAYS)
    @pytest.mark.parametrize("second", WAYS)
    def test_datagrams_pass_between_all_generations(self, first: str, second: str) -> None:
        world = World()
        alice_id, alice = world.connect(first, ALICE)
        bob_id, bob = world.connect(second, BOB)
        sizes = [1200, 1200, 1200, 7, 1, 900, 1200, DATAGRAM_LIMIT]
        datagrams = [bytes((size % 251,)) * size for size in sizes]
        for payload in pack_datagrams(datagrams):
            world.send(alice_id, BOB.public, payload)
            world.send(bob_id, ALICE.public, payload)
        assert bob.datagrams() == [(ALICE.public, datagram) for datagram in datagrams]
        assert alice.datagrams() == [(BOB.public, datagram) for datagram in datagrams]
        assert world.server.stats.connections.packets_dropped == 0
        assert closed(world) == []

    def test_a_packet_to_oneself_is_delivered_like_any_other(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        world.send(alice_id, ALICE.public, b"note to self")
        assert alice.packets() == [(ALICE.public, b"note to self")]
        assert world.server.stats.connections.packets_returned == 1

    def test_packets_to_oneself_and_pongs_keep_their_order_however_cut(self) -> None:
        for size in (1, 1000):
            world = World()
            tcp_id, alice = world.connect("v3", ALICE)
            stream = alice.packet_to(ALICE.public, b"first") + alice.codec.encode(Ping(bytes(8)))
            for start in range(0, len(stream), size):
                piece = stream[start : start + size]
                world.server.receive_tcp_data(tcp_id, piece, now=world.now)
            world.flush()
            assert alice.frames == [RecvPacket(ALICE.public, b"first"), Pong(bytes(8))]

    def test_a_packet_to_nobody_is_dropped_and_counted(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        world.send(alice_id, BOB.public, b"anyone?")
        assert alice.frames == []
        assert world.server.stats.router.packets_without_route == 1
        assert closed(world) == []

    def test_packets_behind_the_handshake_in_one_read_are_relayed(self) -> None:
        world = World()
        _, bob = world.connect("v3", BOB)
        peer = Peer("v3", ALICE)
        world.server.accept_tcp(9, now=0.0)
        world.give(9, peer.request + peer.begin() + peer.packet_to(BOB.public, b"eager"))
        assert bob.packets() == [(ALICE.public, b"eager")]

    def test_what_was_sent_before_a_fault_is_relayed(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        _, bob = world.connect("v2", BOB)
        world.give(alice_id, alice.packet_to(BOB.public, b"last words") + b"\xff" * 40)
        assert bob.packets() == [(ALICE.public, b"last words")]
        assert bob.frames[-1] == PeerGone(ALICE.public)
        assert closed(world) == [alice_id]
        (gone,) = [event for event in world.events if isinstance(event, ClientDisconnected)]
        assert isinstance(gone.error, RemoteProtocolError)

    def test_pings_are_answered_on_every_way(self) -> None:
        for way in WAYS:
            world = World()
            tcp_id, peer = world.connect(way, ALICE)
            world.give(tcp_id, peer.codec.encode(Ping(b"12345678")))
            assert peer.frames == [Pong(b"12345678")]


class TestComingAndGoing:
    def test_those_it_had_sent_to_hear_that_a_node_is_gone_after_its_last_packet(self) -> None:
        world = World()
        alice_id, _ = world.connect("v3", ALICE)
        _, bob = world.connect("v3 websocket", BOB)
        _, carol = world.connect("v2", CAROL)
        world.server.receive_tcp_data(
            alice_id, world.peers[alice_id].packet_to(BOB.public, b"bye"), now=world.now
        )
        world.server.receive_tcp_eof(alice_id, now=world.now)
        world.flush()
        assert bob.packets() == [(ALICE.public, b"bye")]
        assert bob.frames[-1] == PeerGone(ALICE.public)
        assert carol.frames == []
        assert world.events[-2:] == [
            ClientDisconnected(tcp_id=alice_id, node_id=ALICE.public, error=None),
            TcpCloseRequested(tcp_id=alice_id),
        ]

    def test_a_newer_connection_with_the_same_key_replaces_the_older(self) -> None:
        world = World()
        old_id, old = world.connect("v3", ALICE)
        bob_id, bob = world.connect("v3", BOB)
        world.send(old_id, BOB.public, b"one")
        new_id, new = world.connect("v2", ALICE)
        assert closed(world) == [old_id]
        world.send(bob_id, ALICE.public, b"to the new one")
        assert new.packets() == [(BOB.public, b"to the new one")]
        assert old.packets() == []
        world.server.receive_tcp_eof(old_id, now=world.now)  # late, and ignored
        world.flush()
        assert PeerGone(ALICE.public) not in bob.frames
        assert world.server.clients == [BOB.public, ALICE.public]
        assert world.server.stats.router.clients_replaced == 1
        assert [type(event) for event in world.events if event_is_of(event, old_id)] == [
            ClientConnected,
            ClientDisconnected,
            TcpCloseRequested,
        ]
        assert world.peers[new_id] is new

    @pytest.mark.parametrize("way", RELAY_WAYS)
    @pytest.mark.parametrize("newer_way", WAYS)
    def test_a_later_generation_waits_for_the_end_of_a_newer_connection(
        self, way: str, newer_way: str
    ) -> None:
        world = World()
        old_id, old = world.connect(way, ALICE)
        bob_id, bob = world.connect("v3", BOB)
        new_id, new = world.connect(newer_way, ALICE)
        assert closed(world) == []
        assert old.frames.pop() == DIALECTS[way].standing(is_active=False)
        assert world.server.clients == [BOB.public, ALICE.public]
        world.send(bob_id, ALICE.public, SHORT)
        world.send(old_id, BOB.public, SHORT)
        assert new.packets() == [(BOB.public, SHORT)]
        assert old.packets() == []
        assert bob.packets() == [(ALICE.public, SHORT)]
        world.server.receive_tcp_eof(new_id, now=world.now)
        world.flush()
        assert old.frames.pop() == DIALECTS[way].standing(is_active=True)
        world.send(bob_id, ALICE.public, SHORT)
        assert old.packets() == [(BOB.public, SHORT)]
        assert PeerGone(ALICE.public) not in bob.frames
        world.server.receive_tcp_eof(old_id, now=world.now)
        world.flush()
        assert bob.frames[-1] == PeerGone(ALICE.public)

    def test_one_that_waits_may_leave_without_notice(self) -> None:
        world = World()
        old_id, _ = world.connect("relay-v2", ALICE)
        new_id, new = world.connect("relay-v2", ALICE)
        _, bob = world.connect("relay-v1", BOB)
        world.send(old_id, BOB.public, SHORT)
        world.server.receive_tcp_eof(old_id, now=world.now)
        world.flush()
        assert new.frames == []
        assert bob.frames == [RecvDatagram(ALICE.public, 0, SHORT[2:])]
        world.server.receive_tcp_eof(new_id, now=world.now)
        world.flush()
        assert bob.frames[-1] == PeerGone(ALICE.public)  # the other had sent to him

    def test_few_wait(self) -> None:
        world = World()
        for number in range(WAITING_LIMIT + 3):
            world.connect("relay-v2", ALICE)
            assert len(closed(world)) == max(0, number - WAITING_LIMIT)
        world.server.close(now=world.now)
        world.flush()
        assert len(closed(world)) == WAITING_LIMIT + 3

    def test_closing_ends_every_connection_and_refuses_new_ones(self) -> None:
        world = World()
        first, _ = world.connect("v3", ALICE)
        second, bob = world.connect("v3 websocket", BOB)
        world.send(first, BOB.public, b"x")
        world.server.close(now=world.now)
        world.flush()
        assert closed(world) == [first, second]
        assert bob.codec.is_closed  # a websocket's goodbye
        assert PeerGone(ALICE.public) not in bob.frames
        world.server.accept_tcp(77, now=world.now)
        world.flush()
        assert closed(world) == [first, second, 77]
        assert world.server.get_timer() is None

    def test_a_number_in_use_is_refused(self) -> None:
        world = World()
        tcp_id, _ = world.connect("v3", ALICE)
        with pytest.raises(LocalProtocolError, match="already"):
            world.server.accept_tcp(tcp_id, now=world.now)

    def test_an_unknown_dialect_is_refused(self) -> None:
        with pytest.raises(LocalProtocolError, match="v7"):
            DerpServer(secret_key=SERVER_KEY, rng=random.Random(1), listen_dialect="v7")

    def test_bytes_of_closed_or_unknown_connections_are_ignored(self) -> None:
        world = World()
        world.server.receive_tcp_data(5, b"late", now=0.0)
        world.server.receive_tcp_eof(5, now=0.0)
        assert world.server.tcp_data_to_send(5) == b""
        assert world.server.next_event() is None


def event_is_of(event: object, tcp_id: int) -> bool:
    return getattr(event, "tcp_id", None) == tcp_id


class TestLimits:
    def test_a_slow_reader_loses_the_newest_packets_and_only_those(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        bob_id, bob = world.connect("v3", BOB)
        count = QUEUED_PACKETS_LIMIT + 88
        for number in range(count):
            packet = alice.packet_to(BOB.public, number.to_bytes(2, "big"))
            world.server.receive_tcp_data(alice_id, packet, now=world.now)
        assert world.server.tcp_to_send() == [bob_id]
        world.flush()
        numbers = [int.from_bytes(payload, "big") for _, payload in bob.packets()]
        assert numbers == list(range(QUEUED_PACKETS_LIMIT))
        assert world.server.stats.connections.packets_dropped == 88

    def test_what_waits_for_a_reader_is_bounded_in_bytes_and_handed_out_in_pieces(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        bob_id, _ = world.connect("v3", BOB)
        for _ in range(200):
            packet = alice.packet_to(BOB.public, bytes(60_000))
            world.server.receive_tcp_data(alice_id, packet, now=world.now)
        sizes = []
        while data := world.server.tcp_data_to_send(bob_id):
            sizes.append(len(data))
        assert sum(sizes) <= QUEUED_PACKET_BYTES_LIMIT
        assert sum(sizes) > QUEUED_PACKET_BYTES_LIMIT - 61_000
        assert max(sizes) <= PULL_SIZE + 61_000
        assert world.server.tcp_to_send() == []

    def test_a_reader_that_stops_reading_is_closed_and_others_go_on(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        bob_id, _ = world.connect("v3", BOB)
        packet = alice.packet_to(BOB.public, b"x")
        world.server.receive_tcp_data(alice_id, packet, now=world.now)
        assert world.server.get_timer() == world.now + WRITE_TIMEOUT
        world.now += WRITE_TIMEOUT
        world.server.handle_timer(now=world.now)
        world.drain_events()
        assert closed(world) == [bob_id]
        assert world.server.stats.write_timeouts == 1
        world.wait(WRITE_TIMEOUT)
        world.send(alice_id, ALICE.public, b"still here")
        assert alice.packets() == [(ALICE.public, b"still here")]

    def test_a_reader_that_is_slow_but_reads_is_kept(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        bob_id, _ = world.connect("v3", BOB)
        packet = alice.packet_to(BOB.public, bytes(60_000))
        for _ in range(4):
            world.server.receive_tcp_data(alice_id, packet, now=world.now)
        for _ in range(8):
            world.now += 1.5
            world.server.handle_timer(now=world.now)
            world.drain_events()
            assert closed(world) == []
            assert world.server.tcp_data_to_send(bob_id) != b""
            assert world.server.tcp_to_send() == [bob_id]  # there is always more
            for _ in range(2):
                world.server.receive_tcp_data(alice_id, packet, now=world.now)
        world.now += 2 * WRITE_TIMEOUT
        world.server.handle_timer(now=world.now)  # late, so that it counts as one wait
        world.drain_events()
        assert closed(world) == []
        world.now += WRITE_TIMEOUT
        world.server.handle_timer(now=world.now)
        world.drain_events()
        assert closed(world) == [bob_id]

    def test_what_a_closed_connection_left_unfetched_is_forgotten_in_time(self) -> None:
        world = World()
        world.server.accept_tcp(1, now=0.0)
        world.server.receive_tcp_data(1, b"GET /ping HTTP/1.1\r\n\r\n", now=0.0)
        world.drain_events()
        assert closed(world) == [1]
        assert world.server.tcp_to_send() == [1]
        with pytest.raises(LocalProtocolError, match="already"):
            world.server.accept_tcp(1, now=0.0)
        world.server.handle_timer(now=WRITE_TIMEOUT)
        assert world.server.tcp_to_send() == []
        assert world.server.tcp_data_to_send(1) == b""
        assert world.server.get_timer() is None

    def test_connections_beyond_the_limit_are_closed_at_once(self) -> None:
        server = DerpServer(secret_key=SERVER_KEY, rng=random.Random(1), connections_limit=2)
        world = World(server)
        world.connect("v3", ALICE)
        world.connect("v3", BOB)
        server.accept_tcp(3, now=world.now)
        world.flush()
        assert closed(world) == [3]
        assert server.stats.connections_refused == 1
        assert server.stats.connections_accepted == 2

    def test_strangers_do_not_crowd_out_clients_for_long(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        for number in range(STRANGERS_LIMIT + 5):
            world.server.accept_tcp(1000 + number, now=world.now)
        world.flush()
        assert len(closed(world)) == 5
        world.wait(REQUEST_TIMEOUT)
        assert len(closed(world)) == STRANGERS_LIMIT + 5
        world.send(alice_id, ALICE.public, b"still here")
        assert alice.packets() == [(ALICE.public, b"still here")]
        world.connect("v3", BOB)
        assert world.server.clients == [ALICE.public, BOB.public]

    def test_a_stranger_that_makes_room_may_have_bytes_that_nobody_fetched(self) -> None:
        world = World()
        world.server.accept_tcp(1, now=0.0)
        world.server.receive_tcp_data(1, Peer("v3", ALICE).request, now=0.0)
        assert world.server.tcp_to_send() == [1]
        for number in range(STRANGERS_LIMIT):
            world.server.accept_tcp(1000 + number, now=0.0)
        assert world.server.stats.strangers_displaced == 1
        assert 1 not in world.server.tcp_to_send()
        assert world.server.tcp_data_to_send(1) == b""

    def test_who_is_quick_comes_in_however_many_strangers_stay_and_say_nothing(self) -> None:
        world = World()
        alice_id, alice = world.connect("v3", ALICE)
        for number in range(2 * STRANGERS_LIMIT):
            world.server.accept_tcp(1000 + number, now=world.now)
        world.flush()
        world.connect("v3", BOB)
        assert world.server.clients == [ALICE.public, BOB.public]
        assert world.server.stats.strangers_displaced == STRANGERS_LIMIT + 1
        assert world.server.stats.connections_refused == 0
        world.send(alice_id, ALICE.public, b"still here")
        assert alice.packets() == [(ALICE.public, b"still here")]


class TestTime:
    def test_a_silent_v3_client_is_pinged_and_closed_without_a_pong(self) -> None:
        world = World()
        tcp_id, peer = world.connect("v3", ALICE)
        world.wait(20.0)
        (ping,) = peer.frames
        assert isinstance(ping, Ping)
        world.wait(5.0)
        assert closed(world) == [tcp_id]

    def test_a_v3_client_that_pongs_stays(self) -> None:
        world = World()
        tcp_id, peer = world.connect("v3 websocket", ALICE)
        for _ in range(200):
            world.wait(1.0)
            for frame in peer.frames:
                if isinstance(frame, Ping):
                    world.give(tcp_id, peer.codec.encode(Pong(frame.data)))
            peer.frames.clear()
        assert closed(world) == []

    def test_a_v2_client_gets_keep_alives_and_may_be_silent(self) -> None:
        world = World()
        _, peer = world.connect("v2", ALICE)
        world.wait(3 * v2.KEEP_ALIVE_INTERVAL + 1)
        assert peer.frames == [KeepAlive(), KeepAlive(), KeepAlive()]
        assert closed(world) == []

    def test_a_handshake_that_takes_too_long_is_ended(self) -> None:
        world = World()
        world.server.accept_tcp(1, now=0.0)
        world.give(1, Peer("v3", ALICE).request)
        world.wait(HANDSHAKE_TIMEOUT)
        assert closed(world) == [1]
        assert world.server.stats.connections.faults == 1

    def test_clients_of_the_old_path_are_served_at_once_when_their_dialect_is_known(self) -> None:
        for dialect, way in (("v2", "v2"), ("v3", "v3 on the old path")):
            server = DerpServer(secret_key=SERVER_KEY, rng=random.Random(1), listen_dialect=dialect)
            world = World(server)
            peer = Peer(way, ALICE)
            server.accept_tcp(1, now=0.0)
            world.peers[1] = peer
            world.give(1, peer.request)
            assert server.clients == [ALICE.public]
            assert world.now == 0.0


class Pair:
    """Real client machines on a server machine, with a clock."""

    def __init__(self) -> None:
        self.server = DerpServer(secret_key=SERVER_KEY, rng=random.Random(1))
        self.clients: dict[int, DerpClient] = {}
        self.events: dict[int, list[object]] = {}
        self.now = 0.0

    def add(self, secret_key: SecretKey, dialect: str | None, scheme: str = "http") -> DerpClient:
        tcp_id = len(self.clients) + 1
        url = type(URL).from_str(f"{scheme}://relay.example")
        client = DerpClient(
            url=url, secret_key=secret_key, rng=random.Random(tcp_id), dialect=dialect
        )
        self.clients[tcp_id] = client
        self.events[tcp_id] = []
        self.server.accept_tcp(tcp_id, now=self.now)
        client.start(now=self.now)
        self.settle()
        return client

    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            while (event := self.server.next_event()) is not None:
                if isinstance(event, TcpCloseRequested):
                    self.clients[event.tcp_id].receive_eof(now=self.now)
            for tcp_id, client in self.clients.items():
                while (seen := client.next_event()) is not None:
                    self.events[tcp_id].append(seen)
                if data := client.data_to_send():
                    self.server.receive_tcp_data(tcp_id, data, now=self.now)
                    moved = True
                if data := self.server.tcp_data_to_send(tcp_id):
                    client.receive_data(data, now=self.now)
                    moved = True

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            timers = [client.get_timer() for client in self.clients.values()]
            deadlines = [t for t in (*timers, self.server.get_timer()) if t is not None]
            if not deadlines or min(deadlines) > end:
                break
            self.now = max(self.now, min(deadlines))
            self.server.handle_timer(now=self.now)
            for client in self.clients.values():
                client.handle_timer(now=self.now)
            self.settle()
        self.now = end


CLIENTS = [
    ("v2", "http"),
    ("v3", "http"),
    ("v3", "ws"),
    (None, "http"),
    (None, "ws"),
    ("relay-v1", "http"),
    ("relay-v2", "http"),
]


class TestWithClientMachines:
    @pytest.mark.parametrize(("dialect", "scheme"), CLIENTS)
    def test_they_connect_talk_and_stay_connected(self, dialect: str | None, scheme: str) -> None:
        pair = Pair()
        alice = pair.add(ALICE, dialect, scheme)
        bob = pair.add(BOB, "v3")
        pair.wait(1.0)
        assert isinstance(pair.events[1][0], DerpConnected)
        alice.send_datagrams(BOB.public, [b"one", b"two", bytes(1200)], now=pair.now)
        bob.send_datagrams(ALICE.public, [b"three"], now=pair.now)
        pair.settle()
        assert received(bob) == [(ALICE.public, item) for item in (b"one", b"two", bytes(1200))]
        assert received(alice) == [(BOB.public, b"three")]
        pair.wait(400.0)
        assert alice.is_connected
        assert bob.is_connected
        alice.close(now=pair.now)
        pair.server.receive_tcp_eof(1, now=pair.now)
        pair.settle()
        assert PeerGoneEvent(node_id=ALICE.public) in pair.events[2]

    def test_the_older_of_two_with_one_key_is_closed(self) -> None:
        pair = Pair()
        pair.add(ALICE, "v3")
        pair.add(ALICE, "v3")
        assert isinstance(pair.events[1][-1], ConnectionLost)
        assert not isinstance(pair.events[2][-1], ConnectionLost)


def received(client: DerpClient) -> list[tuple[NodeId, bytes]]:
    return [
        (item.node_id, datagram)
        for item in client.received_payloads()
        for datagram in item.datagrams
    ]


class TestProof:
    """Nothing is delivered for an id whose key the client did not prove."""

    @given(data=st.data())
    def test_no_change_to_a_handshake_lets_anyone_in_as_somebody_else(
        self, data: st.DataObject
    ) -> None:
        way = data.draw(st.sampled_from(sorted(WAYS)))
        world = World()
        _, bob = world.connect("v3", BOB)
        victim, mallory = Peer(way, ALICE), Peer(way, CAROL)
        world.server.accept_tcp(66, now=world.now)
        sent = len(world.events)
        answer = begin(world, 66, mallory)
        # The handshake of Carol with Alice's id in it, or anything changed.
        forged = bytearray(answer.replace(CAROL.public, ALICE.public))
        for _ in range(data.draw(st.integers(0, 2))):
            place = data.draw(st.integers(0, len(forged) - 1))
            forged[place] ^= data.draw(st.integers(1, 255))
        packet = victim.packet_to(BOB.public, b"as alice")
        for piece in data.draw(chunkings(bytes(forged) + packet)):
            world.give(66, piece)
        assert [source for source, _ in bob.packets() if source == ALICE.public] == []
        assert ALICE.public not in world.server.clients
        connected = [e for e in world.events[sent:] if isinstance(e, ClientConnected)]
        assert all(event.node_id != ALICE.public for event in connected)

    def test_the_forged_handshakes_begin_as_good_ones(self) -> None:
        for way in WAYS:
            world = World()
            world.server.accept_tcp(66, now=world.now)
            world.give(66, begin(world, 66, Peer(way, CAROL)))
            assert world.server.clients == [CAROL.public]


def begin(world: World, tcp_id: int, peer: Peer) -> bytes:
    """Ask for the upgrade and return the handshake that would follow, unsent."""
    world.server.receive_tcp_data(tcp_id, peer.request, now=world.now)
    answer = peer.receive(world.server.tcp_data_to_send(tcp_id))
    if not answer:  # v2: the server speaks first
        world.wait_silently(0.5)
        answer = peer.receive(world.server.tcp_data_to_send(tcp_id))
    return answer


FLOODS = [
    Flood("pings", flood_of_pings),
    Flood("packets", flood_of_packets),
    Flood("an unfinished frame", flood_of_pieces, count=400),
    Flood("connections", flood_of_requests),
]

TestDerpServerContract = contract_tests(
    Subject(
        factory=lambda rng: DerpServer(secret_key=SERVER_KEY, rng=rng),
        context=Crowd,
        begin=[join("v3", 2)],
        operations=operations(),
        floods=[
            Flood("pings", flood_of_pings),
            Flood("packets", flood_of_packets),
            Flood("an unfinished frame", flood_of_pieces, count=400),
            Flood("connections", flood_of_requests),
        ],
        memory_limit=96 << 20,
    )
)
