"""The frames of Tailscale's DERP whose bodies differ from iroh's: keys in them are X25519.

Everything else of :mod:`iroh_proto.derp.frames` has the same body there, if another number.

Source: Tailscale ``derp/derp.go``, ``derp/derpserver/derpserver.go``, ``derp/derp_client.go``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from struct import Struct
from typing import Self

from iroh_proto.address import UdpAddress
from iroh_proto.derp.frames import Frame
from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE
from iroh_proto.x25519 import X25519PublicKey

MAGIC = "DERP🔑".encode()
SHORTEST_SERVER_KEY = len(MAGIC) + KEY_SIZE

GONE_DISCONNECTED = 0
"""The reason of a PeerGone for a peer that was there."""

GONE_NOT_HERE = 1
"""The reason of a PeerGone that answers a packet for a peer that is not there."""

PRESENT_REGULAR = 1
"""The flag of a peer with none of the others."""

PRESENT_MESH_PEER = 2
"""The flag of a peer that is a server of the mesh."""

PRESENT_PROBER = 4
"""The flag of a peer that only measures."""

_PRESENT_TAIL = Struct(">16sHB")
_NO_IP = bytes(16)
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


@dataclass(slots=True)
class ServerKey(Frame):
    """Server to client, first. Body: ``"DERP🔑" (8) || server's key (32)``, and room for more."""

    key: X25519PublicKey

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return MAGIC + self.key

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header; those past the key are ignored.

        :raises DecodeError: if the magic is missing.
        """
        if not body.startswith(MAGIC):
            raise DecodeError("a ServerKey frame without DERP's magic")
        return cls(X25519PublicKey(body[len(MAGIC) : SHORTEST_SERVER_KEY]))


@dataclass(slots=True)
class ClientInfo(Frame):
    """Client to server: who the client is. Body: ``client's key (32) || sealed JSON``."""

    key: X25519PublicKey
    sealed: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.key + self.sealed

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(*_keyed(body))


@dataclass(slots=True)
class ServerInfo(Frame):
    """Server to client: the client is in. Body: ``sealed JSON``."""

    sealed: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.sealed

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(body)


@dataclass(slots=True)
class CurveSendPacket(Frame):
    """Client to server: a datagram for ``dst``. Body: ``dst (32) || datagram``."""

    dst: X25519PublicKey
    payload: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.dst + self.payload

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(*_keyed(body))


@dataclass(slots=True)
class CurveRecvPacket(Frame):
    """Server to client: a datagram from ``src``. Body: ``src (32) || datagram``."""

    src: X25519PublicKey
    payload: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.src + self.payload

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(*_keyed(body))


@dataclass(slots=True)
class CurvePeerGone(Frame):
    """Server to client: ``key`` is not, or no longer, connected. Body: ``key (32) || reason (1)``.

    Old servers leave the reason out, which then is :data:`GONE_DISCONNECTED`.
    """

    key: X25519PublicKey
    reason: int = GONE_DISCONNECTED

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.key + bytes((self.reason,))

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        key, rest = _keyed(body)
        return cls(key, rest[0] if rest else GONE_DISCONNECTED)


@dataclass(slots=True)
class CurvePeerPresent(Frame):
    """Server to mesh member: ``key`` connected.

    Body: ``key (32) || IP address (16, IPv4 as IPv4-mapped IPv6) || port (u16be) || flags (1)``.
    Older servers end it after the key, or before the flags.
    """

    key: X25519PublicKey
    addr: UdpAddress | None = None
    flags: int = 0

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        if self.addr is None:
            return self.key + _PRESENT_TAIL.pack(_NO_IP, 0, self.flags)
        packed = self.addr.packed_ip
        if len(packed) != len(_NO_IP):
            packed = _MAPPED_PREFIX + packed
        return self.key + _PRESENT_TAIL.pack(packed, self.addr.port, self.flags)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        key, rest = _keyed(body)
        if len(rest) < _PRESENT_TAIL.size - 1:
            return cls(key)
        packed, port, flags = _PRESENT_TAIL.unpack((rest + b"\0")[: _PRESENT_TAIL.size])
        if packed == _NO_IP:
            return cls(key, None, flags)
        return cls(key, UdpAddress.of(ipaddress.IPv6Address(packed), port), flags)


@dataclass(slots=True)
class CurveClosePeer(Frame):
    """Mesh member to server: close all connections of ``key``. Body: ``key (32)``."""

    key: X25519PublicKey

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return bytes(self.key)

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        return cls(X25519PublicKey(body))


@dataclass(slots=True)
class CurveForwardPacket(Frame):
    """Mesh member to server: a datagram of another server's client.

    Body: ``src (32) || dst (32) || datagram``.
    """

    src: X25519PublicKey
    dst: X25519PublicKey
    payload: bytes

    def encode_body(self) -> bytes:
        """Return the bytes behind the header."""
        return self.src + self.dst + self.payload

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Read the bytes behind the header."""
        src, rest = _keyed(body)
        return cls(src, *_keyed(rest))


def _keyed(body: bytes) -> tuple[X25519PublicKey, bytes]:
    return X25519PublicKey(body[:KEY_SIZE]), body[KEY_SIZE:]
