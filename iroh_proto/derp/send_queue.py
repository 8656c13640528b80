"""What waits to be written to one client of a DERP server, within bounds.

A queue holds bytes ready for the wire in one order, so that a notice that a peer is gone never
overtakes the last packets of that peer. Packets are expendable, as datagrams are; everything else
(answers, notices, keep-alives) is small, kept apart in the count, and refused when there is too
much of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

from iroh_proto.derp.frames import HEADER, HEADER_SIZE

QUEUED_PACKETS_LIMIT = 512
"""Packets waiting for one client, as in iroh's own server of every generation."""

QUEUED_PACKET_BYTES_LIMIT = 512 * 1024
"""Bytes of packets waiting for one client: what bounds the memory a slow reader costs. A
connection's bandwidth times delay is held by the kernel, not here."""

QUEUED_CONTROL_BYTES_LIMIT = 64 * 1024
"""Bytes of everything else waiting for one client: some thousand pongs or notices. Only a client
that sends pings and never reads comes near it."""


class QueueRule(NamedTuple):
    """How many packets may wait for a client, and which are dropped when there are more.

    The bytes of packets are limited besides, to :data:`QUEUED_PACKET_BYTES_LIMIT`.
    """

    packets: int
    drops_oldest: bool


NEWEST_DROPPED = QueueRule(QUEUED_PACKETS_LIMIT, drops_oldest=False)
"""The rule of iroh's own server, in every generation."""

OLDEST_DROPPED = QueueRule(QUEUED_PACKETS_LIMIT, drops_oldest=True)
"""The rule of a client here, for which what was sent last is worth most."""


class SendQueue:
    """Bytes for one client, in order.

    :ivar entries: what waits, each with the number of packets in it; none means that it must not be
        dropped. For others to see whether there is anything.
    :ivar rule: what happens when too many packets wait.
    :ivar packets: packets waiting.
    :ivar packet_bytes: bytes of these.
    :ivar control_bytes: bytes of everything else waiting.
    """

    __slots__ = ("control_bytes", "entries", "packet_bytes", "packets", "rule")

    def __init__(self, rule: QueueRule = NEWEST_DROPPED) -> None:
        self.rule = rule
        self.entries: deque[tuple[bytes, int]] = deque()
        self.packets = 0
        self.packet_bytes = 0
        self.control_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.entries)

    def push_packets(self, data: bytes, packets: int) -> int:
        """Queue packets, and drop the oldest or newest ones if there are too many.

        :param data: one packet in any form, or several framed ones.
        :param packets: how many there are in ``data``.
        :returns: how many packets were dropped.
        """
        waiting, size = self.packets + packets, self.packet_bytes + len(data)
        if waiting <= self.rule.packets and size <= QUEUED_PACKET_BYTES_LIMIT:
            self.entries.append((data, packets))
            self.packets, self.packet_bytes = waiting, size
            return 0
        if not self.rule.drops_oldest:
            return self._push_what_fits(data, packets)
        self.entries.append((data, packets))
        self.packets, self.packet_bytes = waiting, size
        return self._drop_oldest()

    def push_pieces(self, pieces: Sequence[bytes]) -> int:
        """Queue packets that are one piece each; return how many packets were dropped."""
        waiting = self.packets + len(pieces)
        size = self.packet_bytes + sum(map(len, pieces))
        if waiting <= self.rule.packets and size <= QUEUED_PACKET_BYTES_LIMIT:
            self.entries.extend(zip(pieces, repeat(1)))
            self.packets, self.packet_bytes = waiting, size
            return 0
        return sum(self.push_packets(piece, 1) for piece in pieces)

    def push_control(self, data: bytes, *, limit: int = QUEUED_CONTROL_BYTES_LIMIT) -> bool:
        """Queue bytes that are no packet, unless too many wait; say whether they were taken."""
        if self.control_bytes + len(data) > limit:
            return False
        self.entries.append((data, 0))
        self.control_bytes += len(data)
        return True

    def pull(self, size_wanted: int | None = None) -> bytes:
        """Return the oldest bytes and forget them.

        :param size_wanted: stop after the piece that makes it this many; ``None`` for all.
        """
        entries = self.entries
        if not entries:
            return b""
        if len(entries) == 1:
            data, packets = entries.popleft()
            self.packets = self.packet_bytes = self.control_bytes = 0
            return data
        if size_wanted is None or self.packet_bytes + self.control_bytes <= size_wanted:
            whole = b"".join([data for data, _ in entries])
            entries.clear()
            self.packets = self.packet_bytes = self.control_bytes = 0
            return whole
        taken: list[bytes] = []
        size = 0
        while size < size_wanted:
            data, packets = entries.popleft()
            taken.append(data)
            size += len(data)
            if packets:
                self.packets -= packets
                self.packet_bytes -= len(data)
            else:
                self.control_bytes -= len(data)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _push_what_fits(self, data: bytes, packets: int) -> int:
        """Queue those packets that there is room for; return how many were dropped."""
        offset = dropped = 0
        for left in range(packets, 0, -1):
            size = _first_size(data, offset, left)
            if (
                self.packets < self.rule.packets
                and self.packet_bytes + size <= QUEUED_PACKET_BYTES_LIMIT
            ):
                self.entries.append((data[offset : offset + size], 1))
                self.packets += 1
                self.packet_bytes += size
            else:
                dropped += 1
            offset += size
        return dropped

    def _drop_oldest(self) -> int:
        before = self.packets
        kept: list[tuple[bytes, int]] = []
        while self._is_over():
            data, packets = self.entries.popleft()
            if packets:
                data, packets = self._behead(data, packets)
            if not packets and not data:
                continue
            kept.append((data, packets))
        self.entries.extendleft(reversed(kept))
        return before - self.packets

    def _behead(self, data: bytes, packets: int) -> tuple[bytes, int]:
        """Drop packets from the front of an entry while there are too many; return what is left."""
        offset = 0
        while packets and self._is_over():
            size = _first_size(data, offset, packets)
            offset += size
            packets -= 1
            self.packets -= 1
            self.packet_bytes -= size
        return data[offset:], packets

    def _is_over(self) -> bool:
        return self.packets > self.rule.packets or self.packet_bytes > QUEUED_PACKET_BYTES_LIMIT


def _first_size(data: bytes, offset: int, packets: int) -> int:
    """Return the bytes of the packet at ``offset``, the first of so many to the end of ``data``."""
    if packets == 1:
        return len(data) - offset
    size: int = HEADER_SIZE + HEADER.unpack_from(data, offset)[1]
    return size
