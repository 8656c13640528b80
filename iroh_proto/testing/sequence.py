"""Draws a time line as a sequence diagram, SVG text: how a hole was punched, or why not.

Hosts and NATs stand side by side, time goes down, though not evenly: silence is cut short. Arrows
are datagrams, solid by UDP and dashed by way of a DERP server; a NAT says beside them as whom it
sent them on, a red cross is where one was not let in, and a dotted stub went to where nobody is.
Boxes say where payload goes from then on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final, TypeAlias

from iroh_proto.errors import DecodeError
from iroh_proto.testing.timeline import FORMAT

Json: TypeAlias = dict[str, object]
Numbered: TypeAlias = tuple[int, Json]

LIFELINE_DISTANCE: Final = 215
"""Pixels between two lifelines."""

LEFT, TOP, RIGHT, BOTTOM = 130, 70, 130, 30
"""Pixels around the lifelines."""

ROW_HEIGHT: Final = 17.0
"""Pixels below something that has a text beside it."""

SILENCE_LIMIT: Final = 48.0
"""Pixels at most between two things, however long the time."""

AFTER_TIME: Final = 0.05
"""Seconds shown after the last change of a path, unless the caller says until when."""

_INK, _FAINT, _RED, _BLUE, _TEAL = "#1c2330", "#5b6474", "#c2282d", "#2f5fb3", "#1d6f66"
_HOPS: Final = ("DatagramsSent", "PacketTranslated", "PacketFiltered", "DatagramsReceived")


@dataclass(slots=True)
class _Point:
    """Something with a place in the picture: on a lifeline, at a time."""

    time: float
    lifeline: str
    order: int
    text: str = ""
    mark: str = ""  # "cross", "stub" or "box"
    y: float = 0.0


@dataclass(slots=True)
class _Flight:
    """A datagram, or what a DERP server carries, and where it was."""

    points: list[_Point]
    is_carried: bool


def draw_sequence(
    lines: Iterable[str],
    *,
    begin: float | None = None,
    end: float | None = None,
    payload: bool = False,
) -> str:
    """Return a picture of the lines of a :class:`~iroh_proto.testing.timeline.Timeline`.

    :param begin: seconds; from the first message between nodes on unless given.
    :param end: seconds; until shortly after the last change of a path unless given.
    :param payload: whether to show payload datagrams, too.
    :raises DecodeError: if it is no time line.
    """
    names, entries = _parse(lines)
    begin, end = _window(entries, begin, end)
    shown = [(n, entry) for n, entry in enumerate(entries) if begin <= _time(entry) <= end]
    flights = [*_udp_flights(shown, payload), *_carried_flights(shown)]
    boxes = list(_boxes(shown))
    bottom = _lay_out([*(point for flight in flights for point in flight.points), *boxes])
    x = {name: float(LEFT + LIFELINE_DISTANCE * index) for index, name in enumerate(names)}
    width = LEFT + LIFELINE_DISTANCE * max(0, len(names) - 1) + RIGHT
    parts = [*_lifelines(x, bottom), *_time_marks(flights, boxes, begin)]
    for flight in flights:
        parts.extend(_draw_flight(flight, x))
    for box in boxes:
        parts.extend(_draw_box(box, x[box.lifeline]))
    return _document(width, bottom + BOTTOM, parts)


def _parse(lines: Iterable[str]) -> tuple[list[str], list[Json]]:
    try:
        values = [json.loads(line) for line in lines if line.strip()]
        head, *entries = values
        if head["format"] != FORMAT:
            raise DecodeError(f"not {FORMAT}: {head['format']}")
        names = [str(name) for name in head["lifelines"]]
        for entry in entries:
            entry["time"], entry["at"] = float(entry["time"]), _host(str(entry["at"]))
            _check_fields(entry)
            if not isinstance(entry["kind"], str) or entry["at"] not in names:
                raise DecodeError(f"a line without a kind, or of an unknown place: {entry['at']}")
    except DecodeError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise DecodeError(f"not a time line: {error!r}") from None
    return names, entries


def _check_fields(entry: Json) -> None:
    """Refuse a line in which what is drawn is not of the kind that recorders write."""
    carried = entry.get("carried") or []
    are_good = (
        math.isfinite(_time(entry))
        and isinstance(entry.get("packet", 0), int)
        and isinstance(entry.get("path", {}), dict | None)
        and isinstance(carried, list)
        and all(isinstance(item["key"], str) and "label" in item for item in carried)
    )
    if not are_good:
        raise DecodeError(f"a line with a field of the wrong kind: {entry['kind']}")


def _host(place: str) -> str:
    return place.partition("/")[0]


def _time(entry: Json) -> float:
    time = entry["time"]
    assert isinstance(time, float)
    return time


def _window(entries: Sequence[Json], begin: float | None, end: float | None) -> tuple[float, float]:
    """Return from when to when to show, in seconds."""
    if begin is None:
        talk = (entry for entry in entries if entry.get("carried") or _is_about_paths(entry))
        begin = next((_time(entry) for entry in talk), 0.0)
    if end is None:
        changes = [_time(entry) for entry in entries if entry["kind"] == "PathChanged"]
        last = max(changes, default=_time(entries[-1]) if entries else 0.0)
        end = last + AFTER_TIME
    return begin, end


def _is_about_paths(entry: Json) -> bool:
    return any(_is_disco(label) for label in _labels(entry))


def _is_disco(label: str) -> bool:
    return label.startswith(("ping", "pong", "call me maybe")) or label.endswith("disco")


def _labels(entry: Json) -> list[str]:
    labels = entry.get("labels")
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _udp_flights(entries: Sequence[Numbered], payload: bool) -> Iterator[_Flight]:
    by_packet: dict[object, list[Numbered]] = {}
    for number, entry in entries:
        if entry["kind"] in _HOPS:
            by_packet.setdefault(entry.get("packet"), []).append((number, entry))
    for hops in by_packet.values():
        first, last = hops[0][1], hops[-1][1]
        labels = [label for label in _labels(first) if payload or not label.startswith("payload")]
        if first["kind"] != "DatagramsSent" or not labels:
            continue
        points = [_udp_point(number, entry) for number, entry in hops]
        points[0].text = f"{', '.join(labels)} → {first.get('destination')}"
        if last["kind"] not in ("PacketFiltered", "DatagramsReceived"):
            points[-1].mark = "stub"
        yield _Flight(points, is_carried=False)


def _udp_point(number: int, entry: Json) -> _Point:
    point = _Point(_time(entry), str(entry["at"]), number)
    if entry["kind"] == "PacketFiltered":
        point.mark, point.text = "cross", f"not let in: {entry.get('source')}"
    elif entry["kind"] == "PacketTranslated" and entry.get("source") != entry.get("new_source"):
        point.text = f"as {entry.get('new_source')}"
    return point


def _carried_flights(entries: Sequence[Numbered]) -> Iterator[_Flight]:
    by_key: dict[object, list[_Point]] = {}
    for number, entry in entries:
        carried = entry.get("carried")
        for item in carried if isinstance(carried, list) else []:
            points = by_key.setdefault(item["key"], [])
            if not points or points[-1].lifeline != entry["at"]:
                text = "" if points else f"{item['label']} by DERP"
                points.append(_Point(_time(entry), str(entry["at"]), number, text))
    for points in by_key.values():
        yield _Flight(points, is_carried=True)


def _boxes(entries: Sequence[Numbered]) -> Iterator[_Point]:
    for number, entry in entries:
        path = entry.get("path")
        if entry["kind"] == "PathChanged" and isinstance(path, dict):
            addr = "" if path.get("kind") == "derp" else f" {path.get('addr')}"
            text = f"{path.get('kind')}{addr}"
            yield _Point(_time(entry), str(entry["at"]), number, text, "box")


def _lay_out(points: list[_Point]) -> float:
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


def _time_marks(flights: Sequence[_Flight], boxes: Sequence[_Point], begin: float) -> Iterator[str]:
    """Say beside what nodes do how many milliseconds it is after the beginning."""
    points = [*(flight.points[0] for flight in flights), *boxes]
    last = -1.0
    for point in sorted(points, key=lambda point: point.y):
        if point.time > last:
            last = point.time
            yield _text(8, point.y + 4, f"{1000 * (point.time - begin):.0f} ms", fill=_FAINT)


def _draw_flight(flight: _Flight, x: dict[str, float]) -> Iterator[str]:
    points = flight.points
    colour = _BLUE if flight.is_carried else _INK
    dash = "6 4" if flight.is_carried else ""
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
        if point.mark == "cross":
            for sign in (1, -1):
                yield _line(
                    place - 5, point.y - 5 * sign, place + 5, point.y + 5 * sign, _RED, width=2
                )
        if point.text:
            fill = _RED if point.mark == "cross" else colour if index == 0 else _FAINT
            anchor = "start" if side > 0 else "end"
            yield _text(place + 8 * side, point.y - 4, point.text, anchor=anchor, fill=fill)


def _direction(points: Sequence[_Point], x: dict[str, float]) -> int:
    """Return 1 for a flight to the right, or -1."""
    if len(points) > 1:
        return 1 if x[points[-1].lifeline] >= x[points[0].lifeline] else -1
    return 1 if x[points[0].lifeline] <= max(x.values()) / 2 else -1


def _draw_box(box: _Point, place: float) -> Iterator[str]:
    kind = box.text.partition(" ")[0]
    fill = {"direct": "#a9dfc0", "mixed": "#f6e3b5"}.get(kind, "#dbe5f8")
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
