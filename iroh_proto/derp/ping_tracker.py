"""Whether the server at the other end of a client's connection is still there.

Source: iroh v0.35.0 ``iroh-relay/src/ping_tracker.rs`` and ``iroh/src/magicsock/relay_actor.rs``;
v0.12.0 ``iroh-net/src/derp/client.rs``.
"""

from __future__ import annotations

from iroh_proto.derp.dialects import Dialect
from iroh_proto.derp.pong_wait import PongWait
from iroh_proto.timers import earliest


class _PendingPing:
    __slots__ = ("data", "is_strict", "sent_at")

    def __init__(self, data: bytes, sent_at: float, *, is_strict: bool) -> None:
        self.data = data
        self.sent_at = sent_at
        self.is_strict = is_strict


class PingTracker:
    """Says when to ping and when to give up. At most one ping is on its way.

    A strict ping wants its pong. Without it, anything received may stand in for the pong: that may
    wait behind a long queue of packets, and closing the connection would make the congestion worse.
    In a dialect that only pings on demand nothing but a strict ping has to be answered. How long a
    pong may take is up to :class:`~iroh_proto.derp.pong_wait.PongWait`.
    """

    __slots__ = ("_heard_at", "_ping", "_ping_interval", "_pong", "_read_timeout")

    def __init__(self, dialect: Dialect, *, now: float) -> None:
        self._ping_interval = dialect.ping_interval
        self._read_timeout = dialect.read_timeout
        self._heard_at = now
        self._ping: _PendingPing | None = None
        self._pong = PongWait(adapts=dialect.pong_timeout_adapts)

    def note_data(self, now: float) -> None:
        """Take that something was received."""
        self._heard_at = now

    def note_ping(self, data: bytes, *, is_strict: bool, now: float) -> None:
        """Take that a ping was sent; the one before no longer counts."""
        self._ping = _PendingPing(data, now, is_strict=is_strict)
        self._pong.begin(now)

    def note_pong(self, data: bytes, *, now: float) -> float | None:
        """Return the seconds since the ping that this pong answers, or ``None`` for none."""
        if self._ping is None or self._ping.data != data:
            return None
        self._ping = None
        return self._pong.finish(now)

    def awaits_strictly(self) -> bool:
        """Say whether a strict ping is on its way."""
        return self._ping is not None and self._ping.is_strict

    def get_timer(self) -> float | None:
        """Return when to look at :meth:`find_fault` and :meth:`should_ping`."""
        pong_deadline = self._pong.deadline if self._pong.is_on else None
        return earliest(pong_deadline, self._read_deadline(), self._ping_time())

    def find_fault(self, now: float) -> str | None:
        """Return why to give the connection up, or ``None``; forgets a ping that is overdue."""
        ping = self._ping
        if ping is not None and self._pong.expire(now):
            self._ping = None
            is_silent = self._ping_interval is not None and self._heard_at <= ping.sent_at
            if ping.is_strict or is_silent:
                return f"the server did not answer a ping within {self._pong.timeout:.3g} s"
        read_deadline = self._read_deadline()
        if read_deadline is not None and read_deadline <= now:
            return f"the server said nothing for {self._read_timeout:g} s"
        return None

    def should_ping(self, now: float) -> bool:
        """Say whether there was silence for so long that a ping is due."""
        ping_time = self._ping_time()
        return ping_time is not None and ping_time <= now

    def _read_deadline(self) -> float | None:
        return None if self._read_timeout is None else self._heard_at + self._read_timeout

    def _ping_time(self) -> float | None:
        if self._ping_interval is None or self._ping is not None:
            return None
        return self._heard_at + self._ping_interval
