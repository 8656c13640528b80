"""A node that lists its interfaces while one is down, and proves a path by it before it is done."""

from __future__ import annotations

from iroh_proto.testing.mishaps import AddressChange, LinkDown, PortalClosed, PowerCut, Sleep
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Dial, SetAlpns, Settle, Wait, play


def test_a_path_that_was_proven_outlives_a_list_of_interfaces_without_it() -> None:
    """Bob wakes up, looks for its addresses, and only then its cable is plugged in."""
    play(
        NetworkShape(
            nats=(NatShape("nat1", "EI/EI", subnet="192.168.0.0/24"),),
            nodes=tuple(
                NodeShape(name, behind="nat1", has_ipv6=True) for name in ("alice", "bob", "carol")
            ),
            derpers=("derp1", "derp2"),
        ),
        seed=1493,
        steps=[
            Dial("alice", "bob"),
            PortalClosed("nat1"),
            Wait(0.01),
            LinkDown("derp1"),
            Sleep("bob"),
            LinkDown("bob"),
            Wait(2.0),
            Dial("alice", "bob"),
            LinkDown("alice"),
            AddressChange("alice", None, is_told=False),
            Wait(0.3),
            PowerCut("carol"),
            Wait(0.05),
            SetAlpns("alice", (b"test/1", b"test/2")),
            Wait(0.3),
            Dial("alice", "carol", "direct", b"test/2"),
            Wait(8.0),
            Dial("alice", "bob", "both"),
            Wait(1.0),
            Settle(),
        ],
    )
