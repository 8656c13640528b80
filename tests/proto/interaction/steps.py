"""What users of endpoints do, as values. A mishap of the network is a step as well.

Calls, flows and nodes are named by number and by name, so that a list of steps can be read, kept,
and played again with :func:`play`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from iroh_proto.address import NodeAddr
from iroh_proto.testing.mishaps import Mishap
from iroh_proto.testing.shapes import NetworkShape
from tests.proto.interaction.app import ALPN, App
from tests.proto.interaction.checks import Calmness
from tests.proto.interaction.model import Call, End, Flow
from tests.proto.interaction.world import World


@runtime_checkable
class Action(Protocol):
    """Something that a user does."""

    def perform(self, world: World) -> None:
        """Do it."""


Step: TypeAlias = "Action | Mishap"


def perform(world: World, step: Step) -> None:
    """Do a step, and check all that has to hold after each."""
    if isinstance(step, Action):
        step.perform(world)
    else:
        world.suffer(step)
    world.check()


def play(shape: NetworkShape, *, seed: int, steps: Iterable[Step]) -> World:
    """Build a world and do some steps in it."""
    world = World(shape, seed=seed)
    for step in steps:
        perform(world, step)
    return world


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial a node: by its id and home, its UDP addresses, both, or where it was at first."""

    by: str
    to: str
    how: str = "derp"
    alpn: bytes = ALPN

    def perform(self, world: World) -> None:
        by, to = world.apps[self.by], world.apps[self.to]
        world.dial(by, to, self._addr(to), self.alpn)

    def _addr(self, to: App) -> NodeAddr:
        assert to.first_addr is not None
        addr = to.machine.node_addr if to.is_running and self.how != "old" else to.first_addr
        derp_url = addr.derp_url or to.first_addr.derp_url
        return NodeAddr(
            addr.node_id,
            derp_url=None if self.how == "direct" else derp_url,
            direct_addresses=() if self.how == "derp" else addr.direct_addresses,
        )


@dataclass(frozen=True, slots=True)
class Send:
    """Open a stream on a call, and send some bytes on it."""

    call: int
    by: str
    size: int
    ends: bool = True
    bidirectional: bool = False

    def perform(self, world: World) -> None:
        call, end, app = _end(world, self.call, self.by)
        app.open(call, end, self.size, bidirectional=self.bidirectional, ends=self.ends)


@dataclass(frozen=True, slots=True)
class SendMore:
    """Send more on a stream that was left open, and end it or not."""

    flow: int
    size: int
    ends: bool = True

    def perform(self, world: World) -> None:
        flow, app = _flow(world, self.flow)
        app.send_more(flow, self.size, ends=self.ends)


@dataclass(frozen=True, slots=True)
class Answer:
    """Send something back on a stream that can carry it."""

    flow: int
    size: int

    def perform(self, world: World) -> None:
        flow = world.flows[self.flow]
        receiver = flow.receiver
        world.apps[receiver.node].answer(flow, self.size)


@dataclass(frozen=True, slots=True)
class Reset:
    """Give up a stream, as its sender."""

    flow: int

    def perform(self, world: World) -> None:
        flow, app = _flow(world, self.flow)
        flow.is_given_up = True
        number = app.number(flow.sender)
        app.program.give(
            lambda machine, now: machine.reset_stream(number, flow.stream_id, 1, now=now)
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up a stream, as its receiver."""

    flow: int

    def perform(self, world: World) -> None:
        flow = world.flows[self.flow]
        flow.is_given_up = True
        receiver = flow.receiver
        app = world.apps[receiver.node]
        number = app.number(receiver)
        app.program.give(
            lambda machine, now: machine.stop_sending(number, flow.stream_id, 2, now=now)
        )


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send a QUIC datagram."""

    call: int
    by: str

    def perform(self, world: World) -> None:
        call, end, _ = _end(world, self.call, self.by)
        world.send_datagram(call, end)


@dataclass(frozen=True, slots=True)
class Close:
    """Close a call."""

    call: int
    by: str

    def perform(self, world: World) -> None:
        _, end, app = _end(world, self.call, self.by)
        end.closed_by_us = True
        number = app.number(end)
        app.program.give(
            lambda machine, now: machine.close_connection(number, 7, "enough", now=now)
        )


@dataclass(frozen=True, slots=True)
class SetAlpns:
    """Serve other protocols from now on."""

    node: str
    alpns: tuple[bytes, ...]

    def perform(self, world: World) -> None:
        app = world.apps[self.node]
        app.alpns = self.alpns
        world.disturb()
        app.program.give(lambda machine, now: machine.set_alpns(self.alpns))


@dataclass(frozen=True, slots=True)
class TellOfChange:
    """Tell a node that its network changed, though nothing did."""

    node: str

    def perform(self, world: World) -> None:
        world.apps[self.node].program.give(lambda machine, now: machine.network_changed(now=now))


@dataclass(frozen=True, slots=True)
class Wait:
    """Let time pass, and see that nobody is busy without reason."""

    seconds: float

    def perform(self, world: World) -> None:
        calmness = Calmness(world)
        world.network.run_for(self.seconds)
        calmness.check()


@dataclass(frozen=True, slots=True)
class Settle:
    """End all mishaps, and wait until everything is as good as theory allows."""

    def perform(self, world: World) -> None:
        world.settle()


def _end(world: World, number: int, by: str) -> tuple[Call, End, App]:
    call = world.calls[number]
    return call, call.end_of(by), world.apps[by]


def _flow(world: World, label: int) -> tuple[Flow, App]:
    flow = world.flows[label]
    return flow, world.apps[flow.sender.node]
