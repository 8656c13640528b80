"""Endpoints, derpers and users in any network, with anything going wrong, in any order.

What must hold is in :mod:`tests.proto.interaction`. A failure prints the steps that led to it; once
its cause is found it is kept with :func:`~tests.proto.interaction.steps.play` in
``tests/proto/regressions``. ``HYPOTHESIS_PROFILE=nightly`` tries many more.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from iroh_proto.testing.shapes import NetworkShape
from iroh_proto.testing.strategies import mishaps, network_shapes
from tests.proto.interaction.app import ALPN, OTHER_ALPN
from tests.proto.interaction.model import End, Flow
from tests.proto.interaction.steps import (
    Answer,
    Close,
    Dial,
    Reset,
    Send,
    SendDatagram,
    SendMore,
    SetAlpns,
    Settle,
    Step,
    Stop,
    TellOfChange,
    Wait,
    perform,
)
from tests.proto.interaction.world import World

QUICK_EXAMPLES = 12
STEPS = 20
SIZES = st.sampled_from([0, 1, 1_000, 12_000, 50_000])
ALPNS = st.sampled_from([(ALPN,), (ALPN, OTHER_ALPN), (OTHER_ALPN, ALPN)])
HOW = st.sampled_from(["derp", "both", "direct", "old"])
PAUSES = st.sampled_from(
    [0.0, 0.01, 0.05, 0.3, 0.3, 1.0, 1.0, 2.0, 4.0, 8.0] * 4 + [25.0, 25.0, 130.0]
)
"""Seconds. In the longest NATs forget mappings that are not used."""


class Interaction(RuleBasedStateMachine):
    """Draws steps that are possible now.

    There are few rules, and much to draw in each: hypothesis leaves rules out of most examples.
    """

    world: World

    @initialize(shape=network_shapes(), seed=st.integers(0, 2**16), pause=PAUSES)
    def build(self, shape: NetworkShape, seed: int, pause: float) -> None:
        self.is_over = False
        self.recipe: list[str] = [f"shape={shape!r}, seed={seed}"]
        self.world = World(shape, seed=seed)
        first, second, *_ = self.world.apps
        self.perform(Dial(first, second))
        self.wait(pause)

    def perform(self, step: Step) -> None:
        self.recipe.append(repr(step))
        try:
            perform(self.world, step)
        except BaseException as error:
            self.is_over = True
            error.add_note("\n".join(self.recipe))
            raise

    def wait(self, pause: float) -> None:
        if pause:
            self.perform(Wait(pause))

    @precondition(lambda self: bool(self.running()))
    @rule(data=st.data(), pause=PAUSES)
    def use(self, data: st.DataObject, pause: float) -> None:
        ends, flows = self.ends(), self.flows()
        actions = [self.dial, self.configure]
        if ends:
            actions += [self.send, self.send, self.send, self.send_datagram, self.close]
        if flows:
            actions += [self.send_more, self.reset]
        if self.arriving():
            actions.append(self.stop)
        if self.answerable():
            actions += [self.answer, self.answer]
        self.perform(data.draw(st.sampled_from(actions))(data))
        self.wait(pause)

    @rule(data=st.data(), pause=PAUSES)
    def suffer(self, data: st.DataObject, pause: float) -> None:
        self.perform(data.draw(mishaps(self.world.network, self.world.shape)))
        self.wait(pause)

    @precondition(lambda self: bool(self.world.troubles))
    @rule(data=st.data(), pause=PAUSES)
    def mend(self, data: st.DataObject, pause: float) -> None:
        self.perform(data.draw(st.sampled_from(list(self.world.troubles.values()))))
        self.wait(pause)

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.is_over:
            self.perform(Settle())

    # What there is to act on

    def running(self) -> list[str]:
        return [name for name, app in self.world.apps.items() if app.is_running]

    def ends(self) -> list[tuple[int, str]]:
        return [(call.number, end.node) for call, end in self.world.open_ends()]

    def flows(self) -> list[Flow]:
        """Return the flows that can be gone on with."""
        return [
            flow
            for flow in self.world.flows.values()
            if self._lives(flow.sender) and not (flow.is_ended or flow.is_given_up)
        ]

    def arriving(self) -> list[Flow]:
        """Return the flows of which something came, but not all."""
        return [
            flow
            for flow in self.world.flows.values()
            if flow.arrived_at is not None
            and not (flow.is_complete or flow.is_given_up)
            and self._lives(flow.receiver)
        ]

    def answerable(self) -> list[Flow]:
        """Return flows of bidirectional streams that came and were not answered."""
        return [
            flow
            for flow in self.world.flows.values()
            if flow.arrived_at is not None
            and flow.is_opener
            and not flow.stream_id & 2
            and self._lives(flow.receiver)
            and flow.arrived_at not in self.world.apps[flow.receiver.node].flows
        ]

    def _lives(self, end: End) -> bool:
        return end.is_open and self.world.apps[end.node].lives(end)

    # What to do with it

    def dial(self, data: st.DataObject) -> Step:
        by = data.draw(st.sampled_from(self.running()))
        to = data.draw(st.sampled_from([name for name in self.world.apps if name != by]))
        return Dial(by, to, data.draw(HOW), data.draw(st.sampled_from([ALPN, ALPN, OTHER_ALPN])))

    def configure(self, data: st.DataObject) -> Step:
        node = data.draw(st.sampled_from(self.running()))
        if data.draw(st.booleans()):
            return TellOfChange(node)
        return SetAlpns(node, data.draw(ALPNS))

    def send(self, data: st.DataObject) -> Step:
        call, by = data.draw(st.sampled_from(self.ends()))
        ends, bidirectional = data.draw(st.booleans()), data.draw(st.booleans())
        return Send(call, by, data.draw(SIZES), ends, bidirectional)

    def send_more(self, data: st.DataObject) -> Step:
        flow = data.draw(st.sampled_from(self.flows()))
        return SendMore(flow.label, data.draw(SIZES), data.draw(st.booleans()))

    def answer(self, data: st.DataObject) -> Step:
        return Answer(data.draw(st.sampled_from(self.answerable())).label, data.draw(SIZES))

    def reset(self, data: st.DataObject) -> Step:
        return Reset(data.draw(st.sampled_from(self.flows())).label)

    def stop(self, data: st.DataObject) -> Step:
        return Stop(data.draw(st.sampled_from(self.arriving())).label)

    def send_datagram(self, data: st.DataObject) -> Step:
        return SendDatagram(*data.draw(st.sampled_from(self.ends())))

    def close(self, data: st.DataObject) -> Step:
        return Close(*data.draw(st.sampled_from(self.ends())))


@pytest.mark.timeout(0)  # the long profile takes hours
def test_whatever_users_do_and_networks_suffer_ends_well() -> None:
    profile = settings()
    is_quick = os.environ.get("HYPOTHESIS_PROFILE", "quick") == "quick"
    examples = QUICK_EXAMPLES if is_quick else profile.max_examples
    run_state_machine_as_test(
        Interaction,
        settings=settings(profile, max_examples=examples, stateful_step_count=STEPS),
    )
