"""What a client received from other nodes, and from whom."""

from __future__ import annotations

from collections import deque

from iroh_proto.derp.events import DerpClientStats, ReceivedDatagrams
from iroh_proto.key import NodeId

RECEIVED_LIMIT = 16_384
"""Payloads waiting for the client's owner; past it the oldest go. A host that drains after each
input never meets it."""

HEARD_OF_LIMIT = 4_096
"""Nodes remembered to have sent through this connection; past it the first of them is forgotten."""


class Inbox:
    """Received datagrams until their owner takes them.

    :param stats: where to count.
    """

    __slots__ = ("_heard_of", "_received", "_stats")

    def __init__(self, stats: DerpClientStats) -> None:
        self._stats = stats
        self._heard_of: dict[NodeId, None] = {}
        self._received: deque[ReceivedDatagrams] = deque()

    def has_heard_of(self, node_id: NodeId) -> bool:
        """Say whether the node sent something, and was not forgotten since."""
        return node_id in self._heard_of

    def forget(self, node_id: NodeId) -> None:
        """Take that a node has left."""
        self._heard_of.pop(node_id, None)

    def put(self, node_id: NodeId, datagrams: list[bytes]) -> None:
        """Take datagrams of a node."""
        if node_id not in self._heard_of:
            if len(self._heard_of) >= HEARD_OF_LIMIT:
                del self._heard_of[next(iter(self._heard_of))]
            self._heard_of[node_id] = None
        if not datagrams:
            return
        self._stats.datagrams_received += len(datagrams)
        if len(self._received) >= RECEIVED_LIMIT:
            self._received.popleft()
            self._stats.payloads_dropped += 1
        self._received.append(ReceivedDatagrams(node_id, datagrams))

    def take(self) -> list[ReceivedDatagrams]:
        """Return what was received, in order, and forget it."""
        received = list(self._received)
        self._received.clear()
        return received
