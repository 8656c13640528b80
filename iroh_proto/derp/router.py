"""Where a packet goes: the routing of a DERP server.

Clients are named by a number of the host's choice and by the node id whose key they have proven.
The router owns no connection, no queue and no time: it says which client gets which packets, and
its owner (:class:`iroh_proto.derp.relay.DerpServer`) hands them over.

All dialects that relay Ed25519 identities meet here: packets come as
:data:`~iroh_proto.derp.frames.PacketParts` from whichever codec read them, to be written by
whichever codec the destination has.

Source: iroh v0.12.0 ``iroh-net/src/derp/{server,clients}.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server/clients.rs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from iroh_proto.derp.frames import PacketParts
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId

DESTINATIONS_LIMIT = 4_096
"""Nodes that are remembered as destinations of one client, to be told when it leaves. The oldest
is forgotten first: nobody may depend on being told."""


WAITING_LIMIT = 8
"""Clients of one node that stay connected after they gave way. Further ones do not."""


@dataclass(slots=True)
class RouterStats:
    """Counts since the start.

    :ivar packets_routed: packets that were for a connected client.
    :ivar packets_without_route: packets dropped because their destination is not connected.
    :ivar bytes_routed: payload of the packets routed.
    :ivar bytes_without_route: payload of the packets dropped.
    :ivar clients_replaced: clients that gave way to a newer connection with the same key.
    :ivar clients_set_aside: those of them that stayed connected.
    :ivar clients_back: those of them that are not set aside any more.
    """

    packets_routed: int = 0
    packets_without_route: int = 0
    bytes_routed: int = 0
    bytes_without_route: int = 0
    clients_replaced: int = 0
    clients_set_aside: int = 0
    clients_back: int = 0


class Departure(NamedTuple):
    """What follows from a client's end.

    :ivar told: the clients to be told that its node is gone: those it had sent packets to. None
        as long as its node has another client.
    :ivar heir: the client that gets the node's packets from now on, if it had to wait so far.
    """

    told: list[int]
    heir: int | None


class _Client:
    __slots__ = ("destinations", "node_id", "waits")

    def __init__(self, node_id: NodeId, *, waits: bool) -> None:
        self.node_id = node_id
        self.waits = waits
        self.destinations: dict[bytes, None] = {}


class DerpRouter:
    """Who is connected, and who gets what."""

    def __init__(self) -> None:
        self._clients: dict[int, _Client] = {}
        self._client_ids: dict[bytes, int] = {}
        # Who gave way and is still connected, by node, the latest last.
        self._waiting: dict[bytes, list[int]] = {}
        self._stats = RouterStats()

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def stats(self) -> RouterStats:
        """A copy of the counts."""
        return replace(self._stats)

    @property
    def node_ids(self) -> list[NodeId]:
        """The nodes that are connected."""
        return [
            client.node_id
            for client_id, client in self._clients.items()
            if self._client_ids[client.node_id] == client_id
        ]

    def connect(self, client_id: int, node_id: NodeId, *, waits: bool = False) -> int | None:
        """Take a client that has proven to be ``node_id``.

        A client with the same node id gives way to it: it gets no more packets. Nobody is told that
        it is gone, since its node is not.

        :param waits: whether the client, should it ever give way, stays connected until its node's
            newer clients are gone, and may send meanwhile. One that does not is forgotten.
        :returns: the client that gave way. Unless it :meth:`is_waiting` now, its connection is to
            be closed.
        :raises LocalProtocolError: if the client is connected already.
        """
        if client_id in self._clients:
            raise LocalProtocolError(f"client {client_id} is connected already")
        replaced = self._client_ids.get(node_id)
        if replaced is not None:
            self._stats.clients_replaced += 1
            waiting = self._waiting.setdefault(node_id, [])
            if self._clients[replaced].waits and len(waiting) < WAITING_LIMIT:
                waiting.append(replaced)
                self._stats.clients_set_aside += 1
            else:
                del self._clients[replaced]
        self._clients[client_id] = _Client(node_id, waits=waits)
        self._client_ids[node_id] = client_id
        return replaced

    def is_waiting(self, client_id: int) -> bool:
        """Say whether a client is connected without getting its node's packets."""
        client = self._clients.get(client_id)
        return client is not None and self._client_ids[client.node_id] != client_id

    def disconnect(self, client_id: int) -> Departure:
        """Forget a client, if it is still connected."""
        client = self._clients.pop(client_id, None)
        if client is None:
            return Departure([], None)
        ids = self._client_ids
        waiting = self._waiting.get(client.node_id, [])
        heir = None
        if ids[client.node_id] != client_id:
            waiting.remove(client_id)
            self._stats.clients_back += 1
        elif waiting:
            heir = ids[client.node_id] = waiting.pop()
            self._stats.clients_back += 1
        else:
            del ids[client.node_id]
            self._waiting.pop(client.node_id, None)
            told = [ids[node_id] for node_id in client.destinations if node_id in ids]
            return Departure(told, None)
        successor = self._clients[ids[client.node_id]]
        for destination in client.destinations:
            if destination not in successor.destinations:
                _remember(successor.destinations, destination)
        return Departure([], heir)

    def route(
        self, client_id: int, groups: Mapping[bytes, PacketParts]
    ) -> list[tuple[int, PacketParts]]:
        """Say who gets the packets that a client sent, given by destination.

        Packets for nobody are dropped and counted, as are packets from a client that is not
        connected.

        :returns: each client that gets some, with its packets.
        """
        sender = self._clients.get(client_id)
        client_ids = {} if sender is None else self._client_ids
        destinations = {} if sender is None else sender.destinations
        deliveries: list[tuple[int, PacketParts]] = []
        routed = unrouted = routed_bytes = unrouted_bytes = 0
        for destination, parts in groups.items():
            if destination in client_ids:
                deliveries.append((client_ids[destination], parts))
                routed += len(parts)
                routed_bytes += sum(map(len, parts[1::2]))
                if destination not in destinations:
                    _remember(destinations, destination)
            else:
                unrouted += len(parts)
                unrouted_bytes += sum(map(len, parts[1::2]))
        # Parts are a header and a payload for each packet.
        self._stats.packets_routed += routed // 2
        self._stats.packets_without_route += unrouted // 2
        self._stats.bytes_routed += routed_bytes
        self._stats.bytes_without_route += unrouted_bytes
        return deliveries


def _remember(destinations: dict[bytes, None], destination: bytes) -> None:
    if len(destinations) >= DESTINATIONS_LIMIT:
        del destinations[next(iter(destinations))]
    destinations[destination] = None
