"""Who is connected to the other servers of a mesh."""

from __future__ import annotations

from iroh_proto.derp.dialects import ClientKey
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId
from iroh_proto.x25519 import X25519PublicKey, x25519_of

PEERS_LIMIT = 262_144
"""Clients known at one other server; those that it names beyond are not reachable through it. It
is trusted, and serves 65,536 at most if it is one of these."""


class Region:
    """The clients of other servers. Each of these is a *link*, named by a number.

    A client that is at several servers is sent to by the one that named it first.
    """

    __slots__ = ("_aliases", "_links", "_peers")

    def __init__(self) -> None:
        # By kind of key, as other bytes mean other things: those of nodes, X25519 keys.
        self._peers: tuple[dict[bytes, list[int]], dict[bytes, list[int]]] = ({}, {})
        self._links: dict[int, dict[ClientKey, None]] = {}
        self._aliases: dict[X25519PublicKey, NodeId] = {}

    def __len__(self) -> int:
        return sum(map(len, self._peers))

    def __contains__(self, key: ClientKey) -> bool:
        return key in self._peers[isinstance(key, X25519PublicKey)]

    def add(self, link: int, key: ClientKey) -> None:
        """Take that a client is connected to a server."""
        keys = self._links.setdefault(link, {})
        if key in keys or len(keys) >= PEERS_LIMIT:
            return
        keys[key] = None
        self._peers[isinstance(key, X25519PublicKey)].setdefault(key, []).append(link)
        if (alias := alias_of(key)) is not None and isinstance(key, NodeId):
            self._aliases[alias] = key

    def remove(self, link: int, key: ClientKey) -> bool:
        """Take that a client left a server; say whether it was there, and is now at none."""
        keys = self._links.get(link, {})
        if key not in keys:
            return False
        del keys[key]
        return self._detach(link, key)

    def remove_link(self, link: int) -> list[ClientKey]:
        """Take that a server is out of reach; return the clients that are at none of them now."""
        return [key for key in self._links.pop(link, {}) if self._detach(link, key)]

    def link_to(self, key: bytes, *, is_curve: bool) -> int | None:
        """Return the server where a client is."""
        links = self._peers[is_curve].get(key)
        return links[0] if links else None

    def node_of(self, key: bytes) -> NodeId | None:
        """Return the node with an X25519 key, if a server named it by its node id."""
        return self._aliases.get(X25519PublicKey(key))

    def _detach(self, link: int, key: ClientKey) -> bool:
        peers = self._peers[isinstance(key, X25519PublicKey)]
        peers[key].remove(link)
        if peers[key]:
            return False
        del peers[key]
        if (alias := alias_of(key)) is not None:
            self._aliases.pop(alias, None)
        return True


def alias_of(key: ClientKey) -> X25519PublicKey | None:
    """Return the X25519 key by which clients of Tailscale's dialect know a client of iroh's.

    ``None`` for a client that has such a key anyway, and for a node that can have none.
    """
    if isinstance(key, X25519PublicKey):
        return None
    try:
        return x25519_of(key)
    except DecodeError:
        return None
