"""The wires of the simulated network, and what travels on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from iroh_proto.address import UdpAddress

if TYPE_CHECKING:
    from iroh_proto.testing.hosts import Host


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


class Link:
    """The cable between something and its network. All settings may be changed at any time.

    A packet crosses the link of its sender and that of its receiver, so that one way takes the
    sum of both.

    :param latency: seconds one way.
    :param jitter: seconds on top, at most; drawn for each datagram, so that it reorders them.
    :param loss: share of datagrams that get lost.
    :param reordering: share of datagrams that are held back by :data:`HOLD_BACK_TIME`.
    :param duplication: share of datagrams that arrive twice.
    :param is_up: whether anything gets through.
    """

    __slots__ = ("_rng", "duplication", "is_up", "jitter", "latency", "loss", "reordering")

    def __init__(
        self,
        rng: random.Random,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        loss: float = 0.0,
        reordering: float = 0.0,
        duplication: float = 0.0,
    ) -> None:
        self._rng = rng
        self.latency = latency
        self.jitter = jitter
        self.loss = loss
        self.reordering = reordering
        self.duplication = duplication
        self.is_up = True

    @property
    def is_ideal(self) -> bool:
        """Whether each datagram arrives exactly once, in order."""
        return not (self.loss or self.jitter or self.reordering or self.duplication)

    def cross(self) -> list[float]:
        """Return the seconds that each copy of one datagram takes; none if it gets lost."""
        if self.is_ideal:
            return [self.latency]
        rng = self._rng
        if self.loss and rng.random() < self.loss:
            return []
        copies = 2 if self.duplication and rng.random() < self.duplication else 1
        return [self._delay() for _ in range(copies)]

    def cross_reliably(self) -> float:
        """Return the seconds that bytes of a TCP stream take, with lost ones sent again."""
        delay = self.latency + self.jitter * self._rng.random() if self.jitter else self.latency
        while self.loss and self._rng.random() < min(self.loss, _MOST_TCP_LOSS):
            delay += RETRANSMISSION_TIME
        return delay

    def _delay(self) -> float:
        delay = self.latency + self.jitter * self._rng.random()
        if self.reordering and self._rng.random() < self.reordering:
            delay += HOLD_BACK_TIME
        return delay


HOLD_BACK_TIME = 0.05
"""Seconds that a reordered datagram is late: more than what a burst of others takes."""

RETRANSMISSION_TIME = 0.2
"""Seconds after which TCP sends lost bytes again: the least that Linux waits."""

# Above it, a simulated stream would hardly move at all.
_MOST_TCP_LOSS = 0.9


def crossings(
    datagrams: Sequence[bytes], sender: Link, receiver: Link
) -> list[tuple[float, list[bytes]]]:
    """Return what arrives of some datagrams over two links, and after how many seconds."""
    if not (sender.is_up and receiver.is_up):
        return []
    if sender.is_ideal and receiver.is_ideal:
        return [(sender.latency + receiver.latency, list(datagrams))]
    return [
        (first + second, [data])
        for data in datagrams
        for first in sender.cross()
        for second in receiver.cross()
    ]
