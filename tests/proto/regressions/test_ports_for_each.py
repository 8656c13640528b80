"""Two nodes behind NATs with a port for each destination, who answer from ports of their own."""

from __future__ import annotations

from iroh_proto.testing.mishaps import AddressChange, LinkDown, LinkTrouble, Move, NatReboot
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Dial, Settle, Wait, play


def test_pongs_from_ports_that_there_is_no_room_for_keep_the_path() -> None:
    """They were ignored once the table of addresses was full, and the path lapsed every 5 s."""
    play(
        NetworkShape(
            nats=(
                NatShape("nat1", "APD/AD"),
                NatShape("nat2", "APD/EI", subnet="192.168.0.0/24"),
                NatShape("nat3", "EI/EI", behind="nat2"),
            ),
            nodes=(
                NodeShape("alice", behind="nat2"),
                NodeShape("bob", behind="nat1", has_ipv6=True),
            ),
            derpers=("derp1", "derp2"),
        ),
        seed=39,
        steps=[
            Dial("alice", "bob", "derp"),
            Move("bob", "nat1"),
            Wait(30.0),
            NatReboot("nat1", "203.0.113.204"),
            LinkTrouble("alice", loss=0.3, jitter=0.02, reordering=0.0, duplication=0.0),
            Wait(9.0),
            NatReboot("nat1", "203.0.113.202"),
            Wait(21.0),
            LinkDown("alice"),
            Wait(4.0),
            AddressChange("bob"),
            Settle(),
        ],
    )
