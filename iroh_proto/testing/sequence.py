"""Draws a time line as a sequence diagram, SVG text: how a hole was punched, or why not.

Hosts and NATs stand side by side, time goes down, though not evenly: silence is cut short. Arrows
are datagrams, solid by UDP and dashed by way of a DERP server; a NAT says beside them as whom it
sent them on, a red cross is where one was not let in, and a dotted stub went to where nobody is.
Boxes say where payload goes from then on: it "tries" an address that nobody answered from yet, and
"direct" is one that a pong proved.

A real node does not see NATs: where a message arrives stands whence it came. An arrow that is
dotted all along may not have arrived; a red ping is one that was never answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from iroh_proto.testing.flights import Flight, Point
from iroh_proto.testing.legend import draw_legend, legend_height
from iroh_proto.testing.scene import Scene, read_scene
from iroh_proto.testing.svg import (
    BLUE,
    DASHED,
    DOTTED,
    FAINT,
    INK,
    RED,
    TEAL,
    arrow,
    badge,
    cross,
    document,
    label,
    line,
    text,
    title,
)

LIFELINE_DISTANCE: Final = 215
"""Pixels between two lifelines, at least; as much as texts need beside an arrow."""

ARROWS_WIDTH: Final = 430
"""Pixels between the first lifeline and the last, at least: for two texts side by side."""

LEFT, TOP, RIGHT, BOTTOM = 170, 70, 130, 12
"""Pixels around the lifelines."""

ROW_HEIGHT: Final = 17.0
"""Pixels above something that has a text there, or below it."""

BELOW: Final = 12.0
"""Pixels from the end of an arrow down to the foot of the text below it."""

SILENCE_LIMIT: Final = 48.0
"""Pixels at most between two things, however long the time."""


def draw_sequence(
    lines: Iterable[str],
    *,
    begin: float | None = None,
    end: float | None = None,
    payload: bool = False,
) -> str:
    """Return a picture of the lines of a :class:`~iroh_proto.testing.timeline.Timeline`.

    The arguments are those of :func:`~iroh_proto.testing.scene.read_scene`.

    :raises DecodeError: if it is no time line.
    """
    return draw_scene(read_scene(lines, begin=begin, end=end, payload=payload))


def draw_scene(scene: Scene) -> str:
    """Return a picture, with a legend of the signs in it."""
    names = scene.names
    bottom = _lay_out(scene)
    distance = max(LIFELINE_DISTANCE, ARROWS_WIDTH / max(1, len(names) - 1))
    x = {name: LEFT + distance * index for index, name in enumerate(names)}
    width = max(LEFT + distance * max(0, len(names) - 1), ARROWS_WIDTH) + RIGHT
    parts = [*_lifelines(x, bottom), *_time_marks(scene)]
    for flight in scene.flights:
        parts.extend(_draw_way(flight, x))
    for flight in scene.flights:  # above all arrows, so that none crosses them out
        parts.extend(_draw_texts(flight, x))
    parts.extend(_draw_box(box, x[box.lifeline]) for box in scene.boxes)
    parts += draw_legend(scene, bottom + BOTTOM, width)
    return document(width, bottom + legend_height(scene) + BOTTOM, parts)


def _lay_out(scene: Scene) -> float:
    """Give every point its height, in the order of the lines; return that of the end."""
    arrivals = {id(flight.points[-1]) for flight in scene.flights if len(flight.points) > 1}
    y, time = float(TOP), None
    for point in sorted(scene.points, key=lambda point: point.order):
        if time is not None and point.time > time:
            gap = point.time - time
            y += min(SILENCE_LIMIT, 2.0 + 7.0 * math.log2(1.0 + gap / 0.002))
        is_below = id(point) in arrivals
        y += ROW_HEIGHT if point.text and not is_below else 0.0
        point.y, time = y, point.time
        y += ROW_HEIGHT if point.text and is_below else 0.0
        y += 6.0 if point.mark == "box" else 0.0
    return y + ROW_HEIGHT


def _lifelines(x: dict[str, float], bottom: float) -> Iterator[str]:
    for name, place in x.items():
        yield line(place, TOP - 24, place, bottom, FAINT, width=1, dash="2 3")
        yield title(place, name)


def _time_marks(scene: Scene) -> Iterator[str]:
    """Say beside what nodes do how many milliseconds it is after the beginning."""
    points = [*(flight.points[0] for flight in scene.flights), *scene.boxes]
    last = -1.0
    for point in sorted(points, key=lambda point: point.y):
        if point.time > last:
            last = point.time
            yield text(8, point.y + 4, f"{1000 * (point.time - scene.begin):.0f} ms", fill=FAINT)


def _colour(flight: Flight) -> str:
    if flight.is_pong:
        return TEAL
    return BLUE if flight.is_carried else INK


def _draw_way(flight: Flight, x: dict[str, float]) -> Iterator[str]:
    """Yield the arrows, and what stopped them."""
    colour = _colour(flight)
    dash = DASHED if flight.is_carried else ""
    if not flight.is_certain:
        dash = DOTTED
    for start, stop in pairwise(flight.points):
        yield arrow(x[start.lifeline], start.y, x[stop.lifeline], stop.y, colour, dash=dash)
    for point in flight.points:
        place = x[point.lifeline]
        if point.mark == "stub":
            far = place + 40 * _direction(flight.points, x)
            yield arrow(place, point.y, far, point.y, colour, dash=DOTTED)
        elif point.mark == "cross":
            yield from cross(place, point.y)


def _draw_texts(flight: Flight, x: dict[str, float]) -> Iterator[str]:
    """Yield what stands at each point: above the arrow that leaves there, or below its end."""
    forward = _direction(flight.points, x)
    for index, point in enumerate(flight.points):
        if not point.text:
            continue
        is_end = 0 < index == len(flight.points) - 1
        side = -forward if is_end and point.mark != "stub" else forward
        fill = _colour(flight) if index == 0 else FAINT
        if point.mark in ("cross", "unanswered"):
            fill = RED
        yield label(
            x[point.lifeline] + 8 * side,
            point.y + (BELOW if is_end else -5),
            point.text,
            anchor="start" if side > 0 else "end",
            fill=fill,
        )


def _direction(points: Sequence[Point], x: dict[str, float]) -> int:
    """Return 1 for a flight to the right, or -1."""
    if len(points) > 1:
        return 1 if x[points[-1].lifeline] >= x[points[0].lifeline] else -1
    return 1 if x[points[0].lifeline] <= max(x.values()) / 2 else -1


def _draw_box(box: Point, place: float) -> str:
    if box.mark == "note":
        return label(place, box.y + 1, box.text, anchor="middle", fill=FAINT)
    return badge(place, box.y, box.text)
