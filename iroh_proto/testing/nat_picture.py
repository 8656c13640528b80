"""Draws the NAT matrix: a heat map as SVG text.

A row is the NAT that the node is behind which sends first, a column that of the other. The darker
a square, the longer it took until half of the runs were direct; grey stayed on the relay. What
theory does not expect is framed.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from iroh_proto.testing.nat_matrix import Cell
from iroh_proto.testing.svg import FAINT, INK, document, text

SQUARE: Final = (76, 44)
"""Width and height of a cell, in pixels."""

MARGIN: Final = (112, 104)
"""Pixels to the left of the cells and above them: the names of the kinds."""

LEGEND_HEIGHT: Final = 84
"""Pixels below the cells."""

WIDTH_LEAST: Final = 760
"""Pixels that the texts need, however few cells there are."""

SHADES: Final = (
    (0.5, "#d7f0e0"),
    (1.0, "#a9dfc0"),
    (2.0, "#6cc39b"),
    (5.0, "#3a9d7f"),
    (float("inf"), "#1d6f66"),
)
"""Colours of medians below so many seconds."""

RELAYED: Final = "#e4e4e8"
"""The colour of cells in which no run became direct."""

MIXED: Final = "#f6d186"
"""The colour of cells in which some runs became direct and some did not."""

WRONG: Final = "#c2282d"
"""The colour of the frame around cells that differ from theory."""


def draw_matrix(cells: Sequence[Cell]) -> str:
    """Return the picture of these cells as the text of an SVG file."""
    rows = list(dict.fromkeys(cell.left for cell in cells))
    columns = list(dict.fromkeys(cell.right for cell in cells))
    width = max(WIDTH_LEAST, MARGIN[0] + SQUARE[0] * len(columns) + 16)
    bottom = MARGIN[1] + SQUARE[1] * len(rows)
    parts = [*_titles(cells)]
    for index, name in enumerate(columns):
        x = MARGIN[0] + SQUARE[0] * (index + 0.5)
        parts.append(text(x, MARGIN[1] - 10, name, size=12, anchor="middle", weight=600))
    for index, name in enumerate(rows):
        y = MARGIN[1] + SQUARE[1] * (index + 0.5) + 4
        parts.append(text(MARGIN[0] - 12, y, name, size=12, anchor="end", weight=600))
    for cell in sorted(cells, key=lambda cell: cell.agrees, reverse=True):  # frames on top
        parts.extend(_square(cell, columns.index(cell.right), rows.index(cell.left)))
    parts.extend(_legend(bottom))
    return document(width, bottom + LEGEND_HEIGHT, parts)


def _titles(cells: Sequence[Cell]) -> list[str]:
    runs = max((len(cell.times) for cell in cells), default=0)
    agreeing = sum(cell.agrees for cell in cells)
    total = f"{runs} runs a cell, {agreeing} of {len(cells)} cells as theory predicts."
    below = "Mapping/filtering by RFC 4787: EI endpoint-independent, AD address-dependent, "
    return [
        text(16, 24, "Which pairs of NATs let a direct path through, and how soon", size=16),
        text(16, 43, f"{below}APD address-and-port-dependent.", size=11, fill=FAINT),
        text(16, 59, f"Rows dial, columns are dialled. {total}", size=11, fill=FAINT),
    ]


def _square(cell: Cell, column: int, row: int) -> list[str]:
    x, y = MARGIN[0] + SQUARE[0] * column, MARGIN[1] + SQUARE[1] * row
    median = cell.median_time
    is_mixed = 0.0 < cell.share_direct < 1.0
    fill = MIXED if is_mixed else _shade(median)
    frame = "" if cell.agrees else f' stroke="{WRONG}" stroke-width="3"'
    size = f'width="{SQUARE[0] - 3}" height="{SQUARE[1] - 3}"'
    middle = x + (SQUARE[0] - 3) / 2
    parts = [
        "<g>",
        f"<title>{escape(describe(cell))}</title>",
        f'<rect x="{x}" y="{y}" {size} rx="4" fill="{fill}"{frame}/>',
    ]
    if median is None:
        parts.append(text(middle, y + 25, "relay", anchor="middle", size=11, fill=FAINT))
    else:
        ink = "#ffffff" if fill in (SHADES[-1][1], SHADES[-2][1]) else INK
        lower = y + (18 if is_mixed else 25)
        parts.append(text(middle, lower, f"{median:.2f} s", size=12, anchor="middle", fill=ink))
        if is_mixed:
            share = f"{cell.share_direct:.1%}"
            parts.append(text(middle, y + 34, share, anchor="middle", size=11, fill=ink))
    return [*parts, "</g>"]


def describe(cell: Cell) -> str:
    """Say in a line what a cell holds."""
    expected = "direct" if cell.expects_direct else "relayed"
    median = cell.median_time
    time = "" if median is None else f", median {median:.2f} s"
    return (
        f"{cell.left} dials {cell.right}: {cell.share_direct:.1%} direct{time} (theory: {expected})"
    )


def _legend(bottom: float) -> list[str]:
    entries = [(colour, f"under {limit:g} s") for limit, colour in SHADES[:-1]]
    entries += [(SHADES[-1][1], f"{SHADES[-2][0]:g} s and more")]
    entries += [(MIXED, "some runs"), (RELAYED, "relayed")]
    parts, x = [text(16, bottom + 22, "Median time to direct, both ways:", size=12, fill=FAINT)], 16
    for colour, label in entries:
        parts.append(f'<rect x="{x}" y="{bottom + 34}" width="14" height="14" fill="{colour}"/>')
        parts.append(text(x + 19, bottom + 45, label, size=11))
        x += 108
    frame = f'fill="none" stroke="{WRONG}" stroke-width="3"'
    parts.append(f'<rect x="17" y="{bottom + 59}" width="12" height="12" {frame}/>')
    parts.append(text(35, bottom + 69, "differs from theory", size=11))
    return parts


def _shade(median: float | None) -> str:
    if median is None:
        return RELAYED
    return next(colour for limit, colour in SHADES if median < limit)
