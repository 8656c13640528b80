"""What disco datagrams say, for whoever has one of the two keys.

Both ends of a box have the same key, so a node's secret key opens what it received and what it
sent. An opened datagram is an object, whose ``message`` is the hexadecimal plaintext::

    {"from": node, "to": node, "message": "0100…", "nonce": "5e0f…"}

The nonce tells it from all others, here and in the time line of the node at the other end. One
that does not open is ``{"from": node, "sealed": bytes of it}``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, assert_never

from iroh_proto.box import BOX_NONCE_SIZE, SharedBox
from iroh_proto.disco.message import (
    DISCO_MAGIC,
    CallMeMaybe,
    Ping,
    Pong,
    decode_disco_message,
    is_disco,
    open_envelope,
    seal_envelope,
)
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.stun.message import decode_binding_request, decode_binding_response, is_stun
from iroh_proto.trace.values import Json, quoted

KEY_SIZE: Final = 8
"""Bytes of a nonce that tell one sealed message from another."""

SEALED_LIMIT: Final = 65_535
"""Bytes of what is inside a datagram, which UDP says in 16 bits."""

BOXES_LIMIT: Final = 1_024
"""Pairs of nodes whose box is kept: as many as a node knows peers."""

_LENGTH_SIZE: Final = 2  # bytes before each datagram in a packet of a DERP server, little-endian


class DiscoReader:
    """Opens disco datagrams, and says in words what datagrams are.

    :param secret_keys: of nodes whose messages are to be opened; more by :meth:`add_key`.
    """

    def __init__(self, secret_keys: Iterable[SecretKey] = ()) -> None:
        self._secrets: dict[NodeId, SecretKey] = {}
        self._peers: dict[NodeId, None] = {}
        self._boxes: OrderedDict[tuple[NodeId, NodeId], SharedBox | None] = OrderedDict()
        for secret_key in secret_keys:
            self.add_key(secret_key)

    def add_key(self, secret_key: SecretKey) -> None:
        """Open the messages of one more node."""
        self._secrets[secret_key.public] = secret_key

    def open(self, datagram: bytes) -> Json | None:
        """Return an opened disco datagram, ``None`` if it is none, or a broken one."""
        try:
            sender, sealed = open_envelope(datagram)
        except DecodeError:
            return None
        for own, peer in self._pairs(sender):
            box = self._box(own, peer)
            try:
                message = None if box is None else box.open(sealed)
            except DecodeError:
                continue
            if message is not None:
                return {
                    "from": str(sender),
                    "to": str(peer if own == sender else own),
                    "message": message.hex(),
                    "nonce": sealed[-BOX_NONCE_SIZE:].hex(),
                }
        return {"from": str(sender), "sealed": len(sealed)}

    def seal(self, opened: Json) -> bytes:
        """Return a datagram of which :meth:`open` says the same; one that was sealed stays so.

        :raises DecodeError: if that is no opened datagram of a node whose key is known.
        """
        try:
            sender = NodeId.from_str(str(opened["from"]))
            if "sealed" in opened:
                size = int(str(opened["sealed"]))
                if size > SEALED_LIMIT:
                    raise DecodeError(f"no datagram holds {size} bytes")
                return DISCO_MAGIC + sender + bytes(size)
            receiver = NodeId.from_str(str(opened["to"]))
            message = bytes.fromhex(str(opened["message"]))
            nonce = bytes.fromhex(str(opened["nonce"]))
            own, peer = (receiver, sender) if receiver in self._secrets else (sender, receiver)
            box = SharedBox(self._secrets[own], peer)
            return seal_envelope(message, sender=sender, box=box, nonce=nonce)
        except DecodeError:
            raise
        except (ValueError, LookupError, LocalProtocolError):
            raise DecodeError(f"no disco datagram: {quoted(opened)}") from None

    def note_peer(self, node_id: NodeId) -> None:
        """Learn of a node that messages may be for."""
        self._peers.pop(node_id, None)
        self._peers[node_id] = None
        if len(self._peers) > BOXES_LIMIT:
            del self._peers[next(iter(self._peers))]

    def label(self, datagram: bytes) -> str:
        """Return a few words."""
        if is_disco(datagram):
            opened = self.open(datagram)
            return "broken disco" if opened is None else label_of(opened)
        if is_stun(datagram):
            return _stun(datagram)
        return f"payload of {len(datagram)} bytes"

    def carried(self, data: bytes) -> list[Json]:
        """Return key and label of each disco datagram in a piece of a DERP connection."""
        found: list[Json] = []
        place = data.find(DISCO_MAGIC)
        while place >= 0:
            size = int.from_bytes(data[max(0, place - _LENGTH_SIZE) : place], "little")
            sealed = data[place : place + size]
            key = sealed[-BOX_NONCE_SIZE:][:KEY_SIZE].hex()
            found.append({"key": key, "label": self.label(sealed)})
            place = data.find(DISCO_MAGIC, place + 1)
        return found

    def _pairs(self, sender: NodeId) -> list[tuple[NodeId, NodeId]]:
        """Return whose key may open what a node sent, and the node at the other end."""
        if sender not in self._secrets:
            return [(own, sender) for own in self._secrets]
        others = [node_id for node_id in (*self._secrets, *self._peers) if node_id != sender]
        return [(sender, other) for other in reversed(dict.fromkeys(others))]

    def _box(self, own: NodeId, peer: NodeId) -> SharedBox | None:
        """Return the box of two nodes, ``None`` if one of them can have none."""
        pair = (own, peer)
        if pair in self._boxes:
            self._boxes.move_to_end(pair)
            return self._boxes[pair]
        try:
            box = SharedBox(self._secrets[own], peer)
        except DecodeError:
            box = None
        self._boxes[pair] = box
        if len(self._boxes) > BOXES_LIMIT:
            self._boxes.popitem(last=False)
        return box


def label_of(opened: Json) -> str:
    """Return in a few words what an opened datagram says."""
    try:
        message = decode_disco_message(bytes.fromhex(str(opened["message"])))
    except KeyError:
        return "sealed disco"
    except ValueError:
        return "unknown disco"
    match message:
        case Ping():
            return f"ping {message.tx_id[:2].hex()}"
        case Pong():
            return f"pong {message.tx_id[:2].hex()}, saw {message.observed}"
        case CallMeMaybe():
            return f"call me maybe ({len(message.addresses)} addresses)"
        case _:
            assert_never(message)


def _stun(datagram: bytes) -> str:
    try:
        decode_binding_request(datagram)
    except DecodeError:
        pass
    else:
        return "STUN request"
    try:
        return f"STUN: you are {decode_binding_response(datagram)[1]}"
    except DecodeError:
        return "broken STUN"
