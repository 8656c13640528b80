"""All peers, within limits, and which of them has which best address.

Source: iroh v0.35.0 ``iroh/src/magicsock/node_map.rs``. There peers that the application named
but never used are the first to be forgotten; here only those are that came by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from iroh_proto.address import UdpAddress
from iroh_proto.key import NodeId
from iroh_proto.paths.candidate import Reachability
from iroh_proto.paths.state import NodeState

NODES_LIMIT = 4096
"""Peers altogether, of a few KiB each."""

STRANGERS_LIMIT = 512
"""Peers that neither the application named nor a handshake proved.

Any holder of a key pair becomes one by a ping, or by a packet through a DERP server.
"""

INACTIVE_NODES_LIMIT = 30
"""Peers that are kept though they are not in use and the application did not name them."""


class NodeMap:
    """Finds peers by id and by best address, and forgets those it has no room for.

    :param reach: what this node can send to; handed to all peers.
    :param rng: handed to all peers.
    """

    def __init__(self, *, reach: Reachability, rng: random.Random) -> None:
        self._reach = reach
        self._rng = rng
        self._nodes: dict[NodeId, NodeState] = {}
        self._strangers: dict[NodeId, None] = {}
        self._by_best: dict[UdpAddress, NodeState] = {}
        self._best_of: dict[NodeId, UdpAddress] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[NodeState]:
        """Iterate over a copy, so that peers may be forgotten meanwhile."""
        return iter(list(self._nodes.values()))

    def get(self, node_id: NodeId) -> NodeState | None:
        """Return the peer with this id, if it is known."""
        return self._nodes.get(node_id)

    def at(self, addr: UdpAddress) -> NodeState | None:
        """Return the peer that has this address as its best, valid or not."""
        return self._by_best.get(addr)

    def has_room(self, now: float) -> bool:
        """Say whether a peer can be added that is not a stranger."""
        return len(self._nodes) < NODES_LIMIT or self._spare(now) is not None

    def add(self, node_id: NodeId, *, now: float) -> tuple[NodeState | None, list[NodeId]]:
        """Return the peer with this id, new or not, and the peers that were forgotten for it.

        A new peer is a stranger until :meth:`promote`. There is none if all that are known are
        in use.
        """
        node = self._nodes.get(node_id)
        if node is not None:
            return node, []
        forgotten: list[NodeId] = []
        if len(self._strangers) >= STRANGERS_LIMIT:
            forgotten.append(next(iter(self._strangers)))
        elif len(self._nodes) >= NODES_LIMIT:
            spare = self._spare(now)
            if spare is None:
                return None, []
            forgotten.append(spare)
        for other in forgotten:
            self.remove(other)
        node = NodeState(node_id, reach=self._reach, rng=self._rng, now=now)
        self._nodes[node_id] = node
        self._strangers[node_id] = None
        return node, forgotten

    def promote(self, node: NodeState) -> None:
        """Note that a peer is no stranger: the application named it, or a handshake proved it."""
        self._strangers.pop(node.node_id, None)

    def remove(self, node_id: NodeId) -> None:
        """Forget a peer and what leads to it."""
        node = self._nodes.pop(node_id, None)
        if node is not None:
            self._strangers.pop(node_id, None)
            self._drop_index(node)

    def reindex(self, node: NodeState) -> None:
        """Have the peer found by the best address it has now. The latest claim to one counts."""
        best = node.udp.best
        addr = None if best is None else best.addr
        if self._best_of.get(node.node_id) == addr:
            return
        self._drop_index(node)
        if addr is not None:
            self._best_of[node.node_id] = addr
            self._by_best[addr] = node

    def prune(self, now: float) -> list[NodeId]:
        """Forget surplus peers that are not in use, and return which."""
        inactive = [
            node for node in self._nodes.values() if not (node.is_known or node.is_active(now))
        ]
        surplus = len(inactive) - INACTIVE_NODES_LIMIT
        if surplus <= 0:
            return []
        inactive.sort(key=_last_used)
        forgotten = [node.node_id for node in inactive[:surplus]]
        for node_id in forgotten:
            self.remove(node_id)
        return forgotten

    def _spare(self, now: float) -> NodeId | None:
        """Return the peer that is missed least, if there is one that is not in use."""
        for node_id in self._strangers:
            return node_id
        inactive = [node for node in self._nodes.values() if not node.is_active(now)]
        if not inactive:
            return None
        return min(inactive, key=lambda node: (node.is_known, _last_used(node))).node_id

    def _drop_index(self, node: NodeState) -> None:
        addr = self._best_of.pop(node.node_id, None)
        if addr is not None and self._by_best.get(addr) is node:
            del self._by_best[addr]


def _last_used(node: NodeState) -> float:
    return float("-inf") if node.last_used is None else node.last_used
