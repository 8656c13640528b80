"""What a peer may still send, and how fast this side does.

Layouts and meanings are those of ``aioquic/quic/connection.py`` and ``recovery.py``.
"""

from __future__ import annotations

from aioquic.quic.connection import Limit
from aioquic.quic.recovery import QuicPacketPacer

PACER_BURST = 0.001
"""Seconds of the pacing rate that may leave at once. aioquic allows 16 datagrams, which timers
that wake once a millisecond turn into a ceiling of some 20 MB/s."""


BURST_PACKETS_LIMIT = 256
"""Packets that may leave at once all the same: what send buffers of the usual size take."""


class WidePacer(QuicPacketPacer):
    """aioquic's pacer with a bucket that holds PACER_BURST, if that is more."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Set the rate and the size of the bucket."""
        super().update_rate(congestion_window, smoothed_rtt)
        assert self.packet_time is not None
        wide = min(PACER_BURST, BURST_PACKETS_LIMIT * self.packet_time)
        self.bucket_max = max(self.bucket_max, wide)


class WindowLimit(Limit):
    """A limit on the peer (MAX_DATA, MAX_STREAMS) that rises only as ``granted`` does.

    The peer is told in steps of ``step``, so that few frames carry many small advances.
    """

    def __init__(self, limit: Limit, *, value: int, step: int) -> None:
        super().__init__(limit.frame_type, limit.name, value)
        self.granted = value
        self.step = step

    @property
    def is_due(self) -> bool:
        """Whether the peer should be told."""
        return self.granted - self.sent >= self.step

    def grant(self, amount: int) -> None:
        """Allow the peer so much more."""
        self.granted += amount
        self.value = self.granted


class StreamLimit(WindowLimit):
    """A limit on streams: one more is granted for each that both sides are done with.

    aioquic adds to ``value`` when it forgets a stream; :meth:`release` tells that the
    application is done with one. A stream has to be forgotten by both, or a peer that never
    acknowledges could have any number of them kept.
    """

    def __init__(self, limit: Limit, *, value: int) -> None:
        super().__init__(limit, value=value, step=max(1, value // 4))
        self._initial = value
        self._forgotten = 0
        self._released = 0

    def release(self) -> None:
        """Note that the application is done with one stream."""
        self._released += 1
        self.settle()

    def settle(self) -> None:
        """Grant what both sides are done with."""
        self._forgotten += self.value - self.granted
        self.granted = self.value = self._initial + min(self._forgotten, self._released)
