"""Describing and measuring what an object remembers."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import pytest

from iroh_proto.key import SecretKey
from iroh_proto.testing.snapshot import difference, retained_bytes, snapshot
from iroh_proto.timers import LatestTime


class Slotted:
    __slots__ = ("__hidden", "inner")

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.__hidden = 1

    def hide(self, value: int) -> None:
        self.__hidden = value

    def method(self) -> None:
        pass


@dataclass
class Plain:
    items: Any


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Plain([1]), Plain([1, 2])),
        (Plain({"a": 1}), Plain({"a": 2})),
        (Plain({1, 2}), Plain({1, 3})),
        (Plain(deque([b"a"])), Plain(deque([b"b"]))),
        (Plain(bytearray(b"a")), Plain(bytearray(b"b"))),
        (Plain(None), Plain(Slotted(None))),
        (Slotted(Plain(1)), Slotted(Plain(2))),
        (Plain(Slotted(1).method), Plain(Slotted(2).method)),
        (Plain(OrderedDict(a=1, b=2)), Plain(OrderedDict(b=2, a=1))),
        (Plain(ValueError("a")), Plain(ValueError("b"))),
        (Plain(random.Random(1)), Plain(random.Random(2))),
        (Plain(itertools.count(1)), Plain(itertools.count(2))),
    ],
)
def test_a_change_anywhere_is_seen(before: object, after: object) -> None:
    assert difference(snapshot(before), snapshot(before)) is None
    assert difference(snapshot(before), snapshot(after)) is not None


def test_a_private_slot_is_seen() -> None:
    slotted = Slotted(0)
    before = snapshot(slotted)
    slotted.hide(2)
    assert snapshot(slotted) != before


def test_a_slot_that_is_empty_is_told_from_one_that_holds_nothing() -> None:
    slotted = Slotted(None)
    filled = snapshot(slotted)
    del slotted.inner
    assert snapshot(slotted) != filled


def test_a_draw_of_chance_is_a_change_and_the_time_is_not() -> None:
    rng, time = random.Random(0), LatestTime()
    before = snapshot([rng, time])
    time.advance(5.0)
    assert snapshot([rng, time]) == before
    rng.random()
    assert snapshot([rng, time]) != before
    assert snapshot(random.SystemRandom()) == snapshot(random.SystemRandom())


def test_cycles_end() -> None:
    items: list[Any] = [1]
    items.append(items)
    assert snapshot(items) == snapshot(items)
    assert retained_bytes(items) < 1000


def test_equal_values_compare_equal_whether_shared_or_not() -> None:
    key = SecretKey(bytes(32)).public
    shared = (key, 1)
    assert snapshot([shared, shared]) == snapshot([(key, 1), (type(key)(bytes(key)), 1)])


def test_the_place_of_a_difference_is_named() -> None:
    before = snapshot(Plain({"a": [1, 2], "b": 0}))
    after = snapshot(Plain({"a": [1, 3], "b": 0}))
    assert difference(before, after) == "machine.items['a'][1]: 2 became 3"


def test_memory_counts_what_is_held_once() -> None:
    blob = bytes(100_000)
    assert 100_000 <= retained_bytes(Plain([blob, blob])) < 101_000
    assert retained_bytes(Plain({1: bytearray(50_000), 2: memoryview(blob)})) >= 150_000
