"""STUN messages: the Binding method over UDP, and no more (RFC 8489).

A message is a 20-byte header and attributes, all integers big-endian::

    type u16 | length u16 | magic cookie 21 12 a4 42 | transaction id (12)
    attribute: type u16 | length u16 | value | 0 to 3 bytes of padding to a multiple of 4

The header's length counts what follows the header and is a multiple of 4; an attribute's length
leaves its padding out. Padding is written as zeros and ignored when read, but checksums cover it.

Requests carry FINGERPRINT as their last attribute: relays ignore those without. Responses of
iroh's relays carry one XOR-MAPPED-ADDRESS and nothing else.

Source: RFC 8489 sections 5 and 14; iroh v0.35.0 ``iroh-relay/src/protos/stun.rs``; Tailscale
v1.102.3 ``net/stun/stun.go``.
"""

from __future__ import annotations

import hmac
import ipaddress
import struct
import zlib
from collections.abc import Sequence
from typing import TypeAlias

from iroh_proto.address import UdpAddress
from iroh_proto.errors import DecodeError, LocalProtocolError

BINDING_REQUEST = 0x0001
BINDING_INDICATION = 0x0011
BINDING_RESPONSE = 0x0101
BINDING_ERROR = 0x0111

MAPPED_ADDRESS = 0x0001
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
XOR_MAPPED_ADDRESS = 0x0020
XOR_MAPPED_ADDRESS_ALTERNATE = 0x8020  # from a draft; some deployed servers still say it
SOFTWARE = 0x8022
FINGERPRINT = 0x8028

MAGIC_COOKIE = b"\x21\x12\xa4\x42"
HEADER_SIZE = 20
TRANSACTION_ID_SIZE = 12
FINGERPRINT_SIZE = 8  # with its header

TAILSCALE_SOFTWARE = "tailnode"
"""What SOFTWARE must say for Tailscale's servers to answer; iroh's own clients send none."""

Attribute: TypeAlias = tuple[int, bytes]
"""The type and the value of an attribute, without padding."""

_HEADER = struct.Struct(">HH4s12s")
_ATTRIBUTE = struct.Struct(">HH")
_ADDRESS = struct.Struct(">xBH")
_U32 = struct.Struct(">I")
_FINGERPRINT_MASK = 0x5354554E
_LENGTH_LIMIT = 0xFFFF
_IP_SIZES = {1: 4, 2: 16}  # bytes by address family


def is_stun(data: bytes) -> bool:
    """Say whether a datagram from a shared socket is STUN's (RFC 8489 section 5).

    The two top bits are clear in every STUN message, and the QUIC bit below them is set in every
    QUIC packet that iroh sends.
    """
    return len(data) >= HEADER_SIZE and data[0] < 0x40 and data[4:8] == MAGIC_COOKIE


class StunMessage:
    """A STUN message: its type (method and class in one), transaction id and attributes."""

    __slots__ = ("attributes", "message_type", "transaction_id")

    def __init__(
        self, message_type: int, transaction_id: bytes, attributes: Sequence[Attribute] = ()
    ) -> None:
        self.message_type = message_type
        self.transaction_id = transaction_id
        self.attributes = tuple(attributes)

    def get(self, attribute_type: int) -> bytes | None:
        """Return the value of the last attribute of this type, or ``None``."""
        for found, value in reversed(self.attributes):
            if found == attribute_type:
                return value
        return None

    def encode(self, *, fingerprint: bool = False) -> bytes:
        """Return the bytes of the message, with FINGERPRINT appended if wanted.

        :raises LocalProtocolError: if the transaction id is not 12 bytes, the type has its top
            bits set, or the attributes do not fit in 65,535 bytes.
        """
        if not 0 <= self.message_type < 0x4000:
            raise LocalProtocolError(f"not the type of a STUN message: {self.message_type:#06x}")
        if len(self.transaction_id) != TRANSACTION_ID_SIZE:
            raise LocalProtocolError(
                f"a transaction id is {TRANSACTION_ID_SIZE} bytes, not {len(self.transaction_id)}"
            )
        length = sum(_ATTRIBUTE.size + len(value) + -len(value) % 4 for _, value in self.attributes)
        length += FINGERPRINT_SIZE if fingerprint else 0
        if length > _LENGTH_LIMIT:
            raise LocalProtocolError(
                f"STUN attributes take {_LENGTH_LIMIT} bytes at most: {length}"
            )
        header = _HEADER.pack(self.message_type, length, MAGIC_COOKIE, self.transaction_id)
        message = header + b"".join(_encode_attribute(*entry) for entry in self.attributes)
        if not fingerprint:
            return message
        return message + _encode_attribute(FINGERPRINT, _U32.pack(_fingerprint(message)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StunMessage):
            return NotImplemented
        return (self.message_type, self.transaction_id, self.attributes) == (
            other.message_type,
            other.transaction_id,
            other.attributes,
        )

    __hash__ = None  # type: ignore[assignment]  # mutable content

    def __repr__(self) -> str:
        types = ", ".join(f"{attribute_type:#06x}" for attribute_type, _ in self.attributes)
        return f"StunMessage({self.message_type:#06x}, {self.transaction_id.hex()}, [{types}])"


def decode_stun(data: bytes) -> StunMessage:
    """Decode a datagram. Bytes after the message and unknown attributes are allowed.

    Checksums are not looked at: see :func:`verify_fingerprint` and :func:`verify_integrity`.

    :raises DecodeError: if it is not STUN, or an attribute is cut short.
    """
    message_type, _, transaction_id = _decode_header(data)
    attributes = [(kind, data[start:end]) for kind, start, end in _locate_attributes(data)]
    return StunMessage(message_type, transaction_id, attributes)


def encode_binding_request(transaction_id: bytes, *, software: str | None = None) -> bytes:
    """Return a Binding request: 28 bytes as iroh sends it, or 40 with Tailscale's software name.

    :param software: see :data:`TAILSCALE_SOFTWARE`.
    """
    attributes = [] if software is None else [(SOFTWARE, software.encode())]
    return StunMessage(BINDING_REQUEST, transaction_id, attributes).encode(fingerprint=True)


def decode_binding_request(data: bytes) -> bytes:
    """Return the transaction id of a Binding request.

    :raises DecodeError: if it is anything else, or its last attribute is not a correct
        FINGERPRINT. This is stricter than iroh's relays, which by accident also answer
        indications, and from 0.13 requests without attributes.
    """
    message = decode_stun(data)
    if message.message_type != BINDING_REQUEST:
        raise DecodeError(f"not a Binding request: STUN type {message.message_type:#06x}")
    if not message.attributes or message.attributes[-1][0] != FINGERPRINT:
        raise DecodeError("a Binding request must end with FINGERPRINT")
    if verify_fingerprint(data) is not True:
        raise DecodeError("the FINGERPRINT of this Binding request is wrong")
    return message.transaction_id


def encode_binding_response(transaction_id: bytes, addr: UdpAddress) -> bytes:
    """Return a Binding response that tells ``addr``: 32 bytes for IPv4, 44 for IPv6."""
    family = 2 if addr.is_ipv6 else 1
    value = _ADDRESS.pack(family, addr.port) + addr.packed_ip
    attribute = (XOR_MAPPED_ADDRESS, _xor_address(value, transaction_id))
    return StunMessage(BINDING_RESPONSE, transaction_id, [attribute]).encode()


def decode_binding_response(data: bytes) -> tuple[bytes, UdpAddress]:
    """Return the transaction id and the address that a Binding response tells.

    XOR-MAPPED-ADDRESS wins over MAPPED-ADDRESS wherever they stand. FINGERPRINT is not required,
    but must be right if it is there. IPv4-mapped addresses come out as IPv4.

    :raises DecodeError: if it is anything else, is malformed, or tells no address.
    """
    message = decode_stun(data)
    if message.message_type == BINDING_ERROR:
        raise DecodeError(f"the STUN server answers with {_describe_error(message)}")
    if message.message_type != BINDING_RESPONSE:
        raise DecodeError(f"not a Binding response: STUN type {message.message_type:#06x}")
    if verify_fingerprint(data) is False:
        raise DecodeError("the FINGERPRINT of this Binding response is wrong")
    told: UdpAddress | None = None
    unmasked: UdpAddress | None = None
    for attribute_type, value in message.attributes:
        if attribute_type in (XOR_MAPPED_ADDRESS, XOR_MAPPED_ADDRESS_ALTERNATE):
            told = _decode_address(_xor_address(value, message.transaction_id))
        elif attribute_type == MAPPED_ADDRESS:
            unmasked = _decode_address(value)
    address = told or unmasked
    if address is None:
        raise DecodeError("this Binding response tells no address")
    return message.transaction_id, address


def verify_fingerprint(data: bytes) -> bool | None:
    """Say whether a message's FINGERPRINT is right (RFC 8489 section 14.7); ``None`` without one.

    :raises DecodeError: if it is not STUN, or an attribute is cut short.
    """
    for kind, start, end in _locate_attributes(data):
        if kind == FINGERPRINT:
            covered = data[: start - _ATTRIBUTE.size]
            return data[start:end] == _U32.pack(_fingerprint(covered))
    return None


def verify_integrity(data: bytes, key: bytes) -> bool:
    """Say whether a message carries the MESSAGE-INTEGRITY of ``key`` (RFC 8489 section 14.5).

    :param key: the password for short-term credentials, or MD5 of ``user:realm:password``.
    :raises DecodeError: if it is not STUN, or an attribute is cut short.
    """
    for kind, start, end in _locate_attributes(data):
        if kind == MESSAGE_INTEGRITY:
            # What follows MESSAGE-INTEGRITY is not covered, so the length must not count it.
            length = (end - HEADER_SIZE).to_bytes(2, "big")
            covered = data[:2] + length + data[4 : start - _ATTRIBUTE.size]
            return hmac.compare_digest(data[start:end], hmac.digest(key, covered, "sha1"))
    return False


def _decode_header(data: bytes) -> tuple[int, int, bytes]:
    if not is_stun(data):
        raise DecodeError("not a STUN message")
    message_type, length, _, transaction_id = _HEADER.unpack_from(data)
    if length % 4:
        raise DecodeError(f"the length of a STUN message is a multiple of 4, not {length}")
    if HEADER_SIZE + length > len(data):
        raise DecodeError(f"STUN message cut short: {len(data)} of {HEADER_SIZE + length} bytes")
    return message_type, length, transaction_id


def _locate_attributes(data: bytes) -> list[tuple[int, int, int]]:
    """Return the type of each attribute, and where its value begins and ends."""
    _, length, _ = _decode_header(data)
    message_end = HEADER_SIZE + length
    position = HEADER_SIZE
    located: list[tuple[int, int, int]] = []
    while position < message_end:
        kind, size = _ATTRIBUTE.unpack_from(data, position)
        start = position + _ATTRIBUTE.size
        end = start + size
        position = end + -size % 4
        if position > message_end:
            raise DecodeError(f"STUN attribute {kind:#06x} overruns its message")
        located.append((kind, start, end))
    return located


def _encode_attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _fingerprint(covered: bytes) -> int:
    return zlib.crc32(covered) ^ _FINGERPRINT_MASK


def _xor_address(value: bytes, transaction_id: bytes) -> bytes:
    """Mask or unmask the port and the IP address of an address value."""
    mask = b"\0\0" + MAGIC_COOKIE[:2] + MAGIC_COOKIE + transaction_id
    return bytes(a ^ b for a, b in zip(value, mask, strict=False))


def _decode_address(value: bytes) -> UdpAddress:
    if len(value) < _ADDRESS.size:
        raise DecodeError(f"STUN address cut short: {value.hex()}")
    family, port = _ADDRESS.unpack_from(value)
    size = _IP_SIZES.get(family)
    if size is None:
        raise DecodeError(f"a STUN address has family 1 or 2, not {family}")
    packed = value[_ADDRESS.size : _ADDRESS.size + size]
    if len(packed) < size:
        raise DecodeError(f"STUN address cut short: {value.hex()}")
    return UdpAddress.of(ipaddress.ip_address(packed), port)


def _describe_error(message: StunMessage) -> str:
    value = message.get(ERROR_CODE) or b""
    if len(value) < 4:
        return "an error without a code"
    code = 100 * (value[2] & 0x07) + value[3]
    return f"error {code} ({value[4:].decode(errors='replace')!r})"
