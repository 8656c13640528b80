"""A connection of address discovery as both of its ends need it: guarded, and with one deadline."""

from __future__ import annotations

from math import inf, nextafter

from iroh_anyio.quic.aioquic_private import ObservingConnection
from iroh_proto.address import UdpAddress
from iroh_proto.machine import Transmit
from iroh_proto.paths.payload import segment_size_of

TIMER_GRANULARITY = 0.001
"""Seconds. A deadline is never nearer than this: what hosts sleep on is no finer."""


class QadLink:
    """One connection. Whatever a peer sends, nothing is raised here.

    Should aioquic raise, the connection is given up and ``has_failed`` says so.
    """

    __slots__ = ("_timer", "has_failed", "quic")

    def __init__(self, quic: ObservingConnection) -> None:
        self.quic = quic
        self.has_failed = False
        self._timer: float | None = None

    def receive(self, datagram: bytes, addr: UdpAddress, now: float) -> None:
        """Take a datagram that is addressed to this connection. A flush is owed."""
        try:
            self.quic.receive_datagram(datagram, addr, now)
        except Exception:  # noqa: BLE001  # whatever it was, it is this peer's trouble
            self._fail()

    def handle_timer(self, now: float) -> None:
        """Let deadlines expire. A flush is owed."""
        timer = self.quic.get_timer()
        if timer is None or timer > now:
            return
        try:
            self.quic.handle_timer(now)
        except Exception:  # noqa: BLE001  # see receive
            self._fail()

    def close(self, code: int = 0, reason: str = "") -> None:
        """Close the connection with an application error code. A flush is owed."""
        self.quic.close(error_code=code, reason_phrase=reason)

    def flush(self, now: float) -> list[Transmit]:
        """Return what is to be sent, by destination, and bring the deadline up to date."""
        by_address: dict[UdpAddress, list[bytes]] = {}
        try:
            for datagram, addr in self.quic.datagrams_to_send(now):
                by_address.setdefault(addr, []).append(datagram)
            self._timer = self.quic.get_timer()
        except Exception:  # noqa: BLE001  # see receive
            self._fail()
            self._timer = None
        if self._timer is not None and self._timer < now + TIMER_GRANULARITY:
            self._timer = max(now + TIMER_GRANULARITY, nextafter(now, inf))
        return [Transmit(addr, sent, segment_size_of(sent)) for addr, sent in by_address.items()]

    def deadline(self, other: float) -> float | None:
        """Return the earlier of the connection's deadline and another one, if there is any."""
        deadline = other if self._timer is None else min(self._timer, other)
        return None if deadline == inf else deadline

    def _fail(self) -> None:
        self.has_failed = True
        self.quic.give_up()
