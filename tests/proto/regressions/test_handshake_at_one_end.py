"""A connection that stands at one end only, as the last packets of its handshake were lost."""

from __future__ import annotations

from iroh_proto.testing.mishaps import AddressChange, LinkDown, LinkUp, Move, NatReboot
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Dial, SetAlpns, Settle, TellOfChange, Wait, play


def test_the_end_that_stands_is_told_that_the_other_gave_up() -> None:
    """The reason was a bare number."""
    world = play(
        NetworkShape(
            nats=(
                NatShape("nat1", "EI/EI"),
                NatShape("nat2", "EI/EI", behind="nat1"),
                NatShape("nat3", "EI/APD", subnet="192.168.0.0/24"),
            ),
            nodes=(
                NodeShape("alice", behind="nat3"),
                NodeShape("bob", behind="nat1", has_ipv6=True),
                NodeShape("carol", has_ipv6=True),
            ),
            derpers=("derp1", "derp2"),
        ),
        seed=0,
        steps=[
            Dial("alice", "bob"),
            Wait(0.01),
            TellOfChange("alice"),
            Wait(0.05),
            NatReboot("nat1", "203.0.113.203"),
            Wait(1.0),
            Dial("alice", "carol", "old", b"test/2"),
            Wait(1.0),
            Dial("alice", "bob"),
            Wait(1.0),
            LinkDown("bob"),
            LinkUp("bob"),
            Wait(0.05),
            AddressChange("bob", is_told=False),
            Wait(1.0),
            Move("alice", "internet", "203.0.113.201"),
            Wait(0.05),
            SetAlpns("carol", (b"test/1",)),
            TellOfChange("bob"),
            Wait(0.05),
            Move("alice", "internet", "203.0.113.202"),
            Wait(0.3),
            LinkDown("bob"),
            Wait(2.0),
            LinkUp("bob"),
            Dial("alice", "bob"),
            LinkDown("alice"),
            LinkUp("alice"),
            Settle(),
        ],
    )
    reason = world.calls[0].dialler.reason
    assert reason is not None
    assert reason.text == "the peer ended it before the handshake was complete at its end"
