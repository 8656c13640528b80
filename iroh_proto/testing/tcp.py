"""TCP between hosts of the simulated network: ordered, reliable, and bounded in flight.

Bytes that meet a link that is down wait and are sent again, until it is up or TCP gives up. A
process that ends closes its connections; a host that loses power tells nobody, and answers with a
reset when it is back. So does one that gave a connection up while its peer was away. A router that
rebooted drops what belongs to connections it forgot.

Where no link of the way has a bandwidth, what is written at once travels at once. Elsewhere it is
cut into segments, which wait in the same queues as UDP datagrams; a full queue loses them, and
:class:`~iroh_proto.testing.congestion.CongestionWindow` says how fast to go.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from iroh_proto.testing.congestion import SEGMENT_SIZE, CongestionWindow
from iroh_proto.testing.links import RETRANSMISSION_TIME, Lane, Link
from iroh_proto.testing.routers import Route

if TYPE_CHECKING:
    from iroh_proto.testing.clock import VirtualClock
    from iroh_proto.testing.programs import AnyProgram

WINDOW = 256 << 10
"""Bytes in flight in one direction: what a kernel's buffers on both sides hold at least."""

LONGEST_RETRANSMISSION_TIME = 3.0
"""Seconds between two attempts at most. Linux doubles up to 120 s, which no test waits for."""

GIVE_UP_TIME = 60.0
"""Seconds of attempts after which a connection is lost. Linux takes some 15 minutes."""

TCP_OVERHEAD = 40
"""Bytes of the IP and the TCP header of a segment; IPv6's twenty more make no difference."""


class TcpEnd:
    """One end of a connection. A chunk of ``None`` is the end of the stream.

    :param is_client: whether the connection was made from here.
    :param not_before: when the peer has the connection; nothing arrives there earlier.
    """

    peer: TcpEnd

    def __init__(
        self,
        program: AnyProgram,
        tcp_id: int,
        route: Route,
        *,
        is_client: bool,
        not_before: float,
    ) -> None:
        self.program = program
        self.tcp_id = tcp_id
        self.in_flight = 0
        self.is_open = True
        self.vanished = False
        self.window = CongestionWindow()
        self._route = route
        self._is_client = is_client
        self._waiting: deque[bytes | None] = deque()
        self.not_before = not_before
        self._last_arrival = not_before
        self._attempts_since: float | None = None
        self._pause = RETRANSMISSION_TIME
        self._next_number = 0
        self._expected_number = 0
        # What overtook a segment that was lost.
        self._early: dict[int, bytes | None] = {}

    @property
    def clock(self) -> VirtualClock:
        """The network's clock."""
        return self.program.host.fabric.clock

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

    # Sending

    @property
    def may_pass(self) -> bool:
        """Whether bytes get through to the peer's host now."""
        here, there = self.program.host, self.peer.program.host
        hosts_are_up = here.is_awake and there.is_awake
        return hosts_are_up and self._route.is_up and not here.network.blocks_tcp(here, there)

    def lanes(self) -> list[tuple[Link, Lane]]:
        """Return the links on the way to the peer, and where bytes wait for them."""
        return self._route.lanes(to_server=self._is_client)

    def lose_patience(self) -> bool:
        """Note that bytes do not get through; say whether that is so for too long."""
        now = self.clock.now
        if self._attempts_since is None or not self.program.host.is_awake:
            self._attempts_since = now
        if now - self._attempts_since < GIVE_UP_TIME:
            return False
        self._waiting.clear()
        self._lose()
        self.vanished = True
        return True

    def note_progress(self) -> None:
        """Note that bytes get through, and send what waited for that."""
        if self._attempts_since is not None:
            self._attempts_since, self._pause = None, RETRANSMISSION_TIME
            self.transmit()

    def _put(self, chunk: bytes | None) -> None:
        self._waiting.append(chunk)
        if self._attempts_since is None:
            self.transmit()

    def transmit(self) -> None:
        """Send what waits, or come back to it later."""
        if self.vanished or not self._waiting:
            return
        if not self.may_pass:
            if not self.lose_patience():
                self.clock.call_later(self._pause, self.transmit)
                self._pause = min(2 * self._pause, LONGEST_RETRANSMISSION_TIME)
            return
        self._attempts_since, self._pause = None, RETRANSMISSION_TIME
        if self._route.is_limited:
            while self._waiting and self.window.has_room:
                self._send_segment()
            return
        while self._waiting:
            delay = sum(link.cross_reliably() for link in self._route.links())
            self._last_arrival = max(self._last_arrival, self.clock.now + delay)
            chunk = Chunk(self, self._take_number(), self._waiting.popleft())
            self.clock.call_at(self._last_arrival, chunk.arrive)

    def _send_segment(self) -> None:
        data = self._waiting.popleft()
        if data is not None and len(data) > SEGMENT_SIZE:
            self._waiting.appendleft(data[SEGMENT_SIZE:])
            data = data[:SEGMENT_SIZE]
        segment = TcpSegment(self, self._take_number(), data)
        self.window.note_sent(segment.size)
        segment.set_out()

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    # Receiving

    def take(self, number: int, chunk: bytes | None) -> None:
        """Have a chunk come in from the peer. What comes after the program closed is ignored."""
        if not self.is_open:
            return
        self._early[number] = chunk
        while self._expected_number in self._early:
            self._deliver(self._early.pop(self._expected_number))

    def _deliver(self, chunk: bytes | None) -> None:
        self._expected_number += 1
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


class Chunk:
    """Bytes on their way, known by their number in the stream."""

    __slots__ = ("data", "number", "sender")

    def __init__(self, sender: TcpEnd, number: int, data: bytes | None) -> None:
        self.sender = sender
        self.number = number
        self.data = data

    def arrive(self) -> None:
        """Be at the host of the receiver."""
        receiver = self.sender.peer
        if receiver.vanished or not receiver.program.host.is_awake:
            self._knock()
            return
        receiver.take(self.number, self.data)
        self.acknowledge()

    def acknowledge(self) -> None:
        """Have the sender know that it arrived."""
        self.sender.note_progress()
        if self.data:
            self.sender.acknowledge(len(self.data))

    def _knock(self) -> None:
        """Meet a host that does not answer, or knows of no such connection and resets it."""
        sender, receiver = self.sender, self.sender.peer
        is_wanted = sender.is_open or not receiver.vanished
        if sender.vanished or not is_wanted:
            return
        if receiver.program.host.is_awake and sender.program.host.is_awake:
            sender.reset()
        elif not sender.lose_patience():
            sender.clock.call_later(LONGEST_RETRANSMISSION_TIME, self.arrive)


class TcpSegment(Chunk):
    """Bytes that cross one link after the other, and have to find room at each."""

    __slots__ = ("_lanes",)

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return TCP_OVERHEAD + len(self.data or b"")

    def set_out(self) -> None:
        """Begin the way, or begin it again."""
        sender = self.sender
        if sender.vanished:
            return
        if not sender.may_pass:
            if not sender.lose_patience():
                sender.clock.call_later(LONGEST_RETRANSMISSION_TIME, self.set_out)
            return
        self._lanes = deque(sender.lanes())
        self._cross()

    def _cross(self) -> None:
        """Enter the next link."""
        clock = self.sender.clock
        if not self._lanes:
            clock.call_at(self.sender.not_before, self.arrive)
            return
        link, lane = self._lanes.popleft()
        queued = link.queue(self.size, lane, clock.now) if link.is_up else None
        if queued is None:
            self.sender.window.note_lost(clock.now)
            clock.call_later(RETRANSMISSION_TIME, self.set_out)
        else:
            clock.call_later(queued + link.cross_reliably(), self._cross)

    def acknowledge(self) -> None:
        """Have the sender know that it arrived, and send more."""
        sender = self.sender
        sender.window.note_acknowledged(self.size)
        super().acknowledge()
        sender.transmit()
