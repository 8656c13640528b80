"""TCP between hosts of the simulated network: ordered, reliable, and bounded in flight.

Bytes that meet a link that is down wait and are sent again, until it is up or TCP gives up. A
process that ends closes its connections; a host that loses power tells nobody, and answers with a
reset when it is back. A NAT that rebooted drops what belongs to connections it forgot.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from iroh_proto.testing.links import RETRANSMISSION_TIME
from iroh_proto.testing.topology import Route

if TYPE_CHECKING:
    from iroh_proto.testing.hosts import AnyProgram

WINDOW = 256 << 10
"""Bytes in flight in one direction: what a kernel's buffers on both sides hold at least."""

LONGEST_RETRANSMISSION_TIME = 3.0
"""Seconds between two attempts at most. Linux doubles up to 120 s, which no test waits for."""

GIVE_UP_TIME = 60.0
"""Seconds of attempts after which a connection is lost. Linux takes some 15 minutes."""


class TcpEnd:
    """One end of a connection. A chunk of ``None`` is the end of the stream.

    :param not_before: when the peer has the connection; nothing arrives there earlier.
    """

    peer: TcpEnd

    def __init__(
        self, program: AnyProgram, tcp_id: int, route: Route, *, not_before: float
    ) -> None:
        self.program = program
        self.tcp_id = tcp_id
        self.in_flight = 0
        self.is_open = True
        self.vanished = False
        self._route = route
        self._waiting: deque[bytes | None] = deque()
        self._last_arrival = not_before
        self._attempts_since: float | None = None
        self._pause = RETRANSMISSION_TIME

    @property
    def has_room(self) -> bool:
        """Whether the program may write."""
        return self.is_open and self.in_flight < WINDOW

    def write(self, data: bytes) -> None:
        """Take bytes from the program."""
        self.in_flight += len(data)
        self._put(data)

    def close(self) -> None:
        """Send what was written, then the end. Nothing is received any more."""
        self.is_open = False
        self._put(None)

    def vanish(self) -> None:
        """Be gone without a word, as when the power is cut."""
        self.is_open = False
        self.vanished = True
        self._waiting.clear()

    def _put(self, chunk: bytes | None) -> None:
        self._waiting.append(chunk)
        if self._attempts_since is None:
            self._transmit()

    def _transmit(self) -> None:
        """Send what waits, or come back to it later."""
        clock = self.program.host.fabric.clock
        if self.vanished:
            return
        if self._may_pass():
            self._attempts_since, self._pause = None, RETRANSMISSION_TIME
            while self._waiting:
                delay = sum(link.cross_reliably() for link in self._route.links())
                self._last_arrival = max(self._last_arrival, clock.now + delay)
                clock.call_at(self._last_arrival, self._arrival(self._waiting.popleft()))
            return
        if self._attempts_since is None:
            self._attempts_since = clock.now
        if clock.now - self._attempts_since >= GIVE_UP_TIME:
            self._waiting.clear()
            self._lose()
            return
        clock.call_later(self._pause, self._transmit)
        self._pause = min(2 * self._pause, LONGEST_RETRANSMISSION_TIME)

    def _may_pass(self) -> bool:
        here, there = self.program.host, self.peer.program.host
        hosts_are_up = here.is_up and there.is_up
        return hosts_are_up and self._route.is_up and not here.network.blocks_tcp(here, there)

    def _arrival(self, chunk: bytes | None) -> _Chunk:
        return _Chunk(self, chunk)

    def take(self, chunk: bytes | None) -> None:
        """Have a chunk come in from the peer."""
        if not self.is_open:
            return
        if chunk is None:
            self._lose()
        else:
            self.program.receive_tcp(self.tcp_id, chunk)

    def acknowledge(self, size: int) -> None:
        """Learn that the peer has some bytes."""
        had_room = self.has_room
        self.in_flight -= size
        if self.has_room and not had_room:
            self.program.flush()

    def reset(self) -> None:
        """Learn that the other host knows nothing of this connection."""
        self._lose()

    def _lose(self) -> None:
        if self.is_open:
            self.is_open = False
            self.program.lose_tcp(self.tcp_id)


class _Chunk:
    """Bytes about to arrive."""

    __slots__ = ("_chunk", "_sender")

    def __init__(self, sender: TcpEnd, chunk: bytes | None) -> None:
        self._sender = sender
        self._chunk = chunk

    def __call__(self) -> None:
        sender, receiver = self._sender, self._sender.peer
        if receiver.vanished:
            self._knock()
            return
        receiver.take(self._chunk)
        if self._chunk:
            sender.acknowledge(len(self._chunk))

    def _knock(self) -> None:
        """Meet a host that has no such connection: a reset comes back when it is up."""
        sender, host = self._sender, self._sender.peer.program.host
        clock = host.fabric.clock
        if host.is_up:
            sender.reset()
        elif sender.is_open:
            clock.call_later(LONGEST_RETRANSMISSION_TIME, self)
