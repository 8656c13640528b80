"""A node whose address another one takes over while it is still believed to be there."""

from __future__ import annotations

from iroh_proto.testing.mishaps import AddressChange, Move, ProcessRestart
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Dial, Send, SetAlpns, TellOfChange, Wait, play


def test_a_dial_goes_on_by_derp_where_another_node_answers_at_a_proven_address() -> None:
    """The answer counted as the dialled node's own, since that had ponged there seconds ago."""
    world = play(
        NetworkShape(
            nats=(NatShape("nat1", "EI/EI"),),
            nodes=(
                NodeShape("alice", behind="nat1"),
                NodeShape("bob", behind="nat1", has_ipv6=True),
                NodeShape("carol"),
            ),
            derpers=("derp1",),
        ),
        seed=232,
        steps=[
            Dial("alice", "bob"),
            ProcessRestart("carol"),
            Wait(8.0),
            TellOfChange("bob"),
            Wait(1.0),
            AddressChange("bob"),
            Wait(1.0),
            Send(0, "alice", 12_000),
            Wait(4.0),
            AddressChange("alice", is_told=False),
            Wait(0.3),
            Dial("carol", "alice"),
            Dial("carol", "alice"),
            SetAlpns("alice", (b"test/1",)),
            Wait(0.01),
            Move("carol", "nat1"),
            Wait(1.0),
            Dial("alice", "bob"),
            Wait(1.0),
        ],
    )
    assert world.calls[3].dialler.is_open
