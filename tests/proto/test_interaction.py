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
from tests.proto.interaction.model import Flow
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
SIZES = st.sampled_from([0, 1, 1_000, 12_000, 50_000])
ALPNS = st.sampled_from([(ALPN,), (ALPN, OTHER_ALPN), (OTHER_ALPN, ALPN)])


class Interaction(RuleBasedStateMachine):
    """Draws steps that are possible now."""

    world: World

    @initialize(shape=network_shapes(), seed=st.integers(0, 2**16))
    def build(self, shape: NetworkShape, seed: int) -> None:
        self.is_over = False
        self.recipe: list[str] = [f"shape={shape!r}, seed={seed}"]
        self.world = World(shape, seed=seed)

    def perform(self, step: Step) -> None:
        self.recipe.append(repr(step))
        try:
            perform(self.world, step)
        except BaseException as error:
            self.is_over = True
            error.add_note("\n".join(self.recipe))
            raise

    def running(self) -> list[str]:
        return [name for name, app in self.world.apps.items() if app.is_running]

    def ends(self) -> list[tuple[int, str]]:
        return [(call.number, end.node) for call, end in self.world.open_ends()]

    def flows(self, *, of_receiver: bool = False) -> list[Flow]:
        """Return the flows that their sender, or receiver, can do something with."""
        return [flow for flow in self.world.flows.values() if self._is_usable(flow, of_receiver)]

    def _is_usable(self, flow: Flow, of_receiver: bool) -> bool:
        end = flow.call.other_end(flow.sender) if of_receiver else flow.sender
        if of_receiver and (flow.arrived_at is None or flow.is_complete):
            return False
        lives = end.is_open and self.world.apps[end.node].lives(end)
        return lives and not flow.is_given_up and (of_receiver or not flow.is_ended)

    # Users

    @precondition(lambda self: len(self.running()) > 0)
    @rule(data=st.data(), how=st.sampled_from(["derp", "direct", "both", "old"]))
    def dial(self, data: st.DataObject, how: str) -> None:
        by = data.draw(st.sampled_from(self.running()))
        to = data.draw(st.sampled_from([name for name in self.world.apps if name != by]))
        alpn = data.draw(st.sampled_from([ALPN, ALPN, ALPN, OTHER_ALPN]))
        self.perform(Dial(by, to, how, alpn))

    @precondition(lambda self: bool(self.ends()))
    @rule(data=st.data(), size=SIZES, ends=st.booleans(), bidirectional=st.booleans())
    def send(self, data: st.DataObject, size: int, ends: bool, bidirectional: bool) -> None:
        call, by = data.draw(st.sampled_from(self.ends()))
        self.perform(Send(call, by, size, ends, bidirectional))

    @precondition(lambda self: bool(self.flows()))
    @rule(data=st.data(), size=SIZES, ends=st.booleans())
    def send_more(self, data: st.DataObject, size: int, ends: bool) -> None:
        flow = data.draw(st.sampled_from(self.flows()))
        self.perform(SendMore(flow.label, size, ends))

    @precondition(lambda self: bool(self.answerable()))
    @rule(data=st.data(), size=SIZES)
    def answer(self, data: st.DataObject, size: int) -> None:
        flow = data.draw(st.sampled_from(self.answerable()))
        self.perform(Answer(flow.label, size))

    def answerable(self) -> list[Flow]:
        """Return flows of bidirectional streams that came and were not answered."""
        apps = self.world.apps
        found = []
        for flow in self.world.flows.values():
            receiver = flow.call.other_end(flow.sender)
            app = apps[receiver.node]
            if flow.arrived_at is None or flow.stream_id & 2 or not app.lives(receiver):
                continue
            if receiver.is_open and flow.is_opener and flow.arrived_at not in app.flows:
                found.append(flow)
        return found

    @precondition(lambda self: bool(self.flows()))
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        self.perform(Reset(data.draw(st.sampled_from(self.flows())).label))

    @precondition(lambda self: bool(self.flows(of_receiver=True)))
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(self.flows(of_receiver=True)))
        self.perform(Stop(flow.label))

    @precondition(lambda self: bool(self.ends()))
    @rule(data=st.data())
    def send_datagram(self, data: st.DataObject) -> None:
        self.perform(SendDatagram(*data.draw(st.sampled_from(self.ends()))))

    @precondition(lambda self: bool(self.ends()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.perform(Close(*data.draw(st.sampled_from(self.ends()))))

    @precondition(lambda self: len(self.running()) > 0)
    @rule(data=st.data(), alpns=ALPNS)
    def set_alpns(self, data: st.DataObject, alpns: tuple[bytes, ...]) -> None:
        self.perform(SetAlpns(data.draw(st.sampled_from(self.running())), alpns))

    @precondition(lambda self: len(self.running()) > 0)
    @rule(data=st.data())
    def tell_of_change(self, data: st.DataObject) -> None:
        self.perform(TellOfChange(data.draw(st.sampled_from(self.running()))))

    # The network

    @rule(data=st.data())
    def suffer(self, data: st.DataObject) -> None:
        self.perform(data.draw(mishaps(self.world.network, self.world.shape)))

    @precondition(lambda self: bool(self.world.troubles))
    @rule(data=st.data())
    def remedy(self, data: st.DataObject) -> None:
        self.perform(data.draw(st.sampled_from(list(self.world.troubles.values()))))

    # Time

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 8.0]))
    def wait(self, seconds: float) -> None:
        self.perform(Wait(seconds))

    @rule(seconds=st.sampled_from([20.0, 40.0, 130.0]))
    def wait_long(self, seconds: float) -> None:
        self.perform(Wait(seconds))

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.is_over:
            self.perform(Settle())


@pytest.mark.timeout(0)  # the long profile takes hours
def test_whatever_users_do_and_networks_suffer_ends_well() -> None:
    profile = settings()
    is_quick = os.environ.get("HYPOTHESIS_PROFILE", "quick") == "quick"
    examples = QUICK_EXAMPLES if is_quick else profile.max_examples
    run_state_machine_as_test(
        Interaction,
        settings=settings(profile, max_examples=examples, stateful_step_count=25),
    )
