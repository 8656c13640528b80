"""The wires of the simulated network, what travels on them, and what becomes of it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from iroh_proto.address import UdpAddress

if TYPE_CHECKING:
    from iroh_proto.testing.hosts import Host

UDP_OVERHEAD: Final = {False: 28, True: 48}
"""Bytes of the IP and the UDP header by whether it is IPv6 (RFC 791, 8200, 768)."""

DEFAULT_QUEUE_LIMIT = 256 << 10
"""Bytes that wait at a link of limited bandwidth: a quarter of a second at 8 Mbit/s, which is what
home routers have."""

HOLD_BACK_TIME = 0.05
"""Seconds that a reordered datagram is late: more than what a burst of others takes."""

RETRANSMISSION_TIME = 0.2
"""Seconds after which TCP sends lost bytes again: the least that Linux waits."""

# Above it, a simulated stream would hardly move at all.
_MOST_TCP_LOSS = 0.9

LEAST_MTU = 68
"""Bytes of the smallest MTU that a link may have (RFC 791)."""

_NUMBERS: Final = {
    "latency": (0.0, math.inf),
    "jitter": (0.0, math.inf),
    "loss": (0.0, 1.0),
    "reordering": (0.0, 1.0),
    "duplication": (0.0, 1.0),
    "mtu": (LEAST_MTU, math.inf),
    "bandwidth": (1.0, math.inf),
    "queue_limit": (0, math.inf),
}

# Numbers that add up differently may differ by this much.
_ROUNDING = 1e-6


@dataclass(slots=True)
class NetworkStats:
    """What became of the datagrams that hosts sent, each counted once per copy."""

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    """Lost on a link, or sent into one that is down."""
    overflowed: int = 0
    """Found the queue of a link full."""
    too_big: int = 0
    """Did not fit the MTU of a link."""
    blocked: int = 0
    """Stopped by :meth:`~iroh_proto.testing.network.Network.block_udp`."""
    filtered: int = 0
    """Not let through by a NAT or a firewall."""
    unroutable: int = 0
    """To an address that nobody has."""
    unheard: int = 0
    """To a port that no program has, or a host that is down or asleep."""


class Packet:
    """UDP datagrams of one flow on their way together.

    ``origin`` is the host that sent them, whatever address they carry by now. ``number`` stays
    the same on all of the way.
    """

    __slots__ = ("datagrams", "destination", "number", "origin", "source")

    def __init__(
        self,
        source: UdpAddress,
        destination: UdpAddress,
        datagrams: Sequence[bytes],
        origin: Host,
        number: int = 0,
    ) -> None:
        self.source = source
        self.destination = destination
        self.datagrams = datagrams
        self.origin = origin
        self.number = number

    def with_datagrams(self, datagrams: Sequence[bytes]) -> Packet:
        """Return what is left of it, or a copy."""
        return Packet(self.source, self.destination, datagrams, self.origin, self.number)


class Lane:
    """One direction of a link: the queue that UDP and TCP share, first come, first served."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = 0.0

    def waiting(self, bandwidth: float, now: float) -> float:
        """Return how many bytes are queued or being sent."""
        return max(0.0, self._free_at - now) * bandwidth

    def enter(self, size: int, bandwidth: float, limit: int, now: float) -> float | None:
        """Return the seconds until the last of some bytes is sent; ``None`` if there is no room."""
        if self.waiting(bandwidth, now) + size > limit + _ROUNDING:
            return None
        self._free_at = max(self._free_at, now) + size / bandwidth
        return self._free_at - now


class Link:
    """The cable between something and its network. All settings may be changed at any time.

    A packet crosses the link of its sender and that of its receiver, so that one way takes the
    sum of both.

    :param latency: seconds one way.
    :param jitter: seconds on top, at most; drawn for each datagram, so that it reorders them.
    :param loss: share of datagrams that get lost. Of what TCP sends at most nine tenths are, so
        that its streams move on; ``is_up`` stops them.
    :param reordering: share of datagrams that are held back by :data:`HOLD_BACK_TIME`.
    :param duplication: share of datagrams that arrive twice.
    :param mtu: bytes of the largest IP packet, headers included. A larger datagram disappears
        without a word, as where nobody lets ICMP through; TCP sends no larger segments. ``None``
        for no limit.
    :param bandwidth: bytes per second, each way by itself. What comes faster waits in a queue of
        ``queue_limit`` bytes; what finds it full is lost. ``None`` for no limit.
    :param is_up: whether anything gets through.
    :raises ValueError: for a setting that no link can have, also when it is set later.
    """

    __slots__ = (
        "_rng",
        "bandwidth",
        "down",
        "duplication",
        "is_up",
        "jitter",
        "latency",
        "loss",
        "mtu",
        "queue_limit",
        "reordering",
        "up",
    )

    def __init__(
        self,
        rng: random.Random,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        loss: float = 0.0,
        reordering: float = 0.0,
        duplication: float = 0.0,
        mtu: int | None = None,
        bandwidth: float | None = None,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
    ) -> None:
        self._rng = rng
        self.latency = latency
        self.jitter = jitter
        self.loss = loss
        self.reordering = reordering
        self.duplication = duplication
        self.mtu = mtu
        self.bandwidth = bandwidth
        self.queue_limit = queue_limit
        self.is_up = True
        self.up = Lane()
        self.down = Lane()

    def __setattr__(self, name: str, value: object) -> None:
        # Setting is rare; to look at a property for each packet would cost more.
        if name in _NUMBERS and value is not None:
            least, most = _NUMBERS[name]
            if not (isinstance(value, int | float) and least <= value <= most):
                raise ValueError(f"{name} of a link is from {least:g} to {most:g}, not {value!r}")
        object.__setattr__(self, name, value)

    @property
    def is_ideal(self) -> bool:
        """Whether each datagram arrives exactly once, in order, after the same time."""
        return (
            not (self.loss or self.jitter or self.reordering or self.duplication)
            and self.bandwidth is None
            and self.mtu is None
        )

    def carry(
        self, packet: Packet, lane: Lane, now: float, stats: NetworkStats
    ) -> list[tuple[float, Sequence[bytes]]]:
        """Return what gets through of a packet, and after how many seconds each."""
        if not self.is_up:
            stats.lost += len(packet.datagrams)
            return []
        if self.is_ideal:
            return [(self.latency, packet.datagrams)]
        overhead = UDP_OVERHEAD[packet.destination.is_ipv6]
        return [
            (delay, (data,))
            for data in packet.datagrams
            for delay in self._delays(len(data) + overhead, lane, now, stats)
        ]

    def queue(self, size: int, lane: Lane, now: float) -> float | None:
        """Return the seconds that bytes take to be sent, latency aside; ``None`` if they are lost.

        Only the queue loses them: TCP sends again what gets lost otherwise, which
        :meth:`cross_reliably` accounts for.
        """
        if self.bandwidth is None:
            return 0.0
        return lane.enter(size, self.bandwidth, self.queue_limit, now)

    def cross_reliably(self) -> float:
        """Return the seconds that bytes of a TCP stream take, with lost ones sent again."""
        delay = self.latency + self.jitter * self._rng.random() if self.jitter else self.latency
        while self.loss and self._rng.random() < min(self.loss, _MOST_TCP_LOSS):
            delay += RETRANSMISSION_TIME
        return delay

    def _delays(self, size: int, lane: Lane, now: float, stats: NetworkStats) -> list[float]:
        """Return the seconds that each copy of one datagram takes; none if it gets lost."""
        rng = self._rng
        if self.mtu is not None and size > self.mtu:
            stats.too_big += 1
            return []
        queued = self.queue(size, lane, now)
        if queued is None:
            stats.overflowed += 1
            return []
        if self.loss and rng.random() < self.loss:
            stats.lost += 1
            return []
        copies = 2 if self.duplication and rng.random() < self.duplication else 1
        return [queued + self._delay() for _ in range(copies)]

    def _delay(self) -> float:
        delay = self.latency + self.jitter * self._rng.random()
        if self.reordering and self._rng.random() < self.reordering:
            delay += HOLD_BACK_TIME
        return delay
