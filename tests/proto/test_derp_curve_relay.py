"""A DERP server whose clients of Tailscale's dialect meet one another and those of iroh."""

from __future__ import annotations

import random

import pytest

from iroh_proto.derp import router as router_module
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.curve_frames import (
    GONE_DISCONNECTED,
    GONE_NOT_HERE,
    CurvePeerGone,
    CurveRecvPacket,
    CurveSendPacket,
    ServerKey,
)
from iroh_proto.derp.dialects.tailscale import KEEP_ALIVE_INTERVAL, KEEP_ALIVE_JITTER
from iroh_proto.derp.events import DerpConnected, PeerGone, ReceivedDatagrams
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    KEYED_HEADER,
    PACKET_LIMIT,
    RELAYED_PACKET,
    Frame,
    KeepAlive,
    Ping,
    Pong,
    SendPacket,
    pack_datagrams,
)
from iroh_proto.derp.frames import PeerGone as PeerGoneFrame
from iroh_proto.derp.node_names import (
    DISCO_MAGIC,
    HEARD_LIMIT,
    SHORTEST_DISCO,
    WANTED_LIMIT,
    NodeNames,
)
from iroh_proto.derp.relay_events import ClientConnected
from iroh_proto.derp.router import LOOKUPS_LIMIT, DerpRouter
from iroh_proto.derp.router_reports import Departure
from iroh_proto.derp.segments import CONVERTED_LIMIT
from iroh_proto.key import KEY_SIZE, NodeId, SecretKey
from iroh_proto.machine import TcpCloseRequested
from iroh_proto.x25519 import X25519PublicKey, x25519_of
from tests.proto.derp_peer import CURVE_WAYS, SERVER_KEY, URL, WAYS, Peer, World, key

ALICE, BOB, CAROL = key(2), key(3), key(4)
NOBODY = x25519_of(key(9).public)


def curve(secret_key: SecretKey) -> X25519PublicKey:
    return x25519_of(secret_key.public)


def disco_from(node_id: bytes) -> bytes:
    """Return what a relay takes for a disco message of a node."""
    return (DISCO_MAGIC + node_id).ljust(SHORTEST_DISCO + 10, b"\x00")


def send_bare(world: World, tcp_id: int, dst: X25519PublicKey, *datagrams: bytes) -> None:
    codec = world.peers[tcp_id].codec
    world.give(tcp_id, b"".join(codec.encode(CurveSendPacket(dst, data)) for data in datagrams))


@pytest.mark.parametrize("first", CURVE_WAYS)
@pytest.mark.parametrize("second", CURVE_WAYS)
def test_packets_pass_unchanged_among_them(first: str, second: str) -> None:
    world = World()
    alice_id, alice = world.connect(first, ALICE)
    bob_id, bob = world.connect(second, BOB)
    assert world.server.clients == [curve(ALICE), curve(BOB)]
    send_bare(world, alice_id, curve(BOB), b"", b"x", bytes(PACKET_LIMIT))
    send_bare(world, bob_id, curve(ALICE), b"back")
    payloads = [b"", b"x", bytes(PACKET_LIMIT)]
    assert bob.frames == [CurveRecvPacket(curve(ALICE), payload) for payload in payloads]
    assert alice.frames == [CurveRecvPacket(curve(BOB), b"back")]
    connected = [event for event in world.events if isinstance(event, ClientConnected)]
    assert [(event.node_id, event.dialect) for event in connected] == [
        (curve(ALICE), "tailscale"),
        (curve(BOB), "tailscale"),
    ]


@pytest.mark.parametrize("curve_way", CURVE_WAYS)
@pytest.mark.parametrize("way", WAYS)
def test_datagrams_pass_to_and_from_nodes_once_it_is_known_who_sends(
    way: str, curve_way: str
) -> None:
    world = World()
    node_id, node = world.connect(way, ALICE)
    curve_id, peer = world.connect(curve_way, BOB)
    datagrams = [disco_from(BOB.public), bytes(1200), bytes(1200), b"short", bytes(DATAGRAM_LIMIT)]
    for payload in pack_datagrams(datagrams):
        world.send(node_id, BOB.public, payload)
        world.send(curve_id, ALICE.public, payload)
    assert peer.datagrams() == [(ALICE.public, datagram) for datagram in datagrams]
    assert node.datagrams() == [(BOB.public, datagram) for datagram in datagrams]
    assert world.server.stats.router.packets_without_name == 0
    assert not [event for event in world.events if isinstance(event, TcpCloseRequested)]


def test_of_a_stranger_nothing_passes_to_nodes() -> None:
    world = World()
    _, node = world.connect("v3", ALICE)
    curve_id, _ = world.connect("tailscale", BOB)
    claims = [b"quic", disco_from(CAROL.public), disco_from(b"\x02" * 32), disco_from(bytes(32))]
    for claim in claims:
        send_bare(world, curve_id, curve(ALICE), claim)
    assert node.frames == []
    assert world.server.stats.router.packets_without_name == len(claims)
    send_bare(world, curve_id, curve(ALICE), b"first", disco_from(BOB.public))
    assert [data for _, data in node.datagrams()] == [b"first", disco_from(BOB.public)]
    send_bare(world, curve_id, curve(ALICE), disco_from(CAROL.public))
    assert node.datagrams()[-1][0] == BOB.public  # what somebody is, it stays


def test_a_node_that_is_there_by_another_dialect_too_is_no_stranger() -> None:
    world = World()
    _, node = world.connect("v3", ALICE)
    world.connect("relay-v2", BOB)
    curve_id, _ = world.connect("tailscale", BOB)
    send_bare(world, curve_id, curve(ALICE), b"quic")
    assert node.datagrams() == [(BOB.public, b"quic")]


@pytest.mark.parametrize("way", WAYS)
def test_datagrams_that_others_cannot_have_are_left_out(way: str) -> None:
    world = World()
    _, node = world.connect(way, ALICE)
    curve_id, _ = world.connect("tailscale", BOB)
    too_long = bytes(DATAGRAM_LIMIT + 1)
    send_bare(world, curve_id, curve(ALICE), disco_from(BOB.public), b"", too_long, b"last")
    assert [data for _, data in node.datagrams()] == [disco_from(BOB.public), b"last"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datagram", [b"", bytes(DATAGRAM_LIMIT + 1)], ids=["empty", "too long"])
def test_a_packet_of_which_nothing_is_left_is_dropped(way: str, datagram: bytes) -> None:
    world = World()
    _, node = world.connect(way, ALICE)
    curve_id, _ = world.connect("tailscale", BOB)
    send_bare(world, curve_id, curve(ALICE), disco_from(BOB.public))
    send_bare(world, curve_id, curve(ALICE), datagram)
    send_bare(world, curve_id, curve(ALICE), datagram, datagram)
    assert [data for _, data in node.datagrams()] == [disco_from(BOB.public)]
    assert world.server.stats.router.packets_without_datagram == 3


@pytest.mark.parametrize("payload", [b"", b"\x05", b"\x05\x00four"])
def test_a_payload_without_a_datagram_does_not_wait_for_whoever_wants_bare_ones(
    payload: bytes,
) -> None:
    world = World()
    curve_id, _ = world.connect("tailscale", ALICE)
    node_id, node = world.connect("v3", BOB)
    packet = node.codec.encode(SendPacket(ALICE.public, payload))
    world.server.receive_tcp_data(node_id, packet, now=world.now)
    assert curve_id not in world.server.tcp_to_send()
    assert world.server.stats.router.packets_without_datagram == 1


def test_a_disco_message_to_nobody_is_answered_but_not_too_often() -> None:
    world = World()
    tcp_id, peer = world.connect("tailscale", ALICE)
    send_bare(world, tcp_id, NOBODY, b"quic", disco_from(ALICE.public)[: SHORTEST_DISCO - 1])
    assert peer.frames == []
    for _ in range(5):
        send_bare(world, tcp_id, NOBODY, disco_from(ALICE.public))
    gone: list[Frame] = [CurvePeerGone(NOBODY, GONE_NOT_HERE)]
    assert peer.frames == gone * 3
    world.wait(1.0)
    for _ in range(2):
        send_bare(world, tcp_id, NOBODY, disco_from(ALICE.public))
    assert peer.frames == gone * 4
    node_id, node = world.connect("v3", BOB)
    world.send(node_id, CAROL.public, pack_datagrams([disco_from(BOB.public)])[0])
    assert node.frames == []  # iroh's clients are not told


def test_who_was_sent_to_hears_of_the_end_by_the_key_it_knows() -> None:
    world = World()
    node_id, node = world.connect("v2", ALICE)
    curve_id, peer = world.connect("tailscale", BOB)
    other_id, other = world.connect("tailscale", CAROL)
    for dst in (ALICE, CAROL):
        send_bare(world, curve_id, curve(dst), disco_from(BOB.public))
    world.send(node_id, CAROL.public, b"\x01\x00x")
    other.frames.clear()
    node.frames.clear()
    world.server.receive_tcp_eof(curve_id, now=world.now)
    world.flush()
    assert other.frames == [CurvePeerGone(curve(BOB), GONE_DISCONNECTED)]
    assert node.frames == [PeerGoneFrame(BOB.public)]
    world.server.receive_tcp_eof(node_id, now=world.now)
    world.flush()
    assert other.frames[1:] == [CurvePeerGone(curve(ALICE), GONE_DISCONNECTED)]
    world.server.receive_tcp_eof(other_id, now=world.now)
    assert peer.frames == []


def test_of_two_with_one_key_the_one_that_sent_last_is_sent_to() -> None:
    world = World()
    alice_id, _ = world.connect("tailscale", ALICE)
    older_id, older = world.connect("tailscale", BOB)
    newer_id, newer = world.connect("tailscale", BOB)

    def receiver() -> str:
        send_bare(world, alice_id, curve(BOB), b"who?")
        got = [name for name, peer in (("older", older), ("newer", newer)) if peer.frames]
        older.frames.clear()
        newer.frames.clear()
        return "".join(got)

    assert receiver() == "newer"
    send_bare(world, older_id, curve(ALICE), b"me")
    assert receiver() == "older"
    send_bare(world, newer_id, curve(ALICE), b"me")
    assert receiver() == "newer"
    world.server.receive_tcp_eof(newer_id, now=world.now)
    world.flush()
    assert receiver() == "older"
    assert world.server.clients == [curve(ALICE), curve(BOB)]


def test_a_server_keeps_alive_by_the_minute_and_answers_pings() -> None:
    world = World()
    tcp_id, peer = world.connect("tailscale", ALICE)
    began = world.now
    world.give(tcp_id, peer.codec.encode(Ping(b"12345678")))
    assert peer.frames == [Pong(b"12345678")]
    world.wait(KEEP_ALIVE_INTERVAL - 1)
    assert len(peer.frames) == 1
    world.wait(1 + KEEP_ALIVE_JITTER)
    assert peer.frames[1:] == [KeepAlive()]
    deadline = world.server.get_timer()
    assert deadline is not None
    interval = (deadline - began) / 2
    assert KEEP_ALIVE_INTERVAL <= interval <= KEEP_ALIVE_INTERVAL + KEEP_ALIVE_JITTER


def test_a_fast_start_has_no_http_answer() -> None:
    world = World()
    peer = Peer("tailscale", ALICE)
    request = peer.upgrade.request.replace(b"\r\n\r\n", b"\r\nDerp-Fast-Start: 1\r\n\r\n")
    # Which the client knows from elsewhere.
    (client_info,) = peer.handshake.receive(ServerKey(curve(SERVER_KEY)))
    world.server.accept_tcp(1, now=0.0)
    world.server.receive_tcp_data(1, request + peer.codec.encode(client_info), now=0.0)
    answer = world.server.tcp_data_to_send(1)
    assert answer.startswith(b"\x01\x00\x00\x00\x28DERP")
    assert world.server.clients == [curve(ALICE)]


def test_the_answer_to_an_upgrade_names_the_key_of_the_server() -> None:
    for method in (b"GET", b"POST"):
        world = World()
        world.server.accept_tcp(1, now=0.0)
        request = method + b" /derp HTTP/1.1\r\nhost: x\r\nupgrade: derp\r\n\r\n"
        world.server.receive_tcp_data(1, request, now=0.0)
        head, _, frames = world.server.tcp_data_to_send(1).partition(b"\r\n\r\n")
        assert head.split(b"\r\n")[1:] == [
            b"Upgrade: DERP",
            b"Connection: Upgrade",
            b"Derp-Version: 2",
            b"Derp-Public-Key: " + curve(SERVER_KEY).hex().encode(),
        ]
        assert frames[:5] == b"\x01\x00\x00\x00\x28"


def test_sending_to_ever_new_nobodies_costs_few_computations() -> None:
    world = World()
    world.connect("tailscale", BOB)
    tcp_id, peer = world.connect("v3", ALICE)
    nobodies = [key(number).public for number in range(20, 20 + 4 * LOOKUPS_LIMIT)]
    x25519_of.cache_clear()
    world.give(tcp_id, b"".join(peer.codec.encode_packets(node, [b"x"]) for node in nobodies))
    assert x25519_of.cache_info().misses <= LOOKUPS_LIMIT
    assert world.server.stats.router.packets_without_route == len(nobodies)


def test_a_client_that_sent_to_many_who_left_costs_few_computations_as_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_module, "FAREWELL_LOOKUPS_LIMIT", 4)
    router = DerpRouter()
    router.connect(0, ALICE.public)
    router.connect(1, curve(BOB))
    for number in range(20, 40):
        router.connect(number, key(number).public)
        router.route(0, {key(number).public: [b"header", b"x"]})
        router.disconnect(number)
    x25519_of.cache_clear()
    router.disconnect(0)
    assert x25519_of.cache_info().misses <= 1 + 4  # its own, and theirs


def test_packets_for_a_key_that_nobody_can_have_are_lost() -> None:
    world = World()
    world.connect("tailscale", BOB)
    tcp_id, peer = world.connect("v3", ALICE)
    world.give(tcp_id, peer.codec.encode_packets(NodeId(b"\x01" + bytes(31)), [b"x"]))
    assert world.server.stats.router.packets_without_route == 1


def test_who_was_never_named_to_nodes_does_not_leave_them() -> None:
    # Bob sends to Carol by her X25519 key; then she is there as a node, who never heard of him.
    world = World()
    carol_id, _ = world.connect("tailscale", CAROL)
    bob_id, _ = world.connect("tailscale", BOB)
    send_bare(world, bob_id, curve(CAROL), b"quic")
    world.server.receive_tcp_eof(carol_id, now=world.now)
    _, carol = world.connect("v3", CAROL)
    world.server.receive_tcp_eof(bob_id, now=world.now)
    world.flush()
    assert carol.frames == []


# Two clients of this project


def connected(world: World, tcp_id: int, secret_key: SecretKey) -> DerpClient:
    client = DerpClient(
        url=URL, secret_key=secret_key, rng=random.Random(tcp_id), dialect="tailscale"
    )
    client.start(now=0.0)
    world.server.accept_tcp(tcp_id, now=0.0)
    carry(world, {tcp_id: client})
    assert isinstance(client.next_event(), DerpConnected)
    return client


def carry(world: World, clients: dict[int, DerpClient]) -> None:
    for _ in range(10):
        for tcp_id, client in clients.items():
            world.server.receive_tcp_data(tcp_id, client.data_to_send(), now=0.0)
        for tcp_id, client in clients.items():
            client.receive_data(world.server.tcp_data_to_send(tcp_id), now=0.0)


def test_two_clients_meet_once_one_says_who_it_is() -> None:
    world = World()
    clients = {1: connected(world, 1, ALICE), 2: connected(world, 2, BOB)}
    clients[1].send_datagrams(BOB.public, [b"quic"], now=0.0)
    carry(world, clients)
    assert clients[2].received_payloads() == []
    assert clients[2].stats.strangers_dropped == 1
    clients[1].send_datagrams(BOB.public, [disco_from(ALICE.public), b"quic", b""], now=0.0)
    carry(world, clients)
    assert clients[2].received_payloads() == [
        ReceivedDatagrams(ALICE.public, [data]) for data in (disco_from(ALICE.public), b"quic", b"")
    ]
    assert clients[2].has_heard_of(ALICE.public)
    clients[2].send_datagrams(ALICE.public, [b"answer"], now=0.0)
    carry(world, clients)
    assert clients[1].received_payloads() == [ReceivedDatagrams(BOB.public, [b"answer"])]
    world.server.receive_tcp_eof(1, now=0.0)
    carry(world, {2: clients[2]})
    events = list(iter(clients[2].next_event, None))
    assert PeerGone(node_id=ALICE.public) in events
    assert not clients[2].has_heard_of(ALICE.public)


# Names


def test_what_a_node_says_of_itself_weighs_more() -> None:
    names = NodeNames()
    wrong = NodeId(bytes(ALICE.public[:31]) + bytes((ALICE.public[31] ^ 0x80,)))
    assert x25519_of(wrong) == curve(ALICE)  # the same point but for its sign
    names.want(wrong)
    assert names.find(curve(ALICE)) == wrong
    assert names.sender(curve(ALICE), b"quic") == wrong
    assert names.sender(curve(ALICE), disco_from(BOB.public)) == wrong
    assert names.sender(curve(ALICE), disco_from(ALICE.public)) == ALICE.public
    names.want(wrong)
    assert names.sender(curve(ALICE), b"quic") == ALICE.public
    names.want(NodeId(b"\x01" + bytes(31)))  # nobody can be that


def test_names_are_remembered_up_to_limits() -> None:
    names = NodeNames()
    nodes = [SecretKey.from_bytes(number.to_bytes(32, "big")).public for number in range(1, 4200)]
    for node_id in nodes:
        names.want(node_id)
    known = [node_id for node_id in nodes if names.find(x25519_of(node_id))]
    assert known == nodes[-WANTED_LIMIT:]
    heard = NodeNames()
    for node_id in nodes:
        heard.sender(x25519_of(node_id), disco_from(node_id))
    assert [one for one in nodes if heard.find(x25519_of(one))] == nodes[-HEARD_LIMIT:]


def test_tiny_datagrams_for_many_are_no_more_work_than_those_for_one() -> None:
    world = World()
    node_id, node = world.connect("v3", ALICE)
    others = [key(number) for number in range(20, 24)]
    peers = [world.connect("tailscale", other)[1] for other in others]
    payload = b"\x01\x00x" * 300
    packets = [node.codec.encode(SendPacket(other.public, payload)) for other in others]
    world.give(node_id, b"".join(packets))
    assert world.server.stats.router.packets_routed == CONVERTED_LIMIT
    assert world.server.stats.router.packets_without_datagram == 2
    assert [bool(peer.frames) for peer in peers] == [True, True, False, False]


@pytest.mark.parametrize("way", WAYS)
def test_a_node_that_leaves_by_one_dialect_is_still_there_by_the_other(way: str) -> None:
    world = World()
    node_id, node = world.connect(way, ALICE)
    curve_id, _ = world.connect("tailscale", ALICE)
    bob_id, bob = world.connect(way, BOB)
    _, carol = world.connect("tailscale", CAROL)
    send_bare(world, curve_id, curve(BOB), disco_from(ALICE.public))
    world.send(node_id, CAROL.public, pack_datagrams([b"hello"])[0])
    world.server.receive_tcp_eof(curve_id, now=world.now)
    world.flush()
    assert not [frame for frame in bob.frames if isinstance(frame, PeerGoneFrame)]
    world.send(bob_id, ALICE.public, pack_datagrams([b"to the node"])[0])
    assert node.datagrams() == [(BOB.public, b"to the node")]
    world.server.receive_tcp_eof(node_id, now=world.now)
    world.flush()
    assert isinstance(carol.frames[-1], CurvePeerGone)


def test_others_are_not_told_that_a_node_left_which_is_there_by_its_other_key() -> None:
    router = DerpRouter()
    router.is_watched = True
    router.connect(1, ALICE.public, waits=False, flags=0)
    router.connect(2, curve(ALICE), waits=True, flags=0)
    router.connect(3, BOB.public, waits=False, flags=0)
    disco = disco_from(ALICE.public)
    header = KEYED_HEADER.pack(RELAYED_PACKET, KEY_SIZE + len(disco), curve(ALICE))
    router.route(2, {curve(BOB): [header, disco]})
    router.take_presences()
    assert router.disconnect(2) == Departure([], None)
    assert router.take_presences() == []
    router.disconnect(1)
    (presence,) = router.take_presences()
    assert (presence.node_id, presence.is_present) == (ALICE.public, False)
