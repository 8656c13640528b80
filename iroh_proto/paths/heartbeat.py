"""When to look after the peers in use: in a fixed rhythm, and not at all while there are none."""

from __future__ import annotations

import math


class Heartbeat:
    """A rhythm that can rest.

    A node without company would wake 720 times an hour for nothing.

    :param interval: seconds between two beats.
    """

    __slots__ = ("_interval", "_is_resting", "_next")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next: float | None = None
        self._is_resting = True

    @property
    def deadline(self) -> float | None:
        """When the next beat is, ``None`` while it rests."""
        return None if self._is_resting else self._next

    def start(self, now: float) -> None:
        """Set the rhythm, and rest until :meth:`go_on`."""
        self._next = now + self._interval

    def stop(self) -> None:
        """Beat no more."""
        self._next, self._is_resting = None, True

    def go_on(self, now: float) -> None:
        """Beat again after a rest, in the rhythm of before."""
        if not self._is_resting or self._next is None:
            return
        self._is_resting = False
        if self._next <= now:
            missed = math.floor((now - self._next) / self._interval) + 1
            self._next += missed * self._interval

    def rest(self) -> None:
        """Beat no more until :meth:`go_on`."""
        self._is_resting = True

    def expire(self, now: float) -> bool:
        """Say whether a beat is due, and if so set the next one."""
        if self._is_resting or self._next is None or self._next > now:
            return False
        self._next = now + self._interval
        return True
