"""Payload on its way through a node: whom it is from, the queues it waits in, what it may be.

All of it works on batches. Nothing here makes an object for a single datagram.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from iroh_proto.address import Address, UdpAddress
from iroh_proto.key import NodeId
from iroh_proto.machine import Transmit

QUEUED_DATAGRAMS_LIMIT = 16_384
"""Datagrams that wait to be drained, in each direction: some 20 MiB.

A host drains after each input, which makes far fewer. Beyond it the oldest are dropped, as UDP
does.
"""

# The bit that every QUIC v1 and v2 packet has set (RFC 9000, section 17), as long as the endpoint
# does not announce that it may be greased. STUN never has it, and disco's magic begins with it.
_FIXED_BIT = 0x40
_DISCO_FIRST_BYTE = 0x54
_QUIC_FIRST_BYTES = frozenset(
    bytes((first,)) for first in range(256) if first & _FIXED_BIT and first != _DISCO_FIRST_BYTE
)

PayloadKey: TypeAlias = NodeId | UdpAddress
"""Whom payload is from or for: a node, or provisionally whoever is at a UDP address."""


class ReceivedPayload:
    """QUIC datagrams that came together, in order.

    ``key`` says where answers go, ``source`` where they came from. Connections are told apart by
    QUIC's connection ids, not by the key: one peer's packets may come under its node id and under
    provisional keys in turn.
    """

    __slots__ = ("datagrams", "key", "source")

    def __init__(self, key: PayloadKey, source: Address, datagrams: list[bytes]) -> None:
        self.key = key
        self.source = source
        self.datagrams = datagrams

    def __repr__(self) -> str:
        sizes = [len(datagram) for datagram in self.datagrams]
        return f"ReceivedPayload({self.key!r}, {self.source}, sizes={sizes})"


class ReceivedQueue:
    """Payload that waits for the host, in order of arrival."""

    __slots__ = ("_items", "_size", "dropped")

    def __init__(self) -> None:
        self._items: deque[ReceivedPayload] = deque()
        self._size = 0
        self.dropped = 0
        """Datagrams dropped, being the oldest of too many."""

    def append(self, key: PayloadKey, source: Address, datagrams: Sequence[bytes]) -> None:
        """Add datagrams, to the last entry if it is from the same sender."""
        items = self._items
        if items and items[-1].source == source and items[-1].key == key:
            items[-1].datagrams.extend(datagrams)
        else:
            items.append(ReceivedPayload(key, source, list(datagrams)))
        self._size += len(datagrams)
        while self._size > QUEUED_DATAGRAMS_LIMIT:
            oldest = items[0].datagrams
            surplus = min(self._size - QUEUED_DATAGRAMS_LIMIT, len(oldest))
            del oldest[:surplus]
            if not oldest:
                items.popleft()
            self._size -= surplus
            self.dropped += surplus

    def drain(self) -> list[ReceivedPayload]:
        """Return what there is, and forget it."""
        items = list(self._items)
        self._items.clear()
        self._size = 0
        return items


class TransmitQueue:
    """UDP datagrams that wait for the host."""

    __slots__ = ("_items", "_size", "dropped")

    def __init__(self) -> None:
        self._items: deque[Transmit] = deque()
        self._size = 0
        self.dropped = 0
        """Datagrams dropped, being the oldest of too many."""

    def append(self, transmit: Transmit) -> None:
        """Add datagrams for one destination."""
        items = self._items
        items.append(transmit)
        self._size += len(transmit.datagrams)
        while self._size > QUEUED_DATAGRAMS_LIMIT and len(items) > 1:
            surplus = len(items.popleft().datagrams)
            self._size -= surplus
            self.dropped += surplus

    def drain(self) -> list[Transmit]:
        """Return what there is, and forget it."""
        items = list(self._items)
        self._items.clear()
        self._size = 0
        return items


def segment_size_of(datagrams: Sequence[bytes]) -> int | None:
    """Return the size of all datagrams but the last, which may be shorter, or ``None``."""
    size = len(datagrams[0])
    if len(datagrams) == 1:
        return size
    if len(datagrams[-1]) > size or set(map(len, datagrams[:-1])) != {size}:
        return None
    return size


def may_be_quic(data: bytes) -> bool:
    """Say whether a datagram may be a QUIC packet, by its first byte."""
    return bool(data) and data[0] & _FIXED_BIT != 0


def are_surely_quic(batch: Sequence[bytes]) -> bool:
    """Say whether all datagrams of a batch can be nothing else but QUIC, by their first bytes."""
    return _QUIC_FIRST_BYTES.issuperset([data[:1] for data in batch])
