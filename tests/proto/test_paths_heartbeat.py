"""The heartbeat's rhythm, and that nodes without company are not woken by it."""

from __future__ import annotations

from iroh_proto.paths.candidate import ACTIVE_TIME
from iroh_proto.paths.finder import HEARTBEAT_INTERVAL
from iroh_proto.paths.heartbeat import Heartbeat
from tests.proto.magic_world import MagicWorld


def deadlines(heartbeat: Heartbeat, *times: float) -> list[float | None]:
    """Have it go on at some times, and return the deadline after each."""
    found = []
    for now in times:
        heartbeat.go_on(now)
        found.append(heartbeat.deadline)
    return found


def test_it_rests_until_somebody_is_there_and_keeps_its_rhythm() -> None:
    heartbeat = Heartbeat(5.0)
    heartbeat.go_on(1.0)  # not started
    assert deadlines(heartbeat, 1.0) == [None]
    heartbeat.start(2.0)
    assert not heartbeat.expire(100.0)
    assert deadlines(heartbeat, 3.0, 4.0) == [7.0, 7.0]
    assert not heartbeat.expire(6.9)
    assert heartbeat.expire(7.0)
    assert deadlines(heartbeat, 7.0) == [12.0]


def test_beats_that_fell_into_a_rest_are_not_made_up_for() -> None:
    heartbeat = Heartbeat(5.0)
    heartbeat.start(0.0)
    heartbeat.go_on(0.0)
    heartbeat.rest()
    assert heartbeat.deadline is None
    assert deadlines(heartbeat, 5.0) == [10.0], "due now means the next one"
    heartbeat.rest()
    assert deadlines(heartbeat, 3601.0) == [3605.0]
    heartbeat.stop()
    assert deadlines(heartbeat, 3602.0) == [None]


def test_a_late_timer_moves_the_rhythm() -> None:
    heartbeat = Heartbeat(5.0)
    heartbeat.start(0.0)
    heartbeat.go_on(0.0)
    assert heartbeat.expire(6.0)
    assert heartbeat.deadline == 11.0


def test_a_node_is_woken_by_the_heartbeat_only_while_a_peer_is_in_use() -> None:
    world = MagicWorld()
    alice, bob = world.app("alice", ip="203.0.113.1"), world.app("bob", ip="203.0.113.2")
    world.settle(alice, bob)

    def wakeups(seconds: float) -> int:
        before = alice.program.wakeups
        world.network.run_for(seconds)
        return alice.program.wakeups - before

    idle = wakeups(300.0)
    alice.learn(bob, derp=True)
    assert wakeups(300.0) <= idle + 4, "knowing a peer is not using it"
    beats = 60.0 / HEARTBEAT_INTERVAL
    before = alice.program.wakeups
    world.chat(alice, bob, 60.0)
    assert alice.program.wakeups - before >= idle / 5 + beats - 1
    assert alice.kind(bob) == "direct"
    world.network.run_for(ACTIVE_TIME + HEARTBEAT_INTERVAL)
    assert wakeups(300.0) <= idle + 4, "no longer in use"
    world.chat(bob, alice, 8.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"
