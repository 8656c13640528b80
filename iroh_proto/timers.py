"""Deadlines by name, and the one reading of time that a machine trusts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

from iroh_proto.errors import LocalProtocolError

KeyT = TypeVar("KeyT", bound=Hashable)


class LatestTime:
    """The latest ``now`` a machine was given, in seconds.

    Time never runs backwards inside a machine: an earlier reading counts as the latest one.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = -math.inf

    def advance(self, now: float) -> float:
        """Return the later of ``now`` and the last reading, and remember it.

        :raises LocalProtocolError: if ``now`` is not a finite number.
        """
        if now > self.value and now != math.inf:
            self.value = now
            return now
        if not math.isfinite(now):
            raise LocalProtocolError(f"now must be finite seconds, not {now!r}")
        return self.value


class TimerTable(Generic[KeyT]):
    """Deadlines in seconds, one per key, with the earliest at hand.

    A heap with lazy removal: setting, cancelling and expiring cost O(log n), and looking costs
    O(1) and changes nothing.
    """

    def __init__(self) -> None:
        self._deadlines: dict[KeyT, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._serial = 0

    def __contains__(self, key: KeyT) -> bool:
        return key in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, key: KeyT, deadline: float) -> None:
        """Set or move the deadline of ``key``."""
        self._serial += 1
        self._deadlines[key] = (deadline, self._serial)
        heapq.heappush(self._heap, (deadline, self._serial, key))
        self._drop_stale()

    def cancel(self, key: KeyT) -> None:
        """Forget the deadline of ``key``, if it has one."""
        if self._deadlines.pop(key, None) is not None:
            self._drop_stale()

    def clear(self) -> None:
        """Forget every deadline."""
        self._deadlines.clear()
        self._heap.clear()

    def deadline(self, key: KeyT) -> float | None:
        """Return the deadline of ``key``, or ``None``."""
        entry = self._deadlines.get(key)
        return None if entry is None else entry[0]

    def earliest(self) -> float | None:
        """Return the earliest deadline, or ``None``."""
        return self._heap[0][0] if self._heap else None

    def pop_expired(self, now: float) -> list[KeyT]:
        """Remove and return the keys whose deadline is at or before ``now``, earliest first."""
        expired: list[KeyT] = []
        while self._heap and self._heap[0][0] <= now:
            key = heapq.heappop(self._heap)[2]
            del self._deadlines[key]
            expired.append(key)
            self._drop_stale()
        return expired

    def _drop_stale(self) -> None:
        heap, deadlines = self._heap, self._deadlines
        while heap and deadlines.get(heap[0][2], (0.0, 0))[1] != heap[0][1]:
            heapq.heappop(heap)
        if len(heap) > 64 and len(heap) > 4 * len(deadlines):
            self._heap = [(when, serial, key) for key, (when, serial) in deadlines.items()]
            heapq.heapify(self._heap)


def earliest(*deadlines: float | None) -> float | None:
    """Return the earliest of some deadlines, ``None`` meaning never."""
    first: float | None = None
    for deadline in deadlines:  # three times as fast as min() over a generator, and asked often
        if deadline is not None and (first is None or deadline < first):
            first = deadline
    return first
