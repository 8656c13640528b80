"""Endpoints whose peers find paths by QUIC itself and know no disco, as iroh 0.96 and later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from iroh_anyio.quic import switchboard
from iroh_anyio.quic.node_quic import NodeQuic
from iroh_anyio.quic.parameters import INITIAL_MAX_PATH_ID
from iroh_proto.address import Address
from iroh_proto.disco.message import DISCO_MAGIC
from iroh_proto.testing.nat import FULL_CONE
from iroh_proto.wire import encode_quic_varint
from tests.proto.endpoint_world import EndpointWorld, Node


@pytest.fixture(autouse=True)
def _all_announce_it(monkeypatch: pytest.MonkeyPatch) -> None:
    serialize = NodeQuic._serialize_transport_parameters

    def announce(quic: NodeQuic) -> bytes:
        return serialize(quic) + encode_quic_varint(INITIAL_MAX_PATH_ID) + b"\1\1"

    monkeypatch.setattr(NodeQuic, "_serialize_transport_parameters", announce)


class World(EndpointWorld):
    """The internet, where nobody hears disco."""

    def node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().node(*args, **kwargs)
        receive = node.machine.receive_datagrams

        def receive_quic(batch: Sequence[bytes], addr: Address, *, now: float) -> None:
            receive([data for data in batch if not data.startswith(DISCO_MAGIC)], addr, now=now)

        node.machine.receive_datagrams = receive_quic  # type: ignore[method-assign]
        return node


def counts(node: Node) -> tuple[int, int]:
    """Return how many challenges were wanted, and answered."""
    paths = node.machine.magicsock.stats.paths
    return paths.challenges_sent, paths.challenges_answered


def proven(node: Node, peer: Node) -> bool:
    return node.path_to(peer).latency is not None


def test_both_ends_prove_their_path_by_a_challenge() -> None:
    world = World()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    world.network.run_until(lambda: proven(alice, bob) and proven(bob, alice), limit=1)
    for node, peer in ((alice, bob), (bob, alice)):
        path = node.path_to(peer)
        assert (path.kind, path.addr) == ("direct", peer.udp)
        assert path.latency == pytest.approx(0.04, abs=0.01)
    before = alice.machine.connection_info(number).stats
    world.network.run_for(20.0)
    after = alice.machine.connection_info(number).stats
    assert after.packets_sent > before.packets_sent
    assert after.bytes_sent > before.bytes_sent


def test_a_peer_that_is_heard_from_elsewhere_is_challenged_there() -> None:
    world = World()
    nat = world.network.add_nat("nat", kind=FULL_CONE, ip="203.0.113.1", latency=0.01)
    alice, bob = world.node("alice", nat.inside), world.node("bob")
    number = world.connect(alice, bob.addr())
    world.network.run_until(lambda: proven(bob, alice), limit=1)
    nat.reboot(ip="203.0.113.2")
    stream_id = alice.send(number, b"from elsewhere")

    def is_there() -> bool:
        addr = bob.path_to(alice).addr
        return addr is not None and str(addr).startswith("203.0.113.2:")

    world.network.run_until(is_there, limit=15)
    world.network.run_until(lambda: (0, stream_id) in bob.ended, limit=5)
    assert bytes(bob.received[0, stream_id]) == b"from elsewhere"


def test_a_challenge_goes_by_a_connection_that_stands() -> None:
    world = World()
    alice, bob = world.two()
    link = bob.host.attachments[0].link
    link.loss = 1.0
    dialled = alice.dial(bob.addr())  # is still on its way when the other comes in
    world.network.run_for(0.1)
    link.loss = 0.0
    world.connect(bob, alice.addr())
    world.network.run_until(lambda: proven(alice, bob), limit=0.2)
    assert not alice.is_established(dialled)
    world.network.run_until(lambda: alice.is_established(dialled), limit=5)


def test_of_too_many_challenges_the_answer_to_the_oldest_means_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(switchboard, "CHALLENGES_LIMIT", 1)
    world = World()
    alice, bob = world.two()
    carol = world.node("carol")
    carol.host.attachments[0].link.latency = 0.2
    world.connect(alice, carol.addr())
    world.connect(alice, bob.addr())
    world.network.run_until(lambda: proven(alice, bob), limit=0.1)
    world.network.run_for(0.5)  # carol's answer came, to a question that is not kept any more
    assert not proven(alice, carol)
    world.network.run_until(lambda: proven(alice, carol), limit=15)


def test_a_challenge_is_not_sent_while_no_connection_stands() -> None:
    world = World()
    alice, bob = world.two()
    number = world.connect(alice, bob.addr())
    world.network.run_until(lambda: proven(alice, bob), limit=1)
    alice.close_connection(number)
    world.network.run_for(1.0)
    bob.host.cut_power()
    before, _ = counts(alice)
    assert world.ended(alice, alice.dial(bob.addr())).kind == "unreachable"
    assert alice.machine._board._challenges == {}
    assert counts(alice)[0] > before
