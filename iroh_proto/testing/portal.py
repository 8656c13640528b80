"""A captive portal: the web page of a café that stands for everything until it is agreed to.

Whatever a host asks by HTTP, the answer is a redirection to the portal's own page.
"""

from __future__ import annotations

from collections import deque

from iroh_proto.machine import TcpCloseRequested

REQUEST_LIMIT = 16 << 10
"""Bytes of a request's head; a longer one is answered when so many are there."""

_PAGE = b"<html><title>Welcome</title>Please agree to our terms.</html>"


class CaptivePortal:
    """The HTTP server of a captive portal. A TCP user that accepts connections."""

    def __init__(self, *, page_url: str = "http://portal.example/") -> None:
        self._answer = (
            b"HTTP/1.1 302 Found\r\n"
            b"Location: " + page_url.encode("ascii") + b"\r\n"
            b"Content-Type: text/html\r\n"
            b"Content-Length: %d\r\n"
            b"Connection: close\r\n\r\n" % len(_PAGE)
        ) + _PAGE
        self._heads: dict[int, bytes] = {}
        self._unsent: dict[int, bytes] = {}
        self._events: deque[TcpCloseRequested] = deque()
        self.answered = 0
        """Requests answered so far."""

    def accept_tcp(self, tcp_id: int, *, now: float) -> None:
        """Take a connection."""
        self._heads[tcp_id] = b""

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes of a request, and answer it when its head is complete."""
        if tcp_id not in self._heads:
            return
        head = self._heads[tcp_id] = self._heads[tcp_id] + data
        if b"\r\n\r\n" not in head and len(head) < REQUEST_LIMIT:
            return
        del self._heads[tcp_id]
        self.answered += 1
        self._unsent[tcp_id] = self._answer
        self._events.append(TcpCloseRequested(tcp_id=tcp_id))

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection."""
        self._heads.pop(tcp_id, None)

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        return list(self._unsent)

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
        return self._unsent.pop(tcp_id, b"")

    def next_event(self) -> TcpCloseRequested | None:
        """Return the oldest event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> float | None:
        """Return ``None``: it waits for nothing."""
        return None

    def handle_timer(self, *, now: float) -> None:
        """Do nothing."""
