"""What the signs of a sequence diagram mean: of those alone that are in the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from iroh_proto.testing.scene import Scene
from iroh_proto.testing.svg import (
    BLUE,
    DASHED,
    DOTTED,
    FAINT,
    INK,
    TEAL,
    arrow,
    badge,
    cross,
    line,
    text,
)

LEGEND_ROW: Final = 20.0
"""Pixels of one sign and its meaning."""

_LEFT, _MIDDLE, _RIGHT, _WORDS = 14.0, 46.0, 78.0, 92.0  # where signs are, and what they mean

_BADGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "direct": "payload goes to that address from here on: an answer from there proved it",
        "tries": "payload goes to that address, from which nothing was answered yet",
        "mixed": "payload goes to that address and by DERP, until an answer proves the address",
        "derp": "payload goes by way of a DERP server",
        "none": "no way for payload is known",
    }
)

_Sign = tuple[Callable[[float], str], str]


def draw_legend(scene: Scene, top: float, width: float) -> list[str]:
    """Return the legend as a group that begins at a height, in pixels."""
    parts = ['<g class="legend">', line(_LEFT, top, width - _LEFT, top, FAINT, width=0.5)]
    for row, (sign, meaning) in enumerate(_signs(scene), start=1):
        y = top + row * LEGEND_ROW
        parts += [sign(y), text(_WORDS, y, meaning, fill=FAINT)]
    return [*parts, "</g>"]


def legend_height(scene: Scene) -> float:
    """Return how high a legend is, in pixels."""
    return (len(list(_signs(scene))) + 1) * LEGEND_ROW


def _signs(scene: Scene) -> Iterator[_Sign]:
    """Yield what draws a sign at a height, and what it means."""
    yield from _arrows(scene)
    yield from _marks(scene)
    shown = {box.text.partition(" ")[0] for box in scene.boxes if box.mark == "box"}
    for word, meaning in _BADGES.items():
        if word in shown:
            yield _badge(word), meaning
    yield from _words(scene)


def _arrows(scene: Scene) -> Iterator[_Sign]:
    flights = scene.flights
    certain = [flight for flight in flights if flight.is_certain and not flight.is_carried]
    if any(not flight.is_pong for flight in certain):
        yield _arrow(INK), "a datagram by UDP"
    if any(flight.is_pong for flight in certain):
        yield _arrow(TEAL), "a pong: the answer to a ping"
    if any(flight.is_carried for flight in flights):
        yield _arrow(BLUE, DASHED), "by way of a DERP server"
    if any(not flight.is_certain for flight in flights):
        yield _arrow(INK, DOTTED), "nothing tells whether it arrived"


def _marks(scene: Scene) -> Iterator[_Sign]:
    marks = {point.mark for point in scene.points}
    if "stub" in marks:
        yield _stub, "went to an address at which nobody is, as far as is known"
    if "cross" in marks:
        yield _cross, "was stopped here, or did not arrive"


def _words(scene: Scene) -> Iterator[_Sign]:
    texts = [point.text for point in scene.points]
    pings = sorted(words[:9] for words in texts if words.startswith("ping "))
    if pings:
        digits = pings[0].partition(" ")[2]
        yield _word(digits), "these digits tell which ping a pong answers"
    if any(words.startswith("from ") for words in texts):
        yield _word("from …"), "the address that it came from, as the receiver saw it"
    if any(words.startswith("as ") for words in texts):
        yield _word("as …"), "the address that a NAT sent it on from"
    yield _word("0 ms"), f"{scene.begin:.6g} s in the time line, as --from and --to count"


def _arrow(colour: str, dash: str = "") -> Callable[[float], str]:
    return lambda y: arrow(_LEFT, y - 4, _RIGHT, y - 4, colour, dash=dash)


def _stub(y: float) -> str:
    return arrow(_LEFT, y - 4, _MIDDLE, y - 4, INK, dash=DOTTED)


def _cross(y: float) -> str:
    return "".join(cross(_MIDDLE, y - 4))


def _badge(word: str) -> Callable[[float], str]:
    return lambda y: badge(_MIDDLE, y, word)


def _word(words: str) -> Callable[[float], str]:
    return lambda y: text(_MIDDLE, y, words, anchor="middle", fill=INK)
