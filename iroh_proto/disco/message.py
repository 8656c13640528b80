"""disco messages and the sealed envelope they travel in.

Envelope, 78 bytes more than the message inside::

    0   6   magic 54 53 f0 9f 92 ac
    6   32  node id of the sender
    38  16  Poly1305 tag
    54  n   encrypted message
    +n  24  nonce

Message: ``type u8, version u8 = 0, payload``. An address is 16 bytes (IPv4 as IPv4-mapped IPv6)
and a little-endian port.

* 1, :class:`Ping`: transaction id (12), node id of the sender (32), ignored bytes;
* 2, :class:`Pong`: transaction id (12), then 0 and an address (18) or 1 and a URL;
* 3, :class:`CallMeMaybe`: addresses (18 each).

Source: iroh v0.12.0 ``iroh-net/src/disco.rs``, v0.35.0 ``iroh-relay/src/protos/disco.rs`` and
``iroh/src/disco.rs``; the form of 0.6 to 0.11 from v0.6.0 ``iroh-net/src/disco.rs``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

from iroh_proto.address import DerpUrl, UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, NodeId

DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"

TRANSACTION_ID_SIZE = 12

# Addresses of one CallMeMaybe that are believed: iroh sends a handful, and each costs a ping.
CALL_ME_MAYBE_ADDRESSES_LIMIT = 64

_HEADER_SIZE = len(DISCO_MAGIC) + KEY_SIZE
_VERSION = 0
_PING, _PONG, _CALL_ME_MAYBE = 1, 2, 3
_ADDRESS_SIZE = 18
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_OBSERVED_UDP, _OBSERVED_DERP = 0, 1


class Ping:
    """Asks for a :class:`Pong` with the same transaction id, over the same path."""

    __slots__ = ("node_id", "tx_id")

    def __init__(self, tx_id: bytes, node_id: NodeId) -> None:
        self.tx_id = tx_id
        self.node_id = node_id

    def encode(self) -> bytes:
        """Return the 46 bytes of the message."""
        return bytes((_PING, _VERSION)) + self.tx_id + self.node_id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ping):
            return NotImplemented
        return self.tx_id == other.tx_id and self.node_id == other.node_id

    def __hash__(self) -> int:
        return hash((_PING, self.tx_id, self.node_id))

    def __repr__(self) -> str:
        return f"Ping({self.tx_id.hex()}, {self.node_id.fmt_short()})"


class Pong:
    """Answers a :class:`Ping`; ``observed`` is where its sender saw the ping come from.

    For a ping that came through a DERP server it is the URL of the answering node's own
    connection.
    """

    __slots__ = ("observed", "tx_id")

    def __init__(self, tx_id: bytes, observed: UdpAddress | DerpUrl) -> None:
        self.tx_id = tx_id
        self.observed = observed

    def encode(self) -> bytes:
        """Return the message in the tagged form.

        Releases 0.6 to 0.11 read the first 30 bytes of the payload and take the address amiss,
        but only the transaction id matters to them.
        """
        head = bytes((_PONG, _VERSION)) + self.tx_id
        if isinstance(self.observed, DerpUrl):
            return head + bytes((_OBSERVED_DERP,)) + self.observed.to_rooted_str().encode()
        return head + bytes((_OBSERVED_UDP,)) + _encode_address(self.observed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pong):
            return NotImplemented
        return self.tx_id == other.tx_id and self.observed == other.observed

    def __hash__(self) -> int:
        return hash((_PONG, self.tx_id, self.observed))

    def __repr__(self) -> str:
        return f"Pong({self.tx_id.hex()}, {self.observed})"


class CallMeMaybe:
    """Says: I have just pinged you everywhere, my firewall is open, ping me at these addresses.

    At most :data:`CALL_ME_MAYBE_ADDRESSES_LIMIT` addresses are kept.
    """

    __slots__ = ("addresses",)

    def __init__(self, addresses: Sequence[UdpAddress]) -> None:
        self.addresses = tuple(addresses[:CALL_ME_MAYBE_ADDRESSES_LIMIT])

    def encode(self) -> bytes:
        """Return the message, 18 bytes for each address."""
        head = bytes((_CALL_ME_MAYBE, _VERSION))
        return head + b"".join(_encode_address(address) for address in self.addresses)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CallMeMaybe):
            return NotImplemented
        return self.addresses == other.addresses

    def __hash__(self) -> int:
        return hash((_CALL_ME_MAYBE, self.addresses))

    def __repr__(self) -> str:
        return f"CallMeMaybe([{', '.join(map(str, self.addresses))}])"


DiscoMessage: TypeAlias = Ping | Pong | CallMeMaybe


def is_disco(data: bytes) -> bool:
    """Say whether a datagram is disco's: it begins with the magic.

    iroh leaves datagrams that are shorter than the header, or name no curve point, to QUIC,
    where they are noise. Here whatever has the magic is disco, and dropped if it is malformed.
    """
    return data.startswith(DISCO_MAGIC)


def seal_envelope(message: bytes, *, sender: NodeId, box: SharedBox, nonce: bytes) -> bytes:
    """Return the datagram that carries an encoded message.

    ``nonce`` is 24 random bytes, never used twice with the same box.
    """
    return DISCO_MAGIC + sender + box.seal(message, nonce)


def open_envelope(datagram: bytes) -> tuple[NodeId, bytes]:
    """Split a datagram into the sender it claims and the sealed part, for :meth:`SharedBox.open`.

    :raises DecodeError: if the datagram is too short, lacks the magic, or names no node id.
    """
    if not datagram.startswith(DISCO_MAGIC):
        raise DecodeError("not a disco datagram: the magic is missing")
    if len(datagram) <= _HEADER_SIZE:
        raise DecodeError(f"a disco datagram of {len(datagram)} bytes has nothing inside")
    return NodeId(datagram[len(DISCO_MAGIC) : _HEADER_SIZE]), datagram[_HEADER_SIZE:]


def decode_disco_message(data: bytes) -> DiscoMessage:
    """Decode what an envelope contained.

    :raises DecodeError: for an unknown type or version, or a payload of the wrong form.
    """
    if len(data) < 2:
        raise DecodeError(f"a disco message has a type and a version, not {len(data)} bytes")
    kind, version = data[0], data[1]
    if version != _VERSION:
        raise DecodeError(f"disco version {version} is unknown")
    payload = data[2:]
    if kind == _PING:
        return _decode_ping(payload)
    if kind == _PONG:
        return _decode_pong(payload)
    if kind == _CALL_ME_MAYBE:
        return _decode_call_me_maybe(payload)
    raise DecodeError(f"disco message type {kind} is unknown")


def _decode_ping(payload: bytes) -> Ping:
    end = TRANSACTION_ID_SIZE + KEY_SIZE
    if len(payload) < end:
        raise DecodeError(f"a ping has {end} bytes, not {len(payload)}")
    return Ping(payload[:TRANSACTION_ID_SIZE], NodeId(payload[TRANSACTION_ID_SIZE:end]))


def _decode_pong(payload: bytes) -> Pong:
    tx_id, observed = payload[:TRANSACTION_ID_SIZE], payload[TRANSACTION_ID_SIZE:]
    if len(observed) < 3:
        raise DecodeError(f"a pong of {len(payload)} bytes names no address")
    tag, rest = observed[0], observed[1:]
    if len(observed) == _ADDRESS_SIZE:
        return Pong(tx_id, _decode_untagged(observed))
    if tag == _OBSERVED_UDP:
        if len(rest) != _ADDRESS_SIZE:
            raise DecodeError(f"an address in a pong is {_ADDRESS_SIZE} bytes, not {len(rest)}")
        return Pong(tx_id, _decode_address(rest))
    if tag == _OBSERVED_DERP:
        return Pong(tx_id, _decode_url(rest))
    raise DecodeError(f"a pong names an address of unknown kind {tag}")


def _decode_call_me_maybe(payload: bytes) -> CallMeMaybe:
    if len(payload) % _ADDRESS_SIZE:
        raise DecodeError(f"{len(payload)} bytes are no whole number of addresses")
    end = min(len(payload), CALL_ME_MAYBE_ADDRESSES_LIMIT * _ADDRESS_SIZE)
    return CallMeMaybe(
        [
            _decode_address(payload[start : start + _ADDRESS_SIZE])
            for start in range(0, end, _ADDRESS_SIZE)
        ]
    )


def _decode_untagged(observed: bytes) -> UdpAddress | DerpUrl:
    """Decode the form of 0.6 to 0.11, an address without tag.

    A tagged URL of 17 bytes is as long. It begins with 1, which no IPv4 address and no routable
    IPv6 address does.
    """
    if observed[0] == _OBSERVED_DERP:
        with suppress(DecodeError):
            return _decode_url(observed[1:])
    return _decode_address(observed)


def _decode_url(data: bytes) -> DerpUrl:
    try:
        return DerpUrl.from_str(data.decode())
    except UnicodeDecodeError:
        raise DecodeError("the URL in a pong is not UTF-8") from None


def _decode_address(data: bytes) -> UdpAddress:
    ip = ipaddress.IPv6Address(data[:16])
    return UdpAddress(str(ip.ipv4_mapped or ip), int.from_bytes(data[16:18], "little"))


def _encode_address(address: UdpAddress) -> bytes:
    packed = address.packed_ip
    if len(packed) == 4:
        packed = _MAPPED_PREFIX + packed
    return packed + address.port.to_bytes(2, "little")
