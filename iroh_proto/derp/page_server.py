"""A server of HTTP pages and nothing else: the plain port beside HTTPS, and the metrics.

One request is answered on each connection, which is closed then. States of a connection::

    request -> answer -> over

It stays in each of the first two for a limited time, and when there are too many the oldest goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from iroh_proto.derp.pages import Page, refusal
from iroh_proto.derp.upgrade import HttpRequest, ServerUpgrade
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import TcpCloseRequested
from iroh_proto.timers import LatestTime

REQUEST_TIMEOUT = 10.0
"""Seconds from the start to the end of the request's head."""

ANSWER_TIMEOUT = 10.0
"""Seconds that the host has to fetch the answer, once it was given."""

CONNECTIONS_LIMIT = 256
"""Connections at once. Past it the newcomer stays and who has been here longest goes: whoever opens
so many and says nothing would shut all others out."""


@dataclass(slots=True)
class PageServerStats:
    """Counts since the start.

    :ivar connections_accepted: connections taken.
    :ivar connections_displaced: connections closed to make room for newer ones.
    :ivar requests_answered: requests that got a page.
    :ivar faults: connections whose bytes or silence were no request.
    """

    connections_accepted: int = 0
    connections_displaced: int = 0
    requests_answered: int = 0
    faults: int = 0


class PageServer:
    """Answers requests on many TCP connections.

    :param answer: returns the page for a request. It must not raise.
    """

    def __init__(self, answer: Callable[[HttpRequest], Page]) -> None:
        self._answer = answer
        self._time = LatestTime()
        self._requests: dict[int, ServerUpgrade] = {}
        self._answers: dict[int, bytes] = {}
        # In the order of time: the limit is the same for requests and for answers.
        self._deadlines: dict[int, float] = {}
        self._events: deque[TcpCloseRequested] = deque()
        self._stats = PageServerStats()
        self._is_closed = False

    @property
    def stats(self) -> PageServerStats:
        """A copy of the counts."""
        return replace(self._stats)

    def accept_tcp(self, tcp_id: int, *, now: float) -> None:
        """Take a new connection under a number that was never used before.

        :raises LocalProtocolError: if the number is in use.
        """
        now = self._time.advance(now)
        if tcp_id in self._deadlines:
            raise LocalProtocolError(f"TCP connection {tcp_id} is there already")
        if self._is_closed:
            self._events.append(TcpCloseRequested(tcp_id=tcp_id))
            return
        if len(self._deadlines) >= CONNECTIONS_LIMIT:
            self._stats.connections_displaced += 1
            self._drop(next(iter(self._deadlines)))
        self._stats.connections_accepted += 1
        self._requests[tcp_id] = ServerUpgrade()
        self._deadlines[tcp_id] = now + REQUEST_TIMEOUT

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection. Those behind a request are ignored."""
        now = self._time.advance(now)
        upgrade = self._requests.get(tcp_id)
        if upgrade is None:
            return
        request = upgrade.receive(data)
        if upgrade.error is not None:
            self._stats.faults += 1
            page = refusal("this is no HTTP request")
        elif request is not None:
            self._stats.requests_answered += 1
            page = self._answer(request)
        else:
            return
        del self._requests[tcp_id], self._deadlines[tcp_id]
        self._answers[tcp_id] = upgrade.respond(*page)
        self._deadlines[tcp_id] = now + ANSWER_TIMEOUT
        self._events.append(TcpCloseRequested(tcp_id=tcp_id))

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection, orderly or not. An answer may still be fetched."""
        self._time.advance(now)
        if tcp_id in self._requests:
            self._stats.faults += 1
            self._drop(tcp_id)

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        return list(self._answers)

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
        data = self._answers.pop(tcp_id, b"")
        if data:
            del self._deadlines[tcp_id]
        return data

    def close(self, *, now: float) -> None:
        """Close every connection without an answer, and refuse new ones."""
        self._time.advance(now)
        self._is_closed = True
        for tcp_id in list(self._requests):
            self._drop(tcp_id)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        while self._deadlines:
            tcp_id, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                return
            self._stats.faults += tcp_id in self._requests
            self._drop(tcp_id)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return next(iter(self._deadlines.values()), None)

    def next_event(self) -> TcpCloseRequested | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def _drop(self, tcp_id: int) -> None:
        del self._deadlines[tcp_id]
        self._answers.pop(tcp_id, None)
        if self._requests.pop(tcp_id, None) is not None:
            self._events.append(TcpCloseRequested(tcp_id=tcp_id))
