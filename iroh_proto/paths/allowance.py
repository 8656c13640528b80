"""How often something may be done because a peer caused it."""

from __future__ import annotations


class Allowance:
    """A token bucket: ``burst`` times at once, and once more each ``interval`` seconds."""

    __slots__ = ("_burst", "_interval", "_tokens", "_updated_at")

    def __init__(self, *, burst: int, interval: float, now: float) -> None:
        self._burst = float(burst)
        self._interval = interval
        self._tokens = self._burst
        self._updated_at = now

    def take(self, now: float) -> bool:
        """Say whether it may be done now, and count it if so."""
        earned = (now - self._updated_at) / self._interval
        self._tokens = min(self._burst, self._tokens + earned)
        self._updated_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
