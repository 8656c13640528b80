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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from types import MappingProxyType
from typing import Final, cast

from iroh_proto.errors import DecodeError
from iroh_proto.testing.flights import (
    Flight,
    Point,
    flights_of,
    is_about_paths,
    time_of,
)
from iroh_proto.testing.sayings import sayings_of
from iroh_proto.trace.lines import MALFORMED, in_words, read_lines
from iroh_proto.trace.values import Json, quoted

LIFELINE_DISTANCE: Final = 215
"""Pixels between two lifelines, at least; as much as texts need beside an arrow."""

ARROWS_WIDTH: Final = 430
"""Pixels between the first lifeline and the last, at least: for two texts side by side."""

LEFT, TOP, RIGHT, BOTTOM = 170, 70, 130, 30
"""Pixels around the lifelines."""

ROW_HEIGHT: Final = 17.0
"""Pixels below something that has a text beside it."""

SILENCE_LIMIT: Final = 48.0
"""Pixels at most between two things, however long the time."""

SEARCH_TIME: Final = 6.0
"""Seconds shown where no path became direct: a search, and what became of its pings within 5 s."""

AFTER_TIME: Final = 0.05
"""Seconds shown after the last change of a path, unless the caller says until when."""

BOX_COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {"direct": "#a9dfc0", "mixed": "#f6e3b5", "tries": "#dcdfe4", "derp": "#dbe5f8"}
)
"""By the way that payload goes."""

_INK, _FAINT, _RED, _BLUE, _TEAL = "#1c2330", "#5b6474", "#c2282d", "#2f5fb3", "#1d6f66"


def draw_sequence(
    lines: Iterable[str],
    *,
    begin: float | None = None,
    end: float | None = None,
    payload: bool = False,
) -> str:
    """Return a picture of the lines of a :class:`~iroh_proto.testing.timeline.Timeline`.

    :param begin: seconds; from the first message between nodes on unless given.
    :param end: seconds; until shortly after the last change of a path unless given, but for
        :data:`SEARCH_TIME` at least if none became direct.
    :param payload: whether to show payload datagrams, too.
    :raises DecodeError: if it is no time line.
    """
    head, numbered = read_lines(lines)
    names = cast("list[str]", head["lifelines"])
    entries = [{**entry, "at": _host(str(entry["at"]))} for _, entry in numbered]
    for (number, _), entry in zip(numbered, entries, strict=True):
        if entry["at"] not in names:
            raise DecodeError(f"line {number}: there is no lifeline {quoted(entry['at'])}")
    try:
        return _draw(names, entries, begin, end, payload)
    except MALFORMED as error:
        raise DecodeError(f"its lines cannot be drawn: {in_words(error)}") from None


def _draw(
    names: Sequence[str],
    entries: Sequence[Json],
    begin: float | None,
    end: float | None,
    payload: bool,
) -> str:
    numbered = list(enumerate(entries))
    boxes = list(sayings_of(numbered))
    begin, end = _window(entries, boxes, begin, end)
    flights = list(flights_of(numbered, payload=payload, begin=begin, end=end))
    boxes = [box for box in boxes if begin <= box.time <= end]
    points = [*(point for flight in flights for point in flight.points), *boxes]
    names = list(dict.fromkeys([*names, *(point.lifeline for point in points)]))
    bottom = _lay_out(points)
    distance = max(LIFELINE_DISTANCE, ARROWS_WIDTH / max(1, len(names) - 1))
    x = {name: LEFT + distance * index for index, name in enumerate(names)}
    width = LEFT + distance * max(0, len(names) - 1) + RIGHT
    parts = [*_lifelines(x, bottom), *_time_marks(flights, boxes, begin)]
    for flight in flights:
        parts.extend(_draw_flight(flight, x))
    for box in boxes:
        parts.extend(_draw_box(box, x[box.lifeline]))
    return _document(width, bottom + BOTTOM, parts)


def _host(place: str) -> str:
    return place.partition("/")[0]


def _window(
    entries: Sequence[Json], boxes: Sequence[Point], begin: float | None, end: float | None
) -> tuple[float, float]:
    """Return from when to when to show, in seconds."""
    if begin is None:
        talk = filter(is_about_paths, entries)
        begin = next((time_of(entry) for entry in talk), 0.0)
    if end is None:
        changes = [box for box in boxes if box.mark == "box"]
        last = max((box.time for box in changes), default=time_of(entries[-1]) if entries else 0.0)
        is_direct = any(box.text.startswith("direct") for box in changes)
        end = last + AFTER_TIME if is_direct else max(last + AFTER_TIME, begin + SEARCH_TIME)
    return begin, end


def _lay_out(points: list[Point]) -> float:
    """Give every point its height, in the order of the lines; return that of the end."""
    y, time = float(TOP), None
    for point in sorted(points, key=lambda point: point.order):
        if time is not None and point.time > time:
            gap = point.time - time
            y += min(SILENCE_LIMIT, 2.0 + 7.0 * math.log2(1.0 + gap / 0.002))
        y += ROW_HEIGHT if point.text else 0.0
        point.y, time = y, point.time
        y += 6.0 if point.mark == "box" else 0.0
    return y + ROW_HEIGHT


def _lifelines(x: dict[str, float], bottom: float) -> Iterator[str]:
    for name, place in x.items():
        yield _line(place, TOP - 24, place, bottom, _FAINT, width=1, dash="2 3")
        yield (
            f'<rect x="{place - 60:g}" y="14" width="120" height="28" rx="5"'
            f' fill="#eef1f6" stroke="{_FAINT}"/>'
        )
        yield _text(place, 33, name, anchor="middle", size=13, weight=600)


def _time_marks(flights: Sequence[Flight], boxes: Sequence[Point], begin: float) -> Iterator[str]:
    """Say beside what nodes do how many milliseconds it is after the beginning."""
    points = [*(flight.points[0] for flight in flights), *boxes]
    last = -1.0
    for point in sorted(points, key=lambda point: point.y):
        if point.time > last:
            last = point.time
            yield _text(8, point.y + 4, f"{1000 * (point.time - begin):.0f} ms", fill=_FAINT)


def _draw_flight(flight: Flight, x: dict[str, float]) -> Iterator[str]:
    points = flight.points
    colour = _BLUE if flight.is_carried else _INK
    dash = "6 4" if flight.is_carried else ""
    if not flight.is_certain:
        dash = "1 3"
    if points[0].text.startswith("pong"):
        colour = _TEAL
    for start, stop in pairwise(points):
        yield _line(
            x[start.lifeline], start.y, x[stop.lifeline], stop.y, colour, dash=dash, tip=True
        )
    forward = _direction(points, x)
    for index, point in enumerate(points):
        place, side = x[point.lifeline], forward if index < len(points) - 1 else -forward
        if point.mark == "stub":
            side = forward
            yield _line(place, point.y, place + 40 * forward, point.y, colour, dash="1 3", tip=True)
        if point.mark == "unanswered":
            side = forward
        if point.mark == "cross":
            for sign in (1, -1):
                yield _line(
                    place - 5, point.y - 5 * sign, place + 5, point.y + 5 * sign, _RED, width=2
                )
        if point.text:
            fill = colour if index == 0 else _FAINT
            if point.mark in ("cross", "unanswered"):
                fill = _RED
            anchor = "start" if side > 0 else "end"
            yield _text(place + 8 * side, point.y - 4, point.text, anchor=anchor, fill=fill)


def _direction(points: Sequence[Point], x: dict[str, float]) -> int:
    """Return 1 for a flight to the right, or -1."""
    if len(points) > 1:
        return 1 if x[points[-1].lifeline] >= x[points[0].lifeline] else -1
    return 1 if x[points[0].lifeline] <= max(x.values()) / 2 else -1


def _draw_box(box: Point, place: float) -> Iterator[str]:
    if box.mark == "note":
        yield _text(place, box.y + 1, box.text, anchor="middle", fill=_FAINT)
        return
    kind = box.text.partition(" ")[0]
    fill = BOX_COLOURS.get(kind, "#ffffff")
    width = 14 + 6.2 * len(box.text)
    yield (
        f'<rect x="{place - width / 2:g}" y="{box.y - 12:g}" width="{width:g}" height="17"'
        f' rx="8" fill="{fill}" stroke="{_FAINT}" stroke-width="0.6"/>'
    )
    yield _text(place, box.y + 1, box.text, anchor="middle", weight=600)


def _line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    colour: str,
    *,
    width: float = 1.3,
    dash: str = "",
    tip: bool = False,
) -> str:
    place = f'x1="{x1:g}" y1="{y1:.1f}" x2="{x2:g}" y2="{y2:.1f}"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<line {place} stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
    return line + (_tip(x1, y1, x2, y2, colour) if tip else "")


def _tip(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """Return the head of an arrow; markers are not drawn by every program."""
    angle = math.atan2(y2 - y1, x2 - x1)
    turns = (angle + 2.75, angle - 2.75)
    corners = [(x2 + 8 * math.cos(turn), y2 + 8 * math.sin(turn)) for turn in turns]
    shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *corners])
    return f'<polygon points="{shape}" fill="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 10,
    weight: int = 400,
    fill: str = _INK,
) -> str:
    place = f'x="{x:g}" y="{y:.1f}" text-anchor="{anchor}"'
    look = f'font-size="{size}" font-weight="{weight}" fill="{fill}"'
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return f"<text {place} {look}>{escape(printable)}</text>"


def _document(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:.0f}"'
        f' viewBox="0 0 {width:g} {height:.0f}"'
        ' font-family="system-ui, Helvetica, Arial, sans-serif">'
    )
    ground = f'<rect width="{width:g}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])
