"""What of a time line is in a picture: the arrows, what nodes say, and from when to when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

from iroh_proto.testing.flights import (
    Flight,
    Point,
    flights_of,
    is_about_paths,
    time_of,
)
from iroh_proto.testing.sayings import sayings_of
from iroh_proto.trace.lines import check_lifelines, host_of, read_lines
from iroh_proto.trace.values import Json

SEARCH_TIME: Final = 6.0
"""Seconds shown where no path became direct: a search, and what became of its pings within 5 s."""

AFTER_TIME: Final = 0.05
"""Seconds shown after the last change of a path, unless the caller says until when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is shown.

    :ivar names: the lifelines, from left to right.
    :ivar begin: when it begins, in seconds, as in the time line; ``end`` is when it ends.
    :ivar recorded: when the first and the last line are, ``None`` if there is none.
    """

    names: Sequence[str]
    flights: Sequence[Flight]
    boxes: Sequence[Point]
    begin: float
    end: float
    recorded: tuple[float, float] | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened between nodes."""
        return not self.flights and not self.boxes

    @property
    def points(self) -> list[Point]:
        """Everything that has a place."""
        return [*(point for flight in self.flights for point in flight.points), *self.boxes]


def read_scene(
    lines: Iterable[str],
    *,
    begin: float | None = None,
    end: float | None = None,
    payload: bool = False,
) -> Scene:
    """Return what is to be shown of a time line.

    :param begin: seconds; from the first message between nodes on unless given.
    :param end: seconds; until shortly after the last change of a path unless given, but for
        :data:`SEARCH_TIME` at least if none became direct.
    :param payload: whether to show payload datagrams, too.
    :raises DecodeError: if it is no time line.
    """
    head, numbered = read_lines(lines)
    names = cast("list[str]", head["lifelines"])
    check_lifelines(head, numbered)
    entries = [{**entry, "at": host_of(entry)} for _, entry in numbered]
    numbered = list(enumerate(entries))
    boxes = list(sayings_of(numbered))
    begin, end = _window(entries, boxes, begin, end)
    flights = list(flights_of(numbered, payload=payload, begin=begin, end=end))
    boxes = [box for box in boxes if begin <= box.time <= end]
    far = [point.lifeline for flight in flights for point in flight.points]
    return Scene(
        names=list(dict.fromkeys([*names, *far])),
        flights=flights,
        boxes=boxes,
        begin=begin,
        end=end,
        recorded=(time_of(entries[0]), time_of(entries[-1])) if entries else None,
    )


def _window(
    entries: Sequence[Json], boxes: Sequence[Point], begin: float | None, end: float | None
) -> tuple[float, float]:
    """Return from when to when to show, in seconds; what is not given follows what is."""
    if begin is None:
        talk = filter(is_about_paths, entries)
        begin = next((time_of(entry) for entry in talk), 0.0)
        begin = begin if end is None else min(begin, end)
    return begin, _end(entries, boxes, begin) if end is None else end


def _end(entries: Sequence[Json], boxes: Sequence[Point], begin: float) -> float:
    changes = [box for box in boxes if box.mark == "box"]
    recorded_until = time_of(entries[-1]) if entries else 0.0
    last = max((box.time for box in changes), default=recorded_until) + AFTER_TIME
    is_direct = any(box.text.startswith("direct") for box in changes)
    return max(last, begin if is_direct else begin + SEARCH_TIME)
