"""A node that moves next to its peer, which pings it meanwhile in vain."""

from __future__ import annotations

from iroh_proto.testing.mishaps import (
    AddressChange,
    LinkDown,
    LinkUp,
    Move,
    NatReboot,
    PortalClosed,
    PortalOpened,
    ProcessRestart,
)
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape
from tests.proto.interaction.steps import Dial, Send, Settle, Wait, play


def test_a_ping_that_was_lost_in_the_last_mishap_is_missed_some_seconds_later() -> None:
    """The world took the path for settled while it was proven from before."""
    play(
        NetworkShape(
            nats=(
                NatShape("nat1", "EI/EI", subnet="192.168.0.0/24"),
                NatShape("nat2", "EI/EI", subnet="192.168.0.0/24"),
            ),
            nodes=(
                NodeShape("alice", has_ipv6=True),
                NodeShape("bob", behind="nat2", has_ipv6=True),
            ),
            derpers=("derp1", "derp2"),
        ),
        seed=621,
        steps=[
            Dial("alice", "bob"),
            Wait(0.3),
            Dial("alice", "bob"),
            Wait(1.0),
            NatReboot("nat1", None),
            Wait(0.3),
            AddressChange("bob", None, is_told=False),
            Dial("alice", "bob"),
            Wait(2.0),
            AddressChange("alice", "203.0.113.200", is_told=False),
            Wait(0.01),
            LinkDown("nat1"),
            Wait(0.05),
            Dial("alice", "bob"),
            Wait(2.0),
            LinkDown("nat1"),
            Send(0, "alice", 0, ends=False, bidirectional=True),
            Wait(4.0),
            Send(0, "alice", 50_000, ends=True, bidirectional=False),
            Wait(8.0),
            PortalClosed("nat2"),
            Wait(4.0),
            ProcessRestart("bob"),
            Wait(4.0),
            LinkUp("nat1"),
            Wait(0.3),
            PortalOpened("nat2"),
            LinkDown("bob"),
            LinkUp("bob"),
            LinkDown("alice"),
            Wait(0.3),
            PortalClosed("nat1"),
            Wait(0.3),
            Move("alice", "nat2", None),
            Wait(1.0),
            Settle(),
        ],
    )
