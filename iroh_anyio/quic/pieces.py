"""Which bytes of a stream have arrived beyond the first gap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class PieceSet:
    """Disjoint ranges of offsets in order, none touching the next.

    Does for a stream's receiver what aioquic's ``RangeSet`` does, but finds its place by
    bisection: a list searched from the front lets a peer that sends every other byte make each
    packet cost seconds.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Add the offsets from ``start`` up to, not including, ``stop``."""
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def shift(self) -> range:
        """Remove and return the first range."""
        return range(self._starts.pop(0), self._stops.pop(0))

    def __getitem__(self, index: int) -> range:
        return range(self._starts[index], self._stops[index])

    def __len__(self) -> int:
        return len(self._starts)
