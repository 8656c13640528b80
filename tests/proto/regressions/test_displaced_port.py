"""A Linux router behind which a node comes back with another address, and the same port."""

from __future__ import annotations

from iroh_proto.testing.mishaps import AddressChange
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Dial, Settle, play


def test_nobody_expects_a_direct_path_from_a_port_that_the_former_address_still_has() -> None:
    """Servers saw one port of it and its peer another, so that no hole fitted."""
    play(
        NetworkShape(
            nats=(NatShape("nat1", "Linux"), NatShape("nat2", "Linux")),
            nodes=(NodeShape("alice", behind="nat1"), NodeShape("bob", behind="nat2")),
            derpers=("derp1",),
        ),
        seed=3726,
        steps=[Dial("alice", "bob", "derp"), AddressChange("bob"), Settle()],
    )
