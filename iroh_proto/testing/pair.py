"""Two machines joined by a wire, in virtual time.

::

    pair = StreamPair(client, server, latency=0.02, chunk_sizes=[1, 7])
    client.start(now=pair.now)
    pair.run_until(lambda: bool(pair.left.seen(DerpConnected)), limit=5)

Commands may be given straight to the machines between runs; each run begins by taking out what
they caused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

from iroh_proto.address import Address
from iroh_proto.machine import DatagramMachine, StreamMachine, Transmit
from iroh_proto.testing.clock import VirtualClock
from iroh_proto.testing.hosting import Hosted

LeftT = TypeVar("LeftT")
RightT = TypeVar("RightT")
MachineT = TypeVar("MachineT")


class StreamSide(Hosted[MachineT]):
    """One machine of a :class:`StreamPair`. ``sent`` holds every byte it sent."""

    peer: StreamSide[object]

    def __init__(
        self,
        clock: VirtualClock,
        machine: MachineT,
        *,
        latency: float,
        chunk_sizes: Sequence[int],
    ) -> None:
        super().__init__(clock, machine)
        self.sent = bytearray()
        self._latency = latency
        self._chunk_sizes = chunk_sizes
        self._chunks = 0

    def send_data(self, data: bytes) -> None:
        """Cut the bytes and have them arrive at the peer, in their order."""
        self.sent += data
        start = 0
        while start < len(data):
            end = start + self._next_size(len(data))
            self._arrive(data[start:end])
            start = end

    def close(self) -> None:
        """End the stream: after all that was sent, the peer meets its end."""
        self.flush()
        peer = self.peer

        def arrive() -> None:
            cast("StreamMachine[object]", peer.machine).receive_eof(now=self.clock.now)
            peer.flush()

        self.clock.call_later(self._latency, arrive)

    def _arrive(self, chunk: bytes) -> None:
        peer = self.peer

        def arrive() -> None:
            cast("StreamMachine[object]", peer.machine).receive_data(chunk, now=self.clock.now)
            peer.flush()

        self.clock.call_later(self._latency, arrive)

    def _next_size(self, default: int) -> int:
        if not self._chunk_sizes:
            return default
        self._chunks += 1
        return self._chunk_sizes[(self._chunks - 1) % len(self._chunk_sizes)]


class DatagramSide(Hosted[MachineT]):
    """One machine of a :class:`DatagramPair`. ``sent`` holds every datagram it sent."""

    peer: DatagramSide[object]

    def __init__(
        self,
        clock: VirtualClock,
        machine: MachineT,
        *,
        addr: Address,
        latency: float,
        loss: float,
        rng: random.Random | None,
    ) -> None:
        super().__init__(clock, machine)
        self.addr = addr
        self.sent: list[bytes] = []
        self._latency = latency
        self._loss = loss
        self._rng = rng

    def send_datagrams(self, transmit: Transmit) -> None:
        """Have what is not lost arrive at the peer, if it is sent to the peer's address."""
        datagrams = [bytes(data) for data in transmit.datagrams]
        self.sent += datagrams
        peer = self.peer
        arriving = [data for data in datagrams if not self._is_lost()]
        if transmit.addr != peer.addr or not arriving:
            return

        def arrive() -> None:
            machine = cast("DatagramMachine[object]", peer.machine)
            machine.receive_datagrams(arriving, self.addr, now=self.clock.now)
            peer.flush()

        self.clock.call_later(self._latency, arrive)

    def _is_lost(self) -> bool:
        return self._rng is not None and self._rng.random() < self._loss


class _Pair(Generic[LeftT, RightT]):
    """What both kinds of pairs do with time."""

    clock: VirtualClock
    _sides: tuple[Hosted[LeftT], Hosted[RightT]]

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        return self.clock.now

    def flush(self) -> None:
        """Take out of both machines what commands caused."""
        for side in self._sides:
            side.flush()

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.flush()
        self.clock.run_for(seconds)

    def run_until(self, condition: Callable[[], bool], *, limit: float) -> float:
        """Let time pass until a condition holds; return when that was.

        :raises iroh_proto.testing.clock.LimitReached: if it does not within ``limit`` seconds.
        """
        self.flush()
        return self.clock.run_until(condition, limit=limit)


class StreamPair(_Pair[LeftT, RightT]):
    """Two stream machines on the two ends of a reliable stream.

    :param latency: seconds that bytes take, one way.
    :param chunk_sizes: sizes in which bytes arrive, used in turn; as they were sent if empty.
    """

    def __init__(
        self,
        left: LeftT,
        right: RightT,
        *,
        now: float = 0.0,
        latency: float = 0.0,
        chunk_sizes: Sequence[int] = (),
    ) -> None:
        self.clock = VirtualClock(now)
        self.left = StreamSide(self.clock, left, latency=latency, chunk_sizes=chunk_sizes)
        self.right = StreamSide(self.clock, right, latency=latency, chunk_sizes=chunk_sizes)
        self.left.peer = cast("StreamSide[object]", self.right)
        self.right.peer = cast("StreamSide[object]", self.left)
        self._sides = (self.left, self.right)


class DatagramPair(_Pair[LeftT, RightT]):
    """Two datagram machines that can only reach each other.

    :param left_addr: the address of ``left``, as ``right`` sees it; ``right_addr`` likewise.
    :param latency: seconds that a datagram takes, one way.
    :param loss: share of datagrams that are lost, drawn from ``rng``.
    """

    def __init__(
        self,
        left: LeftT,
        right: RightT,
        *,
        left_addr: Address,
        right_addr: Address,
        now: float = 0.0,
        latency: float = 0.0,
        loss: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = VirtualClock(now)
        self.left = DatagramSide(
            self.clock, left, addr=left_addr, latency=latency, loss=loss, rng=rng
        )
        self.right = DatagramSide(
            self.clock, right, addr=right_addr, latency=latency, loss=loss, rng=rng
        )
        self.left.peer = cast("DatagramSide[object]", self.right)
        self.right.peer = cast("DatagramSide[object]", self.left)
        self._sides = (self.left, self.right)
