"""What the router of a DERP server has to say, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.frames import PacketParts
from iroh_proto.key import NodeId
from iroh_proto.x25519 import X25519PublicKey


@dataclass(slots=True)
class RouterStats:
    """Counts since the start.

    :ivar packets_routed: packets that were for a connected client.
    :ivar packets_without_route: packets dropped because their destination is not connected.
    :ivar packets_without_name: packets dropped because their destination has the other kind of key,
        and it is not known which key of that kind their source has.
    :ivar packets_without_datagram: packets dropped because nothing in them is a datagram that the
        dialects of their destination carry, or others of the same call had more than enough.
    :ivar packets_forwarded: packets that were for a client of another server of the mesh.
    :ivar bytes_routed: payload of the packets routed.
    :ivar bytes_without_route: payload of the packets dropped.
    :ivar clients_replaced: clients that gave way to a newer connection with the same key.
    :ivar clients_set_aside: those of them that stayed connected.
    :ivar clients_back: those of them that are not set aside any more.
    """

    packets_routed: int = 0
    packets_without_route: int = 0
    packets_without_name: int = 0
    packets_without_datagram: int = 0
    packets_forwarded: int = 0
    bytes_routed: int = 0
    bytes_without_route: int = 0
    clients_replaced: int = 0
    clients_set_aside: int = 0
    clients_back: int = 0


class Departure(NamedTuple):
    """What follows from a client's end.

    :ivar told: the clients to be told that its node is gone, each with the key by which it knows
        it: those it had sent packets to. None as long as its node is reachable otherwise.
    :ivar heir: the client that gets the node's packets from now on, if it had to wait so far.
    """

    told: list[tuple[int, ClientKey]]
    heir: int | None


class Presence(NamedTuple):
    """That a client came, or that the last one of its key left.

    :ivar node_id: by which servers of iroh know it, if there is one.
    :ivar curve_key: by which servers of Tailscale know it, if there is one.
    """

    node_id: NodeId | None
    curve_key: X25519PublicKey | None
    is_present: bool
    flags: int


class Forward(NamedTuple):
    """Packets of one source for a client of another server, which has both keys' kind."""

    link: int
    source: ClientKey
    destination: ClientKey
    parts: PacketParts
