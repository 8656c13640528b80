"""Endpoints that dial and accept, on a simulated internet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic import switchboard
from iroh_anyio.quic.dial import PASSED_OVER_LIMIT
from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import (
    ConnectionClosed,
    ConnectionEstablished,
    QuicDatagramReceived,
    SendingStopped,
    StreamDataReceived,
    StreamOpened,
    StreamReset,
)
from iroh_anyio.quic.node_quic import NodeQuic
from iroh_anyio.quic.options import EndpointOptions, IncomingAttempt
from iroh_anyio.quic.switchboard import AMPLIFICATION_LIMIT, SECOND_OPINION_TIME
from iroh_proto.address import Address, NodeAddr, UdpAddress
from iroh_proto.derp.node_names import looks_like_disco
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from tests.proto.endpoint_world import ALPN, URL, EndpointWorld, Node

NOBODY = UdpAddress("198.51.100.99", 9)


def test_two_nodes_meet_talk_and_part() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    (ours,) = alice.established()
    assert ours == ConnectionEstablished(
        connection=number, node_id=bob.id, alpn=ALPN, incoming=False
    )
    stream_id = alice.send(number, b"hello")
    world.network.run_for(0.5)
    (theirs,) = bob.established()
    assert theirs == ConnectionEstablished(connection=0, node_id=alice.id, alpn=ALPN, incoming=True)
    assert bob.seen(StreamOpened) == [
        StreamOpened(connection=0, stream_id=stream_id, bidirectional=True)
    ]
    assert bytes(bob.received[0, stream_id]) == b"hello"
    alice.give(lambda machine, now: machine.close_connection(number, 4, "bye", now=now))
    world.network.run_for(0.5)
    ours_end, theirs_end = alice.reason(number), bob.reason(0)
    assert ours_end is not None
    assert theirs_end is not None
    assert (ours_end.kind, ours_end.code) == ("local", 4)
    assert (theirs_end.kind, theirs_end.code, theirs_end.text) == ("application", 4, "bye")


def test_a_snapshot_tells_who_and_how() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = alice.dial(bob.addr())
    before = alice.machine.connection_info(number)
    assert (before.node_id, before.alpn, before.established) == (bob.id, ALPN, False)
    world.network.run_for(1.0)
    info = alice.machine.connection_info(number)
    assert (info.established, info.incoming) == (True, False)
    assert info.rtt == pytest.approx(0.04, abs=0.01)
    assert info.path.kind == "direct"
    assert info.path.addr == bob.udp
    assert info.stats.packets_sent > 0
    assert info.stats.bytes_received > 0


def test_streams_go_both_ways_and_bytes_are_intact_on_a_bad_network() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    for node in (alice, bob):
        link = node.host.attachments[0].link
        link.loss, link.jitter, link.reordering, link.duplication = 0.03, 0.01, 0.1, 0.05
    number = world.connect(alice, bob.addr())
    data = random.Random(5).randbytes(300_000)
    first = alice.send(number, data)
    world.network.run_until(lambda: bool(bob.established()), limit=5)
    second = bob.send(0, data[::-1])
    world.network.run_until(
        lambda: (0, first) in bob.ended and (number, second) in alice.ended, limit=120
    )
    assert bytes(bob.received[0, first]) == data
    assert bytes(alice.received[number, second]) == data[::-1]


def test_datagrams_travel() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    limit = alice.machine.max_datagram_payload(number)
    assert limit is not None
    alice.give(lambda machine, now: machine.send_datagram(number, bytes(limit), now=now))
    world.network.run_for(0.5)
    assert [len(event.data) for event in bob.seen(QuicDatagramReceived)] == [limit]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_datagram_may_be_any_bytes(kind: Callable[[bytes], bytes]) -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    alice.give(lambda machine, now: machine.send_datagram(number, kind(b"data"), now=now))
    world.network.run_for(0.5)
    assert [event.data for event in bob.seen(QuicDatagramReceived)] == [b"data"]


def test_a_datagram_that_is_no_bytes_costs_an_error_and_no_connection() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    text: Any = "text"
    with pytest.raises(TypeError, match="bytes-like object is required, not 'str'"):
        alice.give(lambda machine, now: machine.send_datagram(number, text, now=now))
    world.network.run_for(0.5)
    assert alice.seen(ConnectionClosed) == []


# Dials that fail


def test_nobody_at_the_address_is_unreachable() -> None:
    world = EndpointWorld()
    alice, bob = world.two(options=EndpointOptions(handshake_timeout=3.0))
    number = alice.dial(NodeAddr(bob.id, direct_addresses=[NOBODY]))
    begun = world.network.now
    reason = world.ended(alice, number)
    assert reason.kind == "unreachable"
    assert world.network.now - begun == pytest.approx(3.0, abs=0.1)
    assert alice.seen(ConnectionEstablished) == []


def test_a_node_without_any_address_is_unreachable() -> None:
    world = EndpointWorld()
    alice, bob = world.two(options=EndpointOptions(handshake_timeout=2.0))
    number = alice.dial(NodeAddr(bob.id))
    assert world.ended(alice, number).kind == "unreachable"


def test_a_protocol_nobody_serves_is_said_at_once() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = alice.dial(bob.addr(), alpn=b"other")
    begun = world.network.now
    assert world.ended(alice, number).kind == "alpn"
    assert world.network.now - begun < 0.5
    assert bob.established() == []
    assert bob.machine.stats.handshakes_failed == 1


@pytest.mark.parametrize("alpn", ["example/0", None, 7])
def test_a_protocol_name_that_is_no_bytes_is_refused_at_once(alpn: object) -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    with pytest.raises(TypeError, match="a protocol name is bytes, such as b'example/0', not"):
        alice.dial(bob.addr(), alpn=alpn)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not 101"):
        alice.machine.set_alpns(b"example/0")  # type: ignore[arg-type]


def test_the_protocols_served_can_change() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    bob.machine.set_alpns([b"other"])
    number = alice.dial(bob.addr(), alpn=b"other")
    world.network.run_for(1.0)
    assert alice.machine.connection_info(number).established
    assert world.ended(alice, alice.dial(bob.addr())).kind == "alpn"


def test_a_node_that_serves_nothing_refuses() -> None:
    world = EndpointWorld()
    alice = world.node("alice")
    bob = world.node("bob", alpns=())
    number = alice.dial(bob.addr())
    assert world.ended(alice, number).kind == "refused"
    assert bob.machine.stats.refused >= 1


def test_a_filter_refuses_before_the_handshake() -> None:
    asked: list[IncomingAttempt] = []

    def accept(attempt: IncomingAttempt) -> bool:
        asked.append(attempt)
        return False

    world = EndpointWorld()
    alice = world.node("alice")
    bob = world.node("bob", options=EndpointOptions(accept_filter=accept))
    number = alice.dial(bob.addr())
    assert world.ended(alice, number).kind == "refused"
    assert {attempt.source for attempt in asked} == {alice.udp}
    assert bob.machine.stats.handshakes_begun == 0


def test_another_node_at_the_address_is_not_mistaken_for_it() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    other = SecretKey.generate(random.Random(99)).public
    number = alice.dial(NodeAddr(other, direct_addresses=[bob.udp]))
    begun = world.network.now
    reason = world.ended(alice, number)
    assert reason.kind == "identity"
    assert str(bob.id) in reason.text
    assert world.network.now - begun < 0.5
    assert bob.established() == []


@pytest.mark.parametrize("what", ["another key", "another protocol", "nothing served"])
def test_a_stale_address_of_another_node_does_not_spoil_a_dial(what: str) -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    serves = {"another key": (ALPN,), "another protocol": (b"other",), "nothing served": ()}
    squatter = world.node("squatter", alpns=serves[what])
    bob.host.attachments[0].link.latency = 0.2  # the wrong one is heard first
    addr = NodeAddr(bob.id, direct_addresses=[squatter.udp, bob.udp])
    number = world.connect(alice, addr)
    assert alice.machine.connection_info(number).node_id == bob.id
    world.network.run_for(1.0)
    assert alice.reason(number) is None
    assert squatter.established() == []
    assert squatter.machine.stats.handshakes_begun <= 2  # its second answer was passed over


def test_a_stale_address_does_not_spoil_a_dial_through_a_server() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    squatter = world.node("squatter")
    addr = NodeAddr(bob.id, derp_url=URL, direct_addresses=[squatter.udp])
    bob.host.attachments[0].link.latency = 0.2  # the wrong one is heard first
    number = world.connect(alice, addr)
    assert alice.machine.connection_info(number).node_id == bob.id
    assert squatter.established() == []


def test_a_dial_passes_over_so_many_wrong_nodes_and_no_more() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    squatters = [world.node(f"squatter {index}") for index in range(PASSED_OVER_LIMIT + 1)]
    addresses = [squatter.udp for squatter in squatters]
    number = alice.dial(NodeAddr(bob.id, direct_addresses=[*addresses, NOBODY]))
    begun = world.network.now
    assert world.ended(alice, number).kind == "identity"
    assert world.network.now - begun < 5.0


def test_a_refusal_is_believed_soon_when_no_other_address_answers() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    squatter = world.node("squatter")
    number = alice.dial(NodeAddr(bob.id, direct_addresses=[squatter.udp, NOBODY]))
    begun = world.network.now
    assert world.ended(alice, number).kind == "identity"
    assert world.network.now - begun < SECOND_OPINION_TIME + 1.0


def test_a_refusal_from_an_address_that_ponged_is_final() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    bob.host.attachments[0].link.latency = 0.05
    world.connect(alice, bob.addr())  # so that its pong is at hand when the refusal comes
    number = alice.dial(NodeAddr(bob.id, direct_addresses=[bob.udp, NOBODY]), alpn=b"other")
    begun = world.network.now
    assert world.ended(alice, number).kind == "alpn"
    assert world.network.now - begun < 0.5


def test_what_a_wrong_node_said_is_reported_if_the_right_one_never_answers() -> None:
    world = EndpointWorld()
    alice, bob = world.two(options=EndpointOptions(handshake_timeout=3.0))
    squatter = world.node("squatter")
    addr = NodeAddr(bob.id, direct_addresses=[squatter.udp, NOBODY])
    reason = world.ended(alice, alice.dial(addr))
    assert reason.kind == "identity"
    assert str(squatter.id) in reason.text


def test_a_dial_can_be_given_up() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = alice.dial(bob.addr())
    alice.give(lambda machine, now: machine.close_connection(number, 0, "never mind", now=now))
    assert world.ended(alice, number).kind == "local"
    world.network.run_for(20.0)
    assert alice.established() == []
    assert all(bob.reason(event.connection) is not None for event in bob.established())


# Kinds of identity


@pytest.mark.parametrize("mode", ["raw", "x509"])
def test_a_peer_of_one_kind_is_dialled_and_dials(mode: str) -> None:
    world = EndpointWorld()
    alice = world.node("alice")
    bob = world.node("bob", options=EndpointOptions(identity=mode))  # type: ignore[arg-type]
    world.connect(alice, bob.addr())
    world.connect(bob, alice.addr())
    world.network.run_for(0.5)
    assert len(alice.established()) == len(bob.established()) == 2


def test_a_peers_kind_is_remembered() -> None:
    world = EndpointWorld()
    alice = world.node("alice")
    bob = world.node("bob", options=EndpointOptions(identity="x509"))
    world.connect(alice, bob.addr())
    assert bob.machine.stats.handshakes_begun == 2
    world.connect(alice, bob.addr())
    assert bob.machine.stats.handshakes_begun == 3


def test_a_remembered_kind_may_change() -> None:
    world = EndpointWorld()
    alice = world.node("alice")
    key = SecretKey.generate(random.Random(7))
    old = world.node("old", key=key, options=EndpointOptions(identity="x509"))
    world.connect(alice, old.addr())
    old.host.cut_power()
    new = world.node("new", key=key, options=EndpointOptions(identity="raw"))
    addr = NodeAddr(key.public, direct_addresses=[new.udp])
    number = world.connect(alice, addr)
    assert alice.machine.connection_info(number).established


def test_not_every_peers_kind_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "KNOWN_KINDS_LIMIT", 2)
    world = EndpointWorld()
    alice = world.node("alice")
    peers = [world.node(f"peer {index}") for index in range(3)]
    for peer in (peers[0], peers[1], peers[0], peers[2]):
        world.connect(alice, peer.addr())
    assert list(alice.machine._board._kinds) == [peers[0].id, peers[2].id]


def test_nodes_without_a_kind_in_common_say_so() -> None:
    world = EndpointWorld()
    alice = world.node("alice", options=EndpointOptions(identity="raw"))
    bob = world.node("bob", options=EndpointOptions(identity="x509"))
    reason = world.ended(alice, alice.dial(bob.addr()))
    assert (reason.kind, reason.code) == ("identity", 0x128)


# Pressure


def first_packets(count: int, target: Node) -> list[tuple[bytes, UdpAddress]]:
    """Return first packets of clients that will never be heard of again."""
    found = []
    for index in range(count):
        rng = random.Random(1000 + index)
        machine = EndpointMachine(secret_key=SecretKey.generate(rng), rng=rng, unix_time=0.0)
        source = UdpAddress(f"203.0.113.{index + 1}", 1)
        machine.start([source], now=0.0)
        machine.connect(target.addr(), alpn=ALPN, now=0.0)
        found += [
            (data, source)
            for transmit in machine.datagrams_to_send()
            for data in transmit.datagrams
            if len(data) >= 1200
        ]
    return found


def hand_over(node: Node, packets: list[tuple[bytes, UdpAddress]]) -> None:
    for data, source in packets:
        node.machine.receive_datagrams([data], source, now=node.now)
        node.program.flush()


def test_half_open_handshakes_are_bounded_and_end() -> None:
    world = EndpointWorld()
    options = EndpointOptions(max_half_open=10, retry_threshold=99, handshake_timeout=5.0)
    bob = world.node("bob", options=options)
    hand_over(bob, first_packets(25, bob))
    stats = bob.machine.stats
    assert (stats.handshakes_begun, stats.dropped_half_open_limit) == (10, 15)
    world.network.run_for(10.0)
    assert bob.machine.stats.handshakes_expired == 10
    assert len(bob.machine._board) == 0
    assert bob.machine._board._routes == {}
    assert bob.seen(ConnectionClosed) == []


def test_a_half_open_connection_is_answered_at_few_addresses() -> None:
    bob = EndpointWorld().node("bob")
    ((first, _),) = first_packets(1, bob)
    for port in range(1, 11):
        bob.machine.receive_datagrams([first], UdpAddress("203.0.113.1", port), now=bob.now)
    answered = {transmit.addr for transmit in bob.machine.datagrams_to_send()}
    assert len(answered) == switchboard.ANSWERED_KEYS_LIMIT


def test_each_address_that_called_is_sent_three_times_what_came_from_there_and_no_more() -> None:
    world = EndpointWorld()
    bob = world.node("bob", options=EndpointOptions(handshake_timeout=5.0))
    ((packet, _),) = first_packets(1, bob)
    calls = {UdpAddress(f"192.0.2.{number}", 7): number for number in (1, 2, 3)}
    for addr, count in calls.items():
        bob.machine.receive_datagrams([packet] * count, addr, now=bob.now)
    sent: Counter[Address] = Counter()
    while True:
        for transmit in bob.machine.datagrams_to_send():
            sent[transmit.addr] += sum(map(len, transmit.datagrams))
        deadline = bob.machine.get_timer()
        if not len(bob.machine._board) or deadline is None:
            break
        bob.machine.handle_timer(now=deadline)
    for addr, count in calls.items():
        assert 2 * len(packet) < sent[addr] <= AMPLIFICATION_LIMIT * count * len(packet)
    assert sent[UdpAddress("192.0.2.3", 7)] > AMPLIFICATION_LIMIT * len(packet)


def test_under_pressure_honest_clients_come_in_by_retry() -> None:
    world = EndpointWorld()
    bob = world.node("bob", options=EndpointOptions(retry_threshold=5, max_half_open=20))
    alice = world.node("alice")
    hand_over(bob, first_packets(30, bob))
    assert bob.machine.stats.handshakes_begun == 5
    assert bob.machine.stats.retries_sent == 25
    world.connect(alice, bob.addr())
    assert bob.machine.stats.retries_sent == 26
    assert bob.machine.stats.handshakes_begun == 6


def test_a_full_endpoint_refuses_and_dials_nobody() -> None:
    world = EndpointWorld()
    bob = world.node("bob", options=EndpointOptions(max_connections=1))
    alice, carol = world.node("alice"), world.node("carol")
    world.connect(alice, bob.addr())
    assert world.ended(carol, carol.dial(bob.addr())).kind == "refused"
    with pytest.raises(LocalProtocolError, match="connections already"):
        bob.dial(carol.addr())


def test_connections_that_are_over_are_forgotten() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    for _ in range(5):
        number = world.connect(alice, bob.addr())
        alice.machine.close_connection(number, 0, "", now=alice.now)
        alice.program.flush()
        world.network.run_for(3.0)
    for node in (alice, bob):
        board = node.machine._board
        assert (len(board), board._routes, board._by_node, board._dials) == (0, {}, {}, {})
        with pytest.raises(LocalProtocolError, match="gone"):
            node.machine.connection_info(0)


@pytest.mark.parametrize("failures", [1, 2, 1000])
@pytest.mark.parametrize("is_due", [True, False])
def test_a_connection_that_fails_as_it_writes_is_forgotten(failures: int, is_due: bool) -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    world.network.run_for(1.0)
    (conn,) = alice.machine._board._connections.values()
    write, left = conn._quic.datagrams_to_send, [None] * failures

    def fail(now: float) -> list[tuple[bytes, object]]:
        if left:
            left.pop()
            raise RuntimeError("a defect")
        return write(now)

    setattr(conn._quic, "datagrams_to_send", fail)  # noqa: B010  # as a defect would
    bob.host.cut_power()  # so that no packet of his has it written again
    if not is_due:
        alice.send_datagram(number, b"x")
    assert "a defect" in world.ended(alice, number, limit=60.0).text
    world.network.run_for(10.0)
    board = alice.machine._board
    assert (len(board), board._routes, board._by_node) == (0, {}, {})


def test_a_dial_in_which_aioquic_fails_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a defect")

    world = EndpointWorld()
    alice, bob = world.two()
    monkeypatch.setattr(NodeQuic, "connect", fail)
    number = alice.dial(bob.addr())
    assert "a defect" in world.ended(alice, number).text
    world.network.run_for(10.0)
    board = alice.machine._board
    assert (len(board), board._routes, board._by_node, board._dials) == (0, {}, {}, {})


def hand_over_at_once(receiver: Node, sender: Node, *outputs: list[bytes]) -> None:
    batch = [data for output in outputs for data in output]
    receiver.machine.receive_datagrams(batch, sender.udp, now=receiver.now)


def quic_of(node: Node) -> list[bytes]:
    sent = (data for transmit in node.machine.datagrams_to_send() for data in transmit.datagrams)
    return [data for data in sent if not looks_like_disco(data)]


def test_a_dial_that_is_closed_as_it_completes_is_over_and_not_tried_again() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    addr = NodeAddr(bob.id, derp_url=None, direct_addresses=[bob.udp, NOBODY])
    number = alice.machine.connect(addr, alpn=ALPN, now=alice.now)
    hand_over_at_once(bob, alice, quic_of(alice))
    answer = quic_of(bob)
    bob.machine.close(now=bob.now)
    hand_over_at_once(alice, bob, answer, quic_of(bob))
    alice.program.flush()
    assert [event.connection for event in alice.established()] == [number]
    assert [event.connection for event in alice.seen(ConnectionClosed)] == [number]
    world.network.run_for(30.0)
    assert alice.machine.stats.quic_failures == 0
    board = alice.machine._board
    assert (len(board), board._routes, board._by_node, board._dials) == (0, {}, {}, {})


def test_a_connection_that_is_closed_as_it_completes_leaves_those_before_it() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    first = world.connect(alice, bob.addr())
    world.network.run_for(1.0)
    second = alice.machine.connect(bob.addr(), alpn=ALPN, now=alice.now)
    hand_over_at_once(bob, alice, quic_of(alice))
    hand_over_at_once(alice, bob, quic_of(bob))
    last = quic_of(alice)
    alice.machine.close_connection(second, 4, "bye", now=alice.now)
    hand_over_at_once(bob, alice, last, quic_of(alice))
    bob.program.flush()
    assert [event.connection for event in bob.seen(ConnectionClosed)] == [1]
    world.network.run_for(30.0)
    assert bob.reason(0) is None
    alice.send_datagram(first, b"still here")
    world.network.run_for(1.0)
    assert [event.data for event in bob.seen(QuicDatagramReceived)] == [b"still here"]


# Bytes from anybody


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(0, 2**32))
def test_any_bytes_are_taken_and_leave_nothing(noise: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    real = [rng.randbytes(1200), *noise]
    (packet, _), *_ = first_packets(1, bob)
    for _ in range(4):
        changed = bytearray(packet)
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        real.append(bytes(changed))
    bob.give(lambda machine, now: machine.receive_datagrams(real, NOBODY, now=now))
    bob.give(lambda machine, now: machine.receive_datagrams(real, alice.udp, now=now))
    world.network.run_for(12.0)
    assert bob.machine.stats.quic_failures == 0
    assert alice.reason(number) is None
    assert len(bob.machine._board) == 1


def test_a_repeated_packet_from_elsewhere_moves_nothing() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    caught: list[bytes] = []
    receive = bob.machine.receive_datagrams

    def catch(batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        caught.extend(batch)
        receive(batch, addr, now=now)

    bob.machine.receive_datagrams = catch  # type: ignore[method-assign]
    alice.send(number, bytes(5000))
    world.network.run_for(1.0)
    assert len(caught) > 4
    confirmed: list[Address] = []
    confirm = bob.machine.magicsock.confirm

    def note(node_id: NodeId, source: Address, *, now: float) -> None:
        confirmed.append(source)
        confirm(node_id, source, now=now)

    bob.machine.magicsock.confirm = note  # type: ignore[method-assign]
    before = bob.machine.connection_info(0).path
    bob.give(lambda machine, now: machine.receive_datagrams(caught, NOBODY, now=now))
    world.network.run_for(1.0)
    assert bob.machine.connection_info(0).path.addr == before.addr
    assert NOBODY not in confirmed


# Misuse


def test_commands_out_of_place_are_refused_and_change_nothing() -> None:
    key = SecretKey.generate(random.Random(1))
    machine = EndpointMachine(secret_key=key, rng=random.Random(2), unix_time=0.0)
    other = NodeAddr(SecretKey.generate(random.Random(3)).public, direct_addresses=[NOBODY])
    with pytest.raises(LocalProtocolError, match="dials nobody"):
        machine.connect(other, alpn=ALPN, now=0.0)
    machine.start([UdpAddress("192.0.2.1", 1)], now=0.0)
    refused: list[Callable[[], object]] = [
        lambda: machine.start([UdpAddress("192.0.2.1", 1)], now=0.0),
        lambda: machine.connect(NodeAddr(key.public), alpn=ALPN, now=0.0),
        lambda: machine.connect(other, alpn=b"", now=0.0),
        lambda: machine.connect(other, alpn=b"x" * 256, now=0.0),
        lambda: machine.set_alpns([ALPN, b""]),
        lambda: machine.connection_info(0),
        lambda: machine.close_connection(0, 0, "", now=0.0),
        lambda: machine.send_room(-1, 0),
    ]
    for command in refused:
        with pytest.raises(LocalProtocolError):
            command()
    number = machine.connect(other, alpn=ALPN, now=0.0)
    early: list[Callable[[], object]] = [
        lambda: machine.open_stream(number, bidirectional=True),
        lambda: machine.send_stream(number, 0, b"x", now=0.0),
        lambda: machine.send_datagram(number, b"x", now=0.0),
        lambda: machine.max_datagram_payload(number),
        lambda: machine.close_connection(number, -1, "", now=0.0),
        lambda: machine.close_connection(number, 0, "\udc80", now=0.0),
    ]
    for command in early:
        with pytest.raises(LocalProtocolError):
            command()


def test_late_commands_by_which_nothing_is_lost_do_nothing() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    stream_id = alice.send(number, b"x")
    world.network.run_for(0.5)
    bob.give(lambda machine, now: machine.close_connection(0, 1, "", now=now))
    world.network.run_for(0.5)
    machine, now = alice.machine, alice.now
    for _ in range(2):  # closing, then gone
        machine.consume(number, stream_id, 5, now=now)
        machine.reset_stream(number, stream_id, 0, now=now)
        machine.stop_sending(number, stream_id, 0, now=now)
        machine.close_connection(number, 0, "", now=now)
        for command in (
            lambda: machine.send_stream(number, stream_id, b"", now=now),
            lambda: machine.open_stream(number, bidirectional=False),
            lambda: machine.send_datagram(number, b"", now=now),
        ):
            with pytest.raises(LocalProtocolError, match="closed"):
                command()
        world.network.run_for(5.0)


def test_a_connection_that_was_just_closed_takes_no_more_data() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    stream_id = alice.send(number, b"x")
    machine = alice.machine
    machine.close_connection(number, 0, "bye", now=alice.now)
    late: list[Callable[[], object]] = [
        lambda: machine.send_stream(number, stream_id, b"y", now=alice.now),
        lambda: machine.open_stream(number, bidirectional=True),
        lambda: machine.send_datagram(number, b"y", now=alice.now),
        lambda: machine.send_room(number, stream_id),
        lambda: machine.max_datagram_payload(number),
    ]
    for command in late:
        with pytest.raises(LocalProtocolError, match="closed: bye"):
            command()


def test_a_stream_can_be_given_up_at_either_end() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())

    def begin(machine: EndpointMachine, now: float) -> int:
        stream_id = machine.open_stream(number, bidirectional=True)
        machine.send_stream(number, stream_id, b"x", now=now)
        return stream_id

    first, second = alice.give(begin), alice.give(begin)
    world.network.run_for(0.5)
    alice.give(lambda machine, now: machine.reset_stream(number, first, 7, now=now))
    bob.give(lambda machine, now: machine.stop_sending(0, second, 8, now=now))
    world.network.run_for(0.5)
    assert bob.seen(StreamReset) == [StreamReset(connection=0, stream_id=first, code=7)]
    assert alice.seen(SendingStopped) == [
        SendingStopped(connection=number, stream_id=second, code=8)
    ]


def test_an_empty_datagram_reaches_no_connection() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    bob.give(lambda machine, now: machine.receive_datagrams([b""], alice.udp, now=now))
    assert bob.machine.magicsock.stats.malformed == 1
    assert bob.machine.stats.dropped_malformed == 0
    assert alice.reason(number) is None


def test_the_settings_are_those_it_was_made_with() -> None:
    options = EndpointOptions(max_connections=5)
    assert EndpointWorld().node("alice", options=options).machine.options is options


def test_closing_an_endpoint_tells_all_peers() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    carol = world.node("carol")
    world.connect(bob, alice.addr())
    world.connect(alice, carol.addr())
    alice.give(lambda machine, now: machine.close(now=now))
    assert [event.reason.kind for event in alice.seen(ConnectionClosed)] == ["local", "local"]
    world.network.run_for(0.5)
    for node in (bob, carol):
        (closed,) = node.seen(ConnectionClosed)
        assert (closed.reason.kind, closed.reason.code) == ("application", 0)
    with pytest.raises(LocalProtocolError, match="closed"):
        alice.dial(bob.addr())
    alice.give(lambda machine, now: machine.close(now=now))
    before = world.network.stats.sent
    hand_over(alice, first_packets(1, alice))
    world.network.run_for(0.1)
    assert world.network.stats.sent == before


def test_batches_are_split_among_their_connections() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    first = world.connect(alice, bob.addr())
    second = world.connect(alice, bob.addr())
    world.network.run_for(0.5)
    sent: list[bytes] = []
    for number in (first, second, first):
        alice.machine.send_datagram(number, bytes([number]), now=alice.now)
        for transmit in alice.machine.datagrams_to_send():
            sent += transmit.datagrams
    bob.give(lambda machine, now: machine.receive_datagrams(sent, alice.udp, now=now))
    numbers = [(event.connection, event.data[0]) for event in bob.seen(QuicDatagramReceived)]
    assert numbers == [(0, first), (1, second), (0, first)]


def test_bytes_of_one_stream_make_one_event_however_they_came() -> None:
    world = EndpointWorld()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    world.network.run_for(1.0)
    machine = alice.machine
    stream_id = machine.open_stream(number, bidirectional=True)
    machine.send_stream(number, stream_id, bytes(3000), end=True, now=alice.now)
    sent = [data for transmit in machine.datagrams_to_send() for data in transmit.datagrams]
    assert len(sent) == 3
    for data in sent:
        bob.machine.receive_datagrams([data], alice.udp, now=bob.now)
    bob.program.flush()
    (event,) = bob.seen(StreamDataReceived)
    assert (len(event.data), event.end) == (3000, True)
