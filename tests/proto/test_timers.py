"""Deadlines and the latest time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.errors import LocalProtocolError
from iroh_proto.timers import LatestTime, TimerTable, earliest


def test_time_never_runs_backwards() -> None:
    time = LatestTime()
    assert [time.advance(now) for now in (-5.0, 1.0, 0.5, 1.0, 2.0)] == [-5.0, 1.0, 1.0, 1.0, 2.0]
    assert time.value == 2.0


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_not_finite_is_the_callers_mistake(now: float) -> None:
    time = LatestTime()
    with pytest.raises(LocalProtocolError, match="finite"):
        time.advance(now)
    time.advance(1.0)
    with pytest.raises(LocalProtocolError, match="finite"):
        time.advance(now)
    assert time.value == 1.0


def test_a_deadline_expires_at_its_instant_and_once() -> None:
    timers: TimerTable[str] = TimerTable()
    timers.set("a", 1.0)
    assert timers.pop_expired(math.nextafter(1.0, 0.0)) == []
    assert timers.pop_expired(1.0) == ["a"]
    assert timers.pop_expired(1.0) == []
    assert timers.earliest() is None


def test_a_deadline_can_be_moved_and_cancelled() -> None:
    timers: TimerTable[str] = TimerTable()
    timers.set("a", 1.0)
    timers.set("b", 2.0)
    timers.set("a", 3.0)
    assert timers.earliest() == 2.0
    assert (timers.deadline("a"), timers.deadline("c")) == (3.0, None)
    timers.cancel("b")
    timers.cancel("never set")
    assert ("a" in timers, "b" in timers, len(timers)) == (True, False, 1)
    assert timers.earliest() == 3.0
    timers.clear()
    assert timers.earliest() is None
    assert len(timers) == 0


def test_equal_deadlines_expire_in_the_order_they_were_set_even_for_keys_that_have_none() -> None:
    timers: TimerTable[object] = TimerTable()
    keys = [object() for _ in range(9)]
    for key in keys:
        timers.set(key, 1.0)
    assert timers.pop_expired(1.0) == keys


def test_moving_one_deadline_for_ever_needs_no_more_memory() -> None:
    timers: TimerTable[str] = TimerTable()
    timers.set("first", 0.0)
    for step in range(10_000):
        timers.set("moving", 1.0 + step)
    assert len(timers._heap) < 100
    assert timers.pop_expired(20_000.0) == ["first", "moving"]


deadlines = st.integers(min_value=0, max_value=20).map(float)
operations = st.lists(
    st.tuples(st.just("set"), st.integers(0, 9), deadlines)
    | st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0.0))
    | st.tuples(st.just("expire"), st.just(0), deadlines),
    max_size=200,
)


@given(operations)
def test_a_table_does_what_a_dictionary_would(steps: list[tuple[str, int, float]]) -> None:
    timers: TimerTable[int] = TimerTable()
    model: dict[int, float] = {}
    for verb, key, when in steps:
        if verb == "set":
            timers.set(key, when)
            model[key] = when
        elif verb == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            expired = timers.pop_expired(when)
            assert set(expired) == {key for key, deadline in model.items() if deadline <= when}
            in_order = [model.pop(key) for key in expired]
            assert in_order == sorted(in_order)
        assert timers.earliest() == min(model.values(), default=None)
        assert len(timers) == len(model)
        assert all(timers.deadline(key) == deadline for key, deadline in model.items())


@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_the_earliest_of_some_deadlines(some: list[float | None]) -> None:
    known = [deadline for deadline in some if deadline is not None]
    assert earliest(*some) == (min(known) if known else None)
