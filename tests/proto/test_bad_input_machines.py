"""Whatever arrives: nothing raised, nothing kept, everything counted, and good peers served."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import ConnectionEstablished
from iroh_anyio.quic.header import decode_long_header
from iroh_anyio.quic.options import EndpointOptions, IncomingAttempt
from iroh_proto.address import UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.disco.boxes import FAILED_OPENS_LIMIT, FAILED_SOURCES_LIMIT
from iroh_proto.disco.message import (
    CallMeMaybe,
    DiscoMessage,
    Ping,
    Pong,
    is_disco,
    seal_envelope,
)
from iroh_proto.key import SecretKey
from iroh_proto.paths.node_map import STRANGERS_LIMIT
from iroh_proto.testing.snapshot import retained_bytes, snapshot
from tests.proto.endpoint_world import ALPN, UNIX_TIME, Node
from tests.proto.hostile_bytes import bend, golden_bytes, initials, noise
from tests.proto.hostile_quic import (
    CRYPTO_FRAME,
    FRAME_TYPES,
    crypto_frame,
    forge,
    frame_body,
    packet_types,
    stranger_initial,
)
from tests.proto.hostile_world import MALLORY, HostileWorld, Overheard, arrive, sealed_ping

GOLDEN = golden_bytes()
SLACK = 64 * 1024  # bytes that caches and dictionaries may grow by without anybody being kept


def stranger(number: int) -> UdpAddress:
    """Return one of 16 million addresses that nobody has."""
    return UdpAddress(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024)


def first_flight(world: HostileWorld, server: Node, number: int = 0) -> list[bytes]:
    """Return what a client sends first. The client is nobody's and never hears an answer."""
    client = EndpointMachine(
        secret_key=SecretKey.generate(random.Random(f"client {number}")),
        rng=random.Random(number),
        unix_time=UNIX_TIME,
    )
    client.start([MALLORY], now=world.now)
    client.connect(server.addr(), alpn=ALPN, now=world.now)
    datagrams = [data for transmit in client.datagrams_to_send() for data in transmit.datagrams]
    return [data for data in datagrams if not is_disco(data)]


def accounted(node: Node) -> tuple[int, int]:
    """Return the UDP datagrams a node got, and those it has a count for."""
    magicsock, quic = node.machine.magicsock.stats, node.machine.stats
    disco, stun = magicsock.paths.disco, magicsock.stun
    connections = node.machine._board._connections.values()
    counted = (
        magicsock.malformed
        + sum(getattr(disco, name) for name in DISCO_ARRIVALS)
        + stun.malformed + stun.unmatched + stun.responses
        + sum(getattr(quic, name) for name in QUIC_ARRIVALS)
        + sum(connection.packets_received for connection in connections)
    )  # fmt: skip
    return magicsock.udp_received, counted


DISCO_ARRIVALS = (
    *("bad_envelope", "bad_key", "bad_message", "from_self", "wrong_source"),
    *("unmatched_pongs", "calls_over_udp", "pings_received", "pongs_received", "calls_received"),
)
QUIC_ARRIVALS = (
    *("dropped_unknown", "dropped_malformed", "dropped_half_open_limit"),
    *("dropped_connection_limit", "refused", "retries_sent", "versions_offered"),
)


def assert_nothing_is_kept(node: Node) -> None:
    board = node.machine._board
    assert (len(board), board._routes, board._half_open) == (0, {}, set())
    assert node.machine.magicsock.remote_infos() == []


# Datagrams


@given(st.integers(0, 2**64))
def test_every_datagram_of_a_stranger_has_its_count_and_leaves_nothing(seed: int) -> None:
    rng = random.Random(seed)
    world = HostileWorld()
    bob = world.node("bob")
    world.network.run_for(1.0)
    (packet, *_) = first_flight(world, bob)
    datagrams = [noise(rng) for _ in range(30)]
    datagrams += [bend(rng.choice(GOLDEN), rng) for _ in range(60)]
    datagrams += [bend(packet, rng) for _ in range(10)]
    datagrams += initials(packet, rng)
    rng.shuffle(datagrams)
    for index, datagram in enumerate(datagrams):
        arrive(bob, stranger(index % 7), datagram)
    received, counted = accounted(bob)
    assert received == counted == len(datagrams)
    world.network.run_for(12.0)  # what was taken for the beginning of a handshake ends in time
    assert bob.machine.stats.quic_failures == 0
    assert_nothing_is_kept(bob)


def test_bytes_from_strangers_take_no_memory() -> None:
    rng = random.Random(1)
    world = HostileWorld()
    bob = world.node("bob")
    world.network.run_for(1.0)
    (packet, *_) = first_flight(world, bob)
    world.is_lost = lambda one: one.destination.ip.startswith("10.")

    def flood(count: int, begin: int) -> None:
        for number in range(begin, begin + count):
            choice = number % 4
            data = noise(rng) if choice == 0 else bend(rng.choice((packet, *GOLDEN)), rng)
            arrive(bob, stranger(number), data)
        world.network.run_for(15.0)

    flood(2_000, 0)
    before = retained_bytes(bob.machine)
    flood(6_000, 10_000)
    assert retained_bytes(bob.machine) < before + SLACK
    assert_nothing_is_kept(bob)


def test_no_stranger_is_sent_more_than_it_sent() -> None:
    rng = random.Random(2)
    world = HostileWorld()
    bob = world.node("bob")
    world.network.run_for(1.0)
    (packet, *_) = first_flight(world, bob)
    world.is_lost = lambda one: one.destination.ip.startswith("10.")
    candidates = [*initials(packet, rng), *GOLDEN, *(bend(packet, rng) for _ in range(200))]
    for number, data in enumerate(candidates):
        arrive(bob, stranger(number), data)
        world.network.run_for(0.05)
        sent = sum(len(one.data) for one in world.sent_to(stranger(number)))
        # Thrice as much while a handshake is under way: RFC 9000, section 8.1.
        assert sent <= (3 if bob.machine.stats.handshakes_begun else 1) * len(data)


@pytest.mark.parametrize("derp", [False, True], ids=["direct", "derp"])
@pytest.mark.parametrize("seed", range(3))
def test_a_session_amid_its_own_packets_bent_and_repeated_loses_nothing(
    derp: bool, seed: int
) -> None:
    rng = random.Random(seed)
    world = HostileWorld(derp=derp, seed=seed)
    alice, bob = world.two(derp=derp)
    nodes = {alice.udp: alice, bob.udp: bob}

    def bend_it(one: Overheard) -> None:
        node = nodes.get(one.destination)
        if node is None:
            return
        bent = bend(one.data, rng)
        if bent[1:5] == bytes(4) and bent[:1] >= b"\x80":
            return  # a Version Negotiation packet, of which nobody can say who made it
        sources = (one.source, MALLORY, rng.choice(list(nodes)))
        world.network.clock.call_later(
            rng.uniform(0.0, 0.05), lambda: arrive(node, rng.choice(sources), bent, one.data)
        )

    world.on_datagram = bend_it
    number = world.connect(alice, bob.addr(derp=derp))
    for _ in range(3):
        assert world.talk(alice, number, bob)
        assert world.talk(bob, bob.established()[0].connection, alice)
        world.network.run_for(3.0)
    for node in (alice, bob):
        assert node.reason(node.established()[0].connection) is None
        assert node.machine.stats.quic_failures == 0
        assert node.machine.connection_info(number).path.kind == "direct"


def test_a_version_negotiation_by_a_bystander_does_not_end_a_dial() -> None:
    world = HostileWorld()
    alice, bob = world.two()
    world.network.run_for(1.0)

    def answer(one: Overheard) -> None:
        if one.source == alice.udp and one.data[0] & 0xC0 == 0xC0:
            header = decode_long_header(one.data, version=1)
            ids = (header.source_cid, header.destination_cid)
            forged = b"\xc0" + bytes(4) + b"".join(bytes((len(cid),)) + cid for cid in ids)
            forged += b"\x0a\x0a\x0a\x0a"  # a version nobody speaks
            world.network.clock.call_later(0.0, lambda: arrive(alice, MALLORY, forged))

    world.on_datagram = answer
    number = alice.dial(bob.addr())
    world.network.run_until(lambda: bool(alice.established() or alice.reason(number)), limit=15)
    assert alice.established()


# disco


def forged_messages(sender: SecretKey, receiver: Node, rng: random.Random) -> list[bytes]:
    """Return disco datagrams that claim a sender, but were sealed by somebody else."""
    box = SharedBox(SecretKey.generate(rng), receiver.id)
    messages: list[DiscoMessage] = [
        Ping(bytes(12), sender.public),
        Pong(bytes(12), MALLORY),
        CallMeMaybe([MALLORY]),
    ]
    return [
        seal_envelope(message.encode(), sender=sender.public, box=box, nonce=rng.randbytes(24))
        for message in messages
    ]


def test_forged_disco_messages_create_no_state() -> None:
    rng = random.Random(3)
    world = HostileWorld()
    alice, bob = world.two()
    world.network.run_for(1.0)
    finder = bob.machine.magicsock._finder
    nodes, boxes = snapshot(finder._nodes), len(finder._pinger._boxes)
    wire = len(world.wire)
    for number in range(500):
        claimed = alice.key if number % 2 else SecretKey.generate(rng)
        arrive(bob, stranger(number), *forged_messages(claimed, bob, rng))
    assert snapshot(finder._nodes) == nodes
    assert len(finder._pinger._boxes) == boxes == 0
    assert finder._pinger._pings == {}
    assert bob.machine.magicsock.stats.paths.disco.bad_key == 1_500
    assert len(world.wire) == wire
    assert bob.seen(ConnectionEstablished) == []


def test_those_whose_messages_do_not_open_cost_little_and_are_forgotten() -> None:
    rng = random.Random(4)
    world = HostileWorld()
    alice, bob = world.two()
    world.network.run_for(1.0)
    keeper = bob.machine.magicsock._finder._pinger._boxes
    opened: list[bytes] = []
    (message, *_) = forged_messages(alice.key, bob, rng)
    arrive(bob, MALLORY, *[message] * (FAILED_OPENS_LIMIT + 10))
    assert keeper._failures[MALLORY.ip][1] == FAILED_OPENS_LIMIT
    arrive(bob, MALLORY, sealed_ping(alice, bob))
    assert opened == []
    assert alice.id not in keeper  # the same host, in the same second
    world.network.run_for(1.0)
    arrive(bob, MALLORY, sealed_ping(alice, bob))
    assert alice.id in keeper
    for number in range(2 * FAILED_SOURCES_LIMIT):
        arrive(bob, stranger(number), message[:-1] + bytes((number & 255,)))
    assert len(keeper._failures) <= FAILED_SOURCES_LIMIT


def test_a_known_peer_is_heard_whoever_fails_in_its_name() -> None:
    rng = random.Random(5)
    world = HostileWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    world.network.run_for(1.0)
    for _ in range(20):
        for message in forged_messages(alice.key, bob, rng) * 20:
            arrive(bob, alice.udp, message)
        world.network.run_for(0.5)
    assert bob.machine.magicsock.path_info(alice.id).kind == "direct"
    assert world.talk(alice, number, bob)


def test_strangers_that_ping_are_bounded_and_push_out_no_peer() -> None:
    world = HostileWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    world.is_lost = lambda one: one.destination.ip.startswith("10.")
    for count in range(2 * STRANGERS_LIMIT):
        key = SecretKey.generate(random.Random(count))
        ping = seal_envelope(
            Ping(bytes(12), key.public).encode(),
            sender=key.public,
            box=SharedBox(key, bob.id),
            nonce=count.to_bytes(24, "big"),
        )
        arrive(bob, stranger(count), ping)
    assert len(bob.machine.magicsock.remote_infos()) <= STRANGERS_LIMIT + 1
    world.network.run_for(100.0)
    assert len(bob.machine.magicsock.remote_infos()) < 64
    assert world.talk(alice, number, bob)


# Handshakes


def test_half_open_handshakes_are_bounded_and_an_honest_client_comes_in() -> None:
    options = EndpointOptions(max_half_open=20, retry_threshold=5)
    world = HostileWorld()
    bob = world.node("bob", options=options)
    world.network.run_for(1.0)
    world.is_lost = lambda one: one.destination.ip.startswith("10.")
    flights = [first_flight(world, bob, number) for number in range(40)]
    for number, flight in enumerate(flights):
        arrive(bob, stranger(number), *flight)
    board, stats = bob.machine._board, bob.machine.stats
    assert stats.handshakes_begun == options.retry_threshold
    assert stats.retries_sent >= len(flights) - options.retry_threshold
    assert len(board) <= options.retry_threshold
    before = retained_bytes(bob.machine)
    for number, flight in enumerate(flights * 20):
        arrive(bob, stranger(1000 + number), *(flight if number % 2 else flight[:1]))
    assert len(board._half_open) <= options.max_half_open
    assert retained_bytes(bob.machine) < before + SLACK
    honest = world.node("honest")
    world.connect(honest, bob.addr())
    assert world.talk(honest, 0, bob)
    world.network.run_for(options.handshake_timeout + 3.0)
    assert board._half_open == set()
    assert bob.machine.stats.handshakes_expired == options.retry_threshold


@pytest.mark.parametrize("identity", ["raw", "x509"])
def test_a_filter_refuses_before_any_work_on_certificates(identity: str) -> None:
    attempts: list[IncomingAttempt] = []

    def refuse(attempt: IncomingAttempt) -> bool:
        attempts.append(attempt)
        return False

    world = HostileWorld()
    bob = world.node("bob", options=EndpointOptions(accept_filter=refuse))
    alice = world.node("alice", options=EndpointOptions(identity=identity))  # type: ignore[arg-type]
    world.network.run_for(1.0)
    made: list[object] = []
    accept = bob.machine._board._factory.accept

    def note(*args: object, **settings: object) -> object:
        made.append(settings)
        return accept(*args, **settings)  # type: ignore[arg-type]

    bob.machine._board._factory.accept = note  # type: ignore[assignment, method-assign]
    reason = world.ended(alice, alice.dial(bob.addr()))
    assert reason.kind == "refused"
    assert attempts == [IncomingAttempt(source=alice.udp, node_id=None)] * len(attempts)
    assert attempts
    assert made == []
    assert bob.machine._board._factory._identity._x509 is None
    assert bob.machine.stats.handshakes_begun == 0
    assert bob.machine.stats.refused == len(attempts)
    assert_nothing_is_kept_of_handshakes(bob)


def assert_nothing_is_kept_of_handshakes(node: Node) -> None:
    board = node.machine._board
    assert (len(board), board._routes, board._half_open) == (0, {}, set())


def test_connections_that_stand_are_not_half_open_however_they_came() -> None:
    options = EndpointOptions(max_half_open=3, retry_threshold=2)
    world = HostileWorld(derp=True)
    bob = world.node("bob", derp=True, options=options)
    clients = [world.node(f"client {number}", derp=True) for number in range(6)]
    world.network.run_for(3.0)
    for client in clients:
        world.network.block_udp(client.host, bob.host)
        world.connect(client, bob.addr(direct=False, derp=True))
    world.network.run_for(1.0)
    assert len(bob.established()) == len(clients)
    assert bob.machine._board._half_open == set()
    assert bob.machine.stats.retries_sent == 0
    assert {info.scheme for info in bob.machine.magicsock.remote_infos()} == {"disco"}


def test_handshakes_that_fail_at_once_are_bounded_like_those_that_never_end() -> None:
    world = HostileWorld()
    bob = world.node("bob")
    world.network.run_for(1.0)
    world.is_lost = lambda one: one.destination.ip.startswith("10.")
    nonsense = crypto_frame(0, bytes(900))
    for number in range(500):
        arrive(bob, stranger(number), stranger_initial(CRYPTO_FRAME, nonsense, number=number))
    stats, limit = bob.machine.stats, bob.machine.options.retry_threshold
    assert (stats.handshakes_begun, stats.handshakes_failed) == (limit, limit)
    assert stats.retries_sent == 500 - limit
    assert len(bob.machine._board) == limit
    honest = world.node("honest")
    world.connect(honest, bob.addr())
    world.network.run_for(3.0)
    assert len(bob.machine._board) == 1


def test_one_packet_of_a_stranger_takes_little_memory_wherever_it_says_it_belongs() -> None:
    world = HostileWorld()
    bob = world.node("bob")
    world.network.run_for(1.0)
    world.is_lost = lambda one: one.destination.ip.startswith("10.")
    count = 20
    before = retained_bytes(bob.machine)
    for number in range(count):
        body = crypto_frame(500_000, bytes(900))
        arrive(bob, stranger(number), stranger_initial(CRYPTO_FRAME, body, number=number))
    assert retained_bytes(bob.machine) - before < count * 200 * 1024


@pytest.mark.parametrize("stage", ["first", "handshake", "established", "busy"])
@pytest.mark.parametrize("hostile_side", ["client", "server"])
def test_frames_that_nobody_sends_end_a_connection_at_most(stage: str, hostile_side: str) -> None:
    for seed in range(12):
        rng = random.Random(f"{stage} {hostile_side} {seed}")
        world = HostileWorld(seed=seed)
        options = EndpointOptions(identity="x509" if seed % 2 else "raw")
        alice, bob = world.node("alice", options=options), world.node("bob")
        carol = world.node("carol")
        world.network.run_for(1.0)
        steps = {"first": 0.015, "handshake": 0.025, "established": 0.5, "busy": 0.5}
        alice.dial(bob.addr())
        world.network.run_for(steps[stage])
        hostile, victim = (alice, bob) if hostile_side == "client" else (bob, alice)
        conns = list(hostile.machine._board._connections.values())
        if stage == "busy" and conns:
            for node in (alice, bob):
                for event in node.established():
                    node.send(event.connection, bytes(30_000))
        for _ in range(rng.randrange(5, 40)):
            for conn in conns:
                quic = conn._quic
                if not packet_types(quic):
                    continue
                kind = rng.choice(packet_types(quic))
                datagrams = forge(quic, kind, rng.choice(FRAME_TYPES), frame_body(rng))
                arrive(victim, hostile.udp, *datagrams)
            world.network.run_for(rng.choice((0.0, 0.0, 0.01, 0.5)))
        assert victim.machine.stats.quic_failures == 0
        number = world.connect(carol, victim.addr())
        assert world.talk(carol, number, victim)
        world.network.run_for(60.0)
        assert len(victim.machine._board._half_open) == 0
