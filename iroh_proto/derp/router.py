"""Where a packet goes: the routing of a DERP server.

Clients are named by a number of the host's choice and by the key that they have proven to hold.
The router owns no connection, no queue and no time: it says which client gets which packets, and
its owner (:class:`iroh_proto.derp.relay.DerpServer`) hands them over.

All dialects meet here: packets come as :data:`~iroh_proto.derp.frames.PacketParts` from whichever
codec read them, to be written by whichever codec the destination has. Clients of iroh are nodes;
those of Tailscale's dialect are known by X25519 keys and have packets of one bare datagram each.
Between the two kinds packets are converted, and keys:

* a node has one X25519 key, which is found by computing it;
* of an X25519 key the node is known if it is connected by another dialect as well, or if the client
  sent a disco message, which says whose it is. Until then nothing passes from it to clients of
  iroh.

What is for nobody here goes to the server of the mesh that has its destination.

Source: iroh v0.12.0 ``iroh-net/src/derp/{server,clients}.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server/clients.rs``; Tailscale ``derp/derpserver/derpserver.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from iroh_proto.derp.curve_frames import PRESENT_MESH_PEER, PRESENT_REGULAR
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.frames import PAYLOAD_AT, PacketParts, PacketRun
from iroh_proto.derp.node_names import claimed_node, looks_like_disco
from iroh_proto.derp.region import Region, alias_of
from iroh_proto.derp.router_reports import Departure, Forward, Presence, RouterStats
from iroh_proto.derp.segments import CONVERTED_LIMIT, bare_parts, single_parts
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId
from iroh_proto.x25519 import X25519PublicKey, x25519_of

DESTINATIONS_LIMIT = 4_096
"""Nodes that are remembered as destinations of one client, to be told when it leaves. The oldest
is forgotten first: nobody may depend on being told."""

WAITING_LIMIT = 8
"""Clients of one node that stay connected after they gave way. Further ones do not."""

REMOTE_SENDERS_LIMIT = 65_536
"""Clients of other servers whose destinations here are remembered; past it the first goes."""

LOOKUPS_LIMIT = 16
"""Destinations whose X25519 key is computed for one call. It costs more than all else that is done
for a packet, so a client that sends to ever new nobodies must not cause it for each."""

FAREWELL_LOOKUPS_LIMIT = 256
"""As before, when a client leaves and its destinations are told."""


class _Sender:
    """Whose packets are routed: a client, here or at another server."""

    __slots__ = ("destinations", "is_curve", "key", "node_id")

    def __init__(self, key: ClientKey) -> None:
        self.key = key
        self.is_curve = isinstance(key, X25519PublicKey)
        self.node_id = None if isinstance(key, X25519PublicKey) else key
        self.destinations: dict[bytes, None] = {}


class _Client(_Sender):
    __slots__ = ("flags", "waits")

    def __init__(self, key: ClientKey, *, waits: bool, flags: int) -> None:
        super().__init__(key)
        self.waits = waits
        self.flags = flags


class DerpRouter:
    """Who is connected, and who gets what.

    :ivar is_watched: whether comings and goings are to be told, by :meth:`take_presences`.
    :ivar has_more: whether there is something to take besides deliveries.
    """

    def __init__(self) -> None:
        self._clients: dict[int, _Client] = {}
        # Who gets what is for a key, by kind of key: those of nodes, X25519 keys.
        self._client_ids: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        # The connected nodes by their X25519 keys.
        self._aliases: dict[bytes, NodeId] = {}
        # Who gave way and is still connected, by node, the latest last.
        self._waiting: tuple[dict[bytes, list[int]], dict[bytes, list[int]]] = ({}, {})
        self._region = Region()
        self._remotes: dict[ClientKey, _Sender] = {}
        self._lookups = 0
        self._bare_room = 0
        self._presences: list[Presence] = []
        self._forwards: list[Forward] = []
        self._missing: list[X25519PublicKey] = []
        self._stats = RouterStats()
        self.is_watched = False
        self.has_more = False

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def stats(self) -> RouterStats:
        """A copy of the counts."""
        return replace(self._stats)

    @property
    def node_ids(self) -> list[ClientKey]:
        """The nodes that are connected, without the servers of the mesh."""
        return [
            client.key
            for number, client in self._clients.items()
            if client.flags != PRESENT_MESH_PEER and self._is_active(number)
        ]

    # Clients

    def connect(
        self,
        client_id: int,
        node_id: ClientKey,
        *,
        waits: bool = False,
        flags: int = PRESENT_REGULAR,
    ) -> int | None:
        """Take a client that has proven to be ``node_id``.

        A client with the same node id gives way to it: it gets no more packets. Nobody is told that
        it is gone, since its node is not.

        :param waits: whether the client, should it ever give way, stays connected until its node's
            newer clients are gone, and may send meanwhile. One that does not is forgotten.
        :param flags: what servers of the mesh are told of it.
        :returns: the client that gave way. Unless it :meth:`is_waiting` now, its connection is to
            be closed.
        :raises LocalProtocolError: if the client is connected already.
        """
        if client_id in self._clients:
            raise LocalProtocolError(f"client {client_id} is connected already")
        client = _Client(node_id, waits=waits, flags=flags)
        ids = self._client_ids[client.is_curve]
        replaced = ids.get(node_id)
        if replaced is not None:
            self._give_way(replaced)
        self._clients[client_id] = client
        ids[node_id] = client_id
        if client.node_id is not None and (alias := alias_of(client.node_id)) is not None:
            self._aliases[alias] = client.node_id
        self._note_presence(client, is_present=True)
        return replaced

    def set_aside(self, key: ClientKey) -> int | None:
        """Have the client of a key give way to a newer one that is at another server.

        :returns: the client that gave way, if there was one, as :meth:`connect` does.
        """
        is_curve = isinstance(key, X25519PublicKey)
        client_id = self._client_ids[is_curve].pop(key, None)
        if client_id is None:
            return None
        client = self._clients[client_id]
        self._give_way(client_id)
        if not self._waiting[is_curve].get(key):
            self._forget_key(client)
        self._note_presence(client, is_present=False)
        return client_id

    def reinstate(self, key: ClientKey) -> int | None:
        """Have the latest client that waits for its node's place get it, if it is free.

        :returns: that client.
        """
        is_curve = isinstance(key, X25519PublicKey)
        waiting = self._waiting[is_curve].get(key)
        if not waiting or key in self._client_ids[is_curve]:
            return None
        heir = self._client_ids[is_curve][key] = waiting.pop()
        self._stats.clients_back += 1
        self._note_presence(self._clients[heir], is_present=True)
        return heir

    def is_waiting(self, client_id: int) -> bool:
        """Say whether a client is connected without getting its node's packets."""
        return client_id in self._clients and not self._is_active(client_id)

    def clients_of(self, key: ClientKey) -> list[int]:
        """Return the clients with a key, or with the key of the other kind that is its own."""
        self._lookups = LOOKUPS_LIMIT
        found = self._find(key, is_curve=isinstance(key, X25519PublicKey))
        if found is None:
            return []
        client = self._clients[found]
        return [found, *self._waiting[client.is_curve].get(client.key, [])]

    def disconnect(self, client_id: int) -> Departure:
        """Forget a client, if it is still connected."""
        client = self._clients.pop(client_id, None)
        if client is None:
            return Departure([], None)
        ids = self._client_ids[client.is_curve]
        waiting = self._waiting[client.is_curve].get(client.key, [])
        heir = None
        if ids.get(client.key) != client_id:
            waiting.remove(client_id)
            self._stats.clients_back += 1
            if client.key not in ids and not waiting:
                self._forget_key(client)
                return Departure([], None)
        elif waiting:
            heir = ids[client.key] = waiting.pop()
            self._stats.clients_back += 1
        else:
            del ids[client.key]
            self._forget_key(client)
            self._lookups = 1
            if self._find_other_kind(client.key, is_curve=client.is_curve) is not None:
                return Departure([], None)  # its node is still here, by its other key
            self._note_presence(client, is_present=False)
            return Departure([] if client.key in self._region else self._told(client), None)
        successor = self._clients[ids[client.key] if client.key in ids else waiting[-1]]
        for destination in client.destinations:
            if destination not in successor.destinations:
                _remember(successor.destinations, destination)
        return Departure([], heir)

    # Packets

    def route(
        self, client_id: int, groups: Mapping[bytes, PacketParts]
    ) -> list[tuple[int, PacketParts]]:
        """Say who gets the packets that a client sent, given by destination.

        Packets for nobody are dropped and counted, as are packets from a client that is not
        connected. Look at :meth:`take_forwards` and :meth:`take_missing` afterwards.

        :returns: each client that gets some, with its packets.
        """
        sender = self._clients.get(client_id)
        if sender is None:
            self._count_lost(groups)
            return []
        if sender.is_curve and self._gave_way_here(client_id, sender):
            self._take_over(client_id, sender)
        client_ids, destinations = self._client_ids[sender.is_curve], sender.destinations
        deliveries: list[tuple[int, PacketParts]] = []
        stats = self._stats
        self._lookups, self._bare_room = LOOKUPS_LIMIT, CONVERTED_LIMIT
        for destination, parts in groups.items():
            target = client_ids.get(destination)
            if target is None:
                found = self._route_elsewhere(sender, destination, parts)
                if found is None:
                    continue
                target, parts = found  # as the receiver has them
            deliveries.append((target, parts))
            # Parts are a header and a payload for each packet.
            stats.packets_routed += len(parts) // 2
            stats.bytes_routed += sum(map(len, parts[1::2]))
            if destination not in destinations:
                _remember(destinations, destination)
        return deliveries

    def route_run(self, client_id: int, run: PacketRun) -> int | None:
        """Say who gets packets that a client sent, if that is another one with its kind of key.

        :returns: the client that gets them, or ``None``, and then nothing is done: :meth:`route`
            knows where else they may go.
        """
        sender = self._clients.get(client_id)
        if sender is None or (sender.is_curve and self._gave_way_here(client_id, sender)):
            return None
        destination, data, count = run
        if destination == sender.key:
            return None  # its own connection knows better
        target = self._client_ids[sender.is_curve].get(destination)
        if target is not None:
            self._stats.packets_routed += count
            self._stats.bytes_routed += len(data) - PAYLOAD_AT * count
            if destination not in sender.destinations:
                _remember(sender.destinations, destination)
        return target

    def route_forwarded(
        self, source: ClientKey, destination: ClientKey, parts: PacketParts
    ) -> list[tuple[int, PacketParts]]:
        """Say who gets packets of another server's client. They are never forwarded again.

        :returns: as :meth:`route`.
        """
        sender = self._remotes.get(source) or _Sender(source)
        self._lookups, self._bare_room = LOOKUPS_LIMIT, CONVERTED_LIMIT
        target = self._find(destination, is_curve=sender.is_curve)
        if target is None:
            self._count_lost({destination: parts})
            self._note_missing(sender, destination, parts)
            return []
        known = self._translate(sender, parts, to_curve=self._clients[target].is_curve)
        if known is None:
            return []
        _remember(sender.destinations, destination)
        if source in self._region and source not in self._remotes:
            if len(self._remotes) >= REMOTE_SENDERS_LIMIT:
                del self._remotes[next(iter(self._remotes))]
            self._remotes[source] = sender
        self._stats.packets_routed += len(known[1]) // 2
        self._stats.bytes_routed += sum(map(len, known[1][1::2]))
        return [(target, known[1])]

    def take_forwards(self) -> list[Forward]:
        """Return what goes to other servers of the mesh, and forget it."""
        forwards, self._forwards = self._forwards, []
        self.has_more = bool(self._missing or self._presences)
        return forwards

    def take_missing(self) -> list[X25519PublicKey]:
        """Return to whom a disco message was sent in vain, in Tailscale's dialect; forget it."""
        missing, self._missing = self._missing, []
        self.has_more = bool(self._forwards or self._presences)
        return missing

    # The mesh

    def take_presences(self) -> list[Presence]:
        """Return who came and went since, for those who watch, and forget it."""
        presences, self._presences = self._presences, []
        self.has_more = bool(self._missing or self._forwards)
        return presences

    def presences(self) -> list[Presence]:
        """Return who is there."""
        return [
            self._presence(client, is_present=True)
            for client_id, client in self._clients.items()
            if self._is_active(client_id)
        ]

    def add_remote(self, link: int, key: ClientKey) -> None:
        """Take that a client is connected to another server."""
        self._region.add(link, key)

    def remove_remote(self, link: int, key: ClientKey) -> list[tuple[int, ClientKey]]:
        """Take that a client left another server; return who is to be told that it is gone.

        :returns: as :attr:`Departure.told`.
        """
        return self._forget_remote(key) if self._region.remove(link, key) else []

    def remove_link(self, link: int) -> list[tuple[int, ClientKey]]:
        """Take that another server is out of reach; return who is to be told who is gone."""
        gone = self._region.remove_link(link)
        return [told for key in gone for told in self._forget_remote(key)]

    # Within

    def _is_active(self, client_id: int) -> bool:
        client = self._clients[client_id]
        return self._client_ids[client.is_curve].get(client.key) == client_id

    def _gave_way_here(self, client_id: int, client: _Client) -> bool:
        """Say whether another client here has the place of this one."""
        return self._client_ids[client.is_curve].get(client.key, client_id) != client_id

    def _give_way(self, client_id: int) -> None:
        """Have a client wait for its place to be free again, or forget it."""
        self._stats.clients_replaced += 1
        client = self._clients[client_id]
        waiting = self._waiting[client.is_curve].setdefault(client.key, [])
        if client.waits and len(waiting) < WAITING_LIMIT:
            waiting.append(client_id)
            self._stats.clients_set_aside += 1
        else:
            del self._clients[client_id]

    def _forget_key(self, client: _Client) -> None:
        """Forget what is known of a key of which no client is left."""
        self._waiting[client.is_curve].pop(client.key, None)
        if (alias := alias_of(client.key)) is not None:
            self._aliases.pop(alias, None)

    def _take_over(self, client_id: int, client: _Client) -> None:
        """Of the clients with an X25519 key have the one that sends get what is sent to it."""
        ids, waiting = self._client_ids[True], self._waiting[True][client.key]
        waiting[waiting.index(client_id)] = ids[client.key]
        ids[client.key] = client_id

    def _route_elsewhere(
        self, sender: _Sender, destination: bytes, parts: PacketParts
    ) -> tuple[int, PacketParts] | None:
        """Find a client with the other kind of key, or another server, for what has no other way.

        Packets for another server are put aside.
        """
        target = self._find_other_kind(destination, is_curve=sender.is_curve)
        if target is not None:
            known = self._translate(sender, parts, to_curve=not sender.is_curve)
            return None if known is None else (target, known[1])
        forward = self._find_forward(sender, destination, parts)
        if forward is not None:
            self._forwards.append(forward)
            self.has_more = True
            self._stats.packets_forwarded += len(forward.parts) // 2
            return None
        self._count_lost({destination: parts})
        self._note_missing(sender, destination, parts)
        return None

    def _find(self, destination: bytes, *, is_curve: bool) -> int | None:
        target = self._client_ids[is_curve].get(destination)
        if target is None:
            target = self._find_other_kind(destination, is_curve=is_curve)
        return target

    def _find_other_kind(self, destination: bytes, *, is_curve: bool) -> int | None:
        """Return the client whose key is the other one of who is sent to."""
        if is_curve:
            node_id = self._aliases.get(destination)
            return None if node_id is None else self._client_ids[False].get(node_id)
        curve_ids = self._client_ids[True]
        key = self._lookup(destination) if curve_ids else None
        return None if key is None else curve_ids.get(key)

    def _lookup(self, destination: bytes) -> X25519PublicKey | None:
        if self._lookups <= 0:
            return None
        self._lookups -= 1
        try:
            return x25519_of(bytes(destination))
        except DecodeError:
            return None

    def _find_forward(
        self, sender: _Sender, destination: bytes, parts: PacketParts
    ) -> Forward | None:
        region = self._region
        if not region:
            return None
        to_curve = sender.is_curve
        key: ClientKey | None = None
        link = region.link_to(destination, is_curve=to_curve)
        if link is not None:
            key = X25519PublicKey(destination) if to_curve else NodeId(destination)
        else:
            key = region.node_of(destination) if to_curve else self._lookup(destination)
            to_curve = not to_curve
            link = None if key is None else region.link_to(key, is_curve=to_curve)
        if key is None or link is None:
            return None
        known = self._translate(sender, parts, to_curve=to_curve)
        return None if known is None else Forward(link, known[0], key, known[1])

    def _translate(
        self, sender: _Sender, parts: PacketParts, *, to_curve: bool
    ) -> tuple[ClientKey, PacketParts] | None:
        """Return packets as the other side has them, and by which key it knows their source."""
        if sender.is_curve == to_curve:
            return sender.key, parts
        key = alias_of(sender.key) if to_curve else self._node_of(sender, parts)
        if key is None:
            self._stats.packets_without_name += len(parts) // 2
            return None
        if to_curve:
            translated = bare_parts(parts, key, limit=self._bare_room)
            self._bare_room -= len(translated) // 2
        else:
            translated = single_parts(parts, key)
        if not translated:
            self._stats.packets_without_datagram += len(parts) // 2
            return None
        return key, translated

    def _node_of(self, sender: _Sender, parts: PacketParts) -> NodeId | None:
        """Return the node that a client with an X25519 key is, as far as that can be known."""
        if sender.node_id is not None or not isinstance(sender.key, X25519PublicKey):
            return sender.node_id
        node_id = self._aliases.get(sender.key) or self._region.node_of(sender.key)
        if node_id is None:
            disco = next((data for data in parts[1::2] if looks_like_disco(data)), b"")
            node_id = claimed_node(sender.key, disco)
        sender.node_id = node_id
        if node_id is not None and isinstance(sender, _Client):
            self._note_presence(sender, is_present=True)
        return node_id

    def _told(self, sender: _Sender) -> list[tuple[int, ClientKey]]:
        self._lookups = FAREWELL_LOOKUPS_LIMIT
        told: list[tuple[int, ClientKey]] = []
        for destination in sender.destinations:
            target = self._find(destination, is_curve=sender.is_curve)
            if target is None:
                continue
            to_curve = self._clients[target].is_curve
            key = sender.key if to_curve == sender.is_curve else sender.node_id
            if to_curve and not sender.is_curve:
                key = alias_of(sender.key)
            if key is not None:
                told.append((target, key))
        return told

    def _forget_remote(self, key: ClientKey) -> list[tuple[int, ClientKey]]:
        sender = self._remotes.pop(key, None)
        if sender is None or key in self._client_ids[sender.is_curve]:
            return []
        # Who waits here is about to have its place again.
        return [] if self._waiting[sender.is_curve].get(key) else self._told(sender)

    def _note_missing(self, sender: _Sender, destination: bytes, parts: PacketParts) -> None:
        if sender.is_curve and any(map(looks_like_disco, parts[1::2])):
            self._missing.append(X25519PublicKey(destination))
            self.has_more = True

    def _count_lost(self, groups: Mapping[bytes, PacketParts]) -> None:
        for parts in groups.values():
            self._stats.packets_without_route += len(parts) // 2
            self._stats.bytes_without_route += sum(map(len, parts[1::2]))

    def _note_presence(self, client: _Client, *, is_present: bool) -> None:
        if self.is_watched:
            self._presences.append(self._presence(client, is_present=is_present))
            self.has_more = True

    def _presence(self, client: _Client, *, is_present: bool) -> Presence:
        curve_key = client.key if isinstance(client.key, X25519PublicKey) else alias_of(client.key)
        return Presence(client.node_id, curve_key, is_present, client.flags)


def _remember(destinations: dict[bytes, None], destination: bytes) -> None:
    if destination in destinations:
        return
    if len(destinations) >= DESTINATIONS_LIMIT:
        del destinations[next(iter(destinations))]
    destinations[destination] = None
