"""QUIC address discovery (QAD) on the wire: what a server tells of where a packet came from.

A peer announces its part in a transport parameter, and a sender tells by a frame in 1-RTT packets
what it has observed::

    parameter 0x9f81a176    role: 0 sends, 1 receives, 2 both (variable-length integer)
    frame 0x9f81a6          sequence number (variable-length integer), IPv4 address (4), port (2)
    frame 0x9f81a7          sequence number (variable-length integer), IPv6 address (16), port (2)

Of several frames the one with the highest sequence number counts.

Source: draft-seemann-quic-address-discovery as in n0-computer/noq ``noq-proto/src/frame.rs``,
``transport_parameters.rs`` and ``address_discovery.rs``.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from iroh_proto.address import UdpAddress
from iroh_proto.errors import DecodeError
from iroh_proto.wire import decode_quic_varint, encode_quic_varint

QAD_ALPN: Final = b"/iroh-qad/0"
"""The protocol of servers that do nothing but tell what they observe."""

ROLE_PARAMETER: Final = 0x9F81A176
SENDS: Final = 0
RECEIVES: Final = 1
SENDS_AND_RECEIVES: Final = 2

OBSERVED_IPV4: Final = 0x9F81A6
OBSERVED_IPV6: Final = 0x9F81A7

OBSERVED_SIZE_LIMIT: Final = 4 + 8 + 16 + 2
"""Bytes of the longest frame, type included."""

CLOSE_CODE: Final = 1
CLOSE_REASON: Final = "finished"
"""How a client takes its leave."""

_PORT_SIZE: Final = 2


def encode_role(role: int) -> bytes:
    """Return the transport parameter with its identifier and length."""
    value = encode_quic_varint(role)
    return encode_quic_varint(ROLE_PARAMETER) + encode_quic_varint(len(value)) + value


def wants_observations(parameter: bytes | None) -> bool:
    """Say whether a peer receives observations, by the value of its parameter if it sent one."""
    if parameter is None:
        return False
    try:
        role, end = decode_quic_varint(parameter)
    except DecodeError:
        return False
    return end == len(parameter) and role in (RECEIVES, SENDS_AND_RECEIVES)


def frame_type_of(address: UdpAddress) -> int:
    """Return the type of the frame that carries an address."""
    return OBSERVED_IPV6 if address.is_ipv6 else OBSERVED_IPV4


def encode_observed(sequence: int, address: UdpAddress) -> bytes:
    """Return the frame behind its type."""
    return (
        encode_quic_varint(sequence) + address.packed_ip + address.port.to_bytes(_PORT_SIZE, "big")
    )


def decode_observed(frame_type: int, data: bytes) -> tuple[int, UdpAddress, int]:
    """Read a frame behind its type: the sequence number, the address, and where the frame ends.

    An IPv4 address mapped to IPv6 is returned as IPv4.

    :raises DecodeError: if the frame breaks off.
    """
    sequence, position = decode_quic_varint(data)
    end = position + (16 if frame_type == OBSERVED_IPV6 else 4)
    if end + _PORT_SIZE > len(data):
        raise DecodeError("an OBSERVED_ADDRESS frame breaks off")
    ip = str(ipaddress.ip_address(data[position:end]))
    port = int.from_bytes(data[end : end + _PORT_SIZE], "big")
    return sequence, UdpAddress.of(ip, port), end + _PORT_SIZE
