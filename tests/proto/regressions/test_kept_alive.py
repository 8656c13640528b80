"""A path that is proven and in use, while a better one is looked for."""

from __future__ import annotations

from iroh_proto.testing.mishaps import AddressChange, DnsDown, LinkTrouble, PowerCut, ProcessRestart
from iroh_proto.testing.shapes import NetworkShape, NodeShape
from tests.proto.interaction.steps import Answer, Dial, Reset, Send, Settle, Wait, play


def test_a_heartbeat_that_looks_for_a_better_path_keeps_the_one_there_is() -> None:
    """Pinged by the last heartbeat, a hair less than five seconds ago, it was left out."""
    play(
        NetworkShape(
            nats=(),
            nodes=(NodeShape("alice", has_ipv6=True), NodeShape("bob", has_ipv6=True)),
            derpers=("derp1", "derp2"),
        ),
        seed=34355,
        steps=[
            Dial("alice", "bob"),
            Wait(2.0),
            Send(0, "alice", 50_000, ends=False, bidirectional=True),
            Wait(0.3),
            DnsDown(),
            Wait(130.0),
            Send(0, "alice", 0, ends=False, bidirectional=False),
            Wait(0.05),
            ProcessRestart("derp2"),
            Wait(1.0),
            Send(0, "bob", 12_000, ends=True, bidirectional=True),
            Wait(2.0),
            AddressChange("alice", "203.0.113.203", is_told=True),
            Wait(0.01),
            ProcessRestart("derp1"),
            Wait(8.0),
            Reset(4),
            Wait(4.0),
            Send(0, "alice", 50_000, ends=True, bidirectional=False),
            AddressChange("alice", "203.0.113.202", is_told=False),
            Wait(8.0),
            Send(0, "alice", 0, ends=True, bidirectional=True),
            Wait(1.0),
            Answer(5, 12_000),
            Wait(1.0),
            Send(0, "alice", 12_000, ends=False, bidirectional=True),
            Wait(0.3),
            LinkTrouble("derp2", loss=0.05, jitter=0.0, reordering=0.0, duplication=0.1),
            Wait(1.0),
            Dial("bob", "alice", "old"),
            Wait(2.0),
            ProcessRestart("derp2"),
            Wait(2.0),
            ProcessRestart("derp1"),
            Wait(0.3),
            PowerCut("derp1"),
            Wait(25.0),
            Send(0, "alice", 1, ends=False, bidirectional=False),
            Wait(0.3),
            Settle(),
        ],
    )
