"""Which nodes are behind the X25519 keys that relays of Tailscale name.

A node id is not to be had from such a key, only to be recognized. A node is known once this side
wanted to reach it, or once it sent a disco message, which names its sender in clear (see
:mod:`iroh_proto.disco.message`). The relay has seen to it that the sender holds its X25519 key, so
what the message says is true if it is a node id with that key.

What a node says of itself counts for more than what this side took it for: with each key go two
node ids, and somebody may have been given the wrong one.
"""

from __future__ import annotations

from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, NodeId
from iroh_proto.x25519 import X25519PublicKey, x25519_of

WANTED_LIMIT = 4_096
"""Nodes remembered because this side wanted to reach them; past it the first of them goes."""

HEARD_LIMIT = 4_096
"""Nodes remembered because they said who they are; past it the first of them goes, until it says
so again."""

DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"
SHORTEST_DISCO = len(DISCO_MAGIC) + KEY_SIZE + 24
"""Bytes of a disco message's envelope that relays look for: magic, sender, nonce."""

_SENDER_END = len(DISCO_MAGIC) + KEY_SIZE


def looks_like_disco(datagram: bytes | memoryview) -> bool:
    """Say whether a datagram is a disco message to a relay of Tailscale."""
    return datagram[: len(DISCO_MAGIC)] == DISCO_MAGIC and len(datagram) >= SHORTEST_DISCO


def claimed_node(key: X25519PublicKey, datagram: bytes | memoryview) -> NodeId | None:
    """Return the node that a datagram from ``key`` says to be from, if that can be."""
    if not looks_like_disco(datagram):
        return None
    sender = bytes(datagram[len(DISCO_MAGIC) : _SENDER_END])
    try:
        return NodeId(sender) if x25519_of(sender) == key else None
    except DecodeError:
        return None


class NodeNames:
    """Node ids by X25519 key."""

    __slots__ = ("_heard", "_wanted")

    def __init__(self) -> None:
        self._wanted: dict[X25519PublicKey, NodeId] = {}
        self._heard: dict[X25519PublicKey, NodeId] = {}

    def want(self, node_id: NodeId) -> None:
        """Take that this side wants to reach a node."""
        try:
            key = x25519_of(node_id)
        except DecodeError:
            return  # nobody can be that
        if self._wanted.get(key) != node_id:
            _remember(self._wanted, key, node_id, WANTED_LIMIT)

    def sender(self, key: X25519PublicKey, datagram: bytes) -> NodeId | None:
        """Return the node that a datagram from ``key`` is from, ``None`` for a stranger."""
        claimed = claimed_node(key, datagram)
        if claimed is not None and self._heard.get(key) != claimed:
            _remember(self._heard, key, claimed, HEARD_LIMIT)
        return self.find(key)

    def find(self, key: X25519PublicKey) -> NodeId | None:
        """Return the node with this key, if it is known."""
        return self._heard.get(key) or self._wanted.get(key)


def _remember(
    table: dict[X25519PublicKey, NodeId], key: X25519PublicKey, node_id: NodeId, limit: int
) -> None:
    table.pop(key, None)
    if len(table) >= limit:
        del table[next(iter(table))]
    table[key] = node_id
