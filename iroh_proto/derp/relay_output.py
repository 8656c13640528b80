"""Which connections of a DERP server have bytes to write, and which of them do not get rid of any.

Who stops reading is found out here: what waits for a connection is fetched only while it is
writable. All connections have the same time for that, so the order in which they began to wait is
the order of their deadlines.

Source: iroh v0.35.0 ``iroh-relay/src/server/client.rs`` (``write_frame``).
"""

from __future__ import annotations

from collections.abc import Iterator

from iroh_proto.derp.server import DerpServerConnection

WRITE_TIMEOUT = 2.0
"""Seconds after which some of what waits for a connection must have been fetched (upstream's for
writing one frame). Else its reader has stopped reading, and it is closed."""

PULL_SIZE = 64 * 1024
"""Bytes to hand out for one connection at a time. With more, bytes would wait in the host, where
no limit sees them; with less, there would be more writes."""


class RelayOutput:
    """The connections that have bytes to write.

    :ivar unsent: when some of the bytes that wait for a connection must have been fetched, in
        seconds, by its number; the earliest first. For the way of each packet to add to.
    """

    __slots__ = ("_closing", "_fetched", "unsent")

    def __init__(self) -> None:
        self.unsent: dict[int, float] = {}
        # Those of them of which something was fetched since then.
        self._fetched: set[int] = set()
        # Connections that are over, with bytes that the host has not fetched yet.
        self._closing: dict[int, DerpServerConnection] = {}

    def is_closing(self, tcp_id: int) -> bool:
        """Say whether a connection is over, and has bytes left to write."""
        return tcp_id in self._closing

    def note(self, tcp_id: int, connection: DerpServerConnection, now: float) -> None:
        """Take that a connection may have bytes to write."""
        if tcp_id not in self.unsent and connection.has_data_to_send:
            self.unsent[tcp_id] = now + WRITE_TIMEOUT

    def note_end(self, tcp_id: int, connection: DerpServerConnection, now: float) -> None:
        """Take that a connection is over, and keep it while it has bytes to write."""
        if connection.has_data_to_send:
            self._closing[tcp_id] = connection
            self.note(tcp_id, connection, now)
        else:
            self.forget(tcp_id)  # what it had may have been dropped

    def pull(self, tcp_id: int, connection: DerpServerConnection | None) -> bytes:
        """Return bytes of one of :attr:`unsent`, about :data:`PULL_SIZE` of them.

        :param connection: what it is unless it is over.
        """
        queue = (connection or self._closing[tcp_id]).queue
        data = queue.pull(PULL_SIZE)
        if queue.entries:
            self._fetched.add(tcp_id)
        elif self._fetched or self._closing:
            self.forget(tcp_id)
        else:
            del self.unsent[tcp_id]
        return data

    def forget(self, tcp_id: int) -> None:
        """Let go of a connection, and of what waits for it if it is over."""
        self.unsent.pop(tcp_id, None)
        self._fetched.discard(tcp_id)
        self._closing.pop(tcp_id, None)

    def deadline(self) -> float | None:
        """Return the earliest deadline, or ``None``."""
        return next(iter(self.unsent.values()), None)

    def pop_stalled(self, now: float) -> Iterator[int]:
        """Yield the connections of whose bytes none were fetched in time. Forget each then."""
        while (deadline := self.deadline()) is not None and deadline <= now:
            tcp_id = next(iter(self.unsent))
            if tcp_id in self._fetched:
                self._fetched.remove(tcp_id)
                del self.unsent[tcp_id]
                self.unsent[tcp_id] = now + WRITE_TIMEOUT
            else:
                yield tcp_id
                self.forget(tcp_id)
