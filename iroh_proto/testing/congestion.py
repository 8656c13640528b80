"""How fast TCP goes: slow start and congestion avoidance (RFC 5681), counted in bytes."""

from __future__ import annotations

SEGMENT_SIZE = 1_400
"""Bytes of data in a segment, somewhat less than an Ethernet holds: tunnels take their part."""

INITIAL_WINDOW = 10 * SEGMENT_SIZE
"""Bytes (RFC 6928)."""

SMALLEST_WINDOW = 2 * SEGMENT_SIZE
"""Bytes that are left after any loss (RFC 5681, section 3.1)."""

RECOVERY_TIME = 0.2
"""Seconds in which several losses count as one, as those of one round trip do."""


class CongestionWindow:
    """What one end of a connection may have on the wire."""

    __slots__ = ("_in_flight", "_recovers_until", "_threshold", "size")

    def __init__(self) -> None:
        self.size = float(INITIAL_WINDOW)
        self._in_flight = 0
        self._threshold = float("inf")
        self._recovers_until = float("-inf")

    @property
    def has_room(self) -> bool:
        """Whether another segment may be sent."""
        return self._in_flight < self.size

    def note_sent(self, size: int) -> None:
        """Take that bytes are on the wire."""
        self._in_flight += size

    def note_acknowledged(self, size: int) -> None:
        """Take that bytes arrived: twice as fast after each round trip, later a little faster."""
        self._in_flight -= size
        if self.size < self._threshold:
            self.size += size
        else:
            self.size += SEGMENT_SIZE * size / self.size

    def note_lost(self, now: float) -> None:
        """Take that a segment got lost, and will be sent again: half as fast from now on."""
        if now < self._recovers_until:
            return
        self._recovers_until = now + RECOVERY_TIME
        self._threshold = self.size = max(self.size / 2, float(SMALLEST_WINDOW))
