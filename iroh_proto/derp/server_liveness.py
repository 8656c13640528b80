"""How a DERP server keeps a client's connection alive, and notices that it is dead.

By dialect: on v2 and Tailscale's it sends a KeepAlive at fixed intervals and expects nothing; on v3
it pings after some silence, which every frame of the client ends, and wants the pong soon
(:mod:`iroh_proto.derp.pong_wait`).

Source: iroh v0.12.0 ``iroh-net/src/derp/client_conn.rs``, v0.35.0
``iroh-relay/src/{server/client,ping_tracker}.rs``.
"""

from __future__ import annotations

import math
import random

from iroh_proto.derp.dialects import Dialect
from iroh_proto.derp.frames import PING_SIZE, KeepAlive, Ping
from iroh_proto.derp.pong_wait import PongWait

PING_JITTER = (1.0, 5.0)
"""Seconds at random on top of the interval of pings, so that not all clients are due at once."""


class ServerLiveness:
    """The deadlines of one client, from the moment it was admitted.

    :ivar pong: until when a pong may come.
    """

    __slots__ = (
        "_deadline",
        "_interval",
        "_ping_data",
        "_pings",
        "_pong_waits",
        "_rng",
        "pong",
    )

    def __init__(self, dialect: Dialect, *, rng: random.Random, now: float) -> None:
        self._rng = rng
        self._pings = dialect.ping_interval is not None
        self._interval = math.inf
        if dialect.keep_alive_interval is not None:
            jitter = dialect.keep_alive_jitter
            self._interval = dialect.keep_alive_interval
            self._interval += rng.uniform(0.0, jitter) if jitter else 0.0
        else:
            assert dialect.ping_interval is not None, "a dialect has one or the other"
            self._interval = dialect.ping_interval + rng.uniform(*PING_JITTER)
        self._ping_data = b""
        self._pong_waits = False
        self._deadline = now + self._interval
        self.pong = PongWait(adapts=dialect.pong_timeout_adapts)

    def due(self, heard_at: float) -> float:
        """Return when :meth:`next_frame` has something to say, in seconds.

        :param heard_at: when the client sent a frame of any kind, at last.
        """
        return max(self._deadline, heard_at + self._interval) if self._pings else self._deadline

    def finds_dead(self, now: float, heard_at: float) -> bool:
        """Say whether the client is dead: the pong is overdue, and nothing else came meanwhile.

        Whoever sends is alive. The pong waits behind what else is on its way, which to close the
        connection, as upstream does, would make worse.

        :param heard_at: as in :meth:`due`.
        """
        return self.pong.expire(now) and heard_at <= self.pong.since

    def note_pong(self, data: bytes, *, now: float) -> bool:
        """Take a pong; say whether it was awaited."""
        if data != self._ping_data:
            return False
        self._ping_data = b""  # the same pong again would tell of another round trip
        self._pong_waits = False
        self.pong.finish(now)
        return True

    def pause(self) -> None:
        """Take the news that the client is left unread, so that no pong can arrive."""
        self._pong_waits = self.pong.is_on
        self.pong.stop()

    def resume(self, now: float) -> None:
        """Take the news that the client is read again."""
        if self._pings:
            self._deadline = now + self._interval
        if self._pong_waits:
            self._pong_waits = False
            self.pong.renew(now)

    def next_frame(self, now: float, *, may_ping: bool) -> KeepAlive | Ping | None:
        """Return what to send now that the deadline is over.

        :param may_ping: whether nothing else waits to be written and the client is read. Behind
            other bytes a ping would measure how slow the reader is, so it is left for the next
            time. So it is while the pong to another one is awaited.
        """
        self._deadline = now + self._interval
        if not self._pings:
            return KeepAlive()
        if not may_ping or self.pong.is_on:
            return None
        self._ping_data = self._rng.randbytes(PING_SIZE)
        self.pong.begin(now)
        return Ping(self._ping_data)
