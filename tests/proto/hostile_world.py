"""A simulated internet where somebody hears every datagram, and sends what it likes as anybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from iroh_proto.address import UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.disco.message import Ping, is_disco, seal_envelope
from iroh_proto.testing.links import Packet
from iroh_proto.testing.topology import Attachment
from tests.proto.endpoint_world import EndpointWorld, Node

MALLORY = UdpAddress("192.0.2.66", 6666)
"""Where nobody is but whoever the test makes be there."""


class Overheard(NamedTuple):
    """A datagram on the wire."""

    time: float
    source: UdpAddress
    destination: UdpAddress
    data: bytes

    @property
    def is_disco(self) -> bool:
        return is_disco(self.data)

    @property
    def is_quic(self) -> bool:
        return bool(self.data) and self.data[0] & 0x40 != 0 and not self.is_disco

    @property
    def is_established_quic(self) -> bool:
        """Whether it has a short header, as packets after the handshake have."""
        return self.is_quic and not self.data[0] & 0x80


class HostileWorld(EndpointWorld):
    """The internet, tapped.

    ``wire`` holds every UDP datagram sent; ``is_lost`` says which never arrive, and
    ``on_datagram`` is called with each before it travels.
    """

    def __init__(self, *, derp: bool = False, seed: int = 1) -> None:
        super().__init__(derp=derp, seed=seed)
        self.wire: list[Overheard] = []
        self.is_lost: Callable[[Overheard], bool] = lambda one: False
        self.on_datagram: Callable[[Overheard], None] = lambda one: None
        self._deliver = self.network.internet.send
        self.network.internet.send = self._overhear  # type: ignore[method-assign]

    @property
    def now(self) -> float:
        return self.network.now

    def sent_to(self, destination: UdpAddress, *, since: float = 0.0) -> list[Overheard]:
        """Return the datagrams that anybody sent to an address."""
        return [one for one in self.wire if one.destination == destination and one.time >= since]

    def sent_by(self, node: Node) -> list[Overheard]:
        """Return the datagrams that a node sent."""
        return [one for one in self.wire if one.source == node.udp]

    def talk(self, sender: Node, connection: int, receiver: Node, size: int = 50_000) -> bool:
        """Send bytes on a new stream, and say whether they arrived whole."""
        data = sender.program.clock.now.hex().encode() * (size // 16)
        stream_id = sender.send(connection, data)
        before = set(receiver.ended)
        self.network.run_until(
            lambda: any(key[1] == stream_id for key in receiver.ended - before), limit=20
        )
        (key,) = (key for key in receiver.ended - before if key[1] == stream_id)
        return bytes(receiver.received[key]) == data

    def _overhear(self, packet: Packet, sender: Attachment) -> None:
        kept = []
        for data in packet.datagrams:
            one = Overheard(self.now, packet.source, packet.destination, data)
            self.wire.append(one)
            self.on_datagram(one)
            if not self.is_lost(one):
                kept.append(data)
        if kept:
            self._deliver(Packet(packet.source, packet.destination, kept, packet.origin), sender)


def arrive(node: Node, source: UdpAddress, *datagrams: bytes) -> None:
    """Have datagrams arrive at a node from any address."""
    node.program.receive_datagrams(list(datagrams), source)


def sealed_ping(sender: Node, receiver: Node, number: int = 0) -> bytes:
    """Return a ping that ``sender`` once sealed for ``receiver``."""
    return seal_envelope(
        Ping(number.to_bytes(12, "big"), sender.id).encode(),
        sender=sender.id,
        box=SharedBox(sender.key, receiver.id),
        nonce=number.to_bytes(24, "big"),
    )
