"""What a connection does when nothing happens, and when it is over: keep-alive and closing."""

from __future__ import annotations

from collections.abc import Sequence

from iroh_proto.timers import earliest

KEEP_ALIVES_PER_IDLE = 3
"""Keep-alives that fit the idle time-out at least, so that one or two may get lost."""


class KeepAlive:
    """When to send a PING because the peer has not been heard for long.

    ``deadline`` is ``None`` until :meth:`begin`, and for good if ``interval`` is.
    """

    __slots__ = ("_interval", "deadline")

    def __init__(self, interval: float | None) -> None:
        self._interval = interval
        self.deadline: float | None = None

    def begin(self, now: float, *idle_timeouts: float | None) -> None:
        """Begin, with a shorter interval where the idle time-out of either side asks for it."""
        idle = earliest(*idle_timeouts)
        if self._interval is None:
            return
        if idle is not None:
            self._interval = min(self._interval, idle / KEEP_ALIVES_PER_IDLE)
        self.deadline = now + self._interval

    def note_heard(self, now: float) -> None:
        """Put the next PING off."""
        if self.deadline is not None and self._interval is not None:
            self.deadline = now + self._interval

    def expire(self, now: float) -> bool:
        """Say whether it is time for a PING, and if so set the next deadline."""
        if self.deadline is None or self.deadline > now:
            return False
        self.note_heard(now)
        return True


class Closing:
    """The CONNECTION_CLOSE of a connection that is over, and when to repeat it.

    A peer that goes on sending has not got it. It is repeated after 1, 2, 4, 8... datagrams, so
    that two ends cannot keep each other busy (RFC 9000, section 10.2.1).
    """

    __slots__ = ("_heard", "_is_due", "_packets")

    def __init__(self) -> None:
        self._packets: list[bytes] = []
        self._heard = 0
        self._is_due = False

    def keep(self, datagrams: Sequence[bytes]) -> None:
        """Keep what was sent to close."""
        if datagrams:
            self._packets = list(datagrams)

    def note_heard(self, count: int) -> None:
        """Note datagrams that arrived since."""
        before, self._heard = self._heard, self._heard + count
        if before.bit_length() != self._heard.bit_length():
            self._is_due = bool(self._packets)

    def take(self) -> list[bytes]:
        """Return what is to be repeated now."""
        if not self._is_due:
            return []
        self._is_due = False
        return self._packets
