"""The rules of :mod:`iroh_proto.machine` as property tests for any machine.

Say how a machine is made and what may be done with it, and get a test per rule::

    TestPinger = contract_tests(
        Subject(
            factory=lambda rng: Pinger(rng=rng),
            operations=st.builds(Call, st.just("ping"), addresses()),
            misuses=st.just(Call("ping", None)),
            floods=[Flood("pings", lambda i: Call("ping", UdpAddress("192.0.2.1", i + 1)))],
        )
    )

pytest collects the class like any other. Every test also feeds hostile bytes between the
operations: noise, what the machine itself sent before, what it was given before, changed or not.
A failing test prints a :class:`Script`; ``check_*(subject, Script([...]))`` repeats it, which is
how a regression test keeps a found failure.

Needs the ``testing`` extra (hypothesis).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, TypeVar, cast

from iroh_proto.extras import needs_extra
from iroh_proto.testing.run import Call, ContractBroken, Oversleep, React, Run, Wait

with needs_extra(__name__, "testing", {"hypothesis"}):
    from hypothesis import given as hypothesis_given
    from hypothesis import settings
    from hypothesis import strategies as st

    from iroh_proto.testing.checks import (
        check_bounds,
        check_cutting,
        check_determinism,
        check_draining,
        check_earlier_now,
        check_early_timer,
        check_end,
        check_garbage,
        check_misuse,
        check_peer_bytes,
        check_refusals,
        check_timer,
    )
    from iroh_proto.testing.strategies import chunk_sizes
    from iroh_proto.testing.subject import Flood, Hostile, Script, Subject

__all__ = [
    "Call",
    "ContractBroken",
    "Flood",
    "Hostile",
    "Oversleep",
    "React",
    "Run",
    "Script",
    "Subject",
    "Wait",
    "check_bounds",
    "check_cutting",
    "check_determinism",
    "check_draining",
    "check_earlier_now",
    "check_early_timer",
    "check_end",
    "check_garbage",
    "check_misuse",
    "check_peer_bytes",
    "check_refusals",
    "check_timer",
    "contract_tests",
]

MachineT = TypeVar("MachineT")
TestT = TypeVar("TestT", bound=Callable[..., None])


def contract_tests(subject: Subject[MachineT]) -> type:
    """Return a class with a property test for each rule, for pytest to collect.

    Its ``subject_under_test`` is what it was made of, for other ways to look for failures.
    """
    scripts = subject.scripts()
    given = _given_with(subject.effort)

    class ContractTests:
        """The rules of :mod:`iroh_proto.machine`, for one machine."""

        subject_under_test: ClassVar[object]

        @given(script=scripts, back=st.sampled_from([0.5, 1e9]) | st.floats(0, 100))
        def test_an_earlier_now_counts_as_the_latest(
            self, script: Script[MachineT], back: float
        ) -> None:
            check_earlier_now(subject, script, back)

        @given(script=scripts)
        def test_a_second_drain_gives_nothing(self, script: Script[MachineT]) -> None:
            check_draining(subject, script)

        @given(script=scripts)
        def test_a_handled_timer_lies_in_the_future(self, script: Script[MachineT]) -> None:
            check_timer(subject, script)

        @given(script=scripts, fraction=st.just(1.0) | st.floats(0, 1))
        def test_an_early_timer_emits_nothing(
            self, script: Script[MachineT], fraction: float
        ) -> None:
            check_early_timer(subject, script, fraction)

        @given(script=scripts)
        def test_bytes_from_peers_never_raise(self, script: Script[MachineT]) -> None:
            check_peer_bytes(subject, script)

        @given(script=scripts, bad_now=st.sampled_from([math.nan, math.inf, -math.inf]))
        def test_a_refused_call_changes_nothing(
            self, script: Script[MachineT], bad_now: float
        ) -> None:
            check_refusals(subject, script, bad_now)

        @given(script=scripts, sizes=chunk_sizes(), drains=st.booleans())
        def test_cutting_changes_nothing(
            self, script: Script[MachineT], sizes: list[int], drains: bool
        ) -> None:
            check_cutting(subject, script, sizes, drains)

        @given(script=scripts)
        def test_the_same_seed_gives_the_same_outputs(self, script: Script[MachineT]) -> None:
            check_determinism(subject, script)

        if subject.final:

            @given(script=scripts)
            def test_the_final_event_is_final(self, script: Script[MachineT]) -> None:
                check_end(subject, script)

        if subject.garbage is not None:

            @given(script=scripts, data=subject.garbage)
            def test_garbage_is_dropped_and_counted(
                self, script: Script[MachineT], data: bytes
            ) -> None:
                check_garbage(subject, script, data)

        if subject.misuses is not None:

            @given(script=scripts, misuse=subject.misuses)
            def test_misuse_is_refused(self, script: Script[MachineT], misuse: Call) -> None:
                check_misuse(subject, script, misuse)

        def test_memory_is_bounded(self) -> None:
            for flood in subject.floods:
                check_bounds(subject, Script(()), flood)

    ContractTests.subject_under_test = subject
    return ContractTests


def _given_with(effort: float) -> Callable[..., Callable[[TestT], TestT]]:
    """Return hypothesis' ``given``, which tries a share of its usual number of examples."""

    def given(**strategies: st.SearchStrategy[object]) -> Callable[[TestT], TestT]:
        def decorate(test: TestT) -> TestT:
            property_test = hypothesis_given(**strategies)(test)
            if effort != 1.0:
                usual = (settings.default or settings()).max_examples
                property_test = settings(max_examples=max(1, round(usual * effort)))(property_test)
            return cast(TestT, property_test)

        return decorate

    return given
