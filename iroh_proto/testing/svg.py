"""The shapes of a sequence diagram, as SVG text that every program draws alike.

No markers and no ``paint-order``, which some leave out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Final

INK, FAINT, RED, BLUE, TEAL = "#1c2330", "#5b6474", "#c2282d", "#2f5fb3", "#1d6f66"

DASHED, DOTTED = "6 4", "1 3"

BADGE_COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {"direct": "#a9dfc0", "mixed": "#f6e3b5", "tries": "#dcdfe4", "derp": "#dbe5f8"}
)
"""By the way that payload goes, which is the first word of a badge."""

TEXT_SIZE: Final = 10
"""Pixels: the height of letters beside arrows."""

_LETTER_WIDTH = 5.9  # pixels of a letter of that size, on average, in the widest usual font


def line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    colour: str,
    *,
    width: float = 1.3,
    dash: str = "",
) -> str:
    """Return a line."""
    place = f'x1="{x1:g}" y1="{y1:.1f}" x2="{x2:g}" y2="{y2:.1f}"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line {place} stroke="{colour}" stroke-width="{width:g}"{dashes}/>'


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "") -> str:
    """Return a line with a head at its second end."""
    angle = math.atan2(y2 - y1, x2 - x1)
    turns = (angle + 2.75, angle - 2.75)
    corners = [(x2 + 8 * math.cos(turn), y2 + 8 * math.sin(turn)) for turn in turns]
    shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *corners])
    return line(x1, y1, x2, y2, colour, dash=dash) + f'<polygon points="{shape}" fill="{colour}"/>'


def cross(x: float, y: float) -> Iterator[str]:
    """Yield the lines of a red cross."""
    for sign in (1, -1):
        yield line(x - 5, y - 5 * sign, x + 5, y + 5 * sign, RED, width=2)


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = TEXT_SIZE,
    weight: int = 400,
    fill: str = INK,
) -> str:
    """Return a text; what cannot be printed is a question mark."""
    place = f'x="{x:g}" y="{y:.1f}" text-anchor="{anchor}"'
    look = f'font-size="{size}" font-weight="{weight}" fill="{fill}"'
    printable = "".join(character if character.isprintable() else "?" for character in words)
    return f"<text {place} {look}>{escape(printable)}</text>"


def label(x: float, y: float, words: str, *, anchor: str = "start", fill: str = INK) -> str:
    """Return a text on a light ground, so that no line crosses it out."""
    width = _LETTER_WIDTH * len(words) + 4
    left = {"start": x - 2, "middle": x - width / 2, "end": x + 2 - width}[anchor]
    ground = (
        f'<rect x="{left:g}" y="{y - TEXT_SIZE:.1f}" width="{width:g}" height="{TEXT_SIZE + 3}"'
        ' rx="2" fill="#ffffff" fill-opacity="0.85"/>'
    )
    return ground + text(x, y, words, anchor=anchor, fill=fill)


def badge(x: float, y: float, words: str) -> str:
    """Return a text in a box with the colour of its first word."""
    fill = BADGE_COLOURS.get(words.partition(" ")[0], "#ffffff")
    width = 14 + 6.2 * len(words)
    box = (
        f'<rect x="{x - width / 2:g}" y="{y - 12:g}" width="{width:g}" height="17"'
        f' rx="8" fill="{fill}" stroke="{FAINT}" stroke-width="0.6"/>'
    )
    return box + text(x, y + 1, words, anchor="middle", weight=600)


def title(x: float, words: str) -> str:
    """Return what stands above a lifeline."""
    box = (
        f'<rect x="{x - 60:g}" y="14" width="120" height="28" rx="5"'
        f' fill="#eef1f6" stroke="{FAINT}"/>'
    )
    return box + text(x, 33, words, anchor="middle", size=13, weight=600)


def document(width: float, height: float, parts: Sequence[str]) -> str:
    """Return a whole picture."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:.0f}"'
        f' viewBox="0 0 {width:g} {height:.0f}"'
        ' font-family="system-ui, Helvetica, Arial, sans-serif">'
    )
    ground = f'<rect width="{width:g}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])
