"""A node that tells its addresses again, long after all mishaps, from behind a symmetric NAT."""

from __future__ import annotations

from iroh_proto.testing.mishaps import LinkDown, LinkTrouble, LinkUp
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Answer, Dial, Send, Settle, Wait, play


def test_a_direct_path_that_is_doubted_is_proven_again_at_once() -> None:
    """The peer's address is not on its own list, and payload goes by the relay, too, until a pong.

    Both nodes find their own addresses as late as this because the DERP server was away.
    """
    play(
        NetworkShape(
            nats=(NatShape("nat1", "APD/EI", subnet="192.168.0.0/24"),),
            nodes=(NodeShape("alice", behind="nat1"), NodeShape("bob")),
            derpers=("derp1",),
        ),
        seed=33206,
        steps=[
            Dial("alice", "bob"),
            Wait(25.0),
            Send(0, "alice", 12_000, ends=True, bidirectional=True),
            Wait(0.05),
            Answer(3, 0),
            Wait(0.3),
            Dial("alice", "bob"),
            Send(0, "alice", 0, ends=True, bidirectional=False),
            Wait(1.0),
            LinkDown("alice"),
            LinkDown("derp1"),
            Wait(2.0),
            LinkUp("alice"),
            Wait(25.0),
            LinkUp("derp1"),
            Wait(0.3),
            LinkTrouble("alice", loss=0.05, jitter=0.0, reordering=0.0, duplication=0.0),
            LinkTrouble("alice", loss=0.0, jitter=0.0, reordering=0.0, duplication=0.0),
            Dial("alice", "bob"),
            Dial("alice", "bob"),
            Settle(),
        ],
    )
