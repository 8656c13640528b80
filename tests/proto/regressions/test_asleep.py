"""A node that falls asleep just after it closed a connection."""

from __future__ import annotations

from iroh_proto.testing.mishaps import LinkDown, LinkUp, NatReboot, Sleep, Wake
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Close, Dial, Settle, Wait, play


def test_what_is_forgotten_after_some_time_is_forgotten_when_it_wakes_up() -> None:
    """Its memory was looked at before its timers had their turn."""
    play(
        NetworkShape(
            nats=(NatShape("nat1", "EI/EI"), NatShape("nat2", "EI/EI")),
            nodes=(
                NodeShape("alice", behind="nat1", has_ipv6=True),
                NodeShape("bob", behind="nat2", has_ipv6=True),
            ),
            derpers=("derp1",),
        ),
        seed=0,
        steps=[
            Dial("alice", "bob"),
            NatReboot("nat1", None),
            Wait(130.0),
            Close(0, "alice"),
            LinkDown("alice"),
            Sleep("alice"),
            Wait(2.0),
            LinkUp("alice"),
            Wait(8.0),
            Wake("alice"),
            Wait(10.5),
            Settle(),
        ],
    )


def test_a_derp_server_falls_asleep() -> None:
    """The world took it for a node."""
    play(
        NetworkShape(nats=(), nodes=(NodeShape("alice"), NodeShape("bob")), derpers=("derp1",)),
        seed=1,
        steps=[Dial("alice", "bob"), Sleep("derp1"), Wait(2.0), Wake("derp1"), Settle()],
    )
