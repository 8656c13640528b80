"""Connections that stay while their path does not."""

from __future__ import annotations

import random

import pytest

from iroh_anyio.quic.events import ConnectionClosed, ConnectionInfo
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto.address import DerpUrl
from iroh_proto.magicsock import PathChanged
from iroh_proto.testing.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC, NatKind
from tests.proto.endpoint_world import EndpointWorld, Node

MEGABYTE = 1_000_000


def kinds(node: Node, other: Node) -> list[str]:
    changes = [event for event in node.seen(PathChanged) if event.node_id == other.id]
    return [change.path.kind for change in changes]


def kind(node: Node, other: Node) -> str:
    return node.machine.magicsock.path_info(other.id).kind


def wait_for_kind(world: EndpointWorld, wanted: str, *pair: Node, limit: float = 20.0) -> float:
    left, right = pair
    return world.network.run_until(
        lambda: kind(left, right) == kind(right, left) == wanted, limit=limit
    )


def wait_for_end(world: EndpointWorld, node: Node, key: tuple[int, int], limit: float) -> None:
    world.network.run_until(lambda: key in node.ended, limit=limit)


def assert_nothing_closed(*nodes: Node) -> None:
    assert [event for node in nodes for event in node.seen(ConnectionClosed)] == []


def test_a_dial_by_id_and_server_begins_there_and_becomes_direct() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    number = world.connect(alice, bob.addr(direct=False, derp=True))
    assert kinds(alice, bob)[0] == "derp"
    wait_for_kind(world, "direct", alice, bob)
    info = alice.machine.connection_info(number)
    assert info.path.addr == bob.udp
    data = random.Random(1).randbytes(MEGABYTE)
    stream_id = alice.send(number, data)
    wait_for_end(world, bob, (0, stream_id), 60)
    assert bytes(bob.received[0, stream_id]) == data
    assert_nothing_closed(alice, bob)


def test_a_stream_loses_no_byte_as_the_path_dies_and_comes_back() -> None:
    world = EndpointWorld(derp=True)
    # The window keeps the transfer slow enough to last through all of it.
    alice, bob = world.two(derp=True, options=EndpointOptions(stream_window=6_000))
    alice.host.attachments[0].link.loss = 0.001
    number = world.connect(alice, bob.addr(direct=False, derp=True))
    wait_for_kind(world, "direct", alice, bob)
    data = random.Random(2).randbytes(3 * MEGABYTE)
    stream_id = alice.send(number, data)
    key = (0, stream_id)
    world.network.run_for(0.5)
    received = [len(bob.received.get(key, b""))]

    world.network.block_udp(alice.host, bob.host)
    world.network.run_for(10.0)  # the trust in a path that was proven lasts 6.5 s
    assert kind(alice, bob) in ("derp", "mixed")
    received.append(len(bob.received[key]))
    world.network.run_for(3.0)
    received.append(len(bob.received[key]))
    assert received == sorted(set(received)), "bytes flow on by the server"

    world.network.unblock_udp(alice.host, bob.host)
    wait_for_kind(world, "direct", alice, bob)
    assert key not in bob.ended
    wait_for_end(world, bob, key, 200)
    assert bytes(bob.received[key]) == data
    assert_nothing_closed(alice, bob)


def test_lesson_13_congestion_starts_anew_on_a_path_of_another_nature_only() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    world.network.block_udp(alice.host, bob.host)
    number = world.connect(alice, bob.addr(direct=False, derp=True))

    def learn() -> ConnectionInfo:
        """Have the connection learn what its path can carry."""
        stream_id = alice.send(number, bytes(MEGABYTE // 2))
        wait_for_end(world, bob, (0, stream_id), 60)
        return alice.machine.connection_info(number)

    learnt = learn()
    world.network.unblock_udp(alice.host, bob.host)
    wait_for_kind(world, "direct", alice, bob)
    info = alice.machine.connection_info(number)
    assert info.stats.congestion_window < learnt.stats.congestion_window
    assert info.rtt is None

    learnt = learn()
    world.network.block_udp(alice.host, bob.host)
    wait_for_kind(world, "mixed", alice, bob)
    assert alice.machine.connection_info(number).rtt == learnt.rtt
    world.network.unblock_udp(alice.host, bob.host)
    wait_for_kind(world, "direct", alice, bob)
    assert alice.machine.connection_info(number).rtt == pytest.approx(learnt.rtt, rel=0.1)
    assert_nothing_closed(alice, bob)


def test_the_trust_time_bounds_the_outage() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    number = world.connect(alice, bob.addr(direct=False, derp=True))
    wait_for_kind(world, "direct", alice, bob)
    world.network.run_for(7.0)
    world.network.block_udp(alice.host, bob.host)
    begun = world.network.now
    stream_id = alice.send(number, b"are you there?")
    wait_for_end(world, bob, (0, stream_id), 20)
    assert world.network.now - begun < 7.5
    assert_nothing_closed(alice, bob)


@pytest.mark.parametrize(
    ("left", "right", "ends"),
    [
        (FULL_CONE, PORT_RESTRICTED, "direct"),
        (PORT_RESTRICTED, PORT_RESTRICTED, "direct"),
        (SYMMETRIC, SYMMETRIC, "mixed"),
    ],
    ids=["full cone and restricted", "both restricted", "both symmetric"],
)
def test_nodes_behind_nats_talk_by_the_best_way_there_is(
    left: NatKind, right: NatKind, ends: str
) -> None:
    world = EndpointWorld(derp=True)
    network = world.network
    homes = [
        network.add_nat(name, kind=kind, ip=ip).inside
        for name, kind, ip in (("left", left, "203.0.113.1"), ("right", right, "203.0.113.2"))
    ]
    alice = world.node("alice", homes[0], derp=True)
    bob = world.node("bob", homes[1], derp=True)
    network.run_until(
        lambda: all(node.machine.magicsock.home_derp for node in (alice, bob)), limit=10
    )
    network.run_for(2.0)
    number = world.connect(alice, bob.addr(direct=False, derp=True))
    data = random.Random(3).randbytes(200_000)
    stream_id = alice.send(number, data)
    wait_for_end(world, bob, (0, stream_id), 30)
    assert bytes(bob.received[0, stream_id]) == data
    network.run_for(15.0)
    assert kind(alice, bob) == ends
    assert_nothing_closed(alice, bob)


def test_without_udp_everything_goes_by_the_server() -> None:
    world = EndpointWorld(derp=True)
    world.network.block_udp(world.derp_host)
    alice, bob = world.two(derp=True)
    world.network.block_udp(alice.host)
    number = world.connect(alice, bob.addr(derp=True))
    data = random.Random(4).randbytes(300_000)
    stream_id = alice.send(number, data)
    wait_for_end(world, bob, (0, stream_id), 60)
    assert bytes(bob.received[0, stream_id]) == data
    assert kind(alice, bob) in ("derp", "mixed")


def test_a_server_that_restarts_ends_no_connection() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    world.network.block_udp(alice.host, bob.host)
    number = world.connect(alice, bob.addr(direct=False, derp=True))
    data = random.Random(5).randbytes(MEGABYTE)
    first = alice.send(number, data)
    world.network.run_for(0.3)
    world.derp_host.cut_power()
    world.network.run_for(2.0)
    world.derp_host.boot()
    wait_for_end(world, bob, (0, first), 60)
    assert bytes(bob.received[0, first]) == data
    assert_nothing_closed(alice, bob)


def test_a_peer_that_vanishes_is_noticed_after_the_idle_time_out() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    number = world.connect(alice, bob.addr(derp=True))
    bob.host.cut_power()
    reason = world.ended(alice, number, limit=60)
    assert reason.kind == "idle"
    assert world.network.now < 540.0


def test_two_dials_across_each_other_give_two_connections() -> None:
    world = EndpointWorld(derp=True)
    alice, bob = world.two(derp=True)
    alice.dial(bob.addr(derp=True))
    bob.dial(alice.addr(derp=True))
    world.network.run_for(3.0)
    assert [event.incoming for event in alice.established()].count(True) == 1
    assert [event.incoming for event in bob.established()].count(True) == 1
    wait_for_kind(world, "direct", alice, bob)
    assert_nothing_closed(alice, bob)


def test_a_dial_learns_of_a_server_that_is_not_on_the_map() -> None:
    world = EndpointWorld(derp=True)
    bob = world.node("bob", derp=True)
    world.network.run_until(lambda: bob.machine.magicsock.home_derp is not None, limit=10)
    alice = world.node("alice")
    number = world.connect(alice, bob.addr(direct=False, derp=True))
    assert isinstance(alice.machine.connection_info(number).path.derp_url, DerpUrl | None)
    wait_for_kind(world, "direct", alice, bob)
    assert_nothing_closed(alice, bob)
