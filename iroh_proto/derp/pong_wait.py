"""How long either side of a DERP connection waits for a pong.

Source: iroh v1.0.3 ``iroh-relay/src/ping_tracker.rs``. That a host which looks late gets more time
is this project's own.
"""

from __future__ import annotations

import math

PONG_TIMEOUT = 5.0
"""Seconds that a pong may take as long as no round trip is known, and at most ever after."""

SHORTEST_PONG_TIMEOUT = 0.5
"""Seconds that it may take at least, however short the round trip is."""

ROUND_TRIPS_PER_PONG = 3.0
"""How many times the last round trip it may take between these, which is room for jitter."""

LATE_AFTER = 0.1
"""Seconds past a deadline at which a host that only now looks at it was kept from its work. On
time, a timer fires within some milliseconds."""


class PongWait:
    """Until when the pong to the latest ping may come.

    A host that was kept from its work, or asleep, may let time expire before it reads the pong that
    has been there for long. So a deadline that it looks at late says nothing about the peer, and is
    moved: the peer gets the time-out anew. That is done once per ping, or a host that is always
    late would never find out.

    :param adapts: whether the time-out follows the last round trip, instead of staying the same.
    :ivar since: since when it waits: the ping, or when the peer got the time-out anew.
    :ivar timeout: seconds that the next pong may take.
    :ivar deadline: when the pong is overdue; infinite while none is awaited.
    """

    __slots__ = ("_adapts", "_sent_at", "_was_moved", "deadline", "since", "timeout")

    def __init__(self, *, adapts: bool) -> None:
        self._adapts = adapts
        self._sent_at = -math.inf
        self._was_moved = False
        self.since = -math.inf
        self.timeout = PONG_TIMEOUT
        self.deadline = math.inf

    @property
    def is_on(self) -> bool:
        """Whether a pong is awaited."""
        return self.deadline != math.inf

    def begin(self, now: float) -> None:
        """Take that a ping was sent; the one before no longer counts."""
        self._sent_at = now
        self._was_moved = False
        self.renew(now)

    def renew(self, now: float) -> None:
        """Give the peer the whole time-out from now on."""
        self.since = now
        self.deadline = now + self.timeout

    def stop(self) -> None:
        """Wait no longer."""
        self.deadline = math.inf

    def finish(self, now: float) -> float:
        """Take that the pong came, and return the seconds since its ping.

        What kept this side from reading is part of them. That makes the next wait longer, never
        too short.
        """
        self.stop()
        round_trip = now - self._sent_at
        if self._adapts:
            wanted = ROUND_TRIPS_PER_PONG * round_trip
            self.timeout = min(max(wanted, SHORTEST_PONG_TIMEOUT), PONG_TIMEOUT)
        return round_trip

    def expire(self, now: float) -> bool:
        """Say whether the pong is overdue, which ends the wait; moves a deadline looked at late."""
        if self.deadline > now:
            return False
        if now - self.deadline > LATE_AFTER and not self._was_moved:
            self._was_moved = True
            self.renew(now)
            return False
        self.stop()
        return True
