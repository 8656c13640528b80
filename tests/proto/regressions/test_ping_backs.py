"""Two nodes behind NATs with a port for each destination, which let in anybody."""

from __future__ import annotations

from iroh_proto.testing.mishaps import Move, NatReboot
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Close, Dial, SetAlpns, TellOfChange, Wait, play


def test_pings_are_not_pinged_back_without_end() -> None:
    """Each ping back came from a new port and was pinged back: 50 a second, for ten seconds."""
    play(
        NetworkShape(
            nats=(NatShape("nat1", "APD/EI", subnet="192.168.0.0/24"), NatShape("nat2", "APD/EI")),
            nodes=(
                NodeShape("alice", has_ipv6=True),
                NodeShape("bob", behind="nat2"),
                NodeShape("carol", has_ipv6=True),
            ),
            derpers=("derp1", "derp2"),
        ),
        seed=95,
        steps=[
            NatReboot("nat1"),
            SetAlpns("alice", (b"test/1",)),
            TellOfChange("bob"),
            Dial("carol", "bob", "old"),
            Wait(40.0),
            Move("carol", "nat1"),
            TellOfChange("bob"),
            Dial("bob", "carol", "direct"),
            TellOfChange("alice"),
            Wait(0.1),
            Close(0, "bob"),
            SetAlpns("bob", (b"test/1",)),
            Wait(40.0),
        ],
    )
